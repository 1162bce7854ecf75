"""`polylip serve` left alone: what is dead is seen, streams are let out, and every end has its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from material import chunk, face_at
from test_server_process import gone

from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, new_sequence_id
from polylip.perf.supervised import Supervised, is_red, supervised
from polylip.serving import control
from polylip.serving.guard import GRACE_S
from polylip.serving.supervisor import Exit, State
from polylip.serving.supervisor_watch import SERVER

RED_S = 3.0  # from the death of a model to a red probe: what is promised
TIMEOUT_S = 30.0
LIGHT = ("--models", "mel")  # loads in a second


# Ends


def test_without_restarts_a_dead_model_ends_the_command_with_its_own_code():
    """What an orchestrator waits for; and nothing is left behind."""
    with supervised(*LIGHT) as server:
        server.wait_until_ready()
        assert (server.ask("probe").returncode, server.ask("probe", "--ready").returncode) == (0, 0)
        started = time.monotonic()
        server.stubs()["mel"].kill()
        code, said = server.ended()
        assert time.monotonic() - started < RED_S + 2
        assert code == Exit.MODEL_DIED
        assert len(said) == 1 and said[0].startswith("polylip: model mel died: its process is gone; log: ")
        assert server.left() == []
        red = server.ask("probe")
        assert red.returncode == 1 and "no `polylip serve` of this user is found" in red.stderr


def test_a_model_that_stands_still_is_found_by_asking_it():
    with supervised(*LIGHT, "--probe-every", "1") as server:
        server.wait_until_ready()
        server.stubs()["mel"].suspend()
        code, said = server.ended()
    assert code == Exit.MODEL_DIED
    assert len(said) == 1 and said[0].startswith("polylip: model mel: Stub process 'mel_0_0' is not healthy.")


def test_a_server_that_dies_is_started_again_on_its_ports_so_often_as_allowed():
    with supervised(*LIGHT, "--restart", "1") as server:
        url = server.wait_until_ready()
        server.tritonserver().kill()
        assert server.until(is_red, RED_S) < RED_S
        assert server.status().live, "the supervisor mends it"
        assert server.wait_until_ready() == url
        server.tritonserver().kill()
        code, said = server.ended()
        assert code == Exit.SERVER_FAILED
        assert "tritonserver ended by itself (status 137)" in said[0] and said[0].endswith("starting again (1 of 1)")
        assert "tritonserver ended by itself" in said[1] and len(said) == 2
        assert server.left() == []


def test_a_guard_killed_outright_is_cleared_up_after():
    with supervised(*LIGHT) as server:
        server.wait_until_ready()
        stub = server.stubs()["mel"]
        server.guard().kill()
        assert server.ended()[0] == Exit.SERVER_FAILED
        assert server.left() == []
        server.until(lambda _: gone(stub), TIMEOUT_S)


def test_a_signal_while_loading_ends_it_quietly():
    with supervised() as server:
        server.until(lambda status: bool(status and status.grpc_port > 0 and loading(server)), TIMEOUT_S)
        loading(server)[0].suspend()  # it stays at that, however long the probe takes
        assert server.status().state == State.STARTING
        red = server.ask("probe", "--ready")
        assert (red.returncode, red.stderr) == (1, "polylip: starting: the models are being loaded\n")
        server.signal(signal.SIGTERM)
        assert server.ended() == (Exit.STOPPED, ["polylip: the server is stopped"])
        assert server.left() == []


def loading(server: Supervised) -> list[psutil.Process]:
    """tritonserver, once its guard has started it."""
    with contextlib.suppress(ValueError, psutil.NoSuchProcess):  # no guard yet
        return [process for process in server.guard().children() if process.name() == SERVER]
    return []


# Draining


async def _with_a_stream(server: Supervised, then: Callable[[], None], seen: Callable[[], None] | None = None) -> None:
    """Calls `then` while a stream of `faces` is open, which ends once `seen` has returned, or never."""
    url = await asyncio.to_thread(server.wait_until_ready)
    async with TritonClient(url) as client, client.line() as line:
        stream = new_sequence_id()
        await line.call("faces", chunk([face_at(0)], [0], [0]), TIMEOUT_S, SequencePosition(stream, start=True))
        asked = asyncio.ensure_future(asyncio.to_thread(then))
        if seen is not None:
            await asyncio.to_thread(seen)
            position = SequencePosition(stream, end=True)
            await line.call("faces", chunk([face_at(0)], [40], [40]), TIMEOUT_S, position)
        await asked


FACES = ("--models", "faces")


async def test_a_drain_waits_for_the_streams_and_takes_no_new_ones():
    with supervised(*FACES) as server:

        def drain() -> None:
            done = server.ask("drain", "--timeout", "60")
            assert (done.returncode, done.stdout) == (0, "")
            assert "polylip: draining, 1 stream left" in done.stderr.splitlines()

        def watch() -> None:
            server.until(lambda status: bool(status and status.streams == 1), TIMEOUT_S)
            status = server.status()
            assert (status.state, status.live, status.ready) == (State.DRAINING, True, False)
            assert drain_file_of(server).exists()

        await _with_a_stream(server, drain, watch)
        code, said = await asyncio.to_thread(server.ended)
        assert (code, said[-2:]) == (0, ["polylip: draining: 1 stream left", "polylip: the server is stopped"])
        assert server.left() == []


def drain_file_of(server: Supervised) -> Path:
    return Path(server.tritonserver().environ()["POLYLIP_DRAIN_FILE"])


async def test_streams_that_do_not_end_in_time_are_cut_off_and_the_exit_code_says_so():
    with supervised(*FACES, "--drain-timeout", "1.5") as server:
        await _with_a_stream(server, lambda: server.signal(signal.SIGTERM))
        code, said = await asyncio.to_thread(server.ended)
    assert code == Exit.CUT_OFF
    assert said == ["polylip: draining: 1 stream left", "polylip: 1 stream not ended within 1.5 s: cut off"]


def test_a_server_that_cannot_say_what_it_serves_was_not_drained():
    with supervised("--models", "mel", "--drain-timeout", "1.5") as server:
        server.wait_until_ready()
        server.tritonserver().suspend()
        server.signal(signal.SIGTERM)
        code, said = server.ended()
        assert server.left() == []
    assert code == Exit.CUT_OFF
    assert said[-1] == "polylip: an unknown number of streams not ended within 1.5 s: cut off"


async def test_a_second_signal_waits_for_nobody():
    with supervised(*FACES, "--drain-timeout", "600") as server:

        def end() -> None:
            server.signal(signal.SIGTERM)
            server.until(lambda status: bool(status and status.streams), TIMEOUT_S)
            server.signal(signal.SIGTERM)

        await _with_a_stream(server, end)
        assert (await asyncio.to_thread(server.ended))[0] == Exit.CUT_OFF


async def test_Ctrl_C_twice_does_not_even_wait_for_tritonserver():  # noqa: N802
    """Which waits for a sequence that nobody ends."""
    with supervised(*FACES) as server:

        def end() -> None:
            server.signal(signal.SIGINT)
            server.until(lambda status: bool(status and status.state == State.STOPPING), TIMEOUT_S)
            server.signal(signal.SIGINT)
            started = time.monotonic()
            assert server.ended() == (Exit.STOPPED, ["polylip: the server is stopped"])
            assert time.monotonic() - started < GRACE_S
            assert server.left() == []

        await _with_a_stream(server, end)


# The control socket


@pytest.fixture(scope="module")
def resting() -> Iterator[Supervised]:
    """A server that nobody ends."""
    with supervised(*LIGHT) as server:
        server.wait_until_ready()
        yield server


def test_several_servers_are_told_apart_by_their_port(resting: Supervised):
    port = resting.status().grpc_port
    with supervised(*LIGHT, POLYLIP_STATE_DIR=str(resting.state_dir)) as other:
        other_port = other.wait_until_ready().rpartition(":")[2]
        unclear = light_probe(resting.state_dir)
        assert unclear[0] == 1 and "choose one with --grpc-port: " in unclear[1]
        assert str(port) in unclear[1] and other_port in unclear[1]
        code, said = light_probe(resting.state_dir, "--grpc-port", "1")
        assert code == 1 and "with gRPC port 1 of this user" in said and str(port) in said and other_port in said
        assert resting.ask("drain", "--grpc-port", other_port).returncode == 0
        assert other.ended()[0] == Exit.STOPPED
    assert light_probe(resting.state_dir, "--grpc-port", str(port)) == (0, "")


def test_nobody_else_gets_at_the_socket(resting: Supervised, tmp_path: Path):
    [socket] = resting.state_dir.glob(control.SOCKETS)
    assert (socket.stat().st_mode & 0o777, resting.state_dir.stat().st_mode & 0o777) == (0o600, 0o700)
    tmp_path.chmod(0o755)
    told = f"{tmp_path} is open to others; run: chmod 700, or set POLYLIP_STATE_DIR to another folder\n"
    assert light_probe(tmp_path) == (1, told)
    with supervised(*LIGHT, POLYLIP_STATE_DIR=str(tmp_path)) as server:
        assert server.ended() == (2, [f"polylip: {told.strip()}"])


def test_nonsense_on_the_socket_harms_nobody(resting: Supervised):
    [path] = resting.state_dir.glob(control.SOCKETS)
    for said in (b"\n", b"[]\n", b'{"do": "drain", "timeout_s": "soon"}\n', b"\xff\xfe\n", b"x" * 9000 + b"\n"):
        with control._connect(path, TIMEOUT_S) as connection:
            connection.sendall(said)
            with contextlib.suppress(ConnectionResetError):  # it was not even read to its end
                assert connection.makefile("rb").read() == b""
    assert resting.status().ready


def test_a_probe_without_the_command_line_program_is_the_same_and_fast(resting: Supervised, tmp_path: Path):
    assert light_probe(resting.state_dir, "--ready") == (0, "")
    imported = "import sys, polylip.serving.control; print('numpy' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", imported], text=True) == "False\n"
    tmp_path.chmod(0o700)
    code, said = light_probe(tmp_path, "--ready")
    assert code == 1 and said.startswith("no `polylip serve` of this user is found in ") and said.count("\n") == 1


def light_probe(state_dir: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and what was said."""
    environment = os.environ | {control.STATE_DIR_VARIABLE: str(state_dir)}
    command = [sys.executable, "-m", "polylip.serving.control", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, done.stdout + done.stderr
