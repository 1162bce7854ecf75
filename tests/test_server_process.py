"""The server as processes: a dead model is named, every end leaves nothing, a failed start is one line."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import REPOSITORY
from live_run import stub
from material import chunk, milliseconds
from tritonclient.grpc import service_pb2

from polylip.client.errors import ServerError
from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, new_sequence_id, rows
from polylip.serving import launcher
from polylip.serving.doctor import LIPS_LITE, PROFILES
from polylip.serving.drain import read_load
from polylip.serving.guard import SHM, lock_path, sweep_stale
from polylip.serving.launcher import Server, ServerOptions, running_server, start_server
from polylip.serving.probe import probe_models, stub_of

POLYLIP = str(Path(sys.executable).with_name("polylip"))
FREE_PORTS = ("--grpc-port", "0", "--metrics-port", "0")
TIMEOUT_S = 60.0
SILENCE = np.zeros(8000, np.float32)
EXIT_UNUSABLE, EXIT_SERVER = 2, 3
ENDING_S = 5.0  # for programs that end when their pipe does: they are in no group of the server's


def gone(process: psutil.Process) -> bool:
    """One that only waits for its parent's notice is, too."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Footprint:
    """All that a server has on the machine: processes, regions in shared memory, its run folder."""

    def __init__(self, guard: psutil.Process) -> None:
        arguments = guard.cmdline()
        run_dir, _, self._prefix = arguments[arguments.index("polylip.serving.guard") + 1 :][:3]
        self._run_dir, self._lock = Path(run_dir), lock_path(self._prefix)
        self._processes = [guard, *guard.children(recursive=True)]
        assert self._regions()
        assert self._run_dir.parent == Path(tempfile.gettempdir()) and self._lock.exists()
        assert len(self._processes) > len(PYTHON_MODELS)

    def left(self, timeout_s: float = ENDING_S) -> list[str]:
        """What is still there after at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (processes := [str(p) for p in self._processes if not gone(p)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return processes + self._regions() + [str(path) for path in (self._run_dir, self._lock) if path.exists()]

    def _regions(self) -> list[str]:
        return [name for name in os.listdir(SHM) if name.startswith(self._prefix)]


PYTHON_MODELS = [path.parts[-3] for path in REPOSITORY.glob("*/1/model.py")]


def footprint(server: Server) -> Footprint:
    return Footprint(psutil.Process(server.guard_pid))


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets of supervisors stay out of the folders that are looked at, and of each other's way."""
    folder = tmp_path_factory.mktemp("s")
    folder.chmod(0o700)
    monkeypatch.setenv("POLYLIP_STATE_DIR", str(folder))


