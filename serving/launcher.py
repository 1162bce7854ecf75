"""Starts a tritonserver of a profile, waits until real inferences answer, and stops it on every path.

What it is told is in serving/server_flags.py; how it is kept alive in serving/supervisor.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from polylip.serving.doctor import require_ready
from polylip.serving.drain import read_metrics
from polylip.serving.dub.admission import DRAIN_FILE_VARIABLE, SLOTS_VARIABLE
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.guard import GRACE_S, KILL, PREFIX, RUN_PREFIX, sweep, sweep_stale
from polylip.serving.plans import link_plans
from polylip.serving.probe import is_ready, probe_models
from polylip.serving.runtime import (
    find_model_repository,
    find_runtime,
    prepare_backends,
    require_backend,
    server_environment,
)
from polylip.serving.server_flags import (
    LOOPBACK,
    Address,
    LogLevel,
    ServerTls,
    Settings,
    Tracing,
    command_line,
    known_flags,
)
from polylip.serving.supervisor_identity import Endpoint, Identity, make_identity

ANY_ADDRESS = "0.0.0.0"  # noqa: S104  only compared with: from this machine such a server is called on loopback
GPU_PROFILE = "gpu"  # its configs are the config.pbtxt themselves
START_TIMEOUT_S = 120.0  # the lite profile takes 5 to 10 s on two cores; a busy machine several times that
READY_POLL_S = 0.1
NOISE = re.compile(r"CudaDriverHelper|unable to create stream|CUDA driver version")  # of every machine without a GPU
PORT_TAKEN = re.compile(r"already in use|failed to start \w+ service", re.IGNORECASE)  # what tritonserver logs
KEPT_LOGS = 50  # of servers that have ended
PORT_TRIES = 3  # a port seen free can be taken by another program before the server binds it


@dataclass(frozen=True)
class ServerOptions:
    """How to start a server. Port 0 means any free one; None means that the protocol is off."""

    profile: str = "lite"
    model_repository: Path | None = None  # None: the one of this checkout
    models: tuple[str, ...] = ()  # to load; none means all
    grpc_port: int = 0
    http_port: int | None = None  # nothing of ours needs HTTP
    metrics_port: int | None = 0
    listen: str = LOOPBACK  # IPv4 address of gRPC; a container needs 0.0.0.0
    log_path: Path | None = None  # None: a new file in the state folder, which keeps KEPT_LOGS of ended servers
    start_timeout_s: float = START_TIMEOUT_S
    extra_flags: tuple[str, ...] = ()  # of tritonserver, behind all others
    metrics_listen: str = LOOPBACK  # IPv4 address of the metrics, for a scraper elsewhere; HTTP stays on loopback
    tls: ServerTls | None = None
    tracing: Tracing | None = None
    log_level: LogLevel = LogLevel.INFO
    slots: int | None = None  # streams at once; None: what the variable or the config of `gate` says


class Server:
    """A running tritonserver behind its guard."""

    def __init__(
        self, guard: subprocess.Popen[bytes], options: ServerOptions, ports: Ports, log: Log, start: Start
    ) -> None:
        self._guard = guard
        self._log = log
        self._identity = start.identity
        self.options = options
        self.ports = ports
        self.shm_prefix = start.shm_prefix  # of its regions in /dev/shm
        self.drain_file = start.drain_file  # whoever creates it keeps new streams out

    @property
    def url(self) -> str:
        """`host:port` of the gRPC endpoint, as this machine reaches it."""
        host = LOOPBACK if self.options.listen == ANY_ADDRESS else self.options.listen
        return f"{host}:{self.ports.grpc}"

    @property
    def endpoint(self) -> Endpoint:
        """Its address, with what its TLS asks for."""
        return Endpoint(self.url) if self._identity is None else self._identity.endpoint(self.url)

    @property
    def metrics_url(self) -> str | None:
        """As this machine reaches it; None where metrics are off."""
        host = LOOPBACK if self.options.metrics_listen == ANY_ADDRESS else self.options.metrics_listen
        return None if self.ports.metrics is None else f"http://{host}:{self.ports.metrics}/metrics"

    @property
    def log_path(self) -> Path:
        return self._log.path

    def read_log(self) -> str:
        """What this server, not an earlier one, has written to its log."""
        return self._log.path.read_bytes()[self._log.start :].decode("utf-8", "replace")

    @property
    def guard_pid(self) -> int:
        """Process id of the guard; tritonserver is its child."""
        return self._guard.pid

    @property
    def alive(self) -> bool:
        return self._guard.poll() is None

    def wait(self) -> int:
        """Block until the server ends by itself; its exit status."""
        return self._guard.wait()

    def poll(self) -> int | None:
        """Its exit status; None while it lives."""
        return self._guard.poll()

    def stop(self) -> None:
        """End the server and everything it started; what is in flight may end first. Safe to call twice."""
        with contextlib.suppress(BrokenPipeError):  # it has just ended by itself
            if self._guard.stdin is not None:
                self._guard.stdin.close()
        try:
            self._guard.wait(3 * GRACE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._guard.returncode < 0:  # the guard was killed outright and has cleared up nothing
            sweep(self.shm_prefix)

    def kill(self) -> None:
        """The same at once, for a server that would not end by itself; in the middle of `stop` too."""
        with contextlib.suppress(BrokenPipeError):
            if self._guard.stdin is None or self._guard.stdin.closed:
                self._guard.kill()
            else:
                self._guard.stdin.write(KILL)
                self._guard.stdin.flush()
        self.stop()


@dataclass(frozen=True)
class Log:
    """The server's log; a file that was there already is appended to."""

    path: Path
    start: int  # bytes of earlier servers


