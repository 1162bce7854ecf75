"""The end of speech: silence and clicks go, a voice that babbles on is stopped, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.serving.artefacts import KEEP_TAIL_S, PAUSE_S, TailGuard, late_s, longest_s

RATE = 24000
ESTIMATE_S = 2.0


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(round(seconds * RATE)) * 0.1)).astype(np.float32)


def hiss(seconds: float, level: float = 0.001) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def through(audio: np.ndarray, ended: bool = True, chunk_s: float = 0.1) -> tuple[np.ndarray, float]:
    """What comes out, and how much of it came before the end."""
    guard = TailGuard(RATE, ESTIMATE_S)
    size = round(chunk_s * RATE)
    early = [guard.push(audio[start : start + size]) for start in range(0, len(audio), size)]
    return np.concatenate([*early, guard.finish(ended)]), sum(map(len, early)) / RATE


def test_speech_passes_unchanged_and_at_once():
    speech = np.concatenate([tone(1.0), hiss(0.2), tone(0.8)])
    out, early_s = through(speech)
    assert np.array_equal(out, speech)
    assert early_s > 1.9


@pytest.mark.parametrize("level", [0.0, 0.003])
def test_trailing_silence_and_hiss_go(level):
    out, _ = through(np.concatenate([tone(1.0), hiss(1.5, level)]))
    assert len(out) / RATE == pytest.approx(1.0 + KEEP_TAIL_S, abs=0.02)


def test_a_click_after_the_end_goes_but_a_word_stays():
    click, word = tone(0.03), tone(0.15)
    out, _ = through(np.concatenate([tone(1.0), hiss(0.4), click]))
    assert len(out) / RATE == pytest.approx(1.0 + KEEP_TAIL_S, abs=0.02)
    spoken = np.concatenate([tone(1.0), hiss(0.4), word])
    assert np.array_equal(through(spoken)[0], spoken)


def test_a_click_close_to_speech_stays():
    speech = np.concatenate([tone(1.0), hiss(PAUSE_S / 2), tone(0.03)])
    assert np.array_equal(through(speech)[0], speech)


def test_a_repeat_is_cut_off_at_the_pause_before_it():
    said = tone(late_s(ESTIMATE_S) + 0.1)
    out, _ = through(np.concatenate([said, hiss(0.4), tone(2.0)]), ended=False)
    assert len(out) / RATE == pytest.approx(len(said) / RATE + KEEP_TAIL_S, abs=0.02)


def test_babble_without_a_pause_ends_between_late_and_longest_and_fades():
    out, early_s = through(tone(longest_s(ESTIMATE_S)), ended=False)
    assert early_s <= late_s(ESTIMATE_S) + 0.01 <= len(out) / RATE + 0.1
    assert len(out) / RATE <= longest_s(ESTIMATE_S)
    assert np.abs(out[-20:]).max() < 0.03


def test_a_slow_voice_that_ends_by_itself_is_heard_to_the_end():
    speech = tone(longest_s(ESTIMATE_S) - 0.2)
    assert np.array_equal(through(speech)[0], speech)


def test_silence_alone_is_nothing():
    assert len(through(hiss(1.0, 0.0))[0]) == len(through(np.zeros(0, np.float32))[0]) == 0


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.0005, 0.3]), min_size=1, max_size=12), st.floats(0.02, 0.4), st.booleans())
def test_the_size_of_chunks_changes_nothing(levels, chunk_s, ended):
    audio = np.concatenate([tone(0.15, level) for level in levels])
    whole, _ = through(audio, ended, chunk_s=10.0)
    out, _ = through(audio, ended, chunk_s)
    assert np.array_equal(out, whole)
    assert np.array_equal(out[:-240], audio[: max(len(out) - 240, 0)])  # the start of it, but for a fade
