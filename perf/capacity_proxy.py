"""Several servers behind HAProxy, as docker/haproxy.cfg has it: started, watched and stopped for a measurement."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.wire import CHANNEL_OPTIONS
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.guard import PR_SET_PDEATHSIG
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.probe import is_ready
from polylip.serving.server_flags import LOOPBACK

CONFIG = Path(__file__).resolve().parents[1] / "docker" / "haproxy.cfg"
NAMES = ("one", "two", "three")  # of its servers
START_S = 10.0
STOP_S = 5.0
POLL_S = 0.05
CALL_S = 5.0
# Of its log: who asked, who answered, what for.
_ASKED = re.compile(r"^stream=(\S+) server=(\S+) status=(\S+) .*/(ModelInfer|ModelStreamInfer)$", re.MULTILINE)


@dataclass(frozen=True)
class ModelCount:
    """What a server says of one of its models since it was started."""

    requests: int  # answered well
    failed: int
    calls: int  # of the engine
    service_s: float  # of all calls together, without the queue


@dataclass(frozen=True)
class Asked:
    """What the proxy's log says."""

    servers: dict[str, Counter[str]] = field(default_factory=dict)  # by stream: its requests by server
    last: dict[str, str] = field(default_factory=dict)  # by stream: the server of its newest request
    calls: Counter[str] = field(default_factory=Counter)  # by server, what was answered once (not on a stream) and well

    @property
    def split(self) -> list[str]:
        """Streams that more than one server has had."""
        return sorted(stream for stream, servers in self.servers.items() if len(servers) > 1)

    @property
    def streams(self) -> dict[str, int]:
        """How many each server had."""
        return dict(sorted(Counter(name for servers in self.servers.values() for name in servers).items()))


class BalancedProxy:
    """A running HAProxy."""

    def __init__(self, port: int, log_path: Path) -> None:
        self.url = f"{LOOPBACK}:{port}"
        self._log_path = log_path

    def asked(self, streams: Callable[[str], bool] = lambda stream: True) -> Asked:
        """Of the streams whose id is wanted. A stream for speech is entered when it ends."""
        asked = Asked()
        for stream, server, status, call in _ASKED.findall(self._log_path.read_text()):
            if streams(stream):
                if call == "ModelInfer":
                    asked.last[stream] = server
                    asked.calls[server] += status == "200"
                asked.servers.setdefault(stream, Counter())[server] += 1
        return asked


def find_haproxy() -> str | None:
    """Its path; Debian has it where only root looks."""
    return shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))


@contextmanager
def running_proxy(servers: Sequence[str]) -> Iterator[BalancedProxy]:
    """HAProxy on a free port of loopback in front of servers given as `host:port`, as many as NAMES.

    Raises MissingError, EngineError.
    """
    binary = find_haproxy()
    if binary is None:
        raise MissingError("haproxy is not installed; run: apt-get install haproxy")
    if not CONFIG.is_file():
        raise MissingError(f"{CONFIG} is missing; run from a checkout")
    folder = Path(tempfile.mkdtemp(prefix="polylip-proxy-"))
    listening = socket.create_server((LOOPBACK, 0))  # handed over, so that no other program can take the port
    try:
        addresses = {f"POLYLIP_SERVER_{i}": url for i, url in enumerate(servers, 1)}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [binary, "-db", "-f", str(CONFIG)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
                env={**os.environ, **addresses, "POLYLIP_LISTEN": f"fd@{listening.fileno()}"},
                preexec_fn=_end_with_parent,  # noqa: PLW1509  two calls of the C library
            )
        try:
            proxy = BalancedProxy(listening.getsockname()[1], folder / "log")
            _wait_until_ready(proxy, process, folder / "log")
            yield proxy
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()
    finally:
        listening.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_servers(options: Sequence[ServerOptions]) -> Iterator[list[Server]]:
    """Started and stopped side by side, whatever becomes of them. Raises MissingError, EngineError."""
    with ThreadPoolExecutor(len(options)) as pool:
        starting = [pool.submit(start_server, option) for option in options]
        try:
            yield [future.result() for future in starting]
        finally:
            started = [future.result() for future in starting if future.exception() is None]
            list(pool.map(Server.stop, started))


def kill(server: Server) -> None:
    """At once, as a machine fails."""
    children = Path(f"/proc/{server.guard_pid}/task/{server.guard_pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def model_counts(url: str) -> dict[str, ModelCount]:
    """By model. Raises EngineError."""
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=CALL_S)
        except grpc.RpcError as error:
            raise EngineError(f"no statistics from the server at {url}: {error.details()}") from None
    counts = {}
    for model in answer.model_stats:
        stats = model.inference_stats
        times_ns = (stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns)
        counts[model.name] = ModelCount(
            stats.success.count, stats.fail.count, model.execution_count, sum(times_ns) / 1e9
        )
    return counts


def _wait_until_ready(proxy: BalancedProxy, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while not is_ready(proxy.url):
        if process.poll() is not None or time.monotonic() > deadline:
            said = " ".join(log_path.read_text().split())[-400:]
            raise EngineError(f"haproxy did not come up with {CONFIG.name}: {said}")
        time.sleep(POLL_S)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
