"""What is noted of a job's stages, what is kept of it, and what it comes to."""

import json
import time

import pytest

from polylip.client.report import _plain
from polylip.client.results import SegmentResult, Status
from polylip.client.trace import LOOSE_PER_SEGMENT, MAX_SPANS, Figures, Span, Stage, Trace, spread, together

ORIGIN = 1000.0  # a reading of the clock
EVERY_S = 5.0  # a segment
BATCH_MS = 400
WORDS = "The computer can translate my voice in real time."


def live_segment(trace, number, words=WORDS):
    """A sentence of 3.5 s as a live run leaves it: faces while it is heard, lips while its dub still streams in."""
    at, media_ms = ORIGIN + number * EVERY_S, number * EVERY_S * 1000
    name = f"segment-{number}"

    def note(stage, start_s, end_s, media=(None, None), segment=name):
        media_start_ms, media_end_ms = (None if m is None else media_ms + m for m in media)
        trace.span(segment, stage, at + start_s, at + end_s, media_start_ms=media_start_ms, media_end_ms=media_end_ms)

    note(Stage.HEARD, 0.0, 3.5, (0, 3500))
    note(Stage.PAUSE, 3.5, 4.0)
    note(Stage.RECOGNISE, 3.7, 3.95)
    note(Stage.QUEUE, 4.0, 4.01)
    note(Stage.TRANSLATE_SPEAK, 4.01, 4.31)
    note(Stage.SPEAK, 4.31, 5.81)
    for chunk in range(4):
        note(Stage.FACES, chunk + 1.0, chunk + 1.3, (chunk * 1000, (chunk + 1) * 1000), None)
    for batch in range(9):
        media = batch * BATCH_MS, (batch + 1) * BATCH_MS
        start_s = 4.36 + batch * 0.22
        note(Stage.LIPS, start_s, start_s + 0.09, media)
        note(Stage.BLEND, start_s + 0.09, start_s + 0.11, media)
        note(Stage.ENCODE, start_s + 0.11, start_s + 0.16, media, None)
    start_ms = round(media_ms)
    return SegmentResult(
        name, start_ms, start_ms + 3500, start_ms, start_ms + 3600, 1.0, words, words, status=Status.DUBBED
    )


def live_run(count, keep=100, words=WORDS):
    trace = Trace(ORIGIN, keep)
    return trace, [live_segment(trace, number, words) for number in range(count)]


def test_spans_count_from_the_origin_and_belong_to_their_segment():
    trace, _ = live_run(2)
    assert trace.segment_ids == ["segment-0", "segment-1"]
    spans = trace.spans("segment-1")
    assert Span(Stage.QUEUE, 9.0, pytest.approx(9.01)) in spans
    assert spans == sorted(spans, key=lambda span: (span.start_s, span.end_s))
    assert {span.stage for span in spans} == set(Stage)


def test_a_segment_has_the_pictures_spans_that_work_on_its_stretch_of_video():
    trace, _ = live_run(3)
    for number in range(3):
        faces = [span.media_start_ms for span in trace.spans(f"segment-{number}") if span.stage is Stage.FACES]
        assert faces == [number * EVERY_S * 1000 + chunk * 1000 for chunk in range(4)]


def test_figures_of_a_segment():
    figures = live_run(1)[0].figures("segment-0")
    assert figures.first_audio_s == pytest.approx(0.81)
    assert figures.first_mouth_s == pytest.approx(0.95)
    assert figures.last_s == pytest.approx(4.36 + 8 * 0.22 + 0.16 - 3.5)
    assert figures.early_faces_s == pytest.approx(3 * 0.3), "the fourth chunk came after the person had stopped"
    assert figures.overlap_s == pytest.approx(7 * 0.09), "batches 0 to 6 ran while the voice was streaming in"
    assert figures.stages_s[Stage.LIPS] == pytest.approx(9 * 0.09)
    # The last chunk of faces reaches past the dub: only its part on this segment counts.
    assert figures.stages_s[Stage.FACES] == pytest.approx(3.6 * 0.3)
    work_s = 0.25 + 0.3 + 1.5 + 3.6 * 0.3 + 9 * (0.09 + 0.02 + 0.05)
    assert figures.work_s == pytest.approx(work_s), "hearing, the pause and the queue are no work"
    assert figures.busy_s < figures.work_s
    assert figures.gain == pytest.approx(figures.work_s / figures.busy_s)
    assert sum(figures.shares.values()) == pytest.approx(1)
    assert figures.shares[Stage.SPEAK] == pytest.approx(1.5 / work_s)


