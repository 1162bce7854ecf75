"""One segment's text to speech in the time there is, with any voice: estimate, plan, speak, stretch the rest.

The plan is made again after each piece with what is left of text and time, so a voice that turns out slower than
estimated catches up before the end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polylip.serving.engines import Cancelled, Float32, Voice, never
from polylip.serving.isochrony import ANY_LENGTH, Slot, fit_rate, share
from polylip.serving.stretch import stretched

PAUSE_MS = 200.0  # between two sentences, at normal speed
PACE_WEIGHT = 0.5  # of the newest piece: voices keep their pace, and estimates err by 10 to 20 % per piece
PACE_RANGE = (0.5, 2.0)  # a piece outside it was no measure of pace
KEPT_PACES = 256  # streams

Pace = tuple[str, str, bool]  # stream, language, cloned: what shares a pace


@dataclass(frozen=True)
class Line:
    """One segment's text to be spoken."""

    text: str
    language: str  # ISO 639-1
    reference: Float32 | None = None  # speech of the voice to clone, (samples,) at 16 kHz; given with consent only
    stream: str = ""  # the caller's media stream
    slot: Slot = ANY_LENGTH
    cancelled: Cancelled = never


@dataclass(frozen=True)
class SpeechChunk:
    """A piece of synthesised speech."""

    audio: Float32  # (samples,), mono, [-1, 1]
    sample_rate_hz: int
    rate: float  # speaking rate in this chunk, 1 = the normal speed of the voice
    engine_rate: float  # of it, what the engine did; the rest is stretched
    estimate_ms: float  # the whole segment at normal speed, as estimated before it was spoken
    cloned: bool  # whether this is the reference's voice

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate_hz


class Speaking:
    """Speaks with one voice engine; remembers how each stream's voice compares with the estimates."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._paces: OrderedDict[Pace, float] = OrderedDict()

    def speak(self, line: Line) -> Iterator[SpeechChunk]:
        """Chunks as they are made; none for an empty text. Raises UnsupportedError, ValueError, EngineError."""
        pieces = self._voice.pieces(line.text, line.language)
        if not pieces:
            return
        speaker = self._voice.speaker(line.reference, line.stream)
        estimates = [self._voice.estimate_ms(piece, line.language) for piece in pieces]
        key = (line.stream, line.language, speaker.cloned)
        estimate_ms = self._natural_ms(key, estimates)
        rate_hz, spent_ms = self._voice.sample_rate_hz, 0.0
        for index, piece in enumerate(pieces):
            rate = fit_rate(self._natural_ms(key, estimates[index:]), line.slot.less(spent_ms))
            speed, tempo = share(rate, self._voice.speeds)
            said = self._voice.say(piece, line.language, speaker, speed, line.cancelled)
            piece_ms = 0.0
            for audio in stretched(said, rate_hz, tempo):
                yield SpeechChunk(audio, rate_hz, rate, speed, estimate_ms, speaker.cloned)
                piece_ms += len(audio) * 1000 / rate_hz
            if line.cancelled():
                return
            self._learn(key, piece_ms * rate, estimates[index])
            spent_ms += piece_ms
            if index + 1 < len(pieces):
                pause = np.zeros(round(PAUSE_MS / rate * rate_hz / 1000), np.float32)
                yield SpeechChunk(pause, rate_hz, rate, speed, estimate_ms, speaker.cloned)
                spent_ms += PAUSE_MS / rate

    def _natural_ms(self, key: Pace, estimates: list[float]) -> float:
        """What is left to be said, with its pauses, at normal speed."""
        return sum(estimates) * self._paces.get(key, 1.0) + PAUSE_MS * (len(estimates) - 1)

    def _learn(self, key: Pace, natural_ms: float, estimate_ms: float) -> None:
        """How long a piece really was, at normal speed."""
        pace = natural_ms / max(estimate_ms, 1.0)
        if PACE_RANGE[0] <= pace <= PACE_RANGE[1]:
            before = self._paces.pop(key, 1.0)
            self._paces[key] = before + PACE_WEIGHT * (pace - before)
            while len(self._paces) > KEPT_PACES:
                self._paces.popitem(last=False)