def polylip(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [POLYLIP, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@contextmanager
def serving(log: Path) -> Iterator[tuple[subprocess.Popen[str], Footprint]]:
    """A `polylip serve` that has said that it is ready."""
    command = [POLYLIP, "serve", *FREE_PORTS, "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("ready: grpc 127.0.0.1:")
            [guard] = psutil.Process(process.pid).children()
            yield process, Footprint(guard)
        finally:
            process.kill()


# A model dies, requests fail


async def test_a_dead_model_is_named_though_health_says_ready_and_the_others_answer(own_server: Callable[..., Server]):
    """Triton never unloads the dead model: the stop must end the server all the same."""
    server = own_server()
    assert probe_models(server.url, REPOSITORY) is None
    traces = footprint(server)
    stub(server, "translate").kill()
    failure = probe_models(server.url, REPOSITORY)
    assert failure is not None
    assert failure.startswith("model translate: ")
    assert "\n" not in failure
    with server.endpoint.channel() as channel:
        assert stub_of(channel).ServerReady(service_pb2.ServerReadyRequest(), timeout=TIMEOUT_S).ready
    async with TritonClient(server.url) as client, client.stream() as stream:
        mel = await stream.call("mel", {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(0)}, TIMEOUT_S)
        assert mel["MEL"].shape == (1, 80, 16)
    server.stop()
    assert traces.left() == []


FAILING = [
    ("transcribe", rows({"AUDIO": SILENCE * np.nan, "SOURCE_LANGUAGE": "en"})),
    ("translate", rows({"SOURCE_TEXT": "yes", "DETECTED_LANGUAGE": "en", "TARGET_LANGUAGE": "es", "STATUS": "odd"})),
    ("synthesize", rows({"TARGET_TEXT": "yes", "TARGET_LANGUAGE": "es", "FIT": "odd"})),
    ("mel", {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(-1)}),
    ("detect", {"FRAMES": np.zeros((1, 0, 0, 3), np.uint8)}),
    ("speech", rows({"AUDIO": SILENCE * np.nan, "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"})),
    ("speech", rows({"AUDIO": SILENCE, "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es", "FIT": "odd"})),
    (
        "lipsync",
        {"AUDIO": SILENCE, "FRAME_OFFSETS_MS": milliseconds(9999), "FACES": np.zeros((1, 96, 96, 3), np.uint8)},
    ),
    ("faces", chunk([np.zeros((90, 160, 3), np.uint8)], [0, 1], [0])),  # more times than frames
]


async def test_failed_requests_neither_slow_the_stop_nor_leave_anything(own_server: Callable[..., Server]):
    server = own_server()
    traces = footprint(server)
    async with TritonClient(server.url) as client, client.stream() as single, client.stream() as several:
        for model, inputs in FAILING * 3:
            # tritonserver 2.51 dies of models with one and with several responses per request on one stream
            stream = several if model in {"synthesize", "speech"} else single
            only = SequencePosition(new_sequence_id(), start=True, end=True) if model == "faces" else None
            with pytest.raises(ServerError):
                await stream.call(model, inputs, TIMEOUT_S, only)
    server.stop()
    assert traces.left() == []
    log = server.log_path.read_text()
    assert "Found 0 live models" in log, "tritonserver ended by itself and was not killed"
    assert set(re.findall(r"successfully unloaded '(\w+)'", log)) >= set(PYTHON_MODELS)


# Guards that are killed outright


@pytest.mark.alone  # any start of a server on this machine would sweep first
def test_what_a_killed_guard_has_left_is_swept_and_living_servers_are_left_alone(
    server: Server, own_server: Callable[..., Server]
):
    """Whoever lives holds the lock on its file, whatever process ids mean here."""
    dead = own_server()
    traces, others = footprint(dead), footprint(server)
    psutil.Process(dead.guard_pid).kill()
    dead.wait()
    assert dead.shm_prefix in sweep_stale()
    assert traces.left() == []
    assert sweep_stale() == []
    assert others.left(timeout_s=0) != [] and probe_models(server.url, REPOSITORY, models=["mel"]) is None


def test_regions_without_a_lock_are_not_ours_to_sweep():
    stray = SHM / "polylip_999999999_abcdabcd_stray"
    stray.touch()
    try:
        sweep_stale()
        assert stray.exists()
    finally:
        stray.unlink()


# polylip serve


def test_serve_killed_outright_leaves_nothing(tmp_path):
    with serving(tmp_path / "server.log") as (process, traces):
        process.kill()
        assert traces.left(timeout_s=30) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_serve_ends_on_a_signal_quietly_and_leaves_nothing(number, tmp_path):
    with serving(tmp_path / "server.log") as (process, traces):
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
        assert errors == "polylip: the server is stopped\n"
        assert traces.left() == []


@pytest.mark.parametrize(
    ("option", "use"), [("--grpc-port", "gRPC"), ("--metrics-port", "metrics"), ("--http-port", "HTTP")]
)
def test_serve_on_a_taken_port_says_which_and_leaves_nothing(option, use, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        done = polylip("serve", *FREE_PORTS, option, port, TMPDIR=str(tmp_path))
    assert done.returncode == EXIT_SERVER
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"port {port} for {use} (Address already in use)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_metrics_port_that_is_taken_before_the_server_has_it_is_chosen_again(monkeypatch: pytest.MonkeyPatch):
    """Its models answer all the same, for a second, until it ends."""
    choose, chosen = launcher._choose_ports, []
    with socket.create_server(("127.0.0.1", 0)) as holder:

        def overtaken(options: ServerOptions) -> launcher.Ports:
            ports = choose(options)
            taken = replace(ports, metrics=holder.getsockname()[1])
            chosen.append(ports if chosen else taken)
            return chosen[-1]

        monkeypatch.setattr(launcher, "_choose_ports", overtaken)
        with running_server(ServerOptions(models=("mel",))) as server:
            assert len(chosen) == 2 and server.ports == chosen[1]
            assert server.metrics_url is not None
            with urllib.request.urlopen(server.metrics_url) as answer:  # noqa: S310
                assert b"nv_inference" in answer.read()


async def test_a_web_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = await asyncio.to_thread(start_server, ServerOptions(models=("mel",), start_timeout_s=60))
    try:
        assert server.metrics_url is not None and read_load(server.metrics_url).idle
        async with TritonClient(server.url) as client, client.line() as line:
            offsets = milliseconds(0)
            answer = await line.call("mel", {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": offsets}, 30.0)
            assert answer["MEL"].shape == (1, 80, 16)
    finally:
        server.stop()


def test_the_log_of_a_server_that_lives_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with running_server(ServerOptions(models=("mel",))) as living:
        for number in range(launcher.KEPT_LOGS + 1):
            living.log_path.with_name(f"server-9-{number}.log").touch()
        launcher._new_log_path()
        assert "mel" in living.read_log()
        assert len(list(living.log_path.parent.iterdir())) == launcher.KEPT_LOGS
    launcher._new_log_path()
    assert not living.log_path.exists(), "the oldest of those that have ended"


def test_serve_that_cannot_write_its_log_says_so_and_leaves_nothing(tmp_path):
    done = polylip("serve", *FREE_PORTS, "--log", str(tmp_path), TMPDIR=str(tmp_path))
    assert done.returncode == EXIT_UNUSABLE
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path} (Is a directory)" in done.stderr
    assert list(tmp_path.iterdir()) == []


# Doctor


def test_doctor_finds_everything_on_a_machine_that_runs_these_tests():
    done = polylip("doctor")
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())


def test_doctor_names_the_packages_of_missing_programs(tmp_path):
    done = polylip("doctor", PATH=str(tmp_path))
    assert done.returncode == EXIT_UNUSABLE
    missing = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
    assert [line.split("run: ")[1] for line in missing] == [
        "apt-get install apertium-eng-spa",
        "apt-get install espeak-ng",
    ]


@pytest.mark.parametrize("command", [["doctor"], ["serve", *FREE_PORTS]])
def test_an_unknown_profile_is_one_line_that_lists_the_known_ones(command):
    done = polylip(*command, "--profile", "nobody")
    assert done.returncode == EXIT_UNUSABLE
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"'nobody'; this version has: {', '.join(PROFILES)}" in done.stderr


def test_a_missing_lips_graph_is_named_with_the_command_that_makes_it(tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("*.onnx"))
    elsewhere = {"POLYLIP_MODEL_REPOSITORY": str(repository)}
    told = f"lips graph: {repository / LIPS_LITE} is missing; run: polylip export lite\n"
    doctor = polylip("doctor", **elsewhere)
    assert (doctor.returncode, told in doctor.stdout) == (EXIT_UNUSABLE, True)
    serve = polylip("serve", *FREE_PORTS, **elsewhere)
    assert (serve.returncode, serve.stderr) == (EXIT_UNUSABLE, f"polylip: {told}")
