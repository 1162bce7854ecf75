"""From sound to segments: reads ahead of the output, cuts, and puts what closes on the timeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from polylip.client.closing import Closing, Policy
from polylip.client.ladder import Level, Pressure
from polylip.client.mix import AudioBed, Float32
from polylip.client.pacing import Pacing
from polylip.client.pulse import Pulse
from polylip.client.results import Status
from polylip.client.segmentation import Items, Question, Segment, Segmenter, SegmenterState
from polylip.client.speculation import Speculation
from polylip.client.timeline import Dub, Timeline
from polylip.client.trace import Trace

READ_S = 0.5  # sound read per visit to the decoding thread
LIVE_READ_S = 0.04  # as it comes, so that no decision waits for more: two hops of the segmenter
AHEAD_S = 25.0  # of the output: a segment of 10 s, its silence, and the next ones on their way


class SoundReader(Protocol):
    """Where the sound comes from."""

    @property
    def damaged(self) -> int:
        """Packets skipped so far."""

    def read(self, seconds: float) -> tuple[Float32, Float32] | None:
        """About `seconds` more: (channels, n) at the output's rate and (m,) at 16 kHz; None at the end."""


class Listener:
    """Fills the bed with the original sound and a queue with its segments.

    Without a segmenter silence alone cuts; without a speculation the segmenter's questions stay unanswered.
    """

    def __init__(
        self,
        *,
        timeline: Timeline,
        bed: AudioBed,
        pulse: Pulse,
        output_ms: Callable[[], float],
        segmenter: Segmenter | None = None,
        speculation: Speculation | None = None,
        pacing: Pacing | None = None,
        trace: Trace | None = None,
        keeps_state: bool = False,
    ) -> None:
        self._pacing = pacing or Pacing()
        self._trace = trace or Trace()
        self._timeline = timeline
        self._bed = bed
        self._pulse = pulse
        self._output_ms = output_ms
        self._segmenter = segmenter or Segmenter(policy=Policy.SILENCE)
        self._speculation = speculation
        self._read_s = LIVE_READ_S if self._pacing.live else READ_S
        self._keeps_state = keeps_state
        self.state: SegmenterState | None = None  # behind the last whole piece of sound

    async def run(self, reader: SoundReader, waiting: asyncio.Queue[Dub | None]) -> None:
        """Until the sound ends; None then ends the queue."""
        try:
            await self._read(reader, waiting)
        finally:
            if self._speculation is not None:
                await self._speculation.close()
        await waiting.put(None)

    async def _read(self, reader: SoundReader, waiting: asyncio.Queue[Dub | None]) -> None:
        while (piece := await asyncio.to_thread(reader.read, self._read_s)) is not None:
            native, mono = piece
            self._bed.append(native)
            self._trace.arrived(self._bed.end_ms)
            await self._take(self._segmenter.push(mono), waiting)
            self._note_state()
            self._go_ahead()
            if not self._pacing.live:
                await self._pulse.until(lambda: self._bed.end_ms < self._output_ms() + AHEAD_S * 1000)
        await self._take(self._segmenter.flush(), waiting)
        self._note_state()
        self._pacing.sound_ended()
        self._timeline.advance(float("inf"))

    def _go_ahead(self) -> None:
        """Have a segment that goes on recognised already, so that its end need not wait for all of it."""
        if self._speculation is None or not self._speculation.is_free:
            return
        if (question := self._segmenter.progress()) is not None and self._may_ask(question):
            self._speculation.go_ahead(question)

    async def _take(self, items: Items, waiting: asyncio.Queue[Dub | None]) -> None:
        for item in items:
            if isinstance(item, Segment):
                await self._hand_on(item, waiting)
            elif self._speculation is not None and self._may_ask(item):
                self._advance()
                asked_at = time.monotonic()
                answer = await self._speculation.ask(item)
                self._trace.asked(asked_at, item.audio_start_ms)
                self._segmenter.answer(item, answer)
        self._advance()

    def restore(self, state: SegmenterState) -> None:
        """Of a job that goes on: its segmenter has heard more than is in the bed."""
        self._segmenter.restore(state)
        self.state = state

    def _note_state(self) -> None:
        if self._keeps_state:
            self.state = self._segmenter.state()

    def _advance(self) -> None:
        """What is not in the bed yet must not be written, though it may have been heard in an earlier run."""
        self._timeline.advance(min(self._segmenter.horizon_ms, self._bed.end_ms))

    def _may_ask(self, question: Question) -> bool:
        now_ms = self._segmenter.heard_ms
        return self._pacing.level < Level.ORIGINAL and self._pacing.has_floor(question.audio_start_ms, now_ms)

    async def _hand_on(self, segment: Segment, waiting: asyncio.Queue[Dub | None]) -> None:
        """A file waits while the queue is full; a live source cannot."""
        dub = self._timeline.add(segment)
        self._trace.closed(segment.id, segment.start_ms, segment.end_ms)
        if segment.closed_by not in (Closing.FORCED, Closing.SECOND_LOOK):  # somebody is speaking
            self._pacing.segment_closed(self._segmenter.heard_ms)
        if self._pacing.live and waiting.full():
            self._timeline.end(dub, Status.TOO_LATE, f"{waiting.maxsize} segments before it still waited")
            self._pacing.missed(Pressure.SPEECH, f"no room for segment {segment.index + 1}")
            return
        await waiting.put(dub)
