"""What may happen to the server, the network and the client of a live job, and that the viewers see it to its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from live_run import (
    LiveRun,
    Stage,
    assert_ended_once,
    assert_on_time,
    assert_plays,
    heard,
    processes,
    run_live,
    seen,
    slow_server,
    stub,
)
from proxy import Proxy

from polylip.client import ladder
from polylip.client.error_codes import ErrorCode
from polylip.client.results import Status
from polylip.perf.demo_clip import FPS, make_demo_clip
from polylip.serving.launcher import Server, start_server

pytestmark = pytest.mark.alone

SECONDS = 32  # of most clips: the demo clip's sentences come in turn, whatever its length
LONG = 50  # a ladder that went all the way down has time to climb to the voice again, and a segment after that
FRAGMENT_S = 2.0
CLIENT_DELAY_S = 6.0


@pytest.fixture(scope="module")
def clip_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    folder = tmp_path_factory.mktemp("clips")

    def make(seconds: int) -> Path:
        path = folder / f"{seconds}.mp4"
        return path if path.exists() else make_demo_clip(path, seconds=seconds, size=(640, 360))

    return make


@pytest.fixture
def quick_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes up again after 6 s, not 10; segments that miss their time follow on each other within 5 s."""
    monkeypatch.setattr(ladder, "CALM_S", 6.0)


def assert_whole(run: LiveRun) -> None:
    """Every segment ended once, the output plays as the source did, and it was on time."""
    assert_ended_once(run)
    assert_plays(run)
    assert_on_time(run)
    for one, other in pairwise(run.report.ladder):
        assert one["to"] == other["from"] and one["at_s"] < other["at_s"]
    assert all(step["reason"] for step in run.report.ladder)


def require_that_it_kept_up(run: LiveRun) -> None:
    """Before the fault: a machine that is too busy to dub at all cannot show that it does so again."""
    if run.segments[0].status is not Status.DUBBED:
        pytest.skip("the output was whole and in time, but the machine too busy to dub even before the fault")


def levels(run: LiveRun) -> list[str]:
    """That the ladder went to, in order."""
    return [step["to"] for step in run.report.ladder]


def assert_dubbed_after(run: LiveRun, media_s: float) -> None:
    assert any(segment.status is Status.DUBBED for segment in run.after(media_s)), run.segments


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server of which nothing runs, as on a machine that stands still.

    tritonserver goes on last: 2.51 takes a model's process that does not yet go on for dead, and dies of it soon after.
    """
    all_of_it = processes(server)
    try:
        send(all_of_it, signal.SIGSTOP)
        yield
    finally:
        send(all_of_it[::-1], signal.SIGCONT)


def send(server: list[psutil.Process], number: signal.Signals) -> None:
    """Those that have ended do not get it: some of its programs live for one text."""
    for process in server:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@pytest.mark.timeout(120)
async def test_a_stream_that_is_reset_twice_costs_nothing(
    server: Server, clip_of: Callable[[int], Path], tmp_path: Path
):
    async def reset_twice(stage: Stage) -> None:
        for at_s in (6.0, 10.5):
            await stage.at(at_s)
            proxy.reset()

    async with Proxy(server.url) as proxy:
        run = await run_live(proxy.url, clip_of(16), tmp_path / "o.mp4", reset_twice)
    assert_whole(run)
    require_that_it_kept_up(run)
    assert run.report.counters["server_reconnects"] >= 2
    assert_dubbed_after(run, 9.0)


@pytest.mark.timeout(180)
async def test_a_server_that_stands_still_for_ten_seconds_is_waited_out_and_one_that_never_goes_on_is_not(
    own_server: Callable[..., Server], clip_of: Callable[[int], Path], tmp_path: Path, quick_ladder: None
):
    """The second time it stands still until the job has ended: what it still owes is given up."""
    server, again_s = own_server(), LONG - 8.0

    async def freeze(stage: Stage) -> None:
        await stage.at(7.0)
        with stopped(server):
            await asyncio.sleep(10.0)
        await stage.at(again_s)
        with stopped(server):
            await stage.ended.wait()

    run = await run_live(server.url, clip_of(LONG), tmp_path / "o.mp4", freeze)
    assert_whole(run)
    require_that_it_kept_up(run)
    assert run.report.counters["server_reconnects"] == 0
    assert any(
        17_000 <= segment.start_ms < again_s * 1000 and segment.status in (Status.DUBBED, Status.CAPTIONED)
        for segment in run.segments
    )
    assert run.segments[-1].status in (Status.TOO_LATE, Status.PASSED)
    assert "half_lips" in levels(run)


@pytest.mark.timeout(240)
async def test_a_dead_model_is_an_error_and_a_server_that_is_started_again_goes_on_dubbing(
    own_server: Callable[..., Server], clip_of: Callable[[int], Path], tmp_path: Path, quick_ladder: None
):
    """First the voice's process is killed, then, which is the remedy, the server: later than a supervisor would."""
    first, restarted = own_server(), []
    options = replace(first.options, grpc_port=first.ports.grpc)

    async def break_and_mend(stage: Stage) -> None:
        await stage.at(7.0)
        stub(first, "synthesize").kill()
        await stage.at(14.0)
        processes(first)[0].kill()
        await asyncio.to_thread(first.wait)
        restarted.append(await asyncio.to_thread(start_server, options))

    try:
        run = await run_live(first.url, clip_of(LONG), tmp_path / "o.mp4", break_and_mend)
    finally:
        for server in restarted:
            server.stop()
    assert_whole(run)
    require_that_it_kept_up(run)
    spoiled = run.of(Status.ERROR) + run.of(Status.TOO_LATE)  # as they waited for a supervisor
    assert spoiled and {segment.error_code for segment in spoiled} <= {None, ErrorCode.PYTHON_MODEL_DIED}
    assert run.report.counters["server_reconnects"] >= 2  # a line with nothing to do meanwhile has lost nothing
    assert_dubbed_after(run, 18.0)


