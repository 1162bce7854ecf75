"""How many streams a server sustains: the verdict on one probe, and the search over probes. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

QUANTILES = (50, 95, 99)
ALLOWED = 0.01  # of the requests of a kind may be late: that is what "p99 below" means


@dataclass(frozen=True)
class Outcome:
    """How one request of a stream ended."""

    kind: str
    due_s: float  # since the probe began, warm-up included
    length_s: float  # of the media it stands for, and its time limit
    latency_s: float | None  # from `due_s` to the answer, of `speech` to its first sound; None when it failed
    lag_s: float = 0.0  # of it, how late the generator itself sent it
    error: str = ""

    @property
    def missed(self) -> bool:
        """Answered, but too late."""
        return self.latency_s is not None and self.latency_s >= self.length_s


def allowed_misses(requests: int) -> int:
    """How many of so many may be late with the 99th percentile still in time: none of fewer than 100."""
    return math.floor(ALLOWED * requests)


def percentile(values: Iterable[float], percent: int) -> float | None:
    """By nearest rank, so that it is one of the values; None of none."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1] if ordered else None


def judge(outcomes: list[Outcome], kinds: Iterable[str]) -> dict[str, Any]:
    """Figures per kind, and whether all of them were sustained.

    A kind is when nothing of it failed and the 99th percentile of latency over length is below 1; None: not seen.
    """
    figures = {kind: _figures([outcome for outcome in outcomes if outcome.kind == kind]) for kind in kinds}
    return {
        "sustained": all(figure["sustained"] for figure in figures.values()),
        "kinds": figures,
        "lag_p99_ms": _ms(percentile((outcome.lag_s for outcome in outcomes), 99)),
        "errors": sorted({outcome.error for outcome in outcomes if outcome.error}),
    }


def _figures(outcomes: list[Outcome]) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if outcome.latency_s is not None]
    failed = len(outcomes) - len(answered)
    missed = sum(outcome.missed for outcome in answered)
    latencies = [outcome.latency_s for outcome in answered if outcome.latency_s is not None]
    return {
        "requests": len(outcomes),
        **{f"p{percent}_ms": _ms(percentile(latencies, percent)) for percent in QUANTILES},
        "limit_ms": _ms(min((outcome.length_s for outcome in outcomes), default=None)),
        "missed": missed,
        "failed": failed,
        "sustained": not failed and missed <= allowed_misses(len(answered)) if outcomes else None,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


@dataclass(frozen=True)
class Found:
    """Where the search ended."""

    good: int  # the most streams that were sustained; 0 when one was already too many
    bad: int | None  # the fewest that were not; None when the limit was sustained


def search(limit: int, probe: Callable[[int], bool]) -> Found:
    """The most of 1 to `limit` for which `probe` is true, should it be true up to there and false from there on.

    Doubles until it is false, then halves the interval, so it takes about 2 log2 of the answer probes.
    """
    good, bad = 0, None
    while bad is None and good < limit:
        count = min(limit, max(1, 2 * good))
        if probe(count):
            good = count
        else:
            bad = count
    while bad is not None and bad - good > 1:
        middle = (good + bad) // 2
        if probe(middle):
            good = middle
        else:
            bad = middle
    return Found(good, bad)
