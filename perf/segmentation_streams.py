"""Streams of speech whose words, pauses and sentence ends are known: texts, a voice and pauses drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, pairwise

import numpy as np

from polylip.perf.segmentation_texts import Turn
from polylip.perf.segmentation_voices import Float32, Voice, bare
from polylip.serving.mel import SAMPLE_RATE_HZ

LEAD_MS, TAIL_MS = 600, 1500  # silence before the first word and after the last
NOISE_DB = -70.0  # RMS re full scale of the noise floor: digital silence is unlike any microphone
STREAM_SENTENCES = 20  # of one stream: about a minute and a half

# Lengths of pauses in seconds: log-normal, by median and sigma, and limits.
END_S, END_SIGMA = 0.85, 0.4
END_SHORT_S, END_SHORT_SHARE = (0.15, 0.35), 0.15  # uniform: people run on into the next sentence
HESITATION_S, HESITATION_SIGMA = 0.55, 0.5
LIMITS_S = (0.12, 3.0)
LONG_PAUSE_MS = 500  # what the silence rule takes for an end
BASE_RATE = 0.71  # of the long pauses end a sentence (the paper's figure)
LONG_ENDS, LONG_HESITATIONS = 0.772, 0.576  # shares of the two kinds that come out long
HESITATIONS = LONG_ENDS / LONG_HESITATIONS * (1 - BASE_RATE) / BASE_RATE  # per sentence: 0.55
PHRASE_SHARE = 0.25  # of the hesitations fall within a phrase, the others at a comma or before a connective
PART_WORDS = 2  # at least, between two hesitations

COMMAS = (",", ";", ":")
CONNECTIVES = {
    "en": "and or but because so if when while although though since until unless before after that which who where as",
    "es": "y o pero porque así si cuando mientras aunque que quien donde como hasta luego",
}


class PauseKind(StrEnum):
    END = "end"  # of a sentence
    CLAUSE = "clause"  # hesitation at a comma or before a connective
    PHRASE = "phrase"  # hesitation between any other words
    COMMA = "comma"  # the voice's own, short


HESITATION_KINDS = (PauseKind.CLAUSE, PauseKind.PHRASE)


@dataclass(frozen=True)
class TrueWord:
    """A word of the stream."""

    written: str  # with its marks
    start_ms: float
    end_ms: float
    ends_sentence: bool


@dataclass(frozen=True)
class TruePause:
    """Silence behind word `after`."""

    after: int
    start_ms: float
    end_ms: float
    kind: PauseKind

    @property
    def length_ms(self) -> float:
        return self.end_ms - self.start_ms


@dataclass(frozen=True)
class Stream:
    """What one voice says, and the truth about it."""

    voice: str
    audio: Float32 = field(repr=False)  # (samples,) at 16 kHz
    words: tuple[TrueWord, ...]
    pauses: tuple[TruePause, ...]  # of every kind, in order; none behind the last word

    @property
    def ends(self) -> list[int]:
        """The words that end a sentence."""
        return [i for i, word in enumerate(self.words) if word.ends_sentence]


@dataclass(frozen=True)
class Script:
    """Turns with the places at which the speaker will hesitate: {(sentence, token): kind}, a pause before the token."""

    sentences: tuple[tuple[str, ...], ...]  # tokens
    hesitations: dict[tuple[int, int], PauseKind]


def scripts(turns: Sequence[Turn], language: str, seed: int) -> list[Script]:
    """The turns in streams of about STREAM_SENTENCES, with hesitations at the rate that gives BASE_RATE over all."""
    chosen = random.Random(seed)  # noqa: S311  a sample, no secret
    sentences = [tuple(sentence.split()) for turn in turns for sentence in turn.sentences]
    places = _hesitations(sentences, language, chosen)
    lasts = set(accumulate(len(turn.sentences) for turn in turns))
    found, first = [], 0
    for end in sorted(lasts):
        if end - first >= STREAM_SENTENCES or end == len(sentences):
            own = {(s - first, t): kind for (s, t), kind in places.items() if first <= s < end}
            found.append(Script(tuple(sentences[first:end]), own))
            first = end
    return found


def _hesitations(
    sentences: Sequence[Sequence[str]], language: str, chosen: random.Random
) -> dict[tuple[int, int], PauseKind]:
    connectives = set(CONNECTIVES[language].split())
    candidates: dict[PauseKind, list[tuple[int, int]]] = {kind: [] for kind in HESITATION_KINDS}
    for s, tokens in enumerate(sentences):
        for t in range(PART_WORDS, len(tokens) - PART_WORDS + 1):
            joint = tokens[t - 1].endswith(COMMAS) or bare(tokens[t]) in connectives
            candidates[PauseKind.CLAUSE if joint else PauseKind.PHRASE].append((s, t))
    wanted = round(HESITATIONS * len(sentences))
    shares = {PauseKind.CLAUSE: wanted - round(wanted * PHRASE_SHARE), PauseKind.PHRASE: round(wanted * PHRASE_SHARE)}
    taken: dict[tuple[int, int], PauseKind] = {}
    for kind, count in shares.items():
        chosen.shuffle(candidates[kind])
        limit = len(taken) + count
        for s, t in candidates[kind]:
            if len(taken) >= limit:
                break
            if not any((s, t + step) in taken for step in range(1 - PART_WORDS, PART_WORDS)):
                taken[s, t] = kind
    return taken


def speak(script: Script, voice: Voice, seed: int, noise_db: float = NOISE_DB) -> Stream:
    """The script spoken, with pauses and noise drawn from the seed."""
    chosen = random.Random(seed)  # noqa: S311  a draw, no secret
    sound: list[Float32] = []
    words: list[TrueWord] = []
    pauses: list[TruePause] = []
    size, trail_ms = 0, 0.0  # samples so far, and what of them is behind the last word
    for tokens, ends, pause in _parts(script):
        part = voice.say(tokens)
        length_ms = LEAD_MS if pause is None else 1000 * _length_s(pause, chosen)
        sound += [_silence(length_ms - trail_ms - part.spans_ms[0][0]), part.audio]
        at_ms = (size + sound[-2].size) * 1000 / SAMPLE_RATE_HZ
        size += sound[-2].size + part.audio.size
        trail_ms = part.audio.size * 1000 / SAMPLE_RATE_HZ - part.spans_ms[-1][1]
        for i, (token, (start, end)) in enumerate(zip(tokens, part.spans_ms, strict=True)):
            kind = pause if i == 0 else PauseKind.COMMA if start - part.spans_ms[i - 1][1] > 1 else None
            if kind is not None:
                pauses.append(TruePause(len(words) - 1, words[-1].end_ms, at_ms + start, kind))
            words.append(TrueWord(token, at_ms + start, at_ms + end, ends and i == len(tokens) - 1))
    sound.append(_silence(TAIL_MS - trail_ms))
    audio = np.concatenate(sound)
    noise = np.random.default_rng(seed).standard_normal(audio.size, dtype=np.float32)
    return Stream(voice.name, audio + noise * np.float32(10 ** (noise_db / 20)), tuple(words), tuple(pauses))


def _parts(script: Script) -> Iterator[tuple[list[str], bool, PauseKind | None]]:
    """What is spoken in one breath, whether it ends its sentence, and the pause before it, None before the first."""
    for s, tokens in enumerate(script.sentences):
        cuts = sorted(t for own, t in script.hesitations if own == s)
        for first, end in pairwise([0, *cuts, len(tokens)]):
            part, ends = list(tokens[first:end]), end == len(tokens)
            if not ends:
                # With a comma flite keeps its voice up, as one does who will go on.
                part[-1] = part[-1].rstrip("".join(COMMAS)) + ","
            before = script.hesitations[s, first] if first else PauseKind.END if s else None
            yield part, ends, before


def _length_s(kind: PauseKind, chosen: random.Random) -> float:
    if kind is PauseKind.END and chosen.random() < END_SHORT_SHARE:
        return chosen.uniform(*END_SHORT_S)
    median, sigma = (END_S, END_SIGMA) if kind is PauseKind.END else (HESITATION_S, HESITATION_SIGMA)
    return min(max(median * chosen.lognormvariate(0, sigma), LIMITS_S[0]), LIMITS_S[1])


def _silence(ms: float) -> Float32:
    return np.zeros(max(0, round(ms * SAMPLE_RATE_HZ / 1000)), np.float32)
