"""Voices that are kept: for one stream and one reference each, and no more than there is room for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polylip.serving.voice_cache import VoiceCache


def reference(value: float) -> np.ndarray:
    return np.full(16000, value, np.float32)


def test_a_voice_is_computed_once_per_stream_and_reference():
    cache: VoiceCache[str] = VoiceCache(8)
    made: list[str] = []

    def make(digest: str) -> str:
        made.append(digest)
        return f"voice {len(made)}"

    first = cache.voice("a", reference(0.1), make)
    assert cache.voice("a", reference(0.1), make) == first
    assert cache.voice("b", reference(0.1), make) != first, "a stream was given what another one's reference made"
    assert cache.voice("a", reference(0.2), make) != first
    assert len(made) == len(cache) == 3
    assert made[0] == made[1] != made[2]  # the SHA-256 of the reference


def test_one_changed_sample_is_another_voice():
    cache: VoiceCache[int] = VoiceCache(2)
    other = reference(0.1)
    other[-1] += 1e-6
    assert cache.voice("a", reference(0.1), lambda _: 1) == 1
    assert cache.voice("a", other, lambda _: 2) == 2


def test_the_least_recently_used_voice_goes_first():
    cache: VoiceCache[int] = VoiceCache(2)
    cache.voice("a", reference(0), lambda _: 0)
    cache.voice("b", reference(0), lambda _: 1)
    cache.voice("a", reference(0), lambda _: 10)
    cache.voice("c", reference(0), lambda _: 2)
    assert len(cache) == 2
    assert cache.voice("a", reference(0), lambda _: 20) == 0
    assert cache.voice("b", reference(0), lambda _: 21) == 21


def test_what_cannot_be_made_is_not_kept():
    cache: VoiceCache[int] = VoiceCache(2)

    def fail(_: str) -> int:
        raise ValueError("no voice in it")

    with pytest.raises(ValueError, match="no voice in it"):
        cache.voice("a", reference(0), fail)
    assert len(cache) == 0
    assert cache.voice("a", reference(0), lambda _: 1) == 1


def test_a_cache_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        VoiceCache(0)


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=40))
def test_whatever_is_asked_each_gets_its_own_voice_within_the_bound(bound, asked):
    cache: VoiceCache[tuple[str, int]] = VoiceCache(bound)
    for stream, value in asked:
        assert cache.voice(stream, reference(value), lambda _, own=(stream, value): own) == (stream, value)
        assert len(cache) <= bound


def test_threads_get_their_own_voices():
    cache: VoiceCache[tuple[str, int]] = VoiceCache(3)
    references = [reference(value) for value in range(4)]

    def ask(number: int) -> bool:
        stream, value = f"stream {number % 5}", number % 4
        return cache.voice(stream, references[value], lambda _: (stream, value)) == (stream, value)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))
    assert len(cache) <= 3
