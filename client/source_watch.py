"""Collects the frames of a segment until all its faces are known, and has its own sound and picture compared.

A live dub begins before the last faces of its segment are known, and its first frames leave before that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from polylip.client.ring import FrameRing, Slot
from polylip.client.segmentation import Segment
from polylip.client.speaker import Choice
from polylip.client.sync import SourceSync


@dataclass
class _Watched:
    """A segment, its speaker, and its frames that have left the ring, by index."""

    segment: Segment
    choice: Choice
    frames: dict[int, Slot] = field(default_factory=dict)

    def add(self, slots: Iterable[Slot]) -> None:
        inside = (slot for slot in slots if self.segment.start_ms <= slot.time_ms < self.segment.end_ms)
        self.frames |= {slot.index: slot for slot in inside}


class SourceWatch:
    """The segments whose source is still to be measured, in order."""

    def __init__(self, sync: SourceSync) -> None:
        self._sync = sync
        self._watched: deque[_Watched] = deque()

    def add(self, segment: Segment, choice: Choice, taken: Iterable[Slot]) -> None:
        """A segment whose speaker was chosen; `taken` are frames that have left the ring."""
        watched = _Watched(segment, choice)
        watched.add(taken)
        self._watched.append(watched)

    def take(self, slots: Sequence[Slot]) -> None:
        """Frames that leave the ring."""
        for watched in self._watched:
            watched.add(slots)

    async def measure(self, ring: FrameRing) -> None:
        """Every segment whose faces are known to its end, or as far as they will ever be."""
        while self._watched and ring.settled_to(self._watched[0].segment.end_ms):
            watched = self._watched.popleft()
            watched.add(ring.settled())
            frames = [watched.frames[index] for index in sorted(watched.frames)]
            await asyncio.to_thread(self._sync.hear, watched.segment, frames, watched.choice)
