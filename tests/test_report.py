"""The report as JSON for machines and as a table for people."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from polylip.client.files import write_atomic
from polylip.client.report import print_summary, write_report
from polylip.client.results import (
    FaceChoice,
    FaceTrack,
    HiddenSpan,
    HideReason,
    Latency,
    Report,
    SegmentResult,
    Status,
)


def dubbed(number=1):
    return SegmentResult(
        id=f"segment-{number}",
        start_ms=600,
        end_ms=4270,
        dub_start_ms=600,
        dub_end_ms=4500,
        rate=1.125,
        source_text=f"the city {number}",
        target_text=f"la ciudad número {number}",
        status=Status.DUBBED,
        latency_ms=Latency(queue=2.4, first_audio=341.2, speech=812, lipsync=95, total=1800.123456),
    )


def report(segments, **changes):
    values = {
        "profile": "lite",
        "input": "in.mp4",
        "output": "out.mp4",
        "source_language": "en",
        "target_language": "es",
        "duration_s": 18.28,
        "frames": 457,
        "frames_lipsynced": 380,
        "frames_without_face": 3,
        "real_time_factor": 0.6178,
        "wall_s": 11.3,
        "av_offset_ms": -12.3456,
        "segments": segments,
        "versions": {"polylip": "0.1.0"},
    }
    return Report(**(values | changes))


def printed(content, width=140):
    out = io.StringIO()
    print_summary(content, Console(file=out, width=width))
    return out.getvalue()


def test_json_holds_every_field_with_rounded_floats(tmp_path):
    path = write_report(report([dubbed()], counters={"retries": 2}), tmp_path / "report.json")
    raw = path.read_text(encoding="utf-8")
    content = json.loads(raw)
    assert "número" in raw
    assert content["av_offset_ms"] == -12.346
    assert content["counters"] == {"retries": 2}
    (segment,) = content["segments"]
    assert segment["status"] == "dubbed"
    assert segment["latency_ms"]["total"] == 1800.123
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"], "no temporary file stays"


def test_numbers_that_json_lacks_become_null_and_numpy_scalars_plain(tmp_path):
    content = report([], av_offset_ms=float("nan"), wall_s=float("inf"), frames=np.int64(5), duration_s=np.float32(0.5))
    read = json.loads(write_report(content, tmp_path / "report.json").read_text())
    assert (read["av_offset_ms"], read["wall_s"], read["frames"], read["duration_s"]) == (None, None, 5, 0.5)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full_disk(*_):
        raise OSError("no space")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_summary_shows_texts_status_latencies_and_totals():
    text = printed(report([dubbed()], warnings=["[x] a frame was dropped"]))
    for part in ("0.60-4.27", "1.12", "the city 1", "la ciudad número 1", "dubbed", "341", "1800"):
        assert part in text
    assert "457 frames, 380 lip-synced, 3 without face; 18.3 s in 11.3 s (real-time factor 0.62)" in text
    assert "A/V offset -12 ms" in text
    assert "warning: [x] a frame was dropped" in text


def test_summary_of_an_error_shows_its_message_and_no_rate():
    failed = SegmentResult("id", 0, 1000, source_text="hello", status=Status.ERROR, message="[translate] no answer")
    text = printed(report([failed], av_offset_ms=None))
    assert "[translate] no answer" in text
    assert "error" in text
    assert "A/V offset unknown" in text


def test_whose_lips_they_are_and_where_they_are_hidden_is_told(tmp_path):
    segment = dubbed()
    segment.face_id, segment.face_choice = 2, FaceChoice.SPEAKING
    hidden = [HiddenSpan(1000, 1400, HideReason.COVERED), HiddenSpan(2000, 2200, HideReason.SMALL)]
    faces = [FaceTrack(2, 0, 4000, (0.25, 1 / 3))]
    content = report([segment], faces=faces, face_spans_hidden=hidden)
    read = json.loads(write_report(content, tmp_path / "report.json").read_text())
    assert (read["segments"][0]["face_id"], read["segments"][0]["face_choice"]) == (2, "speaking")
    assert read["faces"] == [{"id": 2, "start_ms": 0, "end_ms": 4000, "place": [0.25, 0.333]}]
    assert read["face_spans_hidden"][0] == {"start_ms": 1000, "end_ms": 1400, "reason": "covered or turned away"}
    assert "3 without face, lips hidden in 2 spans; 18.3 s" in printed(content)
    assert "lips hidden in 1 span;" in printed(report([segment], face_spans_hidden=hidden[:1]))
    assert "hidden" not in printed(report([segment]))


def test_long_texts_fold_and_keep_every_word():
    segment = dubbed()
    segment.source_text = " ".join(f"word{index}" for index in range(60))
    text = printed(report([segment]), width=80)
    assert all(f"word{index}" in text for index in range(60))
    assert max(map(len, text.splitlines()[:-1])) <= 80


def test_many_segments_show_both_ends_and_say_what_is_missing():
    assert "left out" not in printed(report([dubbed(n) for n in range(1, 41)]))
    text = printed(report([dubbed(n) for n in range(1, 101)]))
    assert "60 segments left out" in text
    shown = [n for n in range(1, 101) if f"the city {n} " in text]
    assert shown == [*range(1, 21), *range(81, 101)]


def test_no_segments_is_said_in_words():
    assert "No speech segments." in printed(report([]))
