"""How well the rendered mouth follows the dubbed sound: correlates speech energy with mouth opening.

Method and sign from the project's synchronisation measurements: like with like (energy with openness), windows of 2 to
10 s, parabolic peak; a positive offset means that the picture is late.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polylip.client.segmentation import SPEECH_RATE_HZ
from polylip.client.timeline import Dub

STEP_MS = 10  # both envelopes are compared on this grid
MAX_OFFSET_MS = 500
MIN_WINDOW_MS = 1500  # shorter windows scatter by more than the offset that matters
SMOOTH_MS = 60  # a syllable lasts 100 to 200 ms


class OffsetMeter:
    """Collects mouth openings per frame and estimates one offset per dubbed segment."""

    def __init__(self) -> None:
        self._openings: dict[str, list[tuple[float, float]]] = {}
        self._offsets_ms: list[float] = []

    def add(self, dub: Dub, time_ms: float, opening: float) -> None:
        """How far the mouth is open in the frame at `time_ms`, in any unit."""
        self._openings.setdefault(dub.segment.id, []).append((time_ms - (dub.start_ms or 0), opening))

    def close(self, dub: Dub) -> None:
        """The segment is complete: measure it and forget its frames."""
        points = self._openings.pop(dub.segment.id, [])
        offset = mouth_offset_ms(dub.speech, points)
        if offset is not None:
            self._offsets_ms.append(offset)

    @property
    def offset_ms(self) -> float | None:
        """The median over the segments; None when no segment could be measured."""
        return float(np.median(self._offsets_ms)) if self._offsets_ms else None


def mouth_offset_ms(speech: npt.NDArray[np.float32], points: list[tuple[float, float]]) -> float | None:
    """Milliseconds by which openings (time_ms, value) trail speech float32 (samples,) at 16 kHz; None if unclear."""
    if len(points) < 2 or points[-1][0] - points[0][0] < MIN_WINDOW_MS:
        return None
    times, values = np.array(points, np.float64).T
    grid = np.arange(times[0], times[-1], STEP_MS)
    opening = np.interp(grid, times, values)
    hop = SPEECH_RATE_HZ * STEP_MS // 1000
    energy = np.sqrt((speech[: len(speech) // hop * hop].reshape(-1, hop).astype(np.float64) ** 2).mean(axis=1))
    kernel = np.ones(SMOOTH_MS // STEP_MS) / (SMOOTH_MS // STEP_MS)
    loudness = np.interp(grid, (np.arange(len(energy)) + 0.5) * STEP_MS, np.convolve(energy, kernel, "same"))
    if opening.std() < 1e-6 or loudness.std() < 1e-6:
        return None
    a = (opening - opening.mean()) / opening.std()
    b = (loudness - loudness.mean()) / loudness.std()
    limit = min(MAX_OFFSET_MS // STEP_MS, len(a) // 2)
    scores = [float((a[max(0, s) : len(a) + min(0, s)] * b[max(0, -s) : len(b) - max(0, s)]).mean())
              for s in range(-limit, limit + 1)]  # fmt: skip
    return _parabolic_peak(scores, -limit) * STEP_MS


def _parabolic_peak(scores: list[float], first: int) -> float:
    """Position of the maximum of evenly spaced scores, refined by a parabola through its neighbours."""
    best = int(np.argmax(scores))
    if best in (0, len(scores) - 1):
        return float(first + best)
    left, middle, right = scores[best - 1 : best + 2]
    curve = left - 2 * middle + right
    return first + best + (0.0 if curve == 0 else 0.5 * (left - right) / curve)
