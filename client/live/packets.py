"""Compressed packets between the thread that receives them and the readers that decode them, bounded in size and time.

Every packet stays until all readers of its stream have had it. What has to be dropped is what none of them has begun:
whole groups of pictures, so that all readers see the same frames.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter
from threading import Condition
from typing import Any

MAX_BYTES = 256 * 1024 * 1024  # 60 s of 30 Mbit/s
MAX_SECONDS = 60.0  # the longest delay of the output, and reserve
LONGEST_STEP_S = 2.0  # a picture that stands longer takes no more room
CLOSED = 1 << 62  # position of a reader that wants nothing any more


@dataclass(frozen=True)
class Decoding:
    """What a decoder must know of a stream before its first packet; one object per connection and stream."""

    codec: Any  # av.Codec
    extradata: bytes | None
    settings: tuple[tuple[str, Any], ...]  # attributes of the codec context
    time_base: Fraction
    frame_rate: Fraction = Fraction(25)
    aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class Item:
    """One packet, or the mark that a connection has ended: what its decoder holds is due now."""

    packet: Any  # av.Packet; None: the mark
    decoding: Decoding
    time_s: Fraction  # of the container's clock: presentation
    is_key: bool
    index: int = 0
    lasts_s: float = 0.0  # time that it adds to what is held

    @property
    def size(self) -> int:
        return 0 if self.packet is None else int(self.packet.size)


class PacketLane:
    """The packets of one stream, for a fixed number of readers."""

    def __init__(self, changed: Condition, readers: int, *, waits: bool) -> None:
        """`waits`: a full lane makes the receiver wait, as a file can; without it packets are dropped."""
        self._changed = changed
        self._waits = waits
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._count = 0  # of packets ever put
        self._positions = [0] * readers  # index of the next packet of each
        self._handed_out = 0
        self._skipping = False  # up to the next key frame
        self._ended = False
        self._decoding: Decoding | None = None  # of the newest packet
        self.newest_s: Fraction | None = None  # highest presentation time so far
        self.held_s = 0.0
        self.dropped = 0
        self.high_water_bytes = 0

    def put(self, item: Item) -> None:
        """Append one; the receiver's thread."""
        with self._changed:
            while self._waits and self._full() and not self._ended:
                self._changed.wait()
            if self._ended:
                return
            self._decoding = item.decoding
            step_s = 0.0 if self.newest_s is None else float(item.time_s - self.newest_s)
            self.newest_s = item.time_s if self.newest_s is None else max(self.newest_s, item.time_s)
            if self._skipping and not (item.is_key and not self._full()):
                self.dropped += 1
                return
            self._skipping = False
            lasts_s = min(max(0.0, step_s), LONGEST_STEP_S)
            self._items.append(replace(item, index=self._count, lasts_s=lasts_s))
            self._count += 1
            self._bytes += item.size
            self.held_s += lasts_s
            self.high_water_bytes = max(self.high_water_bytes, self._bytes)
            if not self._waits and self._full():
                self._drop_group()
            self._changed.notify_all()

    def mark_end(self) -> None:
        """Of a connection; the next one may come only seconds later."""
        with self._changed:
            if self._decoding is not None and self.newest_s is not None:
                self._items.append(Item(None, self._decoding, self.newest_s, is_key=False, index=self._count))
                self._count += 1
                self._changed.notify_all()

    def end(self, *, discard: bool = False) -> None:
        """Nothing comes any more; what is here can still be read, unless it is discarded."""
        with self._changed:
            self._ended = True
            if discard:
                self._items.clear()
            self._changed.notify_all()

    def reader(self) -> PacketReader:
        """The next of the readers that the lane was made for."""
        with self._changed:
            number = self._handed_out
            self._handed_out += 1
            return PacketReader(self, number, self._changed)

    def _full(self) -> bool:
        return self._bytes >= MAX_BYTES or self.held_s >= MAX_SECONDS

    def _drop_group(self) -> None:
        """The oldest group that no reader has begun. When there is none, what comes is dropped up to a key frame."""
        begun = max((position for position in self._positions if position < CLOSED), default=0)
        first = bisect_left(self._items, begun, key=attrgetter("index"))
        keys = [at for at in range(first, len(self._items)) if self._items[at].is_key]
        start = keys[0] if keys else len(self._items)
        stop = keys[1] if len(keys) > 1 else len(self._items)
        for at in range(start, stop):
            self._forget(self._items[at])
        self.dropped += stop - start
        kept = [*list(self._items)[:start], *list(self._items)[stop:]]
        self._items = deque(kept)
        self._skipping = stop == len(kept) + stop - start  # the group that was still being filled

    def take(self, number: int) -> Item | None:
        """The next packet of a reader; None when it has to wait. With the lock held."""
        position = self._positions[number]
        at = bisect_left(self._items, position, key=attrgetter("index"))
        if at == len(self._items):
            return None
        item = self._items[at]
        self._move(number, item.index + 1)
        return item

    def has(self, number: int) -> bool:
        """Whether a reader need not wait for its next packet. With the lock held."""
        return bool(self._items) and self._items[-1].index >= self._positions[number]

    def is_over(self, number: int) -> bool:
        """Whether nothing comes for a reader any more. With the lock held."""
        return self._positions[number] == CLOSED or (self._ended and not self.has(number))

    def leave(self, number: int) -> None:
        """A reader wants nothing any more. With the lock held."""
        self._move(number, CLOSED)

    def _move(self, number: int, position: int) -> None:
        self._positions[number] = position
        needed = min(self._positions)
        while self._items and self._items[0].index < needed:
            self._forget(self._items.popleft())
        self._changed.notify_all()

    def _forget(self, item: Item) -> None:
        self._bytes -= item.size
        self.held_s -= item.lasts_s


class PacketReader:
    """One reader's way through a lane."""

    def __init__(self, lane: PacketLane, number: int, changed: Condition) -> None:
        self._lane = lane
        self._number = number
        self._changed = changed

    def __iter__(self) -> Iterator[Item]:
        """Until the end; waits for what has not come yet."""
        while (item := self.next()) is not None:
            yield item

    def next(self, timeout_s: float | None = None) -> Item | None:
        """The next packet; None at the end, or when none comes in time."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while (item := self._lane.take(self._number)) is None and not self.over:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return item

    @property
    def over(self) -> bool:
        """Whether it has had everything."""
        with self._changed:
            return self._lane.is_over(self._number)

    def at_hand(self) -> bool:
        """Whether the next packet is there."""
        with self._changed:
            return self._lane.has(self._number)

    def close(self) -> None:
        """Wakes a thread that waits."""
        with self._changed:
            self._lane.leave(self._number)
