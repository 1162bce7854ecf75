"""Tells what Whisper made up from what was said, by the numbers of one pass: a recogniser that hears nothing invents.

Each guard is a small function from those numbers to one line, or to nothing.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polylip.serving.engines import Float32
from polylip.serving.mel import SAMPLE_RATE_HZ

# The four thresholds of OpenAI's own transcribe(): no_speech 0.6 counts only together with the log-probability.
MAX_NO_SPEECH = 0.6
MIN_LOG_PROBABILITY = -1.0
MAX_COMPRESSION = 2.4

SILENCE_DBFS = -70.0  # of the loudest 20 ms: ten steps of 16 bit, under the noise of any microphone
FRAME_S = 0.02

MAX_WORDS_PER_S = 8.0  # the fastest speakers reach 6 to 7
MAX_CHARACTERS_PER_S = 15.0  # of scripts without spaces, where a "word" is about a character; fast speech has 10
SPARE_WORDS = 3  # a short segment may be cut in the middle of words

LONGEST_PHRASE = 8  # words
MAX_REPEATS_OF_WORD = 5  # "no no no no no" is said by people
MAX_REPEATS_OF_PHRASE = 2  # of two words or more, in a row
MIN_SHARE_REPEATED = 0.5  # of all words: "thank you" three times within a long sentence is speech

TOKENS_PER_S = 30.0  # scripts outside the vocabulary take a token per byte
SPARE_TOKENS = 24
MAX_TOKENS = 224  # half of the decoder's positions, as in OpenAI's own
MIN_ECHO = 3  # words: fewer are said twice in a row by people too


@dataclass(frozen=True)
class Pass:
    """What one pass of the decoder over one window gave."""

    text: str
    words: tuple[str, ...]
    tokens: int
    log_probability: float  # mean per token
    no_speech: float  # probability, 0 to 1
    duration_s: float  # of the window's audio
    spaced: bool = True  # whether the language puts spaces between words


@dataclass(frozen=True)
class Doubt:
    """Why a pass is not trusted."""

    message: str
    final: bool = False  # another pass would not help


def is_silent(audio: Float32) -> bool:
    """Whether even the loudest 20 ms of float32 (samples,) at 16 kHz are no sound."""
    return loudest_dbfs(audio) < SILENCE_DBFS


def loudest_dbfs(audio: Float32) -> float:
    """RMS of the loudest 20 ms, in dB below full scale."""
    frame = round(FRAME_S * SAMPLE_RATE_HZ)
    padded = np.pad(audio.astype(np.float64), (0, -audio.size % frame))
    power = float(np.square(padded.reshape(-1, frame)).mean(axis=1).max(initial=0.0))
    return 10 * float(np.log10(max(power, 1e-20)))


def token_limit(duration_s: float) -> int:
    """How many tokens of text may be said in that time."""
    return min(SPARE_TOKENS + int(TOKENS_PER_S * duration_s), MAX_TOKENS)


def doubt(heard: Pass, context: str) -> Doubt | None:
    """The first reason not to trust a pass, or None."""
    no_speech = _no_speech(heard)
    if no_speech:
        return Doubt(no_speech, final=True)
    for message in (
        _unending(heard),
        _repeating(heard),
        _compressible(heard),
        _unlikely(heard),
        _too_fast(heard),
        _echo(heard, context),
    ):
        if message:
            return Doubt(message)
    return None


def _no_speech(heard: Pass) -> str:
    if heard.no_speech <= MAX_NO_SPEECH or heard.log_probability >= MIN_LOG_PROBABILITY:
        return ""
    return f"no speech: probability {heard.no_speech:.2f} (over {MAX_NO_SPEECH}) and {_unlikely(heard)}"


def _unending(heard: Pass) -> str:
    limit = token_limit(heard.duration_s)
    if heard.tokens < limit:
        return ""
    return f"the words did not end: {limit} tokens in {heard.duration_s:.1f} s"


def _repeating(heard: Pass) -> str:
    phrase, count = longest_loop(plain_words(heard.words))
    if not phrase:
        return ""
    return f"the words repeat: {' '.join(phrase)!r} {count} times in a row"


def _compressible(heard: Pass) -> str:
    ratio = compression(heard.text)
    return (
        f"the words repeat: compression ratio {ratio:.1f} (over {MAX_COMPRESSION})" if ratio > MAX_COMPRESSION else ""
    )


def _unlikely(heard: Pass) -> str:
    if heard.log_probability >= MIN_LOG_PROBABILITY:
        return ""
    return f"mean log-probability {heard.log_probability:.2f} (under {MIN_LOG_PROBABILITY})"


def _too_fast(heard: Pass) -> str:
    most = MAX_WORDS_PER_S if heard.spaced else MAX_CHARACTERS_PER_S
    count = len(heard.words) if heard.spaced else sum(map(len, heard.words))
    if count <= SPARE_WORDS + most * heard.duration_s:
        return ""
    unit = "words" if heard.spaced else "characters"
    return f"too fast to be speech: {count} {unit} in {heard.duration_s:.1f} s (over {most:.0f} per second)"


def _echo(heard: Pass, context: str) -> str:
    words, before = plain_words(heard.words), plain_words(context.split())
    if len(words) < MIN_ECHO or before[-len(words) :] != words:
        return ""
    return f"the words repeat the context: {len(words)} of {len(words)} words"


def compression(text: str) -> float:
    """How many times smaller zlib makes the text."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data)) if data else 0.0


def plain_words(words: Sequence[str]) -> list[str]:
    """The words without case and punctuation."""
    bare = ("".join(c for c in word.casefold() if unicodedata.category(c)[0] not in "PZ") for word in words)
    return [word for word in bare if word]


def longest_loop(words: Sequence[str]) -> tuple[list[str], int]:
    """The phrase that is said too often in a row, and how often; an empty phrase when none is."""
    for length in range(1, LONGEST_PHRASE + 1):
        most = MAX_REPEATS_OF_WORD if length == 1 else MAX_REPEATS_OF_PHRASE
        for start in range(len(words) - (most + 1) * length + 1):
            phrase = list(words[start : start + length])
            count = 1
            while list(words[start + count * length : start + (count + 1) * length]) == phrase:
                count += 1
            counts = count > most and _distinct(phrase)
            if counts and count * length >= MIN_SHARE_REPEATED * len(words):
                return phrase, count
    return [], 0


def _distinct(phrase: Sequence[str]) -> bool:
    """Whether the phrase is more than one word said again: that is counted as the word's own loop."""
    return len(phrase) == 1 or len(set(phrase)) > 1
