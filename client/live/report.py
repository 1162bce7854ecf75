"""What a live job leaves behind: how it kept its time, what was left out, and its segments."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from polylip.client.results import SegmentResult, Status

MAX_LAG_SAMPLES = 3600  # kept, however long the job: then every second one


class LagMeter:
    """The lag over time: how late packets leave. A delay that grows shows as its slope."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._step, self._seen = 1, 0

    def add(self, at_s: float, lag_ms: float) -> None:
        """One look."""
        if self._seen % self._step == 0:
            self._samples.append((at_s, lag_ms))
        self._seen += 1
        if len(self._samples) > MAX_LAG_SAMPLES:
            self._samples = self._samples[::2]
            self._step *= 2

    @property
    def slope_ms_per_min(self) -> float:
        """Of a straight line through all samples; 0 for fewer than three."""
        if len(self._samples) < 3:
            return 0.0
        times, lags = np.array(self._samples).T
        return float(np.polyfit(times / 60, lags, 1)[0])

    def to_dict(self) -> dict[str, float]:
        """For report.json."""
        lags = [lag for _, lag in self._samples] or [0.0]
        return {
            "p50_ms": float(np.percentile(lags, 50)),
            "p99_ms": float(np.percentile(lags, 99)),
            "worst_ms": max(lags),
            "slope_ms_per_min": self.slope_ms_per_min,
        }


@dataclass
class LiveReport:
    """The content of a live job's report."""

    profile: str
    source: str
    sink: str
    source_language: str
    target_language: str
    delay_s: float
    duration_s: float  # of the source
    ended: str  # why
    lag: dict[str, float]
    first_frame_ms: dict[str, float]  # from a segment's last word to its first picture with new lips: p50, p90
    av_offset_ms: dict[str, float]  # of segments: p50, p99 of its size
    source_sync: dict[str, Any]  # of the source's own sound and picture, and what was done about it
    segments: list[SegmentResult]
    statuses: dict[str, int]
    ladder: list[dict[str, Any]]
    counters: dict[str, int]
    engines: dict[str, str]
    versions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    trace: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def spread(values: list[float], *percentiles: int) -> dict[str, float]:
    """Percentiles by name; NaN, which JSON gets as null, where there is no value."""
    return {f"p{p}": float(np.percentile(values, p)) if values else math.nan for p in percentiles}


def status_counts(segments: list[SegmentResult]) -> dict[str, int]:
    """How many segments ended how; ways that none ended in are left out."""
    counts = {status.value: sum(s.status is status for s in segments) for status in Status}
    return {status: count for status, count in counts.items() if count}
