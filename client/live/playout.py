"""The clock of a live output: what leaves when, and who keeps the branches to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from polylip.client.ladder import Ladder, Level, Pressure
from polylip.client.live.floor import Seat
from polylip.client.pacing import Pacing
from polylip.client.results import Status
from polylip.client.ring import FrameRing
from polylip.client.timeline import Dub, Timeline

LEAD_S = 0.5  # before it is sent, a picture must be rendered and encoded: two batches of frames on a busy machine
TICK_S = 0.05  # between two looks at the clock


class Playout(Pacing):
    """Media time t leaves at `origin_s() + t + delay_s` of the monotonic clock."""

    def __init__(
        self,
        origin_s: Callable[[], float],
        delay_s: float,
        ladder: Ladder,
        clock: Callable[[], float] = time.monotonic,
        seat: Seat | None = None,
        on_closed: Callable[[float], None] = lambda heard_ms: None,
    ) -> None:
        """`seat`: of a participant in a call."""
        self._origin_s = origin_s
        self.delay_s = delay_s
        self.ladder = ladder
        self._clock = clock
        self._seat = seat
        self._on_closed = on_closed

    @property
    def live(self) -> bool:
        return True

    @property
    def level(self) -> Level:
        return self.ladder.level

    @property
    def now_ms(self) -> float:
        """The media time that happens now, at the source."""
        return (self._clock() - self._origin_s()) * 1000

    @property
    def due_ms(self) -> float:
        """What lies before this media time must be given to the encoder now."""
        return self.now_ms - (self.delay_s - LEAD_S) * 1000

    def left_s(self, time_ms: float) -> float:
        return (time_ms - self.due_ms) / 1000

    def segment_closed(self, heard_ms: float) -> None:
        self._on_closed(heard_ms)

    def since_ms(self, time_ms: float) -> float:
        return self.now_ms - time_ms

    def has_floor(self, start_ms: float, end_ms: float) -> bool:
        return self._seat is None or self._seat.has_floor(start_ms, end_ms)

    async def passes(self, start_ms: float, end_ms: float) -> bool:
        return self._seat is not None and await self._seat.passes(start_ms, end_ms)

    def sound_ended(self) -> None:
        if self._seat is not None:
            self._seat.leave()

    def missed(self, pressure: Pressure, detail: str) -> None:
        self.ladder.press(pressure, detail)


class Keeper:
    """Commits timeline and ring to what is due: nothing that is missing holds the output up."""

    def __init__(
        self,
        playout: Playout,
        timeline: Timeline,
        ring: FrameRing,
        give_up: Callable[[Dub, Status, str], None],
        is_asked: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_asked`: whether faces are being waited for; a source that stalls is no fault of the server."""
        self._is_asked = is_asked
        self._playout = playout
        self._timeline = timeline
        self._ring = ring
        self._give_up = give_up  # ends a dub whose time has passed

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """One look at the clock."""
        due_ms = self._playout.due_ms
        if due_ms <= 0:
            return
        paused_ms, expired = self._timeline.paused_ms, self._ring.expired
        for dub in self._timeline.commit(due_ms):
            if dub.audible:
                self._give_up(dub, Status.ERROR, "its voice stopped in the middle")
            else:
                self._give_up(dub, Status.TOO_LATE, "no speech came before its picture had to leave")
            self._playout.missed(Pressure.SPEECH, f"segment {dub.segment.index + 1} came too late")
        if self._timeline.paused_ms > paused_ms:
            self._playout.missed(Pressure.SPEECH, "the voice comes more slowly than it is heard")
        self._ring.give_up(due_ms)
        if self._ring.expired > expired and self._is_asked():
            self._playout.missed(Pressure.FACES, f"no faces for {self._ring.expired - expired} frames in time")
