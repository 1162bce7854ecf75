"""What `live` and `call` refuse before a server starts, and what they say of themselves at the end."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_live_html import dubbed, live_report
from typer.testing import CliRunner

from polylip.client.cli import app
from polylip.client.errors import InputError
from polylip.client.ladder import Ladder, Pressure
from polylip.client.live import call_command
from polylip.client.live.call import CallReport, CallStatus, check_call
from polylip.client.live.command import print_summary
from polylip.client.live.options import LiveOptions, check_live_options
from polylip.client.live.status import LiveStatus
from polylip.client.live.synced import LiveSync
from polylip.client.named_log import NamedLog
from polylip.client.wishes import SpeechWishes

WISHES = SpeechWishes("auto", "es")
BYTES = b"not looked at"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: two clips, as far as anybody looks at them, and other names for the first."""
    monkeypatch.chdir(tmp_path)
    for name in ("talk.mp4", "other.mp4"):
        (tmp_path / name).write_bytes(BYTES)
    (tmp_path / "link.mp4").symlink_to("talk.mp4")
    (tmp_path / "hard.mp4").hardlink_to("talk.mp4")
    return tmp_path


def options(source: str, sink: str, **changes: Any) -> LiveOptions:
    return LiveOptions(source, sink, WISHES, **changes)


@pytest.mark.parametrize("sink", ["talk.mp4", "./talk.mp4", "file:talk.mp4", "link.mp4", "hard.mp4"])
def test_a_source_is_never_its_own_output(sink: str, folder: Path):
    for source, output in (("talk.mp4", sink), (sink, "talk.mp4")):
        with pytest.raises(InputError, match="output and input are the same file; choose another output"):
            check_live_options(options(source, output))
        refused = CliRunner().invoke(app, ["live", source, "--to", "es", "-o", output])
        assert isinstance(refused.exception, InputError)
    assert (folder / "talk.mp4").read_bytes() == BYTES


@pytest.mark.parametrize(
    ("source", "sink", "changes", "why"),
    [
        ("none.mp4", "o.mp4", {}, "none.mp4: no such file"),
        (".", "o.mp4", {}, "is a folder"),
        ("foo://h/a", "o.mp4", {}, "foo is no known kind of stream"),
        ("talk.mp4", "foo://h/a", {}, "foo is no known kind of stream"),
        ("talk.mp4", "l.avi", {}, "unknown output type"),
        ("talk.mp4", "l", {}, "unknown output type"),
        ("talk.mp4", "l", {"sink_format": "avi"}, "no known container"),
        ("talk.mp4", "/dev/video0", {}, "is a camera"),
        ("talk.mp4", "o.mp4", {"listen": True}, "cannot wait for a sender"),
        ("talk.mp4", "o.mp4", {"sink_listen": True}, "cannot wait for a receiver"),
    ],
)
def test_ends_that_cannot_be_used_are_refused_first(source: str, sink: str, changes: dict, why: str, folder: Path):
    with pytest.raises(InputError, match=why):
        check_live_options(options(source, sink, **changes))


def test_ends_that_can_be_used_are_not_opened(folder: Path):
    before = sorted(folder.iterdir())
    for source, sink in (("talk.mp4", "new/o.m3u8"), ("rtmp://127.0.0.1:1/a", "tcp://127.0.0.1:1"), ("-", "-")):
        check_live_options(options(source, sink))
    check_live_options(options("talk.mp4", "l", sink_format="mpegts"))
    assert sorted(folder.iterdir()) == before


