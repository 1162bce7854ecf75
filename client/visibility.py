"""How far the lips of a frame may be drawn, 0 to 1: they fade before a face is lost to view, not after.

The output lags behind the analysis, so what comes is known. A cut ends a fade: nothing is faded across it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from polylip.client.results import HiddenSpan, HideReason
from polylip.client.ring import Face, Slot
from polylip.serving.crops import MIN_BOX_PX

RAMP_MS = 160.0  # of a fade, which ends at the first frame without the face
MISS_MS = 250.0  # a detector that misses a face for less has missed a key frame, no more
DIP_PER_S = 1.5  # a score that changes faster leads from a key frame with the face to one without: it goes in between
DIP_MS = 220.0  # the longest such way: the distance of key frames
INSIDE_WHOLE, INSIDE_NONE = 0.92, 0.75  # part of the box in the picture from which on, and up to which, lips show
SIZE_WHOLE = 1.25  # times the least size, from which on lips are whole
GAP_FRAMES = 2  # a shorter stretch in view does not part two hidden ones in the report

FaceOf = Callable[[Slot], Face | None]


@dataclass(frozen=True)
class View:
    """What can be seen of a face."""

    strength: float  # 0 to 1
    hidden: HideReason | None = None  # why it is 0


def frames_around(frames_per_second: float) -> int:
    """Frames on either side of one that its view depends on."""
    return math.ceil((RAMP_MS + MISS_MS + DIP_MS) / 1000 * frames_per_second)


class Visibility:
    """Judges the frames of one picture size."""

    def __init__(self, width: int, height: int, frames_per_second: float) -> None:
        self._width, self._height = width, height
        self._frame_ms = 1000 / frames_per_second

    def views(self, slots: Sequence[Slot], face_of: FaceOf) -> dict[int, View]:
        """By index, for consecutive frames; right for those that have `frames_around` others on either side."""
        views: dict[int, View] = {}
        for _, shot in groupby(slots, key=lambda slot: slot.shot):
            views |= self._shot(list(shot), face_of)
        return views

    def _shot(self, slots: list[Slot], face_of: FaceOf) -> dict[int, View]:
        faces = [face_of(slot) for slot in slots]
        views = [self._alone(face) for face in faces]
        groups = groupby(range(len(slots)), key=lambda index: views[index].hidden is not None)
        hidden_runs = [list(group) for is_hidden, group in groups if is_hidden]
        hidden_ms: list[float] = []
        for run in hidden_runs:
            times_ms = [slots[i].time_ms for i in run]
            covered = all(views[i].hidden is HideReason.COVERED for i in run)
            if covered and times_ms[-1] - times_ms[0] + self._frame_ms < MISS_MS:
                views[run[0] : run[-1] + 1] = [self._placed(faces[i]) for i in run]
                continue
            for index in [*self._dip(slots, faces, run[0], -1), *self._dip(slots, faces, run[-1], 1)]:
                views[index] = View(0.0, HideReason.COVERED)
                hidden_ms.append(slots[index].time_ms)
            hidden_ms += times_ms
            if run[0] > 0 and views[run[0]].hidden is HideReason.NOT_FOUND:
                gone = View(0.0, self._why_gone(faces[run[0] - 1]))
                views[run[0] : run[-1] + 1] = [
                    gone if views[i].hidden is HideReason.NOT_FOUND else views[i] for i in run
                ]
        return {slot.index: self._faded(view, slot, hidden_ms) for slot, view in zip(slots, views, strict=True)}

    def _dip(self, slots: list[Slot], faces: list[Face | None], edge: int, step: int) -> Iterator[int]:
        """The frames beside a hidden run in which the face may already, or still, be gone."""
        index = edge + step
        while 0 < index < len(slots) - 1:
            here, beyond = faces[index], faces[index + step]
            if here is None or beyond is None or not here.seen:
                return
            seconds = abs(slots[index + step].time_ms - slots[index].time_ms) / 1000
            if beyond.score - here.score < DIP_PER_S * seconds:
                return
            yield index
            index += step

    def _faded(self, view: View, slot: Slot, hidden_ms: Sequence[float]) -> View:
        if view.hidden is not None or not hidden_ms:
            return view
        nearest_ms = min(abs(slot.time_ms - time_ms) for time_ms in hidden_ms)
        return View(min(view.strength, _ease(nearest_ms / RAMP_MS)))

    def _alone(self, face: Face | None) -> View:
        """One frame without its neighbours."""
        view = self._placed(face)
        return View(0.0, HideReason.COVERED) if face is not None and view.hidden is None and not face.seen else view

    def _placed(self, face: Face | None) -> View:
        """By size and place alone."""
        if face is None:
            return View(0.0, HideReason.NOT_FOUND)
        x1, y1, x2, y2 = face.box_px
        size = (min(x2 - x1, y2 - y1) / MIN_BOX_PX - 1) / (SIZE_WHOLE - 1)
        if size <= 0:
            return View(0.0, HideReason.SMALL)
        inside = (self._inside(face) - INSIDE_NONE) / (INSIDE_WHOLE - INSIDE_NONE)
        if inside <= 0:
            return View(0.0, HideReason.LEAVES)
        return View(_ease(min(size, inside)))

    def _inside(self, face: Face) -> float:
        """The part of a box that lies in the picture."""
        x1, y1, x2, y2 = face.box_px
        across = max(0.0, min(x2, self._width) - max(x1, 0.0))
        down = max(0.0, min(y2, self._height) - max(y1, 0.0))
        return across * down / ((x2 - x1) * (y2 - y1))

    def _why_gone(self, before: Face | None) -> HideReason:
        """Why a face is no longer tracked: what its last frame says."""
        at_edge = before is not None and self._inside(before) < INSIDE_WHOLE
        return HideReason.LEAVES if at_edge else HideReason.COVERED


def _ease(share: float) -> float:
    """0 to 1 without a corner at either end."""
    share = min(1.0, max(0.0, share))
    return share * share * (3 - 2 * share)


class HiddenSpans:
    """Joins the hidden frames under the dubs to spans for the report."""

    def __init__(self, frame_ms: float) -> None:
        self._frame_ms = frame_ms
        self.spans: list[HiddenSpan] = []

    def add(self, time_ms: float, reason: HideReason) -> None:
        """One hidden frame, in order. A stretch goes on under the reason that it began with."""
        start_ms, end_ms = round(time_ms), round(time_ms + self._frame_ms)
        if self.spans and time_ms - self.spans[-1].end_ms <= GAP_FRAMES * self._frame_ms:
            last = self.spans.pop()
            start_ms, reason = last.start_ms, last.reason
        self.spans.append(HiddenSpan(start_ms, end_ms, reason))
