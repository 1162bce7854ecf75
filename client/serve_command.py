"""`serve`, which keeps a server; `probe` and `drain`, which ask it. Exit codes are in docs/server.md."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polylip.client.cli_options import Profile
from polylip.client.errors import InputError
from polylip.client.exits import EXIT_SERVER, EXIT_UNUSABLE, fail, interruptible, say
from polylip.serving.server_flags import LOOPBACK

if TYPE_CHECKING:
    from polylip.serving.launcher import Server, ServerOptions
    from polylip.serving.server_flags import ServerTls

PORTS = {"min": 0, "max": 65535}
STEP_S = 60.0  # between two lines of a supervisor that drains; it looks twice a second
EXIT_UNWELL = 1

Models = Annotated[str, typer.Option(help="Only these models, for example: detect,track,faces; or all")]
GrpcPort = Annotated[int | None, typer.Option(**PORTS, help="Of the server that is meant; by default the only one")]


def names(listed: str) -> tuple[str, ...]:
    """The parts of a list with commas; none for `all`."""
    found = tuple(name.strip() for name in listed.split(",") if name.strip())
    return () if found == ("all",) else found


def serve(
    profile: Profile = "lite",
    models: Models = "",
    grpc_port: Annotated[int, typer.Option(**PORTS, help="gRPC port; 0 takes a free one")] = 8001,
    metrics_port: Annotated[int, typer.Option(**PORTS, help="Metrics port; 0 takes a free one")] = 8002,
    http_port: Annotated[int | None, typer.Option(**PORTS, help="HTTP port on loopback; off unless given")] = None,
    listen: Annotated[str, typer.Option(help="IPv4 address of gRPC; there is no login: use TLS")] = LOOPBACK,
    metrics_listen: Annotated[str, typer.Option(help="IPv4 address of the metrics, for a scraper")] = LOOPBACK,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the server's certificate: gRPC with TLS")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key, not encrypted")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM of the CA that must have signed a client's certificate (mTLS)")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Streams at once; by default what the models say")] = None,
    restart: Annotated[
        int, typer.Option(min=0, help="Start again so often in a row when a model or the server dies")
    ] = 0,
    drain_timeout: Annotated[float, typer.Option(min=0, help="Seconds for streams to end after SIGTERM")] = 30.0,
    probe_every: Annotated[float, typer.Option(min=1, help="Seconds between inferences that ask idle models")] = 30.0,
    otlp_endpoint: Annotated[
        str | None, typer.Option(help="Send traces there: http://127.0.0.1:4318/v1/traces")
    ] = None,
    trace_rate: Annotated[int, typer.Option(min=1, help="One of so many requests is traced")] = 1,
    log: Annotated[Path | None, typer.Option(help="Server log; by default a new file in the state folder")] = None,
    log_level: Annotated[str, typer.Option(help="error, warning, info or verbose")] = "info",
) -> None:
    """Start a tritonserver, on loopback unless told otherwise, and keep it until Ctrl-C or SIGTERM.

    Says that it is ready when every model has answered a real inference, and ends when one is dead. After SIGTERM, and
    `polylip drain`, no new streams are let in, and those that run may end; after Ctrl-C it ends at once.

    Example: polylip serve --profile lite --grpc-port 8001
    """
    from polylip.serving.launcher import ServerOptions  # noqa: PLC0415  needs the extra `serve`
    from polylip.serving.server_flags import LogLevel, Tracing  # noqa: PLC0415
    from polylip.serving.supervisor import Plan, Supervisor  # noqa: PLC0415

    if otlp_endpoint is not None and not re.match(r"https?://[^/]", otlp_endpoint):
        raise InputError(f"--otlp-endpoint {otlp_endpoint}: give a URL, such as http://127.0.0.1:4318/v1/traces")
    if log_level not in set(LogLevel):
        raise InputError(f"unknown log level {log_level!r}; it is one of: {', '.join(LogLevel)}")
    options = ServerOptions(
        profile,
        models=names(models),
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        http_port=http_port,
        listen=listen,
        metrics_listen=metrics_listen,
        tls=_server_tls(tls_cert, tls_key, tls_client_ca),
        tracing=Tracing(otlp_endpoint, trace_rate) if otlp_endpoint else None,
        log_path=log,
        log_level=LogLevel(log_level),
        slots=slots,
    )
    _warn(options)
    supervisor = Supervisor(Plan(options, restart, drain_timeout, probe_every), _tell_ready, say)
    with interruptible("the server is stopped", 0):
        ending = asyncio.run(supervisor.run())
    fail(ending.message, ending.code)


def probe(
    ready: Annotated[bool, typer.Option("--ready", help="Ask whether it takes new streams, not only lives")] = False,
    grpc_port: GrpcPort = None,
) -> None:
    """Exit with 0 when the server that `polylip serve` keeps here is well, else with 1 and one line that says why.

    Example: polylip probe --ready
    """
    from polylip.serving import control  # noqa: PLC0415

    problem = control.probe(ready, grpc_port)
    if problem is not None:
        fail(problem, EXIT_UNWELL)


def drain(
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for the streams to end; then they are cut off")] = 30.0,
    grpc_port: GrpcPort = None,
) -> None:
    """Have the server that `polylip serve` keeps here take no new streams, and end once none is left.

    Exits with 0 when all streams have ended, 5 when some were cut off, 3 when the server failed meanwhile.

    Example: polylip drain --timeout 60
    """
    from polylip.serving import control  # noqa: PLC0415
    from polylip.serving.supervisor import Exit, State  # noqa: PLC0415

    status = None
    try:
        for answer in control.ask({"do": "drain", "timeout_s": timeout}, grpc_port, timeout + STEP_S):
            status = control.Status(**answer)
            if status.state == State.DRAINING:
                say(f"draining, {_left(status.streams)}")
    except control.ControlError as error:
        fail(str(error), EXIT_UNUSABLE if status is None else EXIT_SERVER)
    if status is not None and status.state == State.DEAD:
        fail(status.detail, EXIT_SERVER)
    if status is not None and status.streams:
        fail(f"{status.streams} streams were cut off after {timeout:g} s", Exit.CUT_OFF)


def _left(streams: int | None) -> str:
    return "looking for streams" if streams is None else f"{streams} stream{'s' if streams != 1 else ''} left"


def _server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    from polylip.serving.server_flags import ServerTls  # noqa: PLC0415

    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InputError("TLS needs the server's certificate and its key: give --tls-cert and --tls-key")
    return ServerTls(certificate, key, client_ca)


def _warn(options: ServerOptions) -> None:
    if options.tls is None and not options.listen.startswith("127."):
        say(f"warning: {options.listen} without TLS: who reaches the port reads and sends; give --tls-cert, --tls-key")


def _tell_ready(server: Server) -> None:
    metrics = f"{server.options.metrics_listen}:{server.ports.metrics}"
    print(f"ready: grpc {server.url}, metrics {metrics}, log {server.log_path}", flush=True)
