"""Starts a tritonserver of a profile, waits until real inferences answer, and stops it on every path."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from polylip.serving.doctor import require_ready
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.guard import GRACE_S
from polylip.serving.plans import link_plans
from polylip.serving.probe import is_ready, probe_models
from polylip.serving.runtime import (
    find_model_repository,
    find_runtime,
    prepare_backends,
    require_backend,
    server_environment,
)

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104  only compared with: from this machine such a server is called on loopback
GPU_PROFILE = "gpu"  # its configs are the config.pbtxt themselves
START_TIMEOUT_S = 120.0  # the lite profile takes 5 to 10 s on two cores; a busy machine several times that
READY_POLL_S = 0.1
KEPT_LOGS = 50  # many more than servers live at once on one machine: a live one keeps its log
# Triton keeps so many ended requests for reuse, each with the room of its largest tensors: with its default of 8 the
# memory went on growing for half an hour.
KEPT_REQUESTS = 1
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
    listen: str = LOOPBACK  # IPv4 address that all protocols are bound to; a container needs 0.0.0.0
    log_path: Path | None = None  # None: a new file in the state folder, of which the last KEPT_LOGS are kept
    start_timeout_s: float = START_TIMEOUT_S
    extra_flags: tuple[str, ...] = ()  # of tritonserver, behind all others


class Server:
    """A running tritonserver behind its guard."""

    def __init__(
        self, guard: subprocess.Popen[bytes], options: ServerOptions, ports: Ports, log: Log, shm_prefix: str
    ) -> None:
        self._guard = guard
        self._log = log
        self.options = options
        self.ports = ports
        self.shm_prefix = shm_prefix  # of its regions in /dev/shm

    @property
    def url(self) -> str:
        """`host:port` of the gRPC endpoint, as this machine reaches it."""
        host = LOOPBACK if self.options.listen == ANY_ADDRESS else self.options.listen
        return f"{host}:{self.ports.grpc}"

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

    def stop(self) -> None:
        """End the server and everything it started. Safe to call twice."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        try:
            self._guard.wait(3 * GRACE_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


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


@contextmanager
def running_server(options: ServerOptions) -> Iterator[Server]:
    """A server that answers inferences, stopped when the block ends. Raises MissingError, EngineError."""
    server = start_server(options)
    try:
        yield server
    finally:
        server.stop()


def start_server(options: ServerOptions) -> Server:
    """Start and wait until every model answers a real inference. Raises MissingError, EngineError."""
    require_ready(options.profile, options.model_repository, options.models)
    for attempt in range(PORT_TRIES):
        server = _spawn(options)
        try:
            _wait_until_answering(server, options.start_timeout_s)
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
    runtime = find_runtime()
    require_backend(runtime, options.profile)
    repository = options.model_repository or find_model_repository()
    if options.profile == GPU_PROFILE:
        link_plans(repository)
    ports = _choose_ports(options)
    log = _open_log(options)
    run_dir = Path(tempfile.mkdtemp(prefix="polylip-"))  # last: from here on nothing but the guard removes it
    prefix = f"polylip_{os.getpid()}_{secrets.token_hex(4)}_"
    command = [
        str(runtime.binary),
        f"--model-repository={repository.resolve()}",
        *_model_flags(options),
        f"--backend-directory={prepare_backends(runtime, run_dir / 'backends')}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        *_address_flags(ports, options.listen),
        f"--grpc-infer-allocation-pool-size={KEPT_REQUESTS}",
        *options.extra_flags,
    ]
    guard = subprocess.Popen(
        [sys.executable, "-m", "polylip.serving.guard", str(run_dir), str(log.path), prefix, "--", *command],
        stdin=subprocess.PIPE,
        env=server_environment(runtime),
        start_new_session=True,  # Ctrl-C reaches this process, which then stops the server in order
    )
    return Server(guard, options, ports, log, prefix)


def _model_flags(options: ServerOptions) -> list[str]:
    flags = [] if options.profile == GPU_PROFILE else [f"--model-config-name={options.profile}"]
    if options.models:
        flags += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in options.models)]
    return flags


def _address_flags(ports: Ports, listen: str) -> list[str]:
    flags = [f"--grpc-address={listen}", f"--grpc-port={ports.grpc}"]
    for name, port in (("http", ports.http), ("metrics", ports.metrics)):
        if port is None:
            flags.append(f"--allow-{name}=false")
        else:
            flags += [f"--allow-{name}=true", f"--{name}-address={listen}", f"--{name}-port={port}"]
    return flags


def _choose_ports(options: ServerOptions) -> Ports:
    """The wanted ports, with a free one for each 0."""
    with ExitStack() as held:  # hold each until all are chosen, so that no two are the same

        def choose(wanted: int) -> int:
            probe = held.enter_context(socket.socket())
            if wanted:  # the closing connections of a server just stopped do not count
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.listen, wanted))
            except OSError as error:
                where = f"port {wanted}" if options.listen == LOOPBACK else f"{options.listen} port {wanted}"
                raise _PortTakenError(f"cannot listen on {where} ({error.strerror}); choose another") from None
            return int(probe.getsockname()[1])

        http, metrics = (None if port is None else choose(port) for port in (options.http_port, options.metrics_port))
        return Ports(choose(options.grpc_port), http, metrics)


def _wait_until_answering(server: Server, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_ready(server.url):
        if not server.alive:
            raise _explain_exit(server)
        if time.monotonic() > deadline:
            raise EngineError(f"tritonserver did not load within {timeout_s:.0f} s; log: {server.log_path}")
        time.sleep(READY_POLL_S)
    repository = server.options.model_repository or find_model_repository()
    failure = probe_models(server.url, repository, models=server.options.models)
    if failure is not None:
        raise EngineError(f"tritonserver is up but does not work: {failure}; log: {server.log_path}")


def _explain_exit(server: Server) -> EngineError:
    """The most telling line of the log of a server that ended while starting."""
    log = server.read_log()
    if "Address already in use" in log or "failed to start GRPC service" in log.lower():
        return _PortTakenError(f"a port is already in use ({server.ports}); choose others; log: {server.log_path}")
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
    old = sorted(state.glob("server-*.log"))
    for path in old[: max(0, len(old) + 1 - KEPT_LOGS)]:
        path.unlink(missing_ok=True)
    return state / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
