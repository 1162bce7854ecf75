"""Small luma pictures of every frame, and from them the first frames of new shots (hard cuts).

A cut changes where things are and how bright they are for good, from one frame to the next. A pan changes the first
alone, steadily; a flash or a new exposure the second alone; a strong flash both, but the old picture comes back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

THUMB_WIDTH, THUMB_HEIGHT = 320, 180  # fits into it: a mouth of the smallest face worth re-lipping has 5 pixels here
LUMA_FIRST = frozenset({"yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "nv12", "gray"})

# Thresholds chosen on pans, zooms, flashes, fades and cuts between still pictures, as in tests/test_cuts.py.
LAYOUT_SIZE = (32, 18)  # noise and small motion average out
LAYOUT_STABILITY = 32.0  # grey levels^2: keeps the noise of an even picture from counting as a layout
HISTOGRAM_BINS = 32
CUT_LAYOUT = 0.35  # of 2, where 1 means unrelated: cuts have 0.5 and more, slow pans and zooms less than 0.3
BACK_LAYOUT = 0.3  # nearer than this, the picture from before is back
CUT_BRIGHTNESS = 0.2  # part of the pixels that change their level: two pictures have more, a whip pan 0.12 ...
CUT_RATIO = 3.0  # ... or the layout changes this much more than in the frames around: a cut within one scene
CONTEXT = 3  # frames on either side; a flash of so many is no cut
MIN_SHOT = 5  # frames: strobes and slide shows cannot make every frame a first one


def thumbnail(frame: Any) -> UInt8:
    """av.VideoFrame -> its luma, uint8 of at most (THUMB_HEIGHT, THUMB_WIDTH), with the picture's proportions."""
    scale = min(THUMB_WIDTH / frame.width, THUMB_HEIGHT / frame.height)
    width, height = max(2, round(frame.width * scale)), max(2, round(frame.height * scale))
    if frame.format.name not in LUMA_FIRST:
        return np.asarray(frame.to_ndarray(format="gray", width=width, height=height, interpolation="AREA"), np.uint8)
    plane = frame.planes[0]
    luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    # Halving has a fast path; one step with INTER_AREA takes ten times as long.
    while luma.shape[1] >= 2 * width and luma.shape[0] >= 2 * height:
        luma = cv2.resize(luma, (luma.shape[1] // 2, luma.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(luma, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


@dataclass(frozen=True)
class _Look:
    """What is compared of a frame."""

    layout: Float32  # (n,) mean grey levels of its parts, less their mean
    variance: float
    histogram: Float32  # (HISTOGRAM_BINS,), sums to 1

    @classmethod
    def of(cls, thumb: UInt8) -> _Look:
        parts = cv2.resize(thumb, LAYOUT_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        parts -= parts.mean()
        histogram = cv2.calcHist([thumb], [0], None, [HISTOGRAM_BINS], [0, 256]).ravel() / thumb.size
        return cls(parts, float(np.mean(parts * parts)), np.asarray(histogram, np.float32))

    def layout_change(self, other: _Look) -> float:
        """0 for the same picture, brighter or darker; 1 for unrelated ones; at most 2."""
        shared = float(np.mean(self.layout * other.layout))
        return 1.0 - (2 * shared + LAYOUT_STABILITY) / (self.variance + other.variance + LAYOUT_STABILITY)

    def brightness_change(self, other: _Look) -> float:
        """0 for the same levels wherever they are, 1 for none in common."""
        return float(np.abs(self.histogram - other.histogram).sum()) / 2


class CutDetector:
    """Takes the thumbnails of a stream in order; answers CONTEXT frames later."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(
            maxlen=2 * CONTEXT + 2
        )  # CONTEXT + 1 before the judged one, it, CONTEXT after
        self._changes: deque[float] = deque(maxlen=2 * CONTEXT + 2)  # of each look from the one before
        self._pushed = 0
        self._judged = 0
        self._last_cut = 0

    def push(self, thumb: UInt8) -> list[bool]:
        """Whether each frame that has now become certain starts a new shot; the first frame of all does not."""
        look = _Look.of(thumb)
        self._changes.append(self._looks[-1].layout_change(look) if self._looks else 0.0)
        self._looks.append(look)
        self._pushed += 1
        return [self._judge()] if self._pushed > CONTEXT else []

    def flush(self) -> list[bool]:
        """The answers for the last frames."""
        return [self._judge() for _ in range(self._pushed - self._judged)]

    def _judge(self) -> bool:
        """The oldest frame without an answer."""
        at = len(self._looks) - (self._pushed - self._judged)
        self._judged += 1
        if self._judged - 1 - self._last_cut < MIN_SHOT or not self._is_cut(at):
            return False
        self._last_cut = self._judged - 1
        return True

    def _is_cut(self, at: int) -> bool:
        looks, changes = list(self._looks), list(self._changes)
        now, last = looks[at], looks[at - 1]
        if changes[at] < CUT_LAYOUT:
            return False
        before, after = looks[max(0, at - 1 - CONTEXT) : at - 1], looks[at + 1 : at + 1 + CONTEXT]
        if any(last.layout_change(look) < BACK_LAYOUT for look in after):
            return False
        if any(now.layout_change(look) < BACK_LAYOUT for look in before):
            return False
        if now.brightness_change(last) > CUT_BRIGHTNESS:
            return True
        around = [changes[max(1, at - CONTEXT) : at], changes[at + 1 : at + 1 + CONTEXT]]
        usual = max((float(np.median(side)) for side in around if side), default=0.0)
        return changes[at] > CUT_RATIO * usual
