"""Where speech is cut by silence and by length, and what the horizon and a known text promise of any policy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talking import ROOM, SILENCE, SPEECH, sound, spans

from polylip.client.segmentation import (
    HOP,
    MAX_SEGMENT_MS,
    SPEECH_RATE_HZ,
    Answer,
    Policy,
    Question,
    Segment,
    Segmenter,
    Word,
)
from polylip.client.vad import EnergyVad


def cut(audio: np.ndarray, step: int = 8000) -> list[Segment]:
    """By silence alone."""
    segmenter = Segmenter(policy=Policy.SILENCE)
    segments = [s for i in range(0, len(audio), step) for s in segmenter.push(audio[i : i + step])]
    return [*segments, *segmenter.flush()]


def test_half_a_second_of_silence_closes_a_segment():
    segments = cut(sound((1, SILENCE), (2, SPEECH), (0.6, SILENCE), (2, SPEECH), (1, SILENCE)))
    assert spans(segments) == [(1000, 3000), (3600, 5600)]
    assert not any(s.forced for s in segments)


def test_a_shorter_pause_does_not():
    assert spans(cut(sound((1, SILENCE), (2, SPEECH), (0.4, SILENCE), (2, SPEECH), (1, SILENCE)))) == [(1000, 5400)]


def test_a_short_word_waits_for_more_speech_but_not_for_ever():
    assert spans(cut(sound((1, SILENCE), (0.5, SPEECH), (0.7, SILENCE), (2, SPEECH), (1, SILENCE)))) == [(1000, 4200)]
    assert spans(cut(sound((1, SILENCE), (0.5, SPEECH), (1.3, SILENCE), (2, SPEECH), (1, SILENCE)))) == [
        (1000, 1500),
        (2800, 4800),
    ]


def test_a_click_is_no_segment():
    assert cut(sound((1, SILENCE), (0.04, SPEECH), (2, SILENCE))) == []
    assert cut(sound((1, SILENCE), (0.1, SPEECH), (2, SILENCE))) == []


def test_long_speech_is_split_at_its_longest_pause():
    segments = cut(sound((0.5, SILENCE), (5, SPEECH), (0.3, SILENCE), (3, SPEECH), (0.2, SILENCE), (4, SPEECH)))
    assert spans(segments)[0] == (500, 5500)
    assert segments[0].forced
    assert segments[1].start_ms == 5800


def test_speech_without_a_pause_is_split_at_its_quietest_hop():
    audio = sound((20, SPEECH))
    audio[9 * SPEECH_RATE_HZ : 9 * SPEECH_RATE_HZ + HOP] *= 0.3
    first = cut(audio)[0]
    assert first.forced
    assert first.end_ms == 9000


def test_room_noise_within_35_db_of_the_voice_is_not_speech():
    segments = cut(sound((3, ROOM), (2, SPEECH), (1, ROOM), (2, SPEECH), (1, ROOM)))
    assert spans(segments) == [(3000, 5000), (6000, 8000)]


def test_the_end_of_the_sound_closes_what_is_open():
    assert spans(cut(sound((1, SILENCE), (2, SPEECH)))) == [(1000, 3000)]


def test_the_recogniser_gets_a_little_more_than_the_segment():
    segment = cut(sound((1, SILENCE), (2, SPEECH), (1, SILENCE)))[0]
    assert len(segment.audio) == round(2.5 * SPEECH_RATE_HZ)  # 0.3 s before, 0.2 s behind


def place_of(audio: np.ndarray, segment: Segment) -> float:
    """Where in the whole sound, in ms, a segment's audio lies: every piece of noise is found only once."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, 400)
    voiced = int(np.flatnonzero(segment.audio)[0])
    (found,) = np.flatnonzero((windows == segment.audio[voiced : voiced + 400]).all(axis=1))
    return (int(found) - voiced) * 1000 / SPEECH_RATE_HZ


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(1, SILENCE), (2, SPEECH), (1, SILENCE)], id="closed-by-silence"),
        pytest.param([(1, SILENCE), (2, SPEECH)], id="sound-ends-with-the-last-word"),
        pytest.param([(1, SILENCE), (2, SPEECH), (0.1, SILENCE)], id="sound-ends-within-the-post-roll"),
        pytest.param([(0.1, SILENCE), (2, SPEECH), (1, SILENCE)], id="speech-begins-within-the-pre-roll"),
        pytest.param([(2, SPEECH), (0.6, SILENCE), (2, SPEECH), (0.61, SILENCE)], id="two"),
        pytest.param([(0.5, SILENCE), (5, SPEECH), (0.3, SILENCE), (3, SPEECH), (0.2, SILENCE), (4, SPEECH)], id="cut"),
    ],
)
def test_a_segment_knows_where_its_audio_begins(parts: list[tuple[float, float]]):
    audio = sound(*parts)
    segments = cut(audio)
    assert segments
    for segment in segments:
        assert segment.audio_start_ms == place_of(audio, segment)
        assert segment.audio_start_ms <= segment.start_ms


