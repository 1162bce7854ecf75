"""Subtitles: right names, right times, nothing lost, nothing overlapping."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polylip.client.results import SegmentResult, Status
from polylip.client.subtitles import LINE_CHARACTERS, LINES_PER_CUE, to_cues, wrap, write_subtitles


def segment(start_ms, end_ms, source="", target="", *, dub=None, status=Status.DUBBED):
    start, end = dub or (None, None)
    return SegmentResult("id", start_ms, end_ms, start, end, 1.0, source, target, status)


def write(tmp_path, segments, source="en", target="es"):
    """The four files' texts by name."""
    paths = write_subtitles(segments, tmp_path / "out.mp4", source, target)
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def test_four_files_beside_the_video_with_source_and_dub_times(tmp_path):
    files = write(tmp_path, [segment(500, 2250, "good morning", "buenos días, señor", dub=(620, 2900))])
    assert list(files) == ["out.en.vtt", "out.en.srt", "out.es.vtt", "out.es.srt"]
    assert files["out.en.vtt"] == "WEBVTT\n\n00:00:00.500 --> 00:00:02.250\ngood morning\n"
    assert files["out.en.srt"] == "1\n00:00:00,500 --> 00:00:02,250\ngood morning\n"
    assert files["out.es.vtt"] == "WEBVTT\n\n00:00:00.620 --> 00:00:02.900\nbuenos días, señor\n"
    assert files["out.es.srt"] == "1\n00:00:00,620 --> 00:00:02,900\nbuenos días, señor\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files), "no temporary file stays"


def test_times_beyond_an_hour(tmp_path):
    files = write(tmp_path, [segment(3_723_004, 3_725_000, "late")])
    assert "01:02:03.004 --> 01:02:05.000" in files["out.en.vtt"]
    assert "01:02:03,004 --> 01:02:05,000" in files["out.en.srt"]


def test_undubbed_segments_keep_their_source_times_or_stay_out(tmp_path):
    files = write(
        tmp_path,
        [
            segment(0, 1000, "one", "uno", status=Status.TOO_LATE),
            segment(2000, 3000, "two", status=Status.ERROR),
            segment(4000, 5000, status=Status.NO_SPEECH),
        ],
    )
    assert files["out.es.srt"] == "1\n00:00:00,000 --> 00:00:01,000\nuno\n"
    assert files["out.en.srt"].count("-->") == 2


def test_no_segments_leave_valid_empty_files(tmp_path):
    files = write(tmp_path, [])
    assert files["out.es.vtt"] == "WEBVTT\n"
    assert files["out.es.srt"] == ""


def test_markup_in_a_text_stays_text(tmp_path):
    files = write(tmp_path, [segment(0, 1000, "a < b & c --> d")])
    assert files["out.en.vtt"].splitlines()[-1] == "a &lt; b &amp; c --&gt; d"
    assert files["out.en.srt"].splitlines()[-1] == "a < b & c -> d"


@pytest.mark.parametrize(
    ("source", "target", "names"),
    [
        ("en", "en", ("out.source.en.vtt", "out.target.en.vtt")),
        ("EN", "en", ("out.source.EN.vtt", "out.target.en.vtt")),
        ("auto", "zh_CN", ("out.und.vtt", "out.zh-CN.vtt")),
        ("../x", "es", ("out.x.vtt", "out.es.vtt")),
    ],
)
def test_names_are_distinct_and_safe(tmp_path, source, target, names):
    assert set(names) <= set(write(tmp_path, [], source, target))


def test_long_texts_become_balanced_lines_and_successive_cues():
    assert wrap("the old bridge is the most famous place in the city") == [
        "the old bridge is the most",
        "famous place in the city",
    ]
    text = "word " * 50
    cues = to_cues([(1000, 9000, text)])
    assert len(cues) > 1
    assert (cues[0].start_ms, cues[-1].end_ms) == (1000, 9000)
    assert all(len(cue.lines) <= LINES_PER_CUE for cue in cues)
    assert " ".join(line for cue in cues for line in cue.lines) == text.strip()


def test_texts_that_start_together_share_a_cue():
    (cue,) = to_cues([(0, 900, "one"), (0, 1200, "two")])
    assert (cue.end_ms, cue.lines) == (1200, ("one two",))


spans = st.lists(st.tuples(st.integers(-100, 20_000), st.integers(-100, 30_000), st.text("ab c-\n", max_size=120)))


@given(spans)
def test_cues_never_overlap_never_vanish_and_lose_no_word(spans):
    cues = to_cues(spans)
    assert all(cue.start_ms < cue.end_ms for cue in cues)
    assert all(cue.end_ms <= following.start_ms for cue, following in pairwise(cues))
    assert all(line and len(line) <= LINE_CHARACTERS for cue in cues for line in cue.lines)
    shown = "".join(re.sub(r"\s", "", line) for cue in cues for line in cue.lines)
    assert sorted(shown) == sorted("".join(re.sub(r"\s", "", text) for _, _, text in spans))
