"""A job that was killed goes on: every segment once, every frame in its place, no gap in the sound."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from polylip.client.journal import Journal, KeptDub
from polylip.client.workplace import workplace_folder
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.launcher import Server

SECONDS = 42
JOINT_MS = 60  # around a dub, within which its fades are not compared
KILLS = 2
RATE_HZ = 48_000
AT_SERVER = 3  # segments at most, at one moment


@dataclass(frozen=True)
class Run:
    """A finished job."""

    video: Path
    asked: int  # requests to `speech` that the server had for it, in all its runs
    kept: KeptDub | None = None  # the first dub, as it lay there when the job was killed

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.video.parent / "report.json").read_text())


def command(clip: Path, output: Path, server: Server, *more: str) -> list[str]:
    where = ["--to", "es", "-o", str(output), "--url", server.url]
    return [sys.executable, "-m", "polylip.client.cli", "dub", str(clip), *where, *more]


def run(clip: Path, output: Path, server: Server, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(clip, output, server, *more), check=False, capture_output=True, text=True, timeout=240
    )


def end_after(parts: int, how: signal.Signals, clip: Path, output: Path, server: Server) -> subprocess.Popen[str]:
    """Start, or go on with, a job, and end it once it has written so many parts more and is in the midst of another."""
    process = start(clip, output, server)
    checkpoint, pictures = (workplace_folder(output) / name for name in ("checkpoint.zip", "pictures.h264"))
    deadline, seen = time.monotonic() + 120, stamp(checkpoint)
    while parts:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        if stamp(checkpoint) != seen:
            seen, size, parts = stamp(checkpoint), pictures.stat().st_size, parts - 1
        time.sleep(0.02)
    while pictures.stat().st_size == size:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    return process


def start(clip: Path, output: Path, server: Server) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(clip, output, server, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def asked(server: Server) -> int:
    """Requests to `speech` so far, by the server's own count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics") as answer:
        lines = re.findall(
            r'^nv_inference_request_(?:success|failure)\{model="speech".*\} (\d+)', answer.read().decode(), re.M
        )
    return sum(map(int, lines))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", seconds=SECONDS, size=(640, 360))


