"""The page of a live job: how it kept time, what was left out; nothing from outside, no text out of its place."""

import json
import math
import re
from pathlib import Path

import pytest
import typer
from test_html_report import HOSTILE, parsed
from test_report import dubbed
from test_trace import WORDS, live_run
from typer.testing import CliRunner

from polylip.client.errors import InputError
from polylip.client.html_parts import UNKNOWN
from polylip.client.ladder import Level, Step
from polylip.client.live.call_command import call
from polylip.client.live.command import live
from polylip.client.live.html_report import MAX_STEPS, in_words, live_page
from polylip.client.live.leave import check_report_path, leave_report, participant_page
from polylip.client.live.report import LagMeter, LiveReport, spread, status_counts
from polylip.client.results import Status

STEPS = [
    Step(31.4, Level.FULL, Level.HALF_LIPS, "lips: segment 3 came 120 ms late"),
    Step(44.0, Level.HALF_LIPS, Level.FULL, "calm for 10 s"),
]
SYNC = {
    "windows": {"count": 3, "measured": 2, "p50_ms": -38.26, "p99_ms": None},
    "state": "locked",
    "correction_ms": 41.04,
    "skew_ppm": math.nan,
}


def live_report(segments, **changes):
    values = {
        "profile": "lite",
        "source": "rtmp://127.0.0.1:1935/cam",
        "sink": "/somewhere/dubbed.m3u8",
        "source_language": "en",
        "target_language": "es",
        "delay_s": 12.0,
        "duration_s": 61.2,
        "ended": "the sender has gone",
        "lag": {"p50_ms": 2.2, "p99_ms": 17.0, "worst_ms": 23.4, "slope_ms_per_min": -0.04},
        "first_frame_ms": {"p50": 903.0, "p90": 1404.0},
        "av_offset_ms": {"p50": 12.0, "p99": 31.0},
        "source_sync": SYNC,
        "segments": segments,
        "statuses": status_counts(segments),
        "ladder": [step.to_dict() for step in STEPS],
        "counters": {"frames": 1530, "frames_without_lips_in_time": 14},
        "engines": {"transcribe": "pocketsphinx", "synthesize": "espeak-ng", "lips": "onnxruntime"},
        "versions": {"polylip": "0.1.0"},
    }
    return LiveReport(**(values | changes))


def shown(made):
    return " ".join(data for _, data in parsed(made).texts)


def facts(made):
    """The cards: (value, note) by name."""
    found = re.findall(r"<dt>(.*?)</dt><dd><b>(.*?)</b> (.*?)</dd>", made)
    return {name: (value, note) for name, value, note in found}


def test_a_page_shows_how_a_live_job_went():
    trace, segments = live_run(3)
    segments[0].first_frame_after_ms, segments[0].av_offset_ms = 1234.0, -21.0
    segments[2].status, segments[2].message = Status.CAPTIONED, "the voice came too late"
    made = live_page(live_report(segments, warnings=["the server was too slow 1 time"]), trace)
    read, known = parsed(made), facts(made)
    assert known["segments"] == ("3", "2 dubbed, 1 captioned")
    assert known["length"][0] == "61.2 s"
    assert known["delay"][0] == "12 s"
    assert known["lag"] == ("17 ms", "99 %; 2 ms median, 23 ms at worst; slope +0.0 ms per minute")
    assert known["first new lips"] == ("903 ms", "median, ready after the last word; 90 %: 1404 ms")
    assert known["A/V offset"] == ("12 ms", "size, median of the dubs; 99 %: 31 ms")
    assert known["ladder"] == ("2", "steps; 14 frames without lips in time")
    assert known["first mouth"][0] == "0.95 s"
    assert read.within("h1") == ["dubbed.m3u8"] and "/somewhere" not in made
    assert "the sender has gone" in read.within("p")
    warned = read.within("li")
    assert "rules stand in for trained networks in synthesize (espeak-ng) and lips (onnxruntime)" in warned
    assert "the server was too slow 1 time" in warned
    assert len(read.all("svg")) == 1 + 3
    assert shown(made).count(WORDS) >= 6
    cells = read.within("td")
    assert "1234" in cells and "-21" in cells and "the voice came too late" in cells
    assert {"1530", "14", "pocketsphinx", "0.1.0", "-38.3", "41.0", "locked"} <= set(cells)


def test_every_step_of_the_ladder_is_a_row_with_its_reason():
    made = live_page(live_report([]), None)
    rows = [
        re.findall(r"<td[^>]*>(?:<bdi>)?(.*?)(?:</bdi>)?</td>", row) for row in re.findall(r"<tr><td>.*?</tr>", made)
    ]
    assert rows == [
        ["31.4", "full", "half lips", "lips: segment 3 came 120 ms late"],
        ["44.0", "half lips", "full", "calm for 10 s"],
    ]
    assert "The ladder" not in live_page(live_report([], ladder=[]), None)