@dataclass(frozen=True)
class Ports:
    """The ports in use; None where a protocol is off."""

    grpc: int
    http: int | None
    metrics: int | None


@dataclass(frozen=True)
class Start:
    """What belongs to one start alone."""

    shm_prefix: str
    drain_file: Path
    identity: Identity | None  # with TLS


@contextmanager
def running_server(options: ServerOptions) -> Iterator[Server]:
    """A server that answers inferences, stopped when the block ends. Raises MissingError, EngineError."""
    server = start_server(options)
    try:
        yield server
    finally:
        server.stop()


def start_server(options: ServerOptions, on_spawn: Callable[[Server], None] = lambda server: None) -> Server:
    """Start and wait until every model answers a real inference. Raises MissingError, EngineError.

    `on_spawn` gets the server while it loads; what it raises ends the start.
    """
    require_ready(options.profile, options.model_repository, options.models)
    for attempt in range(PORT_TRIES):
        server = _spawn(options)
        try:
            on_spawn(server)
            wait_until_answering(server, options.start_timeout_s)
            return server
        except BaseException as error:
            server.stop()
            if isinstance(error, _PortTakenError) and options.grpc_port == 0 and attempt + 1 < PORT_TRIES:
                continue
            raise
    raise AssertionError("unreachable")


class _PortTakenError(EngineError):
    """Another program got the port first."""


def _spawn(options: ServerOptions) -> Server:
    """A server that has been started and may still end with an error. Raises MissingError, EngineError."""
    sweep_stale()
    runtime = find_runtime()
    require_backend(runtime, options.profile)
    environment = server_environment(runtime)
    known = known_flags(runtime.binary, environment)
    repository = options.model_repository or find_model_repository()
    if options.profile == GPU_PROFILE:
        link_plans(repository)
    ports = _choose_ports(options)
    log = _open_log(options)
    run_dir = Path(tempfile.mkdtemp(prefix=RUN_PREFIX))  # from here on nothing but the guard removes it
    try:
        identity = None if options.tls is None else make_identity(options.tls, run_dir)
        start = Start(f"{PREFIX}{os.getpid()}_{secrets.token_hex(4)}_", run_dir / "drain", identity)
        settings = Settings(
            repository.resolve(),
            prepare_backends(runtime, run_dir / "backends"),
            start.shm_prefix,
            Address(options.listen, ports.grpc),
            http=None if ports.http is None else Address(LOOPBACK, ports.http),
            metrics=None if ports.metrics is None else Address(options.metrics_listen, ports.metrics),
            config_name=None if options.profile == GPU_PROFILE else options.profile,
            models=options.models,
            tls=None if identity is None else identity.tls,
            tracing=options.tracing,
            log_level=options.log_level,
        )
        guarded = [sys.executable, "-m", "polylip.serving.guard", str(run_dir), str(log.path), start.shm_prefix, "--"]
        guard = subprocess.Popen(
            [*guarded, str(runtime.binary), *command_line(settings, known), *options.extra_flags],
            stdin=subprocess.PIPE,
            env=environment | _variables(options, start),
            start_new_session=True,  # Ctrl-C reaches this process, which then stops the server in order
        )
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return Server(guard, options, ports, log, start)


