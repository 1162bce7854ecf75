"""Makes one rising clock of a stream's timestamps, whatever its sender does: wraps, restarts, reconnections.

Both streams of a source keep their distance: a jump moves the clock of both by the same amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

JUMP_S = Fraction(5)  # a step further ahead of the wall clock than this is another clock, not a burst
BACK_S = Fraction(1, 10)  # decoding times rise; a step back beyond the jitter of bad muxers is another clock
SAME_S = Fraction(1)  # after a reconnection, so close to where the clock should be, it is still the old one
WRAPS_S = (Fraction(2**33, 90_000), Fraction(2**32, 1000))  # after which MPEG-TS and FLV begin again at 0
GRAIN = 1000  # offsets are whole milliseconds, which every clock in use can express


@dataclass
class _Lane:
    """One stream."""

    offset_s: Fraction = Fraction(0)  # what is added to its stated times
    last_s: Fraction | None = None  # corrected decoding time of its last packet
    arrived_s: float = 0.0  # when that came
    step_s: Fraction = Fraction(1, 100)  # between its last two packets


class StreamClock:
    """Corrects the times of the packets of one source, in the order in which they come."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._newest_s: Fraction | None = None
        self._newest_arrived_s = 0.0
        self._reopened = False
        self.jumps = 0

    def reopened(self) -> None:
        """A new connection follows: its times may begin anywhere."""
        self._reopened = True

    def offset_s(self, lane_name: str, stated_s: Fraction, now_s: float) -> Fraction:
        """What has to be added to the times of a packet that is stated to be decoded at `stated_s`."""
        lane = self._lanes.setdefault(lane_name, _Lane(self._common_offset_s()))
        if self._reopened and self._newest_s is not None:
            self._reopened = False
            self._rebase(stated_s, self._newest_s + Fraction(now_s - self._newest_arrived_s), SAME_S)
        elif lane.last_s is not None and not self._continues(lane, stated_s + lane.offset_s, now_s):
            self._follow_jump(lane, stated_s, now_s)
        time_s = stated_s + lane.offset_s
        if lane.last_s is not None and 0 < time_s - lane.last_s < 1:
            lane.step_s = time_s - lane.last_s
        lane.last_s, lane.arrived_s = time_s, now_s
        if self._newest_s is None or time_s > self._newest_s:
            self._newest_s, self._newest_arrived_s = time_s, now_s
        return lane.offset_s

    def current_s(self, lane_name: str) -> Fraction:
        """What is added now, for a packet that does not say when it is decoded."""
        lane = self._lanes.get(lane_name)
        return self._common_offset_s() if lane is None else lane.offset_s

    def _common_offset_s(self) -> Fraction:
        """Of the stream that was heard of last."""
        if not self._lanes:
            return Fraction(0)
        return max(self._lanes.values(), key=lambda lane: lane.arrived_s).offset_s

    def _continues(self, lane: _Lane, time_s: Fraction, now_s: float) -> bool:
        step_s = time_s - (lane.last_s or 0)
        return -BACK_S <= step_s <= JUMP_S + Fraction(max(0.0, now_s - lane.arrived_s))

    def _follow_jump(self, lane: _Lane, stated_s: Fraction, now_s: float) -> None:
        """The other stream may have jumped before: then this one goes along. A counter that wrapped goes on exactly."""
        others = [other.offset_s for other in self._lanes.values() if other is not lane]
        for offset_s in (*others, *(lane.offset_s + wrap_s for wrap_s in WRAPS_S)):
            if self._continues(lane, stated_s + offset_s, now_s):
                lane.offset_s = offset_s
                return
        passed_s = max(lane.step_s, Fraction(now_s - lane.arrived_s))
        lane.offset_s = _grain((lane.last_s or Fraction(0)) + passed_s - stated_s)
        self.jumps += 1

    def _rebase(self, stated_s: Fraction, expected_s: Fraction, tolerance_s: Fraction) -> None:
        """All streams at once, unless their clock has gone on."""
        offset_s = self._common_offset_s()
        if abs(stated_s + offset_s - expected_s) > tolerance_s:
            offset_s = _grain(expected_s - stated_s)
            self.jumps += 1
        for lane in self._lanes.values():
            lane.offset_s = offset_s
            lane.last_s = None


def _grain(seconds: Fraction) -> Fraction:
    return Fraction(round(seconds * GRAIN), GRAIN)
