"""Who has the floor in a call: one speaker at a time, from who is heard when. Rules and reasons are in docs/calls.md.

`Floor` is pure logic on the call's own clock; a `Seat` is what one participant's job sees of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from polylip.client.closing import SHORT_SILENCE_MS
from polylip.client.pulse import Pulse
from polylip.client.segmentation import MIN_VOICED_MS
from polylip.client.vad import HOP_MS, Float32, Vad

TAKE_MS = MIN_VOICED_MS  # of speech take a floor that is free: as much as makes a segment, less is a cough
RELEASE_MS = SHORT_SILENCE_MS  # of silence free it: no segment of the holder is open over a longer one
MAX_TURN_MS = 30_000  # then somebody who insists gets it: three segments of the longest kind
INSIST_MS = 3000  # of speech against the holder; "mhm", "right" and laughter are shorter
BEHIND_MS = 1000  # sound that comes this much later than the others' is not waited for
SETTLE_MS = RELEASE_MS + TAKE_MS  # so long after it, it is known for good who had the floor at a time

TAKE, RELEASE, MAX_TURN, INSIST, BEHIND, SETTLE = (
    ms // HOP_MS for ms in (TAKE_MS, RELEASE_MS, MAX_TURN_MS, INSIST_MS, BEHIND_MS, SETTLE_MS)
)


@dataclass
class Turn:
    """One participant's time on the floor, on the call's clock; that of the holder still grows."""

    participant: int
    start_ms: int
    end_ms: int  # of the last speech; where it was taken away, of that


@dataclass
class _Voice:
    """One participant. Times are hops of the call's clock."""

    heard: int  # its sound is known up to here
    speech: set[int] = field(default_factory=set)  # hops not yet judged
    left: bool = False
    since: int | None = None  # when it began to speak, pauses shorter than RELEASE included
    last: int = 0  # behind its last speech
    voiced: int = 0  # hops of speech since then
    fresh: int = 0  # of these, those since the holder was heard last


class Floor:
    """The arbiter. Takes speech and silence of each participant as they come, in hops of 20 ms."""

    def __init__(self) -> None:
        self._voices: dict[int, _Voice] = {}
        self._now = 0  # hops judged
        self._over = False  # nobody is left
        self._turn: Turn | None = None  # of the holder
        self._free_from = 0  # behind the last turn
        self.turns: list[Turn] = []

    def join(self, participant: int) -> None:
        """From now on the floor waits for what it says."""
        self._voices[participant] = _Voice(self._now)
        self._over = False

    def leave(self, participant: int) -> None:
        """No sound comes of it any more."""
        self._voices[participant].left = True
        self._advance()

    def hear(self, participant: int, start_ms: float, speech: bool) -> None:
        """One hop. What comes too late counts as silence."""
        voice, hop = self._voices[participant], round(start_ms / HOP_MS)
        voice.heard = max(voice.heard, hop + 1)
        if speech and hop >= self._now:
            voice.speech.add(hop)
        self._advance()

    @property
    def holder(self) -> int | None:
        """Who has it now."""
        return None if self._turn is None else self._turn.participant

    @property
    def known_ms(self) -> float:
        """Everything said before this time has been judged."""
        return float("inf") if self._over else self._now * HOP_MS

    @property
    def settled_ms(self) -> float:
        """The turns before this time change no more."""
        return self.known_ms - SETTLE_MS

    def held(self, participant: int, start_ms: float, end_ms: float) -> bool:
        """Whether it has the floor at any moment of [start, end), as far as is known."""
        for turn in reversed(self.turns):
            if turn.end_ms <= start_ms:
                return False
            if turn.participant == participant and turn.start_ms < end_ms:
                return True
        return False

    def _advance(self) -> None:
        present = [voice for voice in self._voices.values() if not voice.left]
        if present:
            newest = max(voice.heard for voice in present)
            target = max(min(voice.heard for voice in present), newest - BEHIND)
        else:
            target = max(voice.heard for voice in self._voices.values()) + RELEASE * (len(self._voices) + 1)
        while self._now < target:
            self._judge(self._now)
            self._now += 1
        self._over = not present

    def _judge(self, hop: int) -> None:
        speaking = [who for who, voice in self._voices.items() if hop in voice.speech]
        for who in speaking:
            self._speaks(who, hop)
        if self._turn is not None:
            self._judge_holder(self._turn, hop + 1)
        if self._turn is None:
            self._give(hop + 1)
        for voice in self._voices.values():
            if voice.since is not None and hop + 1 - voice.last >= RELEASE:
                voice.since, voice.voiced, voice.fresh = None, 0, 0

    def _speaks(self, who: int, hop: int) -> None:
        voice = self._voices[who]
        voice.speech.discard(hop)
        voice.since = hop if voice.since is None else voice.since
        voice.last = hop + 1
        voice.voiced += 1
        voice.fresh += 1
        if self._turn is not None and self._turn.participant == who:
            self._turn.end_ms = voice.last * HOP_MS
            for other in self._voices.values():
                other.fresh = 0

    def _judge_holder(self, turn: Turn, now: int) -> None:
        """Whether the floor becomes free: after silence, or since another has insisted long enough."""
        holder = self._voices[turn.participant]
        if now - holder.last >= RELEASE:
            self._turn, self._free_from = None, holder.last
        elif now - turn.start_ms // HOP_MS >= MAX_TURN and any(
            voice.voiced >= INSIST for voice in self._voices.values() if voice is not holder
        ):
            self._turn, self._free_from = None, now
            holder.since, holder.voiced, holder.fresh = None, 0, 0
            for voice in self._voices.values():
                voice.fresh = voice.voiced if voice.voiced >= INSIST else 0

    def _give(self, now: int) -> None:
        """To whoever has waited longest of those who have said enough."""
        waiting = [
            (voice.since, who) for who, voice in self._voices.items() if voice.since is not None and voice.fresh >= TAKE
        ]
        if not waiting:
            return
        since, who = min(waiting)
        start = max(since, self._free_from, now - SETTLE)
        self._turn = Turn(who, start * HOP_MS, max(start, self._voices[who].last) * HOP_MS)
        self.turns.append(self._turn)
        for voice in self._voices.values():
            voice.fresh = 0


