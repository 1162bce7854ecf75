"""The ring of frames between the analysis, which runs ahead, and the output: time and faces of each, no pixels.

Pixels are decoded a second time at output: that costs 3 ms per 720p frame and keeps memory independent of the picture
size and of how long the speech branch takes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from polylip.client.pulse import Pulse

MIN_SLOTS = 600  # 20 s at 30 fps: a segment of 10 s plus the time until its dub is there
SECONDS_AHEAD = 20.0

SEEN_SCORE = 0.45  # share of a face's usual score below which the detector has missed it

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Face:
    """One face in one frame."""

    box_px: Box  # x1, y1, x2, y2 in the source picture
    track_id: int  # unique over the whole job
    score: float = 1.0  # of the tracker, as a share of what this face usually has; low where it is hardly seen
    opening: float = 0.0  # of the mouth: grey levels that it is darker than the upper face
    motion: float | None = None  # of the mouth since the frame before, grey levels; None where that lacks the face

    @property
    def seen(self) -> bool:
        """Whether it is really there, not just carried on by the tracker."""
        return self.score >= SEEN_SCORE

    @property
    def side_px(self) -> float:
        """Of the square with the box's area."""
        x1, y1, x2, y2 = self.box_px
        return math.sqrt(max(0.0, x2 - x1) * max(0.0, y2 - y1))


@dataclass(frozen=True)
class Slot:
    """One frame."""

    index: int
    time_ms: float
    shot: int  # counts the cuts before it
    faces: tuple[Face, ...] = ()


class FrameRing:
    """Frames in order. Added by the analysis, given their faces chunk by chunk, taken by the output."""

    def __init__(self, frames_per_second: float, pulse: Pulse, ahead_frames: int = 0) -> None:
        """`ahead_frames`: a frame can be taken when so many behind it are settled, or there are no more."""
        self.capacity = max(MIN_SLOTS, round(SECONDS_AHEAD * frames_per_second))
        self._ahead = ahead_frames
        self._pulse = pulse
        self.high_water = 0
        self.added = 0
        self.closed = False  # no frame comes any more
        self._slots: deque[Slot] = deque()
        self._answered = 0  # frames below this index have been through `faces`
        self._given_up = 0  # and no answer is waited for below this one
        self.expired = 0  # frames that were taken without their answer

    def begin_at(self, index: int) -> None:
        """Of a job that goes on: the frames before are written."""
        self.added = self._answered = self._given_up = index

    async def add(self, time_ms: float, shot: int = 0) -> None:
        """Append a frame; waits while the ring is full."""
        await self._pulse.until(lambda: not self.full)
        self._slots.append(Slot(self.added, time_ms, shot))
        self.added += 1
        self.high_water = max(self.high_water, len(self._slots))
        self._pulse.beat()

    def close(self) -> None:
        self.closed = True
        self._pulse.beat()

    @property
    def _known(self) -> int:
        """Frames below this index can be taken as they are."""
        return max(self._answered, self._given_up)

    def settle(self, faces: Sequence[tuple[Face, ...]]) -> None:
        """The faces of the next frames in order; () where there are none, or where the analysis failed."""
        first = self._slots[0].index if self._slots else self.added
        for index, found in enumerate(faces, self._answered):
            if index >= first:
                slot = self._slots[index - first]
                self._slots[index - first] = Slot(slot.index, slot.time_ms, slot.shot, found)
        self._answered += len(faces)
        self._pulse.beat()

    def give_up(self, before_ms: float) -> None:
        """Wait no longer for the faces of frames before a time: a live output must show them now."""
        for slot in self._slots:
            if slot.time_ms >= before_ms:
                break
            if slot.index >= self._known:
                self._given_up = slot.index + 1
                self.expired += 1
        self._pulse.beat()

    def take(self, limit: int, before_ms: float) -> list[Slot]:
        """Remove and return up to `limit` settled frames with a time below `before_ms`."""
        taken: list[Slot] = []
        while len(taken) < limit and self.ready(before_ms):
            taken.append(self._slots.popleft())
        if taken:
            self._pulse.beat()
        return taken

    def ready(self, before_ms: float) -> bool:
        """Whether `take` would return a frame."""
        if not self._slots or self._slots[0].time_ms >= before_ms:
            return False
        index = self._slots[0].index
        return index < self._given_up or index + (0 if self.closed else self._ahead) < self._answered

    def settled(self, limit: int | None = None) -> list[Slot]:
        """The settled frames that have not been taken yet, the first `limit` of them."""
        count = self._known - self._slots[0].index if self._slots else 0
        return list(islice(self._slots, count if limit is None else min(count, limit)))

    def settled_to(self, time_ms: float) -> bool:
        """Whether the faces are known up to a time, or as far as they can be: the ring is full or at its end."""
        count = self._known - self._slots[0].index if self._slots else 0
        return self.closed or self.full or (count > 0 and self._slots[count - 1].time_ms >= time_ms)

    @property
    def full(self) -> bool:
        return len(self._slots) >= self.capacity

    @property
    def finished(self) -> bool:
        """Whether every frame has been taken."""
        return self.closed and not self._slots
