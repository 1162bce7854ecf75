"""Voices that say when each word was spoken: flite by its own phones, espeak-ng by the length of the words."""

from __future__ import annotations

import subprocess
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt

from polylip.serving.errors import MissingError
from polylip.serving.mel import SAMPLE_RATE_HZ

TIMEOUT_S = 60.0
SPEECH_DB = -45.0  # below a part's loudest 10 ms: where a voice's own padding begins
LEAD_MS, TRAIL_MS, FADE_MS = 20, 60, 10  # kept before the first phone and behind the last; they fade
LEVEL_HOP = SAMPLE_RATE_HZ // 100
PAUSE_PHONE = "pau"
ASK = "?"  # ends a word that is asked for alone: before a full stop some are read as abbreviations

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """A stretch spoken in one breath: its sound without long padding, and when each of its words was spoken."""

    audio: Float32  # (samples,) at 16 kHz
    spans_ms: tuple[tuple[float, float], ...]  # of each word, within the audio


class Voice(Protocol):
    """Speaks tokens (words with their punctuation)."""

    name: str

    def say(self, tokens: Sequence[str]) -> Part: ...


class Flite:
    """A voice of flite, which prints when each phone ends; words are found in the phones by edit distance."""

    def __init__(self, name: str, vocabulary: Sequence[str]) -> None:
        self.name = name
        self._phones = _pronunciations(sorted({bare(token) for token in vocabulary}))

    def say(self, tokens: Sequence[str]) -> Part:
        audio, printed = _flite(self.name, "-psdur", " ".join(tokens))
        names, ends = zip(*(item.rsplit(":", 1) for item in printed.split()), strict=True)
        edges = [0.0, *(float(end) * 1000 for end in ends)]
        phones = [i for i, name in enumerate(names) if name != PAUSE_PHONE]
        expected = [(phone, word) for word, token in enumerate(tokens) for phone in self._phones[bare(token)]]
        owners = _owners([phone for phone, _ in expected], [names[i] for i in phones])
        spans: list[tuple[float, float]] = []
        for word in range(len(tokens)):
            own = [i for i, at in zip(phones, owners, strict=True) if expected[at][1] == word]
            before = spans[-1][1] if spans else 0.0
            spans.append((edges[own[0]], edges[own[-1] + 1]) if own else (before, before))
        # By the phones, not by level: awb breathes before it speaks.
        spans[0] = (edges[phones[0]], spans[0][1])
        spans[-1] = (spans[-1][0], edges[phones[-1] + 1])
        return _trimmed(audio, spans)


class Espeak:
    """A voice of espeak-ng; a word takes time in proportion to its letters, which is rough and good for 50 ms or so."""

    def __init__(self, name: str) -> None:
        self.name = name

    def say(self, tokens: Sequence[str]) -> Part:
        audio = _run(["espeak-ng", "-v", self.name, "-s", "160", "-w"], " ".join(tokens))[0]
        first_ms, last_ms = speech_edges_ms(audio)
        letters = np.cumsum([0, *(len(token) + 1 for token in tokens)])
        edges = first_ms + letters / letters[-1] * (last_ms - first_ms)
        return _trimmed(audio, [(float(a), float(b)) for a, b in pairwise(edges)])


def bare(token: str) -> str:
    """The word of a token, in lower case."""
    return token.strip(' ,;:.?!¿¡"-').lower()


def speech_edges_ms(audio: Float32) -> tuple[float, float]:
    """Where speech begins and ends."""
    whole = audio[: len(audio) // LEVEL_HOP * LEVEL_HOP].reshape(-1, LEVEL_HOP)
    levels = np.sqrt((whole.astype(np.float64) ** 2).mean(axis=1))
    loud = np.flatnonzero(levels > levels.max() * 10 ** (SPEECH_DB / 20))
    return float(loud[0] * 10), float((loud[-1] + 1) * 10)


def _trimmed(audio: Float32, spans_ms: Sequence[tuple[float, float]]) -> Part:
    """The words and a little of what is around them, faded in and out."""
    first = max(0, round((spans_ms[0][0] - LEAD_MS) * SAMPLE_RATE_HZ / 1000))
    end = round((spans_ms[-1][1] + TRAIL_MS) * SAMPLE_RATE_HZ / 1000)
    cut = audio[first:end].copy()
    fade = np.linspace(0, 1, FADE_MS * SAMPLE_RATE_HZ // 1000, dtype=np.float32)
    cut[: fade.size] *= fade
    cut[-fade.size :] *= fade[::-1]
    from_ms = first * 1000 / SAMPLE_RATE_HZ
    return Part(cut, tuple((start - from_ms, stop - from_ms) for start, stop in spans_ms))


def _pronunciations(words: Sequence[str]) -> dict[str, list[str]]:
    """The phones of each word spoken alone; kal16 is the fastest to ask, and all voices share the lexicon."""
    _, printed = _flite("kal16", "-ps", "".join(f"{word}{ASK}\n" for word in words))
    lines = [[phone for phone in line.split() if phone != PAUSE_PHONE] for line in printed.splitlines()]
    if len(lines) != len(words):
        raise ValueError(f"flite read {len(lines)} words where {len(words)} were asked for")
    return dict(zip(words, lines, strict=True))


def _owners(expected: Sequence[str], spoken: Sequence[str]) -> list[int]:
    """For each spoken phone the index of the expected one that it stands for."""
    rows, columns = len(expected) + 1, len(spoken) + 1
    cost = np.zeros((rows, columns), int)
    cost[:, 0], cost[0, :] = range(rows), range(columns)
    for i in range(1, rows):
        for j in range(1, columns):
            same = cost[i - 1, j - 1] + (expected[i - 1] != spoken[j - 1])
            cost[i, j] = min(same, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    owners = [0] * len(spoken)
    i, j = rows - 1, columns - 1
    while j > 0:
        if i > 0 and cost[i, j] == cost[i - 1, j - 1] + (expected[i - 1] != spoken[j - 1]):
            i, j = i - 1, j - 1
            owners[j] = i
        elif i > 0 and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
            owners[j] = max(i - 1, 0)
    return owners


def _flite(voice: str, what: str, text: str) -> tuple[Float32, str]:
    return _run(["flite", "-voice", voice, what, "-f", "/dev/stdin", "-o"], text)


def _run(command: list[str], text: str) -> tuple[Float32, str]:
    """The sound that a command writes to the file named last, float32 (samples,) at 16 kHz, and what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "speech.wav")
        try:
            finished = subprocess.run(
                [*command, str(sound)], input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            )
        except FileNotFoundError:
            raise MissingError(f"{command[0]} is not installed; apt-get install {command[0]}") from None
        with wave.open(str(sound)) as reader:
            rate_hz = reader.getframerate()
            pcm = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
    audio = pcm.astype(np.float32) / 32768
    return (audio if rate_hz == SAMPLE_RATE_HZ else _resampled(audio, rate_hz)), finished.stdout


def _resampled(audio: Float32, rate_hz: int) -> Float32:
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE_HZ)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None]), "fltp", "mono")
    frame.sample_rate = rate_hz
    return np.concatenate([p.to_ndarray()[0] for p in (*resampler.resample(frame), *resampler.resample(None))])
