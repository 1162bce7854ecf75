"""When the recogniser's words are not trusted, and how long audio is cut: numbers alone, no network."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from polylip.export.generated_whisper import SAMPLE_RATE_HZ
from polylip.serving.whisper_guards import Pass, doubt, is_silent, longest_loop, token_limit
from polylip.serving.whisper_windows import cuts, in_order, sound_end

SECOND = SAMPLE_RATE_HZ


def noise(seconds: float, level: float = 0.05) -> np.ndarray:
    return np.random.default_rng(1).normal(0, level, round(seconds * SECOND)).astype(np.float32)


SPOKEN = Pass("so we went there by train", ("so", "we", "went", "there", "by", "train"), 7, -0.3, 0.1, 2.0)


def spoken(text: str, **changes: object) -> Pass:
    return replace(SPOKEN, text=text, words=tuple(text.split()), **changes)


@pytest.mark.parametrize(
    "heard",
    [
        SPOKEN,
        spoken("no no no no no!"),
        spoken("Thank you, thank you."),
        spoken("so thank you thank you thank you all for the day and the food and the music", duration_s=6.0),
        replace(SPOKEN, no_speech=0.95),  # OpenAI's rule: sure words outweigh it
        replace(SPOKEN, log_probability=-0.99),
        spoken("yes", duration_s=0.3),
        spoken("今 天 天 气 很 好 我 们 去", spaced=False, duration_s=1.0),
    ],
)
def test_speech_passes_the_guards(heard):
    assert doubt(heard, "") is None


@pytest.mark.parametrize(
    ("heard", "reason"),
    [
        (replace(SPOKEN, no_speech=0.7, log_probability=-1.2), "probability 0.70"),
        (replace(SPOKEN, log_probability=-1.2), "log-probability -1.20"),
        (spoken("Thank you. Thank you. Thank you."), "'thank you' 3 times"),
        (spoken("ha ha ha ha ha ha"), "'ha' 6 times"),
        (spoken("go to the go to the go to the end"), "'go to the' 3 times"),
        (spoken("la-" * 60, duration_s=9.0), "compression ratio"),
        (spoken(" ".join(f"word{n}" for n in range(20)), duration_s=1.0), "20 words in 1.0 s"),
        (spoken("一 二 三 四 五 六 七 八 九 十 百 千 万 个 人 在", spaced=False, duration_s=0.5), "16 characters"),
        (replace(SPOKEN, tokens=token_limit(2.0)), "did not end"),
    ],
)
def test_each_guard_names_itself_and_its_number(heard, reason):
    found = doubt(heard, "")
    assert found is not None and reason in found.message and "\n" not in found.message
    assert found.final is (heard.no_speech > 0.6)


def test_a_repeated_context_is_doubted_and_a_repeated_word_is_not():
    assert "context" in doubt(spoken("by the train."), "so we went by the train").message
    assert doubt(spoken("the train"), "so we went by the train") is None
    assert doubt(spoken("so we went"), "so we went by the train") is None


def test_a_loop_is_found_wherever_it_is():
    assert longest_loop(["and", "then", *["a", "b", "c"] * 3]) == (["a", "b", "c"], 3)
    assert longest_loop([]) == longest_loop(["a", "b", "a", "b"]) == ([], 0)


def test_the_quietest_speech_is_not_silence():
    assert is_silent(np.zeros(0, np.float32)) and is_silent(noise(1, 1e-4))
    assert not is_silent(noise(1, 1e-3))
    click = np.zeros(SECOND, np.float32)
    click[5000:5300] = 0.1
    assert not is_silent(click)


# Windows


def test_long_audio_is_cut_where_it_is_quiet():
    audio = noise(70)
    audio[int(27.2 * SECOND) : int(27.5 * SECOND)] *= 0.01
    parts = cuts(audio, 30.0)
    assert parts[0][0] == 0 and parts[-1][1] == len(audio)
    assert all(end == start for (_, end), (start, _) in pairwise(parts))
    assert all(0 < end - start <= 30 * SECOND for start, end in parts)
    assert 27.2 <= parts[0][1] / SECOND <= 27.5
    assert cuts(audio[: 30 * SECOND], 30.0) == [(0, 30 * SECOND)]


def test_words_end_where_the_sound_ends():
    audio = np.concatenate([noise(1), noise(1, level=1e-5)])
    assert SECOND <= sound_end(audio) <= SECOND + 320
    assert sound_end(noise(1)) == SECOND
    assert sound_end(np.zeros(100, np.float32)) == 100


def test_spans_are_put_in_order_within_the_segment():
    assert in_order([(-5, 40), (30, 20), (90, 130), (140, 150)], 100) == ((0, 40), (40, 60), (90, 100), (100, 100))