def test_stages_one_after_the_other_gain_nothing_and_side_by_side_they_do():
    for shift_s, busy_s, overlap_s in ((1.0, 2.0, 0.0), (0.5, 1.5, 0.5), (0.0, 1.0, 1.0)):
        trace = Trace(0.0)
        trace.span("a", Stage.SPEAK, 1.0, 2.0)
        trace.span("a", Stage.LIPS, 1.0 + shift_s, 2.0 + shift_s)
        figures = trace.figures("a")
        assert (figures.work_s, figures.busy_s, figures.overlap_s) == (2.0, busy_s, overlap_s)
        assert figures.gain == pytest.approx(2.0 / busy_s)


def test_requests_of_one_stage_at_the_same_time_are_not_counted_twice():
    trace = Trace(0.0)
    for start_s in (0.0, 0.5, 1.0):
        trace.span("a", Stage.LIPS, start_s, start_s + 1.0)
    figures = trace.figures("a")
    assert figures.stages_s == {Stage.LIPS: 2.0}
    assert figures.gain == 1.0


def test_the_whole_job_counts_what_segments_and_picture_did_side_by_side():
    trace = Trace(0.0)
    trace.span("a", Stage.HEARD, 0.0, 3.0, media_start_ms=0, media_end_ms=3000)
    trace.span("a", Stage.SPEAK, 3.0, 5.0)
    trace.span("b", Stage.LIPS, 4.0, 6.0)
    trace.span(None, Stage.FACES, 1.0, 2.0)
    totals = trace.totals()
    assert (totals.work_s, totals.busy_s, totals.overlap_s) == (5.0, 4.0, 1.0)


def test_what_was_never_noted_is_unknown_not_zero():
    trace = Trace(0.0)
    trace.span("a", Stage.SPEAK, 1.0, 2.0)
    figures = trace.figures("a")
    assert (figures.first_audio_s, figures.first_mouth_s, figures.last_s) == (None, None, None)
    assert Trace().totals().gain is None
    assert spread([None, None]) == {"p50": None, "p95": None}


