"""Cuts speech into segments: an energy VAD over 20 ms hops and the rules for closing a segment (docs/pipeline.md)"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

SPEECH_RATE_HZ = 16_000  # what the recogniser and the mel front end take
HOP_MS = 20
HOP = SPEECH_RATE_HZ * HOP_MS // 1000

BELOW_PEAK_DB = 35.0  # a hop is speech when it is at most this far below the running peak (the paper's value)
FLOOR_DBFS = -60.0  # and above this, so that digital near-silence has no speech
START_PEAK_DBFS = -25.0  # peak assumed before anything was heard: quiet speech of a webcam
ABOVE_NOISE_DB = 9.0  # and this far above the noise floor: room noise can lie within 35 dB of a soft voice ...
NOISE_PERCENTILE = 10  # ... the floor being this percentile of ...
NOISE_WINDOW_HOPS = 200  # ... the last 4 s, which hold a pause between words even in dense speech
NOISE_BELOW_PEAK_DB = 18.0  # but speech this near the peak is speech, whatever the floor
PEAK_DECAY = 0.9998  # per hop: one clap mutes soft speech for a while, not for ever (6 dB in 70 s)

SILENCE_MS = 500  # closes a segment (the paper's value)
MIN_SEGMENT_MS = 1500  # a shorter one waits for more speech (the paper's value) ...
SHORT_SILENCE_MS = 1200  # ... until this much silence: "Yes." must not wait for ever
MAX_SEGMENT_MS = 10_000  # forces a split (the paper's value)
ONSET_MS = 60  # speech shorter than this does not open a segment: clicks
MIN_VOICED_MS = 160  # a segment with less speech than this is a cough or a click
SPLIT_PAUSE_MS = 100  # a pause worth cutting at when a split is forced
SPLIT_SEARCH_MS = 2000  # without one: the quietest hop of the last two seconds
PRE_ROLL_MS = 300  # sound before the onset that the recogniser gets: soft first consonants
POST_ROLL_MS = 200  # and after the last speech


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, on the video's timeline. `audio` holds float32 (samples,) at 16 kHz with its rolls."""

    index: int
    start_ms: int  # first speech
    end_ms: int  # last speech
    audio: Float32 = field(repr=False)
    forced: bool = False  # cut by length, not by silence
    pre_roll_ms: int = 0  # of `audio` before `start_ms`
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def audio_start_ms(self) -> int:
        """Where `audio` begins on the video's timeline."""
        return self.start_ms - self.pre_roll_ms


class EnergyVad:
    """Speech or not, hop by hop, by energy against a decaying peak and the noise floor."""

    def __init__(self) -> None:
        self._peak = _amplitude(START_PEAK_DBFS)
        self._recent: deque[float] = deque(maxlen=NOISE_WINDOW_HOPS)

    def hop(self, rms: float) -> bool:
        """Whether a hop of this RMS (1 = full scale) is speech."""
        self._peak = max(rms, self._peak * PEAK_DECAY)
        self._recent.append(rms)
        noise = float(np.percentile(self._recent, NOISE_PERCENTILE)) * _amplitude(ABOVE_NOISE_DB)
        noise = min(noise, self._peak * _amplitude(-NOISE_BELOW_PEAK_DB))
        return rms > max(self._peak * _amplitude(-BELOW_PEAK_DB), noise, _amplitude(FLOOR_DBFS))


def _amplitude(decibels: float) -> float:
    return float(10 ** (decibels / 20))


