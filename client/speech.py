"""The speech branch: closed segments to the `speech` ensemble, translated speech onto the timeline as it streams in."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from polylip.client.errors import ServerError
from polylip.client.media_in import AudioReader
from polylip.client.mix import AudioBed, LevelMatch
from polylip.client.pulse import Pulse
from polylip.client.reference import VoiceReference
from polylip.client.results import Status, TimeFit, VoiceUsed
from polylip.client.segmentation import SPEECH_RATE_HZ, Segmenter
from polylip.client.timeline import MAX_LATE_MS, Dub, Timeline
from polylip.client.triton import Outputs, Pending, TritonStream
from polylip.client.wire import Tensor, row, rows
from polylip.serving import engines
from polylip.serving.isochrony import Fit

Float32 = npt.NDArray[np.float32]

READ_S = 0.5  # sound read per visit to the decoding thread
AHEAD_S = 25.0  # of the output: a segment of 10 s, its silence, and the next ones on their way
WAITING_SEGMENTS = 2  # per stage (the paper's value); the reader stops when they are full
IN_FLIGHT = 3  # one per stage of the ensemble
TIMEOUT_S = 60.0  # a segment of 10 s takes 2 to 3 s on two cores; a loaded server many times that


# What the speech line could not do, as a segment's end; anything else that is not OK is an error.
ENDS = {engines.Status.NO_SPEECH: Status.NO_SPEECH, engines.Status.UNSUPPORTED: Status.UNSUPPORTED}


@dataclass(frozen=True)
class SpeechWishes:
    """What is asked of the speech line for a whole stream."""

    source_language: str  # ISO 639-1 or "auto"
    target_language: str  # ISO 639-1
    fit: Fit = Fit.TIGHT
    voice_consent: bool = False  # the speaker agreed to have their voice cloned; without it a stock voice speaks
    glossary: str = ""  # lines "term" or "term = translation"


class SpeechBranch:
    """Reads the sound, cuts it into segments, has them dubbed. A segment that fails leaves the original sound."""

    def __init__(
        self,
        *,
        timeline: Timeline,
        bed: AudioBed,
        stream: TritonStream,
        pulse: Pulse,
        wishes: SpeechWishes,
        output_ms: Callable[[], float],
    ) -> None:
        self._pulse = pulse
        self._output_ms = output_ms
        self._timeline = timeline
        self._bed = bed
        self._stream = stream
        self._wishes = wishes
        self._stream_id = uuid.uuid4().hex
        self._reference = VoiceReference()
        self._levels = LevelMatch()
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self.detected_language = wishes.source_language

    async def run(self, reader: AudioReader) -> None:
        """Until the sound ends and every segment has ended."""
        waiting: asyncio.Queue[Dub | None] = asyncio.Queue(WAITING_SEGMENTS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._dispatch(waiting))
            await self._cut(reader, waiting)
            await waiting.put(None)

    async def _cut(self, reader: AudioReader, waiting: asyncio.Queue[Dub | None]) -> None:
        segmenter = Segmenter()
        while (piece := await asyncio.to_thread(reader.read, READ_S)) is not None:
            native, mono = piece
            self._bed.append(native)
            for segment in segmenter.push(mono):
                await waiting.put(self._timeline.add(segment))
            self._timeline.advance(segmenter.horizon_ms)
            await self._pulse.until(lambda: self._bed.end_ms < self._output_ms() + AHEAD_S * 1000)
        for segment in segmenter.flush():
            await waiting.put(self._timeline.add(segment))
        self._timeline.advance(float("inf"))

    async def _dispatch(self, waiting: asyncio.Queue[Dub | None]) -> None:
        async with asyncio.TaskGroup() as group:
            while (dub := await waiting.get()) is not None:
                await self._room.acquire()
                group.create_task(self._dub(dub))

    async def _dub(self, dub: Dub) -> None:
        latency = dub.result.latency_ms
        sent_at = time.monotonic()
        latency.queue = (sent_at - dub.closed_at) * 1000
        try:
            pending = await self._request(dub)
            end = await self._receive(dub, pending, sent_at)
            if end is not None:
                self._timeline.end(dub, *end)
        except ServerError as error:
            await self._in_turn(dub)
            self._timeline.end(dub, Status.ERROR, str(error))
        finally:
            latency.speech = (time.monotonic() - sent_at) * 1000
            self._room.release()

    async def _request(self, dub: Dub) -> Pending:
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
        if wishes.glossary:
            inputs["GLOSSARY"] = wishes.glossary
        if wishes.voice_consent:
            self._reference.add(dub.segment.audio)
            if self._reference.audio is not None:
                inputs |= {"VOICE": self._reference.audio, "VOICE_CONSENT": np.array([True])}
        return await self._stream.submit("speech", rows(inputs), TIMEOUT_S)

    async def _receive(self, dub: Dub, pending: Pending, sent_at: float) -> tuple[Status, str] | None:
        """Put the chunks on the timeline; how the segment ended and why, or None when it has been ended here."""
        voice: _VoicePiece | None = None
        end, message = Status.NO_SPEECH, ""
        async for answer in pending:
            chunk = row(answer)
            self._note_texts(dub, chunk)
            status = engines.Status(str(chunk["STATUS"][0]))
            if status is not engines.Status.OK:
                end, message = ENDS.get(status, Status.ERROR), str(chunk["STATUS_MESSAGE"][0])
            audio = chunk["AUDIO_CHUNK"]
            if audio.size == 0:
                continue
            self._note_voice(dub, chunk)
            if voice is None:
                dub.result.latency_ms.first_audio = (time.monotonic() - sent_at) * 1000
                await self._in_turn(dub)
                if not self._timeline.place(dub):
                    pending.forget()
                    self._timeline.end(dub, Status.TOO_LATE, f"would start more than {MAX_LATE_MS / 1000:.0f} s late")
                    return None
                voice = _VoicePiece(int(chunk["SAMPLE_RATE_HZ"][0]), self._bed.sample_rate_hz)
                voice.gain = self._levels.gain(dub.segment.audio, voice.at_16k(audio))
            self._timeline.append(dub, *voice.convert(audio))
        if voice is not None:
            self._timeline.append(dub, *voice.convert(None))
        await self._in_turn(dub)
        return (Status.DUBBED, "") if voice is not None and not message else (end, message)

    async def _in_turn(self, dub: Dub) -> None:
        """Segments end and are placed in order: the one before decides where this one can start."""
        await self._pulse.until(lambda: self._timeline.previous_ended(dub))

    def _note_texts(self, dub: Dub, chunk: Outputs) -> None:
        dub.result.source_text = str(chunk["SOURCE_TEXT"][0])
        dub.result.target_text = str(chunk["TARGET_TEXT"][0])
        self.detected_language = str(chunk["DETECTED_LANGUAGE"][0]) or self.detected_language

    @staticmethod
    def _note_voice(dub: Dub, chunk: Outputs) -> None:
        fit = dub.result.fit
        assert fit is not None  # noqa: S101  set when the segment was requested
        fit.estimate_ms = int(chunk["ESTIMATE_MS"][0])
        chunk_ms = chunk["AUDIO_CHUNK"].size * 1000 / int(chunk["SAMPLE_RATE_HZ"][0])
        fit.add(chunk_ms, float(chunk["SPEECH_RATE"][0]), float(chunk["ENGINE_RATE"][0]))
        dub.result.rate = fit.rate
        dub.result.voice = VoiceUsed.CLONED if chunk["VOICE_CLONED"][0] else VoiceUsed.STOCK


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