def test_a_segment_was_heard_when_its_sound_arrived(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trace = Trace()
    for second in range(1, 7):
        now[0] = 10.0 + second
        trace.arrived(second * 1000.0)
    now[0] = 16.25
    trace.closed("a", 1500, 5500)
    heard, pause = trace.spans("a")
    assert (heard.stage, heard.start_s, heard.end_s) == (Stage.HEARD, 1.5, 5.5)
    assert (heard.media_start_ms, heard.media_end_ms) == (1500, 5500)
    assert (pause.stage, pause.start_s, pause.end_s) == (Stage.PAUSE, 5.5, 6.25)


def test_a_question_belongs_to_the_segment_that_closes_next(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trace = Trace()
    for asked_s, answered_s, media_ms in ((2.0, 2.2, 700), (3.0, 3.3, 700), (3.4, 3.4, 700), (3.5, 3.6, 5000)):
        now[0] = answered_s
        trace.asked(asked_s, media_ms)
    trace.closed("a", 1000, 3000)
    trace.closed("b", 5200, 6000)
    questions = {
        name: [(span.start_s, span.end_s) for span in trace.spans(name) if span.stage is Stage.RECOGNISE]
        for name in "ab"
    }
    assert questions == {"a": [(2.0, 2.2), (3.0, 3.3)], "b": [(3.5, 3.6)]}, "one that was never sent took no time"


def test_sound_outside_of_what_is_remembered_was_heard_at_the_nearest_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trace = Trace()
    trace.closed("unknown", 0, 1000)
    assert [(span.start_s, span.end_s) for span in trace.spans("unknown")] == [(0.0, 0.0), (0.0, 0.0)]
    for second in (3, 4):
        now[0] = second
        trace.arrived(second * 1000.0)
    trace.closed("a", 1000, 9000)
    assert [(span.start_s, span.end_s) for span in trace.spans("a")] == [(3.0, 4.0), (4.0, 4.0)]


def test_a_run_without_end_keeps_the_last_segments_whole_and_counts_the_rest():
    trace, _ = live_run(250, keep=20)
    assert trace.segment_ids == [f"segment-{number}" for number in range(230, 250)]
    assert trace.dropped_segments == 230
    whole = live_run(1)[0].spans("segment-0")
    assert all(len(trace.spans(name)) == len(whole) for name in trace.segment_ids)
    assert trace.spans("segment-3") == []
    assert len(trace.to_dict()["picture"]) == 21 * 13
    assert trace.dropped_spans == 0
    every = trace.all_figures()
    assert [figures.segment_id for figures in every] == [f"segment-{number}" for number in range(250)]
    assert every[0].first_mouth_s == pytest.approx(every[-1].first_mouth_s), "figures outlive their spans"


def test_a_late_span_of_a_dropped_segment_does_not_bring_it_back():
    trace, _ = live_run(3, keep=2)
    trace.span("segment-0", Stage.BLEND, ORIGIN + 30, ORIGIN + 31)
    assert trace.segment_ids == ["segment-1", "segment-2"]
    assert trace.dropped_spans == 1


def test_spans_are_bounded_where_nobody_speaks_and_in_one_segment():
    trace = Trace(0.0, keep=2)
    for number in range(5 * LOOSE_PER_SEGMENT):
        trace.span(None, Stage.ENCODE, number, number + 0.5)
    assert len(trace.to_dict()["picture"]) == 2 * LOOSE_PER_SEGMENT
    assert trace.dropped_spans == 3 * LOOSE_PER_SEGMENT
    for number in range(MAX_SPANS + 7):
        trace.span("a", Stage.LIPS, number, number + 0.5)
    assert len(trace.spans("a")) == MAX_SPANS
    assert trace.dropped_spans == 3 * LOOSE_PER_SEGMENT + 7


def test_a_clock_that_seems_to_run_backwards_makes_no_negative_span():
    trace = Trace(0.0)
    trace.span("a", Stage.LIPS, 5.0, 4.0)
    assert [(span.start_s, span.end_s) for span in trace.spans("a")] == [(5.0, 5.0)]


def test_noting_a_span_is_cheap_enough_for_every_frame():
    trace = Trace(0.0)
    began = time.process_time()
    for number in range(20_000):
        trace.span(f"segment-{number // 100}", Stage.LIPS, number, number + 0.5)
    assert time.process_time() - began < 2.0, "100 us a span would be far too much; it takes about 3"


def test_json_holds_spans_figures_and_what_was_dropped():
    trace, _ = live_run(5, keep=3)
    content = json.loads(json.dumps(_plain(trace.to_dict()), allow_nan=False))
    assert (content["dropped_segments"], content["dropped_spans"]) == (2, 0)
    assert content["began"].endswith("+00:00")
    assert content["first_mouth_s_p50"] == 0.95
    segment = content["segments"][0]
    assert segment["segment_id"] == "segment-2"
    assert segment["spans"][0] == {
        "stage": "heard",
        "start_s": 10.0,
        "end_s": 13.5,
        "media_start_ms": 10_000,
        "media_end_ms": 13_500,
    }
    assert segment["overlap_s"] == 0.63
    assert len(content["picture"]) == 4 * 13, "of the kept segments, and of the one before them"
    assert content["totals"]["gain"] == pytest.approx(
        content["totals"]["work_s"] / content["totals"]["busy_s"], abs=0.01
    )


def test_together_is_where_both_ran():
    spans = [
        Span(Stage.SPEAK, 0.0, 2.0),
        Span(Stage.SPEAK, 4.0, 5.0),
        Span(Stage.LIPS, 1.0, 1.5),
        Span(Stage.LIPS, 1.25, 4.5),
    ]
    assert together(spans, Stage.LIPS, Stage.SPEAK) == [(1.0, 2.0), (4.0, 4.5)]
    assert together(spans, Stage.LIPS, Stage.BLEND) == []


def test_gain_of_nothing_is_none_and_shares_are_empty():
    figures = Figures("a", None, None, None, 0.0, 0.0, {Stage.HEARD: 3.0}, 0.0)
    assert (figures.work_s, figures.gain, figures.shares) == (0, None, {})
