"""Curves on exact times: how loud speech is, how far a mouth is open, and how fast either changes.

A value sits at its own time, whatever the frame rate; a change sits at the mid-point of the two values that it is
between. Curves meet on a common grid by interpolation, and where a curve has a gap nothing is known.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.client.segmentation import SPEECH_RATE_HZ

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

STEP_MS = 10  # of the sound's envelope, and of the grid on which curves are compared
SMOOTH_MS = 60  # of both curves: a syllable lasts 100 to 200 ms
LOUDNESS_POWER = 0.5  # of the RMS: between amplitude and decibels, as mouths open
MAX_GAP_MS = 150.0  # between two frames, beyond which nothing is known of what lies between: 7 fps still count
WINDOW_MS = 50  # frames so near to a stretch of sound belong to it (design: the merge window)


@dataclass(frozen=True)
class Curve:
    """Values at rising times in milliseconds, both float64 (points,)."""

    times_ms: Float64
    values: Float64

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]]) -> Curve:
        """From (time_ms, value) in order."""
        times, values = np.array(list(points), np.float64).reshape(-1, 2).T
        return cls(times, values)

    def slope(self, over_ms: float = STEP_MS) -> Curve:
        """Change per second over a stretch of time around each point of the grid; none over a gap."""
        if len(self.times_ms) < 2:
            return Curve(np.zeros(0), np.zeros(0))
        first, last = int(-(-self.times_ms[0] // STEP_MS)), int(self.times_ms[-1] // STEP_MS)
        grid = np.arange(first, last + 1) * float(STEP_MS)
        before, is_before = self.sampled(grid - over_ms / 2)
        behind, is_behind = self.sampled(grid + over_ms / 2)
        known = is_before & is_behind
        return Curve(grid[known], (behind - before)[known] / over_ms * 1000)

    def size(self) -> Curve:
        """Without signs."""
        return Curve(self.times_ms, np.abs(self.values))

    def moved(self, shift_ms: Float64 | float) -> Curve:
        """The same values so much later; those that would come before an earlier one are left out."""
        times = self.times_ms + shift_ms
        rising = times > np.maximum.accumulate(np.concatenate([[-np.inf], times]))[:-1]
        return Curve(times[rising], self.values[rising])

    def sampled(self, grid_ms: Float64) -> tuple[Float64, Bool]:
        """Values on a grid by linear interpolation, 0 where not known, and where they are known."""
        times = self.times_ms
        if len(times) < 2:
            return np.zeros(len(grid_ms)), np.zeros(len(grid_ms), np.bool_)
        after = np.clip(np.searchsorted(times, grid_ms), 1, len(times) - 1)
        known = (grid_ms >= times[0]) & (grid_ms <= times[-1]) & (times[after] - times[after - 1] <= MAX_GAP_MS)
        return np.where(known, np.interp(grid_ms, times, self.values), 0.0), known


def loudness(audio: Float32, start_ms: float, *, silent_around_ms: int = 0) -> Curve:
    """Of speech float32 (samples,) at 16 kHz that begins at a time; with known silence before and behind it."""
    hop = SPEECH_RATE_HZ * STEP_MS // 1000
    hops = audio[: len(audio) // hop * hop].reshape(-1, hop).astype(np.float64)
    around = silent_around_ms // STEP_MS
    levels = np.pad(np.sqrt((hops**2).mean(axis=1)) ** LOUDNESS_POWER, around)
    width = SMOOTH_MS // STEP_MS
    kernel = np.ones(width + 1)
    kernel[[0, -1]] = 0.5  # an odd number of taps: an even one would move the curve by half a step
    smooth = np.convolve(levels, kernel / width)[width // 2 : width // 2 + len(levels)]
    return Curve(start_ms + (np.arange(len(levels)) - around + 0.5) * STEP_MS, smooth)


def motion(times_ms: Sequence[float], motions: Sequence[float | None]) -> Curve:
    """Frame differences, each since the frame before it and so at the mid-point of both, per second.

    None where the frame before had no such mouth.
    """
    pairs = list(zip(times_ms, times_ms[1:], motions[1:], strict=False))
    return Curve.of(
        ((a + b) / 2, value * 1000 / (b - a)) for a, b, value in pairs if value is not None and 0 < b - a <= MAX_GAP_MS
    )


def frames_in_window(times_ms: Sequence[float], start_ms: float, end_ms: float) -> range:
    """Indices of the frames from `start_ms` - 50 to `end_ms` + 50, both included; the times rise."""
    return range(bisect_left(times_ms, start_ms - WINDOW_MS), bisect_right(times_ms, end_ms + WINDOW_MS))
