"""Encoded packets that wait for their playout time, in the order in which they leave, bounded in bytes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from fractions import Fraction
from threading import Condition
from typing import Any

MAX_BYTES = 128 * 1024 * 1024  # 60 s of 15 Mbit/s: the longest delay, and reserve
ROOM_TIMEOUT_S = 1.0  # the encoder waits so long for room, then something is dropped


@dataclass(order=True, frozen=True)
class Held:
    """One packet, sorted by its decoding time."""

    time_s: Fraction  # of the media
    number: int
    kind: str = field(compare=False)
    packet: Any = field(compare=False)
    is_key: bool = field(compare=False)  # a picture that can be decoded by itself


class Outbox:
    """Filled by the encoder, emptied by the thread that sends. All calls with `changed` held, which both wait on."""

    def __init__(self, changed: Condition) -> None:
        self.changed = changed
        self._heap: list[Held] = []
        self._count = 0
        self._seen: set[str] = set()
        self._complete = False  # all that will ever come has come
        self._needs_key = False
        self.bytes = 0
        self.dropped = 0
        self.newest_s: Fraction | None = None

    def add(self, kind: str, packet: Any) -> None:
        """When there is no room for a while, what is next to leave is dropped, up to a key frame."""
        if self.bytes >= MAX_BYTES:
            self.changed.wait_for(lambda: self.bytes < MAX_BYTES or self._complete, ROOM_TIMEOUT_S)
        if self.bytes >= MAX_BYTES:
            self.drop_before(None)
        time_s = packet.dts * Fraction(packet.time_base)
        is_key = kind == "video" and bool(packet.is_keyframe)
        heapq.heappush(self._heap, Held(time_s, self._count, kind, packet, is_key))
        self._count += 1
        self._seen.add(kind)
        self.bytes += packet.size
        self.newest_s = time_s if self.newest_s is None else max(self.newest_s, time_s)
        self.changed.notify_all()

    def complete(self) -> None:
        """Nothing is added any more."""
        self._complete = True
        self.changed.notify_all()

    def head(self) -> Held | None:
        """What leaves next. None before both streams have begun, as the earlier one must come first."""
        while self._heap and self._needs_key and not self._heap[0].is_key:
            self._drop()
        if self._heap and self._needs_key:
            self._needs_key = False
        if self._heap and (self._complete or len(self._seen) == 2):
            return self._heap[0]
        return None

    def wait(self) -> Held | None:
        """As `head`, once there is one; None at the end. What must be dropped first can be all that was left."""
        self.changed.wait_for(lambda: self.head() is not None or self.finished)
        return self.head()

    def pop(self) -> Held:
        """Take the head."""
        held = heapq.heappop(self._heap)
        self.bytes -= held.packet.size
        self.changed.notify_all()
        return held

    def need_key(self) -> None:
        """A new receiver, or one that missed something, can begin with a key frame only."""
        self._needs_key = True

    def drop_before(self, due_s: Fraction | None) -> None:
        """Drop up to the last key frame that is due, or else up to the next one; sound goes with its picture."""
        self._needs_key = True
        keys = [held.time_s for held in self._heap if held.is_key]
        due = [] if due_s is None else [time_s for time_s in keys if time_s <= due_s]
        later = [time_s for time_s in keys if time_s not in due and time_s > self._heap[0].time_s] if self._heap else []
        until_s = max(due) if due else min(later, default=self.newest_s)
        while self._heap and until_s is not None and self._heap[0].time_s < until_s:
            self._drop()
        self.changed.notify_all()

    def clear(self) -> None:
        while self._heap:
            self._drop()
        self.changed.notify_all()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def finished(self) -> bool:
        return self._complete and not self._heap

    def _drop(self) -> None:
        self.bytes -= heapq.heappop(self._heap).packet.size
        self.dropped += 1