def test_no_participant_writes_where_another_one_reads_or_writes(folder: Path):
    ann = options("talk.mp4", "ann.mp4")
    check_call({"ann": ann, "bob": options("other.mp4", "bob.mp4")})
    check_call({"ann": ann, "bob": options("talk.mp4", "bob.mp4")})
    with pytest.raises(InputError, match="an output and an input are the same file"):
        check_call({"ann": ann, "bob": options("other.mp4", "link.mp4")})
    with pytest.raises(InputError, match="the same sink"):
        check_call({"ann": ann, "bob": options("other.mp4", "./ann.mp4")})
    command = ["call", "--to", "es", "--in", "talk.mp4", "--out", "other.mp4", "--in", "other.mp4", "--out", "o.mp4"]
    assert "the same file" in str(CliRunner().invoke(app, command).exception)


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ("live.txt", r"end its name in \.json"),
        ("live", r"end its name in \.json"),
        ("talk.mp4", r"end its name in \.json"),
        ("talk.json", "is the source or the output itself"),
        ("o.json", "is the source or the output itself"),
    ],
)
def test_a_report_is_json_and_writes_over_nothing(report: str, why: str, folder: Path):
    (folder / "talk.json").symlink_to("talk.mp4")
    live = ["live", "talk.mp4", "--to", "es", "-o", "o.json", "--output-format", "mpegts", "--report", report]
    with pytest.raises(InputError, match=why):
        CliRunner().invoke(app, live, catch_exceptions=False)
    call = ["call", "--in", "a=talk.mp4", "--out", "o.json", "--to", "es", "--report", report]
    with pytest.raises(InputError, match=why):
        CliRunner().invoke(app, call, catch_exceptions=False)


def test_the_chart_beside_a_report_writes_over_nothing(folder: Path):
    live = ["live", "talk.mp4", "--to", "es", "-o", "o.png", "--output-format", "mpegts", "--report", "o.json"]
    with pytest.raises(InputError, match=r"o\.png: is the source or the output itself"):
        CliRunner().invoke(app, live, catch_exceptions=False)


def test_the_delay_that_was_asked_for_is_shown_from_the_start():
    assert "delay 12 s" in LiveStatus("starting the server", delay_s=12.0).line().plain
    assert CallStatus("starting the server", delay_s=12.0).line().plain == "starting the server"


def test_the_log_lines_of_a_call_begin_with_a_name(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="polylip.live"):
        Ladder(log=NamedLog("ann")).press(Pressure.LIPS, "late")
        Ladder().press(Pressure.LIPS, "late")
    assert caplog.messages == ["ann: full -> half_lips (lips: late)", "full -> half_lips (lips: late)"]


def printed(report: Any, path: Path | None, summary: Any = print_summary) -> list[str]:
    out = io.StringIO()
    summary(report, Console(file=out, width=40), path)
    return out.getvalue().splitlines()


def test_a_live_job_names_what_it_wrote(tmp_path: Path):
    report, path = live_report([dubbed()], sink="out[1]/live.mp4"), tmp_path / "live.json"
    files = ", ".join(str(path.with_suffix(suffix)) for suffix in (".json", ".png", ".html"))
    assert printed(report, path)[-2:] == ["output: out[1]/live.mp4", f"report: {files}"]
    assert printed(report, None)[-1] == "output: out[1]/live.mp4"


def test_a_call_names_what_it_wrote_and_counts_turns(tmp_path: Path):
    path, turn = tmp_path / "call.json", {"participant": "ann", "start_s": 0.0, "end_s": 2.0}
    report = CallReport(12.0, [turn], {"ann": live_report([]), "bob": live_report([])}, {}, 1.0)
    lines = printed(report, path, call_command._print_summary)
    assert lines[0] == "ann: 1 turn, 2 s on the floor" and "bob: 0 turns, 0 s on the floor" in lines
    assert f"report: {tmp_path / 'call.ann.html'}" in lines
    assert lines[-1] == f"report of the call: {path}"


def test_a_source_that_was_never_measured_is_not_called_synced():
    sync = LiveSync(SimpleNamespace(newest_ms=0.0))  # type: ignore[arg-type]
    assert sync.to_dict()["windows"]["measured"] == 0
    assert sync.to_dict()["state"] == "unknown"