def test_a_ladder_of_days_is_cut_and_says_so():
    steps = [{**STEPS[0].to_dict(), "at_s": float(number)} for number in range(MAX_STEPS + 5)]
    made = live_page(live_report([], ladder=steps), None)
    assert f"The last {MAX_STEPS} of {MAX_STEPS + 5} steps." in made
    assert len(re.findall(r"<tr><td>", made)) == MAX_STEPS
    assert "<td>5.0</td>" in made and "<td>4.0</td>" not in made


def test_what_is_unknown_is_a_dash():
    """As of a job in which nobody spoke."""
    nothing = spread([], 50, 90)
    content = live_report(
        [], first_frame_ms=nothing, av_offset_ms=spread([], 50, 99), lag=LagMeter().to_dict(), duration_s=math.nan
    )
    made = live_page(content, live_run(0)[0])
    known = facts(made)
    assert known["segments"] == ("0", "no speech")
    for name in ("first new lips", "A/V offset", "length", "first audio", "first mouth"):
        assert known[name][0] == UNKNOWN, name
    assert known["first new lips"][1].endswith(f"90 %: {UNKNOWN}")
    assert not re.search(r"\b(nan|None|inf)\b", made)
    assert parsed(made).all("svg") == []


def test_what_a_report_nests_becomes_names_with_values():
    assert in_words(SYNC) == {
        "windows count": "3",
        "windows measured": "2",
        "windows p50_ms": "-38.3",
        "windows p99_ms": UNKNOWN,
        "state": "locked",
        "correction_ms": "41.0",
        "skew_ppm": UNKNOWN,
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_its_place(text):
    trace, segments = live_run(2, words=text)
    for segment in segments:
        segment.message, segment.status = text, Status.ERROR
    content = live_report(
        segments,
        warnings=[text],
        ladder=[{"at_s": 1.0, "from": text, "to": text, "reason": text}],
        source_sync={text: {text: text}},
        counters={text: 1},
        versions={text: text},
        engines={text: text},
        **dict.fromkeys(("profile", "source", "sink", "source_language", "target_language", "ended"), text),
    )
    made = live_page(content, trace)
    calm = live_page(live_report(live_run(2)[1], warnings=["x"]), trace)
    read = parsed(made.encode().decode())
    assert {tag for tag, _ in read.elements} <= {tag for tag, _ in parsed(calm).elements}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07\x1b]", made)


def test_nothing_is_loaded_from_anywhere():
    made = live_page(live_report(live_run(2)[1], source="clip.mp4"), live_run(2)[0])
    read = parsed(made)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", made)
    assert not {"script", "link", "iframe", "img", "base", "form"} & {tag for tag, _ in read.elements}
    assert not [attributes for _, attributes in read.elements if {"src", "href"} & attributes.keys()]
    (policy,) = [m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_a_live_job_leaves_three_files_and_a_participant_its_page(tmp_path: Path):
    trace, segments = live_run(2)
    content, path = live_report([*segments, dubbed()], first_frame_ms=spread([], 50, 90)), tmp_path / "live.json"
    assert leave_report(content, trace, path) == [path, tmp_path / "live.png", tmp_path / "live.html"]
    assert json.loads(path.read_text())["first_frame_ms"]["p50"] is None
    assert WORDS in (tmp_path / "live.html").read_text()
    page = participant_page(path, "ann.b")
    assert leave_report(content, trace, page) == [page] == [tmp_path / "live.ann.b.html"]
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(InputError, match=r"not the report on it \(No such file"):
        leave_report(content, trace, tmp_path / "gone" / "live.json")


def test_a_report_that_could_not_be_written_is_refused_before_the_job(tmp_path: Path):
    check_report_path(tmp_path / "live.json")
    for name, why in (("live.html", r"end its name in \.json"), ("live.png", "JSON"), ("no/live.json", "not there")):
        with pytest.raises(InputError, match=why):
            check_report_path(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        check_report_path(tmp_path)


def test_the_commands_look_at_the_report_s_name_first(tmp_path: Path):
    for command, places in ((live, ["in.mp4", "-o", "o.mp4"]), (call, ["--in", "in.mp4", "--out", "o.mp4"])):
        app = typer.Typer()
        app.command()(command)
        refused = CliRunner().invoke(app, [*places, "--to", "es", "--report", str(tmp_path / "live.html")])
        assert isinstance(refused.exception, InputError) and "end its name in .json" in str(refused.exception)
        text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "160", "TERM": "dumb"}).output
        assert "beside it a page" in text