class Table:
    """A floor and the seats around it, in one event loop."""

    def __init__(self) -> None:
        self.floor = Floor()
        self.pulse = Pulse()
        self._origin_s: float | None = None

    def seat(self, participant: int, origin_s: Callable[[], float]) -> Seat:
        """Sit down. `origin_s`: time.monotonic() at the participant's media time 0."""
        self._origin_s = origin_s() if self._origin_s is None else self._origin_s
        self.floor.join(participant)
        return Seat(self, participant, origin_s)

    @property
    def origin_s(self) -> float:
        """time.monotonic() at the call's time 0: the first participant's media time 0."""
        return self._origin_s or 0.0


class Seat:
    """One participant's place; its times are those of its own source."""

    def __init__(self, table: Table, participant: int, origin_s: Callable[[], float]) -> None:
        self._table = table
        self._participant = participant
        self._source_origin_s = origin_s

    def hear(self, start_ms: float, speech: bool) -> None:
        """One hop of its sound."""
        floor, known_ms = self._table.floor, self._table.floor.known_ms
        floor.hear(self._participant, start_ms + self._offset_ms, speech)
        if floor.known_ms != known_ms:
            self._table.pulse.beat()

    def leave(self) -> None:
        """Its sound has ended. Safe to call twice."""
        self._table.floor.leave(self._participant)
        self._table.pulse.beat()

    def has_floor(self, start_ms: float, end_ms: float) -> bool:
        """Whether it has the floor at any moment of [start, end), as far as is known."""
        offset_ms = self._offset_ms
        return self._table.floor.held(self._participant, start_ms + offset_ms, end_ms + offset_ms)

    async def passes(self, start_ms: float, end_ms: float) -> bool:
        """Whether it has not; waits until that is known."""
        floor = self._table.floor
        await self._table.pulse.until(
            lambda: self.has_floor(start_ms, end_ms) or floor.settled_ms >= end_ms + self._offset_ms
        )
        return not self.has_floor(start_ms, end_ms)

    def overhears(self, vad: Vad) -> Vad:
        """The VAD of its sound, which the floor hears too."""
        return _Overheard(vad, self)

    @property
    def _offset_ms(self) -> float:
        return (self._source_origin_s() - self._table.origin_s) * 1000


class _Overheard:
    """Tells the seat what a VAD says, hop by hop."""

    def __init__(self, vad: Vad, seat: Seat) -> None:
        self._vad = vad
        self._seat = seat
        self._hops = 0
        self.late_hops = vad.late_hops

    def hop(self, samples: Float32) -> int:
        count = self._vad.hop(samples)
        self._seat.hear(self._hops * HOP_MS, count > 0)
        self._hops += 1
        return count
