"""Two figures for pasted mouths: `seam`, whether the edge of the mask shows, and `flicker`, whether it trembles.

Both compare the output's luma with the source's. Memory does not grow with the video. docs/blending.md defines them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

SEAM_SIDE_PX = 200  # larger pictures are sampled, so that every face costs about the same
SEAM_RANGE, SEAM_STEP = (-8.0, 24.0), 0.05  # grey levels per pixel of the picture
MOVED_RANGE, MOVED_STEP = (0.0, 64.0), 0.05  # grey levels from frame to frame
MIN_EDGE = 1.0  # sum of |grad w|: a mask with less is hardly there
INSIDE = 0.5  # weight from which on a pixel belongs to the mask
COMPARE_SIZE = (96, 56)  # columns and rows on which frames are compared, as the face moves about: the crop's lower part
STILL_LEVELS = 0.5  # the source's own frame difference counts as at least this: rounding alone makes about as much
WORST = 0.95  # quantile


@dataclass(frozen=True)
class Patch:
    """A region of one frame before and after a paste."""

    source: UInt8  # (h, w) luma
    pasted: UInt8  # (h, w) luma
    weight: Float32  # (any size) of the paste in [0, 1], over the same region


_Small = tuple[Float32, Float32, Float32]  # source, pasted and weight of one frame


@dataclass(frozen=True)
class SpreadState:
    """Counts by value, and the sum."""

    counts: npt.NDArray[np.int64]
    sum: float


@dataclass(frozen=True)
class QualityState:
    """All that a `QualityMeter` has measured."""

    seams: SpreadState
    moved_source: SpreadState
    moved_pasted: SpreadState


class Spread:
    """Mean and quantiles of a stream of numbers, in constant memory: values beyond the range count as its ends."""

    def __init__(self, value_range: tuple[float, float], step: float) -> None:
        self._first, self._step = value_range[0], step
        self._counts = np.zeros(round((value_range[1] - value_range[0]) / step) + 1, np.int64)
        self._sum = 0.0

    def add(self, value: float) -> None:
        place = round((value - self._first) / self._step)
        self._counts[min(max(place, 0), self._counts.size - 1)] += 1
        self._sum += value

    def state(self) -> SpreadState:
        return SpreadState(self._counts.copy(), self._sum)

    def restore(self, state: SpreadState) -> None:
        self._counts, self._sum = state.counts.copy(), state.sum

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def mean(self) -> float | None:
        return self._sum / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value that `share` of the numbers do not exceed, to the nearest step."""
        if not self.count:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), share * self.count))
        return self._first + place * self._step


class QualityMeter:
    """Measures every patch of a video, in order."""

    def __init__(self) -> None:
        self._seams = Spread(SEAM_RANGE, SEAM_STEP)
        self._moved_source, self._moved_pasted = (Spread(MOVED_RANGE, MOVED_STEP) for _ in range(2))
        self._last: _Small | None = None

    def add(self, patch: Patch) -> None:
        """One pasted frame; the one before it was added before, unless `reset` was called in between."""
        seam = mask_seam(patch)
        if seam is not None:
            self._seams.add(seam)
        now = _shrunk(patch.source), _shrunk(patch.pasted), _shrunk(patch.weight)
        if self._last is not None:
            self._compare(self._last, now)
        self._last = now

    def reset(self) -> None:
        """The next frame does not follow the last one: a gap, a cut or another face."""
        self._last = None

    def state(self) -> QualityState:
        return QualityState(self._seams.state(), self._moved_source.state(), self._moved_pasted.state())

    def restore(self, state: QualityState) -> None:
        self._seams.restore(state.seams)
        self._moved_source.restore(state.moved_source)
        self._moved_pasted.restore(state.moved_pasted)

    def _compare(self, last: _Small, now: _Small) -> None:
        inside = cv2.compare(cv2.max(last[2], now[2]), INSIDE, cv2.CMP_GE)
        pixels = cv2.countNonZero(inside)
        if not pixels:
            return
        moved_source, moved_pasted = (cv2.norm(now[i], last[i], cv2.NORM_L1, inside) / pixels for i in (0, 1))
        self._moved_source.add(moved_source)
        self._moved_pasted.add(moved_pasted)

    @property
    def seam(self) -> float | None:
        """Mean gradient jump over the mask's edge, grey levels per pixel; None where nothing was pasted."""
        return self._seams.mean

    @property
    def seam_worst(self) -> float | None:
        """The same in the worst twentieth of the frames: their 95th percentile."""
        return self._seams.quantile(WORST)

    @property
    def flicker(self) -> float | None:
        """Frame difference inside the mask as a share of the source's; None without two frames in a row."""
        return _share(self._moved_pasted.mean, self._moved_source.mean)

    @property
    def flicker_worst(self) -> float | None:
        """The same of the liveliest twentieth of either: of their 95th percentiles."""
        return _share(self._moved_pasted.quantile(WORST), self._moved_source.quantile(WORST))


def _share(pasted: float | None, source: float | None) -> float | None:
    return None if pasted is None or source is None else pasted / max(source, STILL_LEVELS)


def mask_seam(patch: Patch) -> float | None:
    """Mean over the mask's edge of |gradient across it, pasted| - |the same, source|; None without an edge.

    A pixel is edge as far as the weight w changes there: a hard edge counts where it jumps, a feathered one over its
    width. Only the outer half counts, where the source's own texture is still there to compare with. With the normal
    n = grad w / |grad w| that makes sum(|grad P . grad w| - |grad S . grad w|) / sum |grad w|.
    """
    height, width = patch.source.shape
    every = -(-max(height, width) // SEAM_SIDE_PX)
    weight = cv2.resize(patch.weight, (width, height), interpolation=cv2.INTER_LINEAR)
    across, down = _gradient(weight, every)
    outer = weight[1:-1:every, 1:-1:every] < INSIDE
    across, down = across * outer, down * outer
    edge = float(cv2.sumElems(cv2.magnitude(across, down))[0])
    if edge < MIN_EDGE:
        return None
    sums = []
    for luma in (patch.pasted, patch.source):
        right, below = _gradient(luma, every)
        sums.append(cv2.norm(right * across + below * down, cv2.NORM_L1))
    return (sums[0] - sums[1]) / edge


def _gradient(picture: UInt8 | Float32, every: int) -> tuple[Float32, Float32]:
    """Central differences per pixel to the right and down, at every n-th row and column inside the outermost ones."""
    right = cv2.subtract(picture[1:-1:every, 2::every], picture[1:-1:every, :-2:every], dtype=cv2.CV_32F)
    below = cv2.subtract(picture[2::every, 1:-1:every], picture[:-2:every, 1:-1:every], dtype=cv2.CV_32F)
    return right * np.float32(0.5), below * np.float32(0.5)


def _shrunk(picture: UInt8 | Float32) -> Float32:
    return np.asarray(cv2.resize(picture, COMPARE_SIZE, interpolation=cv2.INTER_AREA), np.float32)