@pytest.fixture(scope="module")
def whole(clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Never interrupted."""
    output, before = tmp_path_factory.mktemp("whole") / "talk.es.mp4", asked(server)
    done = run(clip, output, server)
    assert done.returncode == 0, done.stderr
    return Run(output, asked(server) - before)


@pytest.fixture(scope="module")
def resumed(whole: Run, clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Killed twice."""
    output, before = tmp_path_factory.mktemp("resumed") / "talk.es.mp4", asked(server)
    for _ in range(KILLS):
        end_after(2, signal.SIGKILL, clip, output, server).communicate()
        assert not output.exists()
    done = run(clip, output, server, "--resume")
    assert done.returncode == 0, done.stderr
    return Run(output, asked(server) - before)


@pytest.fixture(scope="module")
def early(whole: Run, clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Killed as soon as a dub had come whole, before the first checkpoint."""
    output, before = tmp_path_factory.mktemp("early") / "talk.es.mp4", asked(server)
    process, folder = start(clip, output, server), workplace_folder(output)
    deadline = time.monotonic() + 120
    while not (folder / "segment-0.zip").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (folder / "checkpoint.zip").exists()
    kept = Journal(folder).read(0)
    done = run(clip, output, server, "--resume")
    assert done.returncode == 0, done.stderr
    return Run(output, asked(server) - before, kept)


def frames(path: Path) -> list[tuple[int, Any, int]]:
    """(pts, time base, duration) of all that can be decoded."""
    with av.open(str(path)) as container:
        return [(frame.pts, frame.time_base, frame.duration) for frame in container.decode(video=0)]


def sound(path: Path) -> np.ndarray:
    """float32 (samples,): the first channel."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def test_every_frame_is_there_once_with_its_time(whole: Run, resumed: Run):
    assert frames(resumed.video) == frames(whole.video)
    assert resumed.report["frames"] == whole.report["frames"] == SECONDS * 25
    assert resumed.report["counters"]["runs"] == KILLS + 1


def told(run: Run) -> list[tuple[Any, ...]]:
    names = ("start_ms", "end_ms", "dub_start_ms", "source_text", "target_text", "status", "face_id", "closed_by")
    return [tuple(segment[name] for name in names) for segment in run.report["segments"]]


def test_every_segment_is_there_once(whole: Run, resumed: Run):
    assert told(resumed) == told(whole)
    assert len({segment["id"] for segment in resumed.report["segments"]}) == len(whole.report["segments"])
    assert (resumed.video.parent / "talk.es.es.srt").read_text().count("-->") == len(whole.report["segments"])


def test_no_kill_costs_more_than_one_segment(whole: Run, resumed: Run):
    segments = len(whole.report["segments"])
    checks = whole.asked - segments  # of the languages, at the start of each run
    assert checks >= 1
    assert segments <= resumed.asked - (KILLS + 1) * checks <= segments + KILLS


def test_a_kill_before_the_first_checkpoint_costs_no_whole_dub(whole: Run, early: Run):
    assert told(early) == told(whole) and frames(early.video) == frames(whole.video)
    assert early.report["counters"]["runs"] == 2
    segments = len(whole.report["segments"])
    checks = whole.asked - segments
    assert segments <= early.asked - 2 * checks <= segments + AT_SERVER
    assert early.kept is not None
    assert early.report["segments"][0]["latency_ms"]["speech"] == pytest.approx(
        early.kept.result.latency_ms.speech, abs=1e-3
    )
    assert not workplace_folder(early.video).exists()


def test_the_sound_has_no_gap_and_no_click(whole: Run, resumed: Run):
    one, other = sound(whole.video), sound(resumed.video)
    assert len(one) == len(other)
    outside = np.ones(len(one), bool)
    for segment in [*whole.report["segments"], *resumed.report["segments"]]:
        first_ms = min(segment["start_ms"], segment["dub_start_ms"]) - JOINT_MS
        last_ms = max(segment["end_ms"], segment["dub_end_ms"]) + JOINT_MS
        outside[round(first_ms * RATE_HZ / 1000) : round(last_ms * RATE_HZ / 1000)] = False
    assert outside.mean() > 0.1
    assert np.abs(one - other)[outside].max() < 1e-3  # what a second AAC encoder makes of other neighbours
    assert np.abs(np.diff(other)).max() < 1.5 * np.abs(np.diff(one)).max()


def test_nothing_is_left_behind(whole: Run, resumed: Run):
    for done in (whole, resumed):
        assert not [path.name for path in done.video.parent.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def interrupted(clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that was interrupted behind its first part."""
    source = tmp_path_factory.mktemp("own") / "talk.mp4"
    shutil.copy2(clip, source)
    output = source.with_name("out.mp4")
    process = end_after(1, signal.SIGINT, source, output, server)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with --resume" in said and len(said.strip().splitlines()) == 1
    return output


@pytest.mark.parametrize("change", ["input", "options"])
def test_another_job_is_refused_and_nothing_is_touched(change: str, interrupted: Path, server: Server, tmp_path: Path):
    source, more = interrupted.with_name("talk.mp4"), ["--resume"]
    folder = shutil.copytree(workplace_folder(interrupted), workplace_folder(tmp_path / "out.mp4"))
    if change == "input":
        source = Path(shutil.copy(source, tmp_path))
        with source.open("ab") as file:
            file.write(b"\0")
    else:
        more.append("--no-mark")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = run(source, tmp_path / "out.mp4", server, *more)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "cannot be continued" in done.stderr and change in done.stderr and "without --resume" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    "harm",
    [lambda folder: (folder / "checkpoint.zip").write_bytes(b"PK"), lambda folder: (folder / "sound.f32").unlink()],
)
def test_damaged_parts_are_refused(harm: Callable[[Path], object], interrupted: Path, server: Server, tmp_path: Path):
    harm(Path(shutil.copytree(workplace_folder(interrupted), workplace_folder(tmp_path / "out.mp4"))))
    done = run(interrupted.with_name("talk.mp4"), tmp_path / "out.mp4", server, "--resume")
    assert done.returncode == 2 and "damaged" in done.stderr and len(done.stderr.strip().splitlines()) == 1
