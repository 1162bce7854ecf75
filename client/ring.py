"""The ring of frames between the analysis, which runs ahead, and the output: time and face of each, no pixels.

Pixels are decoded a second time at output: that costs 3 ms per 720p frame and keeps memory independent of the picture
size and of how long the speech branch takes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from polylip.client.pulse import Pulse

MIN_SLOTS = 600  # 20 s at 30 fps: a segment of 10 s plus the time until its dub is there
SECONDS_AHEAD = 20.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Face:
    """The speaker's face in one frame."""

    box_px: Box  # x1, y1, x2, y2 in the source picture
    track_id: int


@dataclass
class Slot:
    """One frame."""

    index: int
    time_ms: float
    face: Face | None = None


class FrameRing:
    """Frames in order. Added by the analysis, given their faces chunk by chunk, taken by the output."""

    def __init__(self, frames_per_second: float, pulse: Pulse) -> None:
        self.capacity = max(MIN_SLOTS, round(SECONDS_AHEAD * frames_per_second))
        self._pulse = pulse
        self.high_water = 0
        self.added = 0
        self.closed = False  # no frame comes any more
        self._slots: deque[Slot] = deque()
        self._known = 0  # frames below this index have been through `faces`

    async def add(self, time_ms: float) -> None:
        """Append a frame; waits while the ring is full."""
        await self._pulse.until(lambda: len(self._slots) < self.capacity)
        self._slots.append(Slot(self.added, time_ms))
        self.added += 1
        self.high_water = max(self.high_water, len(self._slots))
        self._pulse.beat()

    def close(self) -> None:
        self.closed = True
        self._pulse.beat()

    def settle(self, faces: list[Face | None]) -> None:
        """The faces of the next frames in order; None where there is none, or where the analysis failed."""
        first = self._slots[0].index
        for offset, face in enumerate(faces):
            self._slots[self._known + offset - first].face = face
        self._known += len(faces)
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
        return bool(self._slots) and self._slots[0].index < self._known and self._slots[0].time_ms < before_ms

    @property
    def finished(self) -> bool:
        """Whether every frame has been taken."""
        return self.closed and not self._slots