@pytest.mark.parametrize("step", [1, 7, 320, 5000])
def test_the_size_of_the_pieces_does_not_matter(step: int):
    audio = sound((0.3, SILENCE), (1.7, SPEECH), (0.6, SILENCE), (0.2, SPEECH), (0.2, SILENCE))[
        : 30_000 if step == 1 else None
    ]
    assert spans(cut(audio, step)) == spans(cut(audio))


class LateVad:
    """Notices speech 0.2 s after it began."""

    late_hops = 10

    def __init__(self) -> None:
        self._run = 0

    def hop(self, samples: np.ndarray) -> int:
        before, self._run = self._run, self._run + 1 if samples.any() else 0
        return 0 if self._run <= 10 else 11 if before == 10 else 1


def test_a_vad_may_notice_speech_late_without_a_start_being_lost():
    segmenter, segments = Segmenter(LateVad(), Policy.SILENCE), []
    audio = sound((1, SILENCE), (2, SPEECH), (0.6, SILENCE), (2, SPEECH), (1, SILENCE))
    for i in range(0, len(audio), HOP):
        horizon = segmenter.horizon_ms
        for segment in segmenter.push(audio[i : i + HOP]):
            segments.append(segment)
            assert segment.start_ms >= horizon
        assert segmenter.horizon_ms >= horizon
    assert spans(segments) == [(1000, 3000), (3600, 5600)]


class Moody:
    """A recogniser and a scorer that say anything, and a VAD that changes its mind about the past."""

    late_hops = 10

    def __init__(self, seed: int) -> None:
        self._energy = EnergyVad()
        self.random = random.Random(seed)  # noqa: S311  no secret

    def hop(self, samples: np.ndarray) -> int:
        return self._energy.hop(samples) * self.random.choice([1, 1, 3, 11])

    def recognise(self, question: Question) -> Answer | None:
        end_ms = question.audio_start_ms + len(question.audio) // 16
        if self.random.random() < 0.2:
            return None
        times = sorted(self.random.randint(question.audio_start_ms, end_ms) for _ in range(self.random.randint(0, 60)))
        words = tuple(Word(f"w{i}", a, b) for i, (a, b) in enumerate(zip(times[::2], times[1::2], strict=False)))
        return Answer(words, " ".join(w.text for w in words), self.random.choice(["en", "es", ""]))

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        return self.random.choice([None, 0.0, 0.3, 0.6, 0.8, 0.9, 1.0])


@settings(max_examples=120)
@given(
    st.lists(st.tuples(st.floats(0.05, 4.0), st.sampled_from([SPEECH, SILENCE, 0.02, ROOM])), min_size=1, max_size=12),
    st.sampled_from(Policy),
    st.integers(0, 2**32),
    st.sampled_from([MAX_SEGMENT_MS, 4000]),
    st.booleans(),
)
def test_segments_are_ordered_bounded_and_never_start_before_the_horizon(parts, policy, seed, longest_ms, late):
    audio, moody = sound(*parts), Moody(seed)
    segmenter = Segmenter(moody if late else None, policy, longest_ms, scorer=lambda language: moody)
    segments, heard = [], {}
    for i in range(0, len(audio) + 4000, 4000):
        horizon = segmenter.horizon_ms
        for item in segmenter.push(audio[i : i + 4000]) if i < len(audio) else segmenter.flush():
            assert segmenter.horizon_ms >= horizon
            if isinstance(item, Segment):
                assert horizon <= item.start_ms < item.end_ms <= item.decided_ms == segmenter.heard_ms
                assert item.end_ms - item.start_ms <= longest_ms
                assert item.audio_start_ms >= 0
                assert item.audio_start_ms + len(item.audio) // 16 >= item.end_ms
                segments.append(item)
            else:
                assert policy is not Policy.SILENCE
                at = item.audio_start_ms * 16
                assert np.array_equal(item.audio, audio[at : at + len(item.audio)])
                segmenter.answer(item, answer := moody.recognise(item))
                if answer is not None and answer.text:
                    heard[answer.text, item.audio.tobytes()] = answer
            horizon = segmenter.horizon_ms
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(segments))
    assert all(s.audio_start_ms >= before.end_ms for before, s in pairwise(segments))
    assert [s.index for s in segments] == list(range(len(segments)))
    assert all((s.known_text, s.audio.tobytes()) in heard for s in segments if s.known_text)