@pytest.mark.timeout(180)
async def test_a_recogniser_ten_times_slower_takes_the_job_down_the_ladder_and_up_again(
    clip_of: Callable[[int], Path], tmp_path: Path, quick_ladder: None
):
    server, slow = slow_server(tmp_path, "transcribe", 10)

    async def slow_down(stage: Stage) -> None:
        await stage.at(5.5)
        slow.touch()
        await stage.at(18.0)
        slow.unlink()

    try:
        run = await run_live(server.url, clip_of(LONG), tmp_path / "o.mp4", slow_down, delay_s=6.0)
    finally:
        server.stop()
    assert_whole(run)
    require_that_it_kept_up(run)
    assert levels(run)[:2] == ["half_lips", "sound"]
    assert any(step["reason"].startswith("calm") for step in run.report.ladder)
    assert run.of(Status.TOO_LATE)
    assert_dubbed_after(run, 18.0)


@pytest.mark.timeout(180)
async def test_lips_that_are_too_slow_are_left_out_and_the_voice_goes_on(
    clip_of: Callable[[int], Path], tmp_path: Path, quick_ladder: None
):
    """The mouth warp of profile lite takes milliseconds: only two hundred times slower is it too slow."""
    server, slow = slow_server(tmp_path, "lips", 200)

    async def slow_down(stage: Stage) -> None:
        await stage.at(5.5)
        slow.touch()
        await stage.at(15.0)
        slow.unlink()

    try:
        run = await run_live(server.url, clip_of(24), tmp_path / "o.mp4", slow_down)
    finally:
        server.stop()
    assert_whole(run)
    require_that_it_kept_up(run)
    assert levels(run)[:2] == ["half_lips", "sound"] and "original" not in levels(run)
    assert any(step["reason"].startswith("calm") for step in run.report.ladder)
    assert run.report.counters["frames_without_lips_in_time"] > 0
    assert len(run.of(Status.DUBBED)) >= len(run.segments) - 1


@pytest.mark.timeout(180)
async def test_a_client_that_is_killed_leaves_what_it_showed_and_makes_room_for_the_next(
    own_server: Callable[..., Server], clip_of: Callable[[int], Path], tmp_path: Path
):
    server, output = own_server(), tmp_path / "o.mp4"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [str(Path(sys.executable).with_name("polylip")), "live", str(clip_of(SECONDS)), "--to", "es"]
    command += ["--url", server.url, "--delay", f"{CLIENT_DELAY_S:g}", "--json", "-o", str(output)]
    client = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert client.stdout is not None
    shown_s = 0.0
    try:
        while shown_s < 9.0:
            shown_s = json.loads(await client.stdout.readline())["media_s"] - CLIENT_DELAY_S
        process = psutil.Process(client.pid)
        below, regions = process.children(recursive=True), [region.path for region in process.memory_maps()]
    finally:
        client.kill()
        await client.wait()
    for line in (await client.stdout.read()).splitlines(keepends=True):  # said since then
        if line.endswith(b"\n"):
            shown_s = json.loads(line)["media_s"] - CLIENT_DELAY_S
    assert below == [] and not any(region.startswith("/dev/shm") for region in regions), "nothing that could stay"  # noqa: S108
    assert [path.name for path in scratch.iterdir() if path.name != ".ses"] == [], "but what onnxruntime keeps"
    times_ms, pictures = seen(output)
    assert shown_s - FRAGMENT_S - 1.0 <= len(pictures) / FPS <= shown_s + 1.0
    assert {round(b - a) for a, b in pairwise(times_ms)} == {40}
    assert abs(len(heard(output)) / 16_000 - len(pictures) / FPS) < 0.3
    began_s = time.monotonic()

    async def nothing(_: Stage) -> None:
        pass

    run = await run_live(server.url, clip_of(9), tmp_path / "next.mp4", nothing)
    assert server.alive and time.monotonic() - began_s < 9 + run.delay_s + 10
    assert_whole(run)
    require_that_it_kept_up(run)
