"""Where speech is cut: silence, shortest and longest segment, forced splits, and what the horizon promises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.client.segmentation import HOP, MAX_SEGMENT_MS, SPEECH_RATE_HZ, Segment, Segmenter

SPEECH, SILENCE, ROOM = 0.1, 0.0, 0.0015  # ROOM: -56 dBFS, within 35 dB of the speech


def sound(*parts: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Noise of (seconds, level) pieces, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    pieces = [rng.standard_normal(round(seconds * SPEECH_RATE_HZ)) * level for seconds, level in parts]
    return np.concatenate(pieces).astype(np.float32)


def cut(audio: np.ndarray, step: int = 8000) -> list[Segment]:
    segmenter = Segmenter()
    segments = [s for i in range(0, len(audio), step) for s in segmenter.push(audio[i : i + step])]
    return [*segments, *segmenter.flush()]


def spans(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(s.start_ms, s.end_ms) for s in segments]


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


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.05, 4.0), st.sampled_from([SPEECH, SILENCE, 0.02, ROOM])), min_size=1, max_size=12)
)
def test_segments_are_ordered_bounded_and_never_start_before_the_horizon(parts):
    audio = sound(*parts)
    segmenter, segments, horizon = Segmenter(), [], 0
    for i in range(0, len(audio), 4000):
        new = list(segmenter.push(audio[i : i + 4000]))
        assert all(s.start_ms >= horizon for s in new)
        assert segmenter.horizon_ms >= horizon
        horizon = segmenter.horizon_ms
        segments += new
    segments += segmenter.flush()
    assert all(s.start_ms >= 0 and s.end_ms - s.start_ms <= MAX_SEGMENT_MS for s in segments)
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(segments))
    assert [s.index for s in segments] == list(range(len(segments)))