def _variables(options: ServerOptions, start: Start) -> dict[str, str]:
    """What the models are told."""
    slots = {} if options.slots is None else {SLOTS_VARIABLE: str(options.slots)}
    return {DRAIN_FILE_VARIABLE: str(start.drain_file), **slots}


def _choose_ports(options: ServerOptions) -> Ports:
    """The wanted ports, with a free one for each 0."""
    wished = [port for port in (options.grpc_port, options.http_port, options.metrics_port) if port]
    if len(set(wished)) < len(wished):
        raise MissingError(f"gRPC, HTTP and metrics need a port each; {max(wished, key=wished.count)} is named twice")
    with ExitStack() as held:  # hold each until all are chosen, so that no two are the same

        def choose(what: str, wanted: int, listen: str) -> int:
            probe = held.enter_context(socket.socket())
            if wanted:  # the closing connections of a server just stopped do not count
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((listen, wanted))
            except OSError as error:
                where = f"port {wanted}" if listen == LOOPBACK else f"{listen} port {wanted}"
                raise _PortTakenError(
                    f"cannot listen on {where} for {what} ({error.strerror}); choose another, or 0 for a free one"
                ) from None
            return int(probe.getsockname()[1])

        http = None if options.http_port is None else choose("HTTP", options.http_port, LOOPBACK)
        metrics = (
            None if options.metrics_port is None else choose("metrics", options.metrics_port, options.metrics_listen)
        )
        return Ports(choose("gRPC", options.grpc_port, options.listen), http, metrics)


def wait_until_answering(server: Server, timeout_s: float) -> None:
    """Until every model has answered a real inference. Raises EngineError."""
    deadline = time.monotonic() + timeout_s
    while not is_ready(server.endpoint):
        if not server.alive:
            raise _explain_exit(server)
        if time.monotonic() > deadline:
            raise EngineError(f"tritonserver did not load within {timeout_s:.0f} s; log: {server.log_path}")
        time.sleep(READY_POLL_S)
    repository = server.options.model_repository or find_model_repository()
    failure = probe_models(server.endpoint, repository, models=server.options.models)
    if failure is not None:
        raise EngineError(f"tritonserver is up but does not work: {failure}; log: {server.log_path}")
    _wait_for_metrics(server, deadline)


def _wait_for_metrics(server: Server, deadline: float) -> None:
    """tritonserver serves them last: without their port it ends, a moment after its models have answered."""
    while server.metrics_url is not None and not _answers(server.metrics_url):
        if not server.alive:
            raise _explain_exit(server)
        if time.monotonic() > deadline:
            raise EngineError(f"the metrics of tritonserver do not answer; log: {server.log_path}")
        time.sleep(READY_POLL_S)
    if PORT_TAKEN.search(server.read_log()):
        raise _explain_exit(server)


def _answers(url: str) -> bool:
    try:
        return bool(read_metrics(url))
    except OSError:
        return False


def _explain_exit(server: Server) -> EngineError:
    """The most telling line of the log of a server that ended while starting."""
    log = server.read_log()
    if PORT_TAKEN.search(log):
        return _PortTakenError(f"a port is already in use ({server.ports}); choose others; log: {server.log_path}")
    log = "\n".join(line for line in log.splitlines() if not NOISE.search(line))
    found = re.findall(r"failed to load '(\S+)' version \d+: (.+)", log) or re.findall(
        r"^E\d+ .*?\] (\S+) (.+)", log, re.M
    )
    cause = f"model {found[0][0]}: {found[0][1]}" if found else "no error in the log"
    return EngineError(f"tritonserver ended while starting: {cause}; log: {server.log_path}")


def _open_log(options: ServerOptions) -> Log:
    """A log that is there and can be written. Raises MissingError."""
    path = (options.log_path or _new_log_path()).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            return Log(path, file.tell())
    except OSError as error:
        raise MissingError(f"cannot write the server's log {path} ({error.strerror}); choose another file") from None


def _new_log_path() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "polylip"
    ended = [path for path in sorted(state.glob("server-*.log")) if not _is_written_to(path)]
    for path in ended[: max(0, len(ended) + 1 - KEPT_LOGS)]:
        path.unlink(missing_ok=True)
    return state / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(2)}.log"


def _is_written_to(log: Path) -> bool:
    """Whether a server has it open, or nobody can tell."""
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
