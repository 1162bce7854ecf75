"""Placement of the dub, what may be written, and the mixed sound."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.client.mix import AudioBed, LevelMatch
from polylip.client.pulse import Pulse
from polylip.client.results import Status
from polylip.client.segmentation import Segment
from polylip.client.timeline import GAP_MS, MAX_LATE_MS, RAMP_MS, SPILL_MS, Dub, Timeline
from polylip.serving.lips_audio import LOOK_AHEAD_MS

RATE = 16_000


def timeline(duration_ms: float | None = None) -> Timeline:
    return Timeline(duration_ms, Pulse())


def segment(index: int, start_ms: int, end_ms: int) -> Segment:
    return Segment(index, start_ms, end_ms, np.zeros(1, np.float32))


def speak(line: Timeline, dub: Dub, ms: int, level: float = 0.5) -> None:
    voice = np.full(ms * RATE // 1000, level, np.float32)
    line.append(dub, voice, voice)


def test_a_dub_starts_with_its_segment():
    line = timeline()
    dub = line.add(segment(0, 1000, 3000))
    assert line.place(dub)
    assert dub.start_ms == 1000


def test_a_dub_waits_for_the_one_before():
    line = timeline()
    first, second = line.add(segment(0, 1000, 3000)), line.add(segment(1, 3500, 5000))
    line.place(first)
    speak(line, first, 3200)
    assert not line.previous_ended(second)
    line.end(first, Status.DUBBED)
    assert line.previous_ended(second)
    line.place(second)
    assert second.start_ms == 4200 + GAP_MS


def test_a_dub_that_would_start_too_late_is_refused():
    line = timeline()
    first, second = line.add(segment(0, 0, 3000)), line.add(segment(1, 3100, 5000))
    line.place(first)
    speak(line, first, 3100 + MAX_LATE_MS)
    line.end(first, Status.DUBBED)
    assert not line.place(second)
    line.end(second, Status.TOO_LATE)
    assert second.result.dub_start_ms is None


def test_a_segment_ends_once():
    line = timeline()
    dub = line.add(segment(0, 0, 1000))
    line.end(dub, Status.NO_SPEECH)
    with pytest.raises(RuntimeError, match="ended twice"):
        line.end(dub, Status.ERROR)


def test_the_plan_leaves_what_is_left_of_the_slot():
    line = timeline(duration_ms=9000)
    first, second = line.add(segment(0, 1000, 4000)), line.add(segment(1, 4500, 8500))
    assert line.plan(first) == (3000, 3000 + SPILL_MS)
    line.place(first)
    speak(line, first, 4000)
    assert line.plan(second) == (3500, 4000)  # starts at 5000; the picture ends at 9000


def test_nothing_behind_an_open_segment_is_safe():
    line = timeline()
    line.advance(8000)
    assert line.safe_ms == 8000 - RAMP_MS
    dub = line.add(segment(0, 2000, 4000))
    assert line.safe_ms == 2000 - RAMP_MS
    line.place(dub)
    speak(line, dub, 1000)
    assert line.safe_ms == 3000 - LOOK_AHEAD_MS - RAMP_MS
    line.end(dub, Status.DUBBED)
    assert line.safe_ms == 8000 - RAMP_MS


def test_written_segments_are_forgotten_but_stay_in_the_results():
    line = timeline()
    line.advance(float("inf"))
    dub = line.add(segment(0, 0, 1000))
    line.place(dub)
    speak(line, dub, 1500)
    line.end(dub, Status.DUBBED)
    assert line.written(1400) == []
    assert line.written(2000) == [dub]
    assert line.active == [] and line.complete
    assert [r.status for r in line.results] == [Status.DUBBED]


def test_lips_are_a_dubs_from_its_segments_start_to_the_later_of_both_ends():
    line = timeline()
    dub = line.add(segment(0, 1000, 3000))
    line.place(dub)
    assert line.lips_at(1500) is None  # nothing has been heard of it yet
    speak(line, dub, 1200)
    line.end(dub, Status.DUBBED)
    assert [line.lips_at(time) for time in (999, 1000, 2200, 2999, 3000)] == [None, dub, dub, dub, None]


def test_lips_never_take_the_time_of_another_dubs_speech():
    line = timeline()
    first, second = line.add(segment(0, 1000, 3000)), line.add(segment(1, 3500, 5000))
    line.place(first)
    speak(line, first, 3200)
    line.end(first, Status.DUBBED)
    line.place(second)
    speak(line, second, 500)
    line.end(second, Status.DUBBED)
    assert [line.lips_at(time) for time in (3100, 3500, 4199)] == [first] * 3
    # The second waits in silence for its late start, and is silent again behind its speech.
    assert [line.lips_at(time) for time in (4200, 4200 + GAP_MS, 4900)] == [second] * 3
    assert line.lips_at(5000) is None


def test_a_dub_that_broke_off_leaves_the_lips_to_the_original():
    line = timeline()
    dub = line.add(segment(0, 1000, 3000))
    line.place(dub)
    speak(line, dub, 500)
    line.end(dub, Status.ERROR)
    assert line.lips_at(1400) is dub and line.lips_at(1600) is None
    silent = line.add(segment(1, 4000, 5000))
    line.end(silent, Status.NO_SPEECH)
    assert line.lips_at(4500) is None


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(50, 3000), st.integers(200, 6000), st.integers(0, 9000)), min_size=1, max_size=15)
)
def test_two_dubs_never_overlap_and_start_at_most_a_bounded_time_late(parts):
    line, now = timeline(), 0
    for index, (pause, length, spoken) in enumerate(parts):
        dub = line.add(segment(index, now + pause, now + pause + length))
        now += pause + length
        fill, limit = line.plan(dub)
        assert fill > 0 and limit > 0
        if spoken and line.place(dub):
            speak(line, dub, spoken)
            line.end(dub, Status.DUBBED)
        else:
            line.end(dub, Status.TOO_LATE if spoken else Status.NO_SPEECH)
    spans = [(r.start_ms, r.dub_start_ms, r.dub_end_ms) for r in line.results if r.dub_start_ms is not None]
    assert all(0 <= start - planned <= MAX_LATE_MS for planned, start, _ in spans)
    assert all(a[2] <= b[1] for a, b in pairwise(spans))


def bed_with(level: float, seconds: int) -> AudioBed:
    bed = AudioBed(RATE, 1)
    bed.append(np.full((1, seconds * RATE), level, np.float32))
    return bed


def test_the_original_is_silent_under_its_segment_and_under_the_dub():
    line = timeline()
    dub = line.add(segment(0, 1000, 2000))
    line.place(dub)
    speak(line, dub, 1500, level=0.5)
    line.end(dub, Status.DUBBED)
    mixed = bed_with(0.25, 4).render(4000, [dub])[0]
    ramp = RAMP_MS * RATE // 1000
    assert np.all(mixed[: RATE - ramp] == 0.25)
    assert np.all(mixed[RATE : int(2.5 * RATE)] == 0.5)
    assert np.all(mixed[int(2.5 * RATE) + ramp :] == 0.25)


def test_a_failed_segment_keeps_its_original_sound():
    line = timeline()
    dub = line.add(segment(0, 1000, 2000))
    line.end(dub, Status.ERROR)
    assert np.all(bed_with(0.25, 3).render(3000, [dub]) == 0.25)


def test_a_dub_that_broke_off_gives_the_original_back_behind_it():
    line = timeline()
    dub = line.add(segment(0, 1000, 3000))
    line.place(dub)
    speak(line, dub, 500)
    line.end(dub, Status.ERROR)
    mixed = bed_with(0.25, 4).render(4000, [dub])[0]
    assert np.all(mixed[RATE : int(1.5 * RATE)] == 0.5)
    assert np.all(mixed[int(1.6 * RATE) :] == 0.25)


def test_rendering_in_pieces_gives_the_same_sound():
    line = timeline()
    dub = line.add(segment(0, 700, 1900))
    line.place(dub)
    speak(line, dub, 1333)
    line.end(dub, Status.DUBBED)
    whole = bed_with(0.25, 4).render(4000, [dub])
    bed = bed_with(0.25, 4)
    pieces = [bed.render(until, [dub]) for until in (33.3, 66.7, 700, 701, 1500, 2500, 4000)]
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)


def test_silence_follows_where_the_original_has_ended():
    assert bed_with(0.25, 1).render(2000, [])[0, RATE:].max() == 0


def test_the_voice_takes_the_level_of_the_speaker():
    rng = np.random.default_rng(0)
    quiet, loud = (rng.standard_normal(RATE).astype(np.float32) * level for level in (0.05, 0.1))
    assert LevelMatch().gain(quiet, loud) == pytest.approx(0.5, rel=0.05)
    assert LevelMatch().gain(np.zeros(RATE, np.float32), loud) == 1.0
