"""The speech branch: closed segments to the `speech` ensemble, translated speech onto the timeline as it streams in."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from polylip.client.captioning import Captioner
from polylip.client.error_codes import ErrorCode
from polylip.client.errors import ServerError
from polylip.client.journal import Journal, KeptDub, packed_dub
from polylip.client.ladder import Level, Pressure
from polylip.client.listening import Listener, SoundReader
from polylip.client.mix import AudioBed, LevelMatch, Levels
from polylip.client.pacing import Pacing
from polylip.client.pending import Outputs, Pending
from polylip.client.pulse import Pulse
from polylip.client.reference import VoiceReference
from polylip.client.results import Status, TimeFit, VoiceUsed
from polylip.client.retry import retrying
from polylip.client.segmentation import SPEECH_RATE_HZ, Segmenter
from polylip.client.speculation import Speculation
from polylip.client.speech_state import ActiveDub, SpeechState, is_lost, restored_dubs, take_over
from polylip.client.timeline import MAX_LATE_MS, Dub, Timeline
from polylip.client.trace import Stage, Trace
from polylip.client.triton import Stream
from polylip.client.wire import Inputs, Tensor, row, rows
from polylip.client.wishes import SpeechWishes
from polylip.serving import engines

Float32 = npt.NDArray[np.float32]

WAITING_SEGMENTS = 2  # per stage (the paper's value); the reader stops when they are full
IN_FLIGHT = 3  # one per stage of the ensemble
MIN_CAPTION_S = 0.5  # for a caption that is nearly due
TOO_LATE = f"would start more than {MAX_LATE_MS / 1000:.0f} s late"
TIMEOUT_S = 60.0  # a segment of 10 s takes 2 to 3 s on two cores; a loaded server many times that


# What the speech line could not do, as a segment's end; anything else that is not OK is an error.
ENDS = {engines.Status.NO_SPEECH: Status.NO_SPEECH, engines.Status.UNSUPPORTED: Status.UNSUPPORTED}


class SpeechBranch:
    """Has the segments of a sound dubbed. A segment that fails leaves the original sound."""

    def __init__(
        self,
        *,
        timeline: Timeline,
        bed: AudioBed,
        stream: Stream,
        pulse: Pulse,
        wishes: SpeechWishes,
        output_ms: Callable[[], float],
        segmenter: Segmenter | None = None,
        speculation: Speculation | None = None,
        captioner: Captioner | None = None,
        pacing: Pacing | None = None,
        trace: Trace | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._pacing = pacing or Pacing()
        self._trace = trace or Trace()
        self._journal = journal
        # By segment, of those that are not in a checkpoint yet.
        self._levels_after: dict[int, Levels] = {}
        self._gathered_before: dict[int, int] = {}  # samples of the voice reference
        self._captioner = captioner
        self._pulse = pulse
        self._timeline = timeline
        self._bed = bed
        self._stream = stream
        self._wishes = wishes
        self._stream_id = uuid.uuid4().hex
        self._reference = VoiceReference()
        self._levels = LevelMatch()
        self._levels_before = self._levels.levels  # all of `_levels_after`
        self._listener = Listener(
            timeline=timeline,
            bed=bed,
            pulse=pulse,
            output_ms=output_ms,
            segmenter=segmenter,
            speculation=speculation,
            pacing=self._pacing,
            trace=self._trace,
            keeps_state=journal is not None,
        )
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._sending: dict[str, asyncio.Timeout] = {}  # by segment: a server that is away may be waited for
        self.retries = 0
        self.detected_language = wishes.source_language

    async def run(self, reader: SoundReader) -> None:
        """Until the sound ends and every segment has ended."""
        waiting: asyncio.Queue[Dub | None] = asyncio.Queue(WAITING_SEGMENTS)
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(reader, waiting))
            dispatching = group.create_task(self._dispatch(waiting))
            await self._pulse.until(lambda: self._timeline.complete)
            for task in (listening, dispatching):
                task.cancel()  # they can only wait for answers to segments that were given up

    async def _listen(self, reader: SoundReader, waiting: asyncio.Queue[Dub | None]) -> None:
        for dub in [dub for dub in self._timeline.active if not dub.ended]:  # of an earlier run
            await waiting.put(dub)
        await self._listener.run(reader, waiting)

    def give_up(self, dub: Dub, status: Status, message: str) -> None:
        """End a segment whose time has passed. What the server still says of it is read and dropped."""
        if not dub.ended:
            self._timeline.end(dub, status, message)
            if (sending := self._sending.get(dub.segment.id)) is not None:
                sending.reschedule(asyncio.get_running_loop().time())

    def state(self) -> SpeechState | None:
        """To go on from; None before anything was heard, or where nothing is kept."""
        segmenter = self._listener.state
        if segmenter is None or self._journal is None:
            return None
        active = []
        for dub in self._timeline.active:
            segment = dub.segment
            if segment.index < segmenter.count:  # the rest will close again
                is_kept = dub.ended and segment.index in self._journal
                active.append(ActiveDub(segment.index, None if is_kept else segment))
        first = min((dub.index for dub in active if dub.pending is not None), default=segmenter.count)
        for index in sorted(index for index in self._levels_after if index < first):
            self._levels_before = self._levels_after.pop(index)
            self._gathered_before.pop(index)
        return SpeechState(
            segmenter,
            self._timeline.results[: segmenter.count],
            active,
            self._levels_before,
            self._reference.gathered[: self._gathered_before.get(first)],
            self.detected_language,
            self._stream_id,
        )

    def restore(self, state: SpeechState, journal: Journal) -> None:
        """Go on from there. Raises ValueError where a dub is missing."""
        dubs = restored_dubs(state, journal)
        self._timeline.restore(state.results, dubs)
        self._listener.restore(state.segmenter)
        self._levels.restore(state.levels)
        self._levels_before = state.levels
        self._reference.restore(state.gathered)
        self.detected_language, self._stream_id = state.detected_language, state.stream_id

    async def _dispatch(self, waiting: asyncio.Queue[Dub | None]) -> None:
        async with asyncio.TaskGroup() as group:
            while (dub := await waiting.get()) is not None:
                await self._room.acquire()
                group.create_task(self._work_on(dub))

    async def _work_on(self, dub: Dub) -> None:
        """As much as the server is fast enough for."""
        try:
            passes = await self._pacing.passes(dub.segment.start_ms, dub.segment.end_ms)
            level = self._pacing.level
            if dub.ended:  # given up while it waited
                return
            if passes:
                self.give_up(dub, Status.PASSED, "somebody else had the floor")
            elif level is Level.ORIGINAL:
                self.give_up(dub, Status.PASSED, "the server was too slow to be asked")
            elif level is Level.CAPTIONS and self._captioner is not None:
                await self._caption(dub, self._captioner)
            else:
                await self._dub_or_play(dub)
        finally:
            self._room.release()

    async def _caption(self, dub: Dub, captioner: Captioner) -> None:
        timeout_s = max(MIN_CAPTION_S, self._pacing.left_s(dub.segment.start_ms))
        caption = await captioner.caption(dub.segment, timeout_s)
        dub.result.source_text, dub.result.target_text = caption.source_text, caption.text
        if caption.late:
            self._pacing.missed(Pressure.CAPTIONS, f"no caption for segment {dub.segment.index + 1} in time")
        if caption.text and not dub.ended:
            self._timeline.show(dub, caption.text)
        self.give_up(dub, caption.status, caption.message)

    async def _dub_or_play(self, dub: Dub) -> None:
        """What an earlier run of this job has had dubbed is not asked for again."""
        if self._journal is None:
            await self._dub(dub)
            return
        index = dub.segment.index
        self._gathered_before[index] = len(self._reference.gathered)
        if (kept := self._journal.find(dub.segment)) is not None:
            await self._play(dub, kept)
            self._levels_after[index] = self._levels.levels
            return
        await self._dub(dub)
        self._levels_after[index] = self._levels.levels
        if not is_lost(dub.result):
            packed = packed_dub(dub, self._levels.levels, self.detected_language)
            await asyncio.to_thread(self._journal.keep, index, packed)

    async def _play(self, dub: Dub, kept: KeptDub) -> None:
        """As the server has spoken it."""
        self._timeline.plan(dub)
        if self._wishes.voice_consent:
            self._reference.add(dub.segment.audio)
        self.detected_language = kept.detected_language
        take_over(dub.result, kept.result)
        await self._in_turn(dub)
        if kept.start_ms is None:
            self._timeline.end(dub, kept.result.status, kept.result.message)
        elif self._timeline.place(dub):
            self._timeline.append(dub, kept.speech, kept.pcm)
            self._timeline.end(dub, kept.result.status, kept.result.message)
        else:
            self._timeline.end(dub, Status.TOO_LATE, TOO_LATE)
        self._levels.restore(kept.levels)

    async def _dub(self, dub: Dub) -> None:
        latency = dub.result.latency_ms
        asked = _Asked(self._request(dub), time.monotonic(), asyncio.get_running_loop().time() + TIMEOUT_S)
        latency.queue = (asked.sent_at - dub.closed_at) * 1000
        self._trace.span(dub.segment.id, Stage.QUEUE, dub.closed_at, asked.sent_at)
        try:
            end = await retrying(partial(self._try, dub, asked), deadline=asked.deadline, on_retry=self._count_retry)
            if end is not None and not dub.ended:
                if end[0] is Status.ERROR:
                    dub.result.error_code = ErrorCode.ENGINE_FAILED
                self._timeline.end(dub, *end)
        except ServerError as error:
            await self._in_turn(dub)
            if not dub.ended:
                dub.result.error_code = error.code
                self._timeline.end(dub, Status.ERROR, str(error))
        finally:
            latency.speech = (time.monotonic() - asked.sent_at) * 1000

    async def _try(self, dub: Dub, asked: _Asked) -> tuple[Status, str] | None:
        if dub.ended:  # given up: not worth another try
            return None
        sent_at = time.monotonic()
        pending = await self._send(dub, asked)
        if pending is None:
            return None
        try:
            return await self._receive(dub, asked, pending)
        finally:
            if pending.last_at:
                self._trace.span(dub.segment.id, Stage.TRANSLATE_SPEAK, sent_at, pending.first_at)
                self._trace.span(dub.segment.id, Stage.SPEAK, pending.first_at, pending.last_at)

    async def _send(self, dub: Dub, asked: _Asked) -> Pending | None:
        """None when the segment was given up before the server took its request."""
        left_s = asked.deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(None) as self._sending[dub.segment.id]:
                return await self._stream.submit("speech", asked.inputs, left_s)
        except TimeoutError:
            return None
        finally:
            del self._sending[dub.segment.id]

    def _count_retry(self) -> None:
        self.retries += 1

    def _request(self, dub: Dub) -> Inputs:
        fill_ms, limit_ms = self._timeline.plan(dub)
        dub.result.fit = TimeFit(fill_ms, limit_ms)
        wishes = self._wishes
        inputs: dict[str, Tensor | str] = {
            "AUDIO": dub.segment.audio,
            "SOURCE_LANGUAGE": wishes.source_language,
            "TARGET_LANGUAGE": wishes.target_language,
            "STREAM_ID": self._stream_id,
            "SLOT_MS": np.array([fill_ms], np.int32),
            "LIMIT_MS": np.array([limit_ms], np.int32),
            "FIT": wishes.fit,
        }
        if dub.segment.known_text:
            inputs |= {"KNOWN_TEXT": dub.segment.known_text, "SOURCE_LANGUAGE": dub.segment.known_language}
        if wishes.glossary:
            inputs["GLOSSARY"] = wishes.glossary
        if wishes.voice_consent:
            self._reference.add(dub.segment.audio)
            if self._reference.audio is not None:
                inputs |= {"VOICE": self._reference.audio, "VOICE_CONSENT": np.array([True])}
        return rows(inputs)

    async def _receive(self, dub: Dub, asked: _Asked, pending: Pending) -> tuple[Status, str] | None:
        """Put the chunks on the timeline; how the segment ended and why, or None when it has been ended here.

        What an earlier try has put there stays: this one goes on behind it, which is seamless where the voice says the
        same text in the same way each time, and near enough where it does not.
        """
        end, message = Status.NO_SPEECH, ""
        heard, placed_s = 0, asked.placed_s
        async for answer in pending:
            chunk = row(answer)
            self._note_texts(dub, chunk)
            status = engines.Status(str(chunk["STATUS"][0]))
            if status is not engines.Status.OK:
                end, message = ENDS.get(status, Status.ERROR), str(chunk["STATUS_MESSAGE"][0])
            rate_hz = int(chunk["SAMPLE_RATE_HZ"][0])
            audio = chunk["AUDIO_CHUNK"][max(0, round(placed_s * rate_hz) - heard) :]
            heard += chunk["AUDIO_CHUNK"].size
            if audio.size == 0 or dub.ended:
                continue
            self._note_voice(dub, chunk, audio.size)
            if asked.voice is None:
                dub.result.latency_ms.first_audio = (time.monotonic() - asked.sent_at) * 1000
                await self._in_turn(dub)
                if dub.ended:
                    continue
                if not self._timeline.place(dub):
                    pending.forget()
                    self._timeline.end(dub, Status.TOO_LATE, TOO_LATE)
                    return None
                asked.voice = _VoicePiece(rate_hz, self._bed.sample_rate_hz)
                asked.voice.gain = self._levels.gain(dub.segment.audio, asked.voice.at_16k(audio))
            self._timeline.append(dub, *asked.voice.convert(audio))
            asked.placed_s += audio.size / rate_hz
        if asked.voice is not None and not dub.ended:
            self._timeline.append(dub, *asked.voice.convert(None))
        await self._in_turn(dub)
        return (Status.DUBBED, "") if asked.voice is not None and not message else (end, message)

    async def _in_turn(self, dub: Dub) -> None:
        """Segments end and are placed in order: the one before decides where this one can start."""
        await self._pulse.until(lambda: self._timeline.previous_ended(dub))

    def _note_texts(self, dub: Dub, chunk: Outputs) -> None:
        dub.result.source_text = str(chunk["SOURCE_TEXT"][0])
        dub.result.target_text = str(chunk["TARGET_TEXT"][0])
        self.detected_language = str(chunk["DETECTED_LANGUAGE"][0]) or self.detected_language

    @staticmethod
    def _note_voice(dub: Dub, chunk: Outputs, samples: int) -> None:
        """Of so many further samples."""
        fit = dub.result.fit
        assert fit is not None  # noqa: S101  set when the segment was requested
        fit.estimate_ms = int(chunk["ESTIMATE_MS"][0])
        chunk_ms = samples * 1000 / int(chunk["SAMPLE_RATE_HZ"][0])
        fit.add(chunk_ms, float(chunk["SPEECH_RATE"][0]), float(chunk["ENGINE_RATE"][0]))
        dub.result.rate = fit.rate
        dub.result.voice = VoiceUsed.CLONED if chunk["VOICE_CLONED"][0] else VoiceUsed.STOCK


@dataclass
class _Asked:
    """A segment's request, the same in every try, and what has come of it so far."""

    inputs: Inputs
    sent_at: float  # time.monotonic()
    deadline: float  # event-loop time, of all tries together
    voice: _VoicePiece | None = None  # once it is on the timeline
    placed_s: float = 0.0  # of it


class _VoicePiece:
    """Streams one segment's voice into 16 kHz for the mel and into the output's rate, levelled, for the ear."""

    def __init__(self, rate_hz: int, output_rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._speech = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)
        self._output = av.AudioResampler("fltp", "mono", output_rate_hz)
        self.gain = 1.0

    def convert(self, audio: Float32 | None) -> tuple[Float32, Float32]:
        """Both forms of a further chunk float32 (samples,); None flushes."""
        return self._resample(self._speech, audio), self._resample(self._output, audio) * np.float32(self.gain)

    def at_16k(self, audio: Float32) -> Float32:
        """One chunk at 16 kHz, without touching the stream."""
        return self._resample(av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ), audio)

    def _resample(self, resampler: Any, audio: Float32 | None) -> Float32:
        frame = None
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None, :]), format="fltp", layout="mono")
            frame.sample_rate = self._rate_hz
        pieces = [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
