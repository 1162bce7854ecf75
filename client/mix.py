"""Mixes the output's sound: the original, faded out where a segment is dubbed, and the dub in its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.client.timeline import RAMP_MS, Dub

Float32 = npt.NDArray[np.float32]

MIN_GAIN, MAX_GAIN = 0.25, 2.0  # -12 to +6 dB: a voice is fitted to its surroundings, not remade
SPEECH_RMS = 10 ** (-50 / 20)  # quieter pieces say nothing about how loud somebody speaks


def sample_at(time_ms: float, sample_rate_hz: int) -> int:
    """Index of the first sample that is not before a time."""
    return round(time_ms * sample_rate_hz / 1000)


class AudioBed:
    """Original PCM float32 (channels, samples) from a moving start on; `render` takes it out mixed."""

    def __init__(self, sample_rate_hz: int, channels: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._pieces = np.zeros((channels, 0), np.float32)
        self._start = 0  # sample index of the first held sample

    @property
    def end_ms(self) -> float:
        """The sound is held up to here."""
        return (self._start + self._pieces.shape[1]) * 1000 / self.sample_rate_hz

    def begin_at(self, time_ms: float) -> None:
        """Of a job that goes on: what lies before is written."""
        self._start = sample_at(time_ms, self.sample_rate_hz)

    def append(self, pcm: Float32) -> None:
        self._pieces = np.concatenate([self._pieces, pcm], axis=1)

    def render(self, until_ms: float, dubs: Iterable[Dub]) -> Float32:
        """The mixed sound up to `until_ms`, which is dropped here; silence where the original has ended."""
        stop = max(self._start, sample_at(until_ms, self.sample_rate_hz))
        count = stop - self._start
        mixed = np.zeros((self._pieces.shape[0], count), np.float32)
        held = min(count, self._pieces.shape[1])
        mixed[:, :held] = self._pieces[:, :held]
        self._pieces = self._pieces[:, held:]
        self._start, start = stop, self._start
        times_ms = (start + np.arange(count)) * (1000 / self.sample_rate_hz)
        for dub in dubs:
            if dub.audible:
                mixed *= _fade(times_ms, float(dub.start_ms or 0), dub.end_ms)
                if not dub.failed and dub.lips_start_ms < dub.segment.end_ms:
                    mixed *= _fade(times_ms, dub.lips_start_ms, dub.segment.end_ms)
        for dub in dubs:
            if dub.start_ms is not None:
                self._add(mixed, start, dub)
        return mixed

    def _add(self, mixed: Float32, start: int, dub: Dub) -> None:
        offset = round((dub.start_ms or 0) * self.sample_rate_hz / 1000) - start
        first, last = max(offset, 0), min(offset + len(dub.pcm), mixed.shape[1])
        if first < last:
            mixed[:, first:last] += dub.pcm[first - offset : last - offset]


def _fade(times_ms: npt.NDArray[np.float64], start_ms: float, end_ms: float) -> Float32:
    """Gain that is 1 outside [start, end], 0 inside, with RAMP_MS ramps on the outside."""
    outside = np.maximum(start_ms - times_ms, times_ms - end_ms)
    return np.clip(outside / RAMP_MS, 0.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Levels:
    """What is known of the loudness of a speaker and of the voice: energy summed over pieces, and their number."""

    source_energy: float
    source_pieces: int
    voice_energy: float
    voice_pieces: int


class LevelMatch:
    """Brings the voice to the level of the speaker it replaces."""

    def __init__(self) -> None:
        self._source = _RunningLevel()
        self._voice = _RunningLevel()

    def gain(self, source: Float32, voice: Float32) -> float:
        """Gain for a segment's voice, from its source speech and the first of the voice; smoothed over segments."""
        self._source.add(source)
        self._voice.add(voice)
        if not self._source.rms or not self._voice.rms:
            return 1.0
        return float(np.clip(self._source.rms / self._voice.rms, MIN_GAIN, MAX_GAIN))

    @property
    def levels(self) -> Levels:
        return Levels(self._source.energy, self._source.pieces, self._voice.energy, self._voice.pieces)

    def restore(self, levels: Levels) -> None:
        self._source.energy, self._source.pieces = levels.source_energy, levels.source_pieces
        self._voice.energy, self._voice.pieces = levels.voice_energy, levels.voice_pieces


class _RunningLevel:
    """RMS of the speech so far, over 20 ms pieces that are loud enough to be speech."""

    def __init__(self) -> None:
        self.energy = 0.0
        self.pieces = 0

    def add(self, audio: Float32) -> None:
        piece = 320  # 20 ms at 16 kHz
        levels = (audio[: len(audio) // piece * piece].reshape(-1, piece).astype(np.float64) ** 2).mean(axis=1)
        loud = levels[levels > SPEECH_RMS**2]
        self.energy += float(loud.sum())
        self.pieces += len(loud)

    @property
    def rms(self) -> float:
        return (self.energy / self.pieces) ** 0.5 if self.pieces else 0.0
