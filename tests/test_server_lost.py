"""The server dies in the middle of a job: the whole video comes out as *.partial.mp4 and says what is missing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import psutil
import pytest

from polylip.client.job import DubOptions, Progress, dub, missing_segments
from polylip.client.results import Status
from polylip.client.workplace import is_resumable, workplace_folder
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.launcher import Server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that the client cannot have read it all when the first frames are written."""
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", seconds=60, size=(640, 360))


def kill(server: Server) -> None:
    for process in psutil.Process(server.guard_pid).children():
        process.send_signal(signal.SIGKILL)


def dub_until(name: str, size: int, clip: Path, output: Path, server: Server) -> subprocess.Popen[str]:
    """The command at work, once a file of its unfinished output has more than `size` bytes."""
    process = subprocess.Popen(command(clip, output, server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    path = workplace_folder(output) / name
    while not path.exists() or path.stat().st_size <= size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def command(clip: Path, output: Path, server: Server) -> list[str]:
    where = ["--to", "es", "-o", str(output), "--url", server.url]
    return [sys.executable, "-m", "polylip.client.cli", "dub", str(clip), *where]


def frame_count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


async def test_a_lost_server_leaves_a_whole_partial_video(
    clip: Path, own_server: Callable[..., Server], tmp_path: Path
):
    server = own_server()
    output = tmp_path / "out" / "talk.es.mp4"
    killed: list[Server] = []

    def kill_midway(progress: Progress) -> None:
        if progress.frames >= 100 and not killed:  # not `server.alive`: its guard takes a moment to notice
            kill(server)
            killed.append(server)

    result = await dub(DubOptions(clip, output, "es", url=server.url, reconnect_s=2), kill_midway)

    report = result.report
    assert not result.complete
    assert not output.exists()
    assert result.video == output.with_name("talk.es.partial.mp4")
    assert frame_count(result.video) == frame_count(clip) == report.frames
    statuses = [segment.status for segment in report.segments]
    missing = missing_segments(report)
    assert Status.DUBBED in statuses and missing
    assert statuses.count(Status.DUBBED) + len(missing) == len(statuses)
    assert any(f"segments without a dub: {', '.join(map(str, missing))}" in w for w in report.warnings)
    assert is_resumable(output)  # for the dubs that had come


@pytest.mark.timeout(400)
def test_the_command_names_the_missing_segments_and_exits_3_and_has_them_dubbed_later(
    clip: Path, server: Server, own_server: Callable[..., Server], tmp_path: Path
):
    dying = own_server()
    output = tmp_path / "out" / "talk.mp4"
    process = dub_until("checkpoint.zip", 0, clip, output, dying)
    kill(dying)
    _, stderr = process.communicate(timeout=200)

    assert process.returncode == 3, stderr
    assert len(stderr.strip().splitlines()) == 1
    assert "no dub for segment" in stderr and "talk.partial.mp4" in stderr and "--resume" in stderr
    report = json.loads((output.parent / "report.json").read_text())
    assert {s["status"] for s in report["segments"]} >= {"error"}
    assert (output.parent / "talk.partial.mp4").exists() and not output.exists()

    own = output.with_name("talk.partial.fr.srt")  # somebody's: the job wrote no French
    own.touch()
    subprocess.run([*command(clip, output, server), "--resume"], check=True, timeout=200)
    report = json.loads((output.parent / "report.json").read_text())
    assert {s["status"] for s in report["segments"]} == {"dubbed"}
    assert frame_count(output) == frame_count(clip) == report["frames"]
    assert not workplace_folder(output).exists()
    assert [path for path in output.parent.iterdir() if ".partial." in path.name] == [own]


def test_an_interrupted_job_leaves_nothing(clip: Path, server: Server, tmp_path: Path):
    output = tmp_path / "out" / "talk.mp4"
    for stop in (signal.SIGINT, signal.SIGTERM):
        process = dub_until("pictures.h264", -1, clip, output, server)
        process.send_signal(stop)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert len(stderr.strip().splitlines()) == 1 and "nothing was written" in stderr
        assert list(output.parent.iterdir()) == []


def test_an_interrupted_job_with_a_whole_dub_can_go_on(clip: Path, server: Server, tmp_path: Path):
    output = tmp_path / "out" / "talk.mp4"
    process = dub_until("segment-0.zip", 0, clip, output, server)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert len(stderr.strip().splitlines()) == 1 and "go on with --resume" in stderr
    assert is_resumable(output) and not output.exists()