class Segmenter:
    """Takes 16 kHz mono sound as it comes, gives segments as they close."""

    def __init__(self) -> None:
        self._vad = EnergyVad()
        self._rest = np.zeros(0, np.float32)  # less than a hop
        self._buffer = np.zeros(0, np.float32)  # sound from hop `_base` on
        self._base = 0
        self._hops = 0  # hops judged so far
        self._run = 0  # current run of speech hops, before a segment is open
        self._open: _OpenSegment | None = None
        self._count = 0
        self._last_end = 0  # hop behind the last closed segment

    @property
    def horizon_ms(self) -> int:
        """No segment that is still to come starts before this time."""
        first = self._open.first if self._open else self._hops - self._run
        return first * HOP_MS

    def push(self, audio: Float32) -> Iterator[Segment]:
        """Add float32 (samples,); yields the segments that this closes."""
        audio = np.concatenate([self._rest, audio])
        whole = len(audio) // HOP * HOP
        self._rest = audio[whole:]
        self._buffer = np.concatenate([self._buffer, audio[:whole]])
        hops = audio[:whole].reshape(-1, HOP).astype(np.float64)
        for rms in np.sqrt((hops**2).mean(axis=1)):
            yield from self._judge(float(rms))
        self._forget()

    def flush(self) -> Iterator[Segment]:
        """The end of the sound: close what is open."""
        if self._open is not None:
            yield from self._close(self._open.last + 1)
        self._run = 0

    def _judge(self, rms: float) -> Iterator[Segment]:
        hop = self._hops
        self._hops += 1
        speech = self._vad.hop(rms)
        if self._open is None:
            self._run = self._run + 1 if speech else 0
            if self._run * HOP_MS >= ONSET_MS:
                first = hop - self._run + 1
                self._open = _OpenSegment(first, hop, [True] * self._run, [rms] * self._run)
                self._run = 0
            return
        self._open.add(hop, speech, rms)
        silence_ms = (hop - self._open.last) * HOP_MS
        length_ms = (self._open.last + 1 - self._open.first) * HOP_MS
        if silence_ms >= (SILENCE_MS if length_ms >= MIN_SEGMENT_MS else SHORT_SILENCE_MS):
            yield from self._close(self._open.last + 1)
        elif (hop + 1 - self._open.first) * HOP_MS >= MAX_SEGMENT_MS:
            yield from self._split()

    def _split(self) -> Iterator[Segment]:
        """Cut at the best earlier pause, or at the quietest hop, and carry the rest on."""
        opened = self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        cut, resume = opened.best_cut()
        speech, levels = opened.speech[resume:], opened.levels[resume:]
        first = opened.first + resume
        yield from self._close(opened.first + cut, forced=True)
        if any(speech):
            self._open = _OpenSegment(first, first + int(np.flatnonzero(speech)[-1]), speech, levels)

    def _close(self, end: int, forced: bool = False) -> Iterator[Segment]:
        """End the open segment before hop `end`."""
        opened, self._open = self._open, None
        assert opened is not None  # noqa: S101  only called with an open segment
        if sum(opened.speech[: end - opened.first]) * HOP_MS < MIN_VOICED_MS:
            return
        from_hop = max(opened.first - PRE_ROLL_MS // HOP_MS, self._last_end, self._base)
        to_hop = end if forced else min(end + POST_ROLL_MS // HOP_MS, self._hops)
        audio = self._buffer[(from_hop - self._base) * HOP : (to_hop - self._base) * HOP]
        self._last_end = to_hop
        pre_roll_ms = (opened.first - from_hop) * HOP_MS
        yield Segment(self._count, opened.first * HOP_MS, end * HOP_MS, audio.copy(), forced, pre_roll_ms)
        self._count += 1

    def _forget(self) -> None:
        """Drop sound that no segment can want any more."""
        keep = self._open.first if self._open else self._hops - self._run
        drop = max(0, keep - PRE_ROLL_MS // HOP_MS - self._base)
        self._buffer = self._buffer[drop * HOP :]
        self._base += drop


@dataclass
class _OpenSegment:
    """A segment in the making; hops are counted from the start of the sound."""

    first: int
    last: int  # last speech hop
    speech: list[bool]
    levels: list[float]

    def add(self, hop: int, speech: bool, rms: float) -> None:
        self.speech.append(speech)
        self.levels.append(rms)
        if speech:
            self.last = hop

    def best_cut(self) -> tuple[int, int]:
        """(end of the first part, start of the second) in hops from `first`: the longest pause after MIN_SEGMENT_MS."""
        pauses = [p for p in _pauses(self.speech) if p[0] * HOP_MS >= MIN_SEGMENT_MS]
        longest = max(pauses, key=lambda p: p[1] - p[0], default=(0, 0))
        if (longest[1] - longest[0]) * HOP_MS >= SPLIT_PAUSE_MS:
            return longest
        tail = len(self.levels) - SPLIT_SEARCH_MS // HOP_MS
        quietest = tail + int(np.argmin(self.levels[tail:]))
        return quietest, quietest


def _pauses(speech: list[bool]) -> list[tuple[int, int]]:
    """Runs [start, end) of hops without speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], speech, [True]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
