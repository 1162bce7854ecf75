"""Tritonserver's command line: typed settings -> flags, for whatever version of tritonserver is at hand.

What a version knows is read from its own `--help`. A flag that it lacks is left out where its default will do; where
somebody asked for what the flag does, or relies on what it forbids, the start is refused.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from polylip.serving.errors import MissingError

LOOPBACK = "127.0.0.1"
HELP_TIMEOUT_S = 30.0  # it takes 0.05 s
# Triton keeps so many ended requests for reuse, each with the room of its largest tensors: with its default of 8 the
# memory went on growing for half an hour.
KEPT_REQUESTS = 1
MAX_HTTP_BYTES = 64 * 1024 * 1024  # of a request; the client's own limit for a gRPC message
# What no client needs. Left are health, metadata, inference, statistics, and model-config, which is read only.
RESTRICTED = ("shared-memory", "model-repository", "trace", "logging")
FORWARDED_HEADERS = "^x-stream-id$"  # becomes a request parameter of this name, for the models' log lines
SERVICE = "polylip"  # the name in traces


class LogLevel(StrEnum):
    """The least important lines that tritonserver writes."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    VERBOSE = "verbose"


@dataclass(frozen=True)
class Address:
    """Where a protocol listens."""

    host: str  # IPv4
    port: int


@dataclass(frozen=True)
class ServerTls:
    """PEM files. With `client_ca` a client must show a certificate that this authority signed (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Tracing:
    """Spans of requests, sent to an OpenTelemetry collector."""

    endpoint: str  # OTLP over HTTP: http://127.0.0.1:4318/v1/traces
    rate: int = 1  # one of so many requests


@dataclass(frozen=True)
class Settings:
    """All that a tritonserver of ours is told. None: the protocol is off."""

    model_repository: Path
    backends: Path
    shm_prefix: str  # of its regions in /dev/shm
    grpc: Address
    http: Address | None = None
    metrics: Address | None = None
    config_name: str | None = None  # of the profile; None: the config.pbtxt themselves
    models: tuple[str, ...] = ()  # to load; none means all
    tls: ServerTls | None = None
    tracing: Tracing | None = None
    log_level: LogLevel = LogLevel.INFO


@dataclass(frozen=True)
class _Flag:
    name: str
    value: str
    wanted_for: str = ""  # what fails without it; empty: left out where it is not known


def known_flags(binary: Path, environment: Mapping[str, str]) -> frozenset[str]:
    """Names of the flags that this tritonserver has, without dashes. Raises MissingError when it does not run."""
    try:
        done = subprocess.run(
            [str(binary), "--help"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HELP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{binary} cannot be run ({error}); install tritonserver again") from None
    said = done.stdout + done.stderr
    names = frozenset(re.findall(r"^\s*--([a-z0-9-]+)", said, re.MULTILINE))
    if "model-repository" not in names:
        raise MissingError(f"{binary} does not run ({said.strip().partition(chr(10))[0]}); install tritonserver again")
    return names


def command_line(settings: Settings, known: Collection[str]) -> list[str]:
    """The flags for a tritonserver that has the flags `known`. Raises MissingError for what it cannot do."""
    flags = []
    for flag in _flags(settings):
        if flag.name in known:
            flags.append(f"--{flag.name}={flag.value}")
        elif flag.wanted_for:
            raise MissingError(
                f"this tritonserver has no --{flag.name}, which is needed for {flag.wanted_for}; use a newer one"
            )
    return flags


def _flags(settings: Settings) -> Iterator[_Flag]:
    yield _Flag("model-repository", str(settings.model_repository), "its models")
    if settings.config_name is not None:
        yield _Flag("model-config-name", settings.config_name, f"profile {settings.config_name}")
    yield _Flag("model-control-mode", "explicit" if settings.models else "none", "a fixed set of models")
    for name in settings.models:
        yield _Flag("load-model", name, "serving some models only")
    yield _Flag("backend-directory", str(settings.backends), "its backends")
    yield _Flag("backend-config", f"python,shm-region-prefix-name={settings.shm_prefix}", "shared memory of its own")
    yield from _log_flags(settings.log_level)
    yield from _address_flags(settings)
    yield from _restrictions(settings)
    yield _Flag("grpc-header-forward-pattern", FORWARDED_HEADERS)
    yield _Flag("grpc-infer-allocation-pool-size", str(KEPT_REQUESTS))
    if settings.tls is not None:
        yield from _tls_flags(settings.tls)
    if settings.tracing is not None:
        yield from _trace_flags(settings.tracing)


def _log_flags(level: LogLevel) -> Iterator[_Flag]:
    if level is LogLevel.VERBOSE:
        yield _Flag("log-verbose", "1", "a verbose log")
    if level in (LogLevel.WARNING, LogLevel.ERROR):
        yield _Flag("log-info", "false")
    if level is LogLevel.ERROR:
        yield _Flag("log-warning", "false")


def _address_flags(settings: Settings) -> Iterator[_Flag]:
    yield _Flag("grpc-address", settings.grpc.host, "its address")
    yield _Flag("grpc-port", str(settings.grpc.port), "its port")
    for name, address in (("http", settings.http), ("metrics", settings.metrics)):
        if address is None:
            yield _Flag(f"allow-{name}", "false")  # a build without a protocol has no flags for it
            continue
        yield _Flag(f"allow-{name}", "true", name)
        yield _Flag(f"{name}-address", address.host, f"the address of {name}")
        yield _Flag(f"{name}-port", str(address.port), f"the port of {name}")
    for name in ("sagemaker", "vertex-ai"):
        yield _Flag(f"allow-{name}", "false")


def _restrictions(settings: Settings) -> Iterator[_Flag]:
    """Nobody can meet them, not even who reads this command line: gRPC takes no capitals in the name of a header, and
    HTTP no line break in its value."""
    names, value = ",".join(RESTRICTED), secrets.token_hex(16)
    yield _Flag("grpc-restricted-protocol", f"{names}:NOBODY={value}", "keeping administration from clients")
    if settings.http is not None:
        yield _Flag("http-restricted-api", f"{names}:nobody={value}\n{value}", "keeping administration from clients")
        yield _Flag("http-max-input-size", str(MAX_HTTP_BYTES))


def _tls_flags(tls: ServerTls) -> Iterator[_Flag]:
    yield _Flag("grpc-use-ssl", "true", "TLS")
    yield _Flag("grpc-server-cert", str(tls.certificate), "TLS")
    yield _Flag("grpc-server-key", str(tls.key), "TLS")
    if tls.client_ca is not None:
        yield _Flag("grpc-use-ssl-mutual", "true", "clients' certificates")
        yield _Flag("grpc-root-cert", str(tls.client_ca), "clients' certificates")


def _trace_flags(tracing: Tracing) -> Iterator[_Flag]:
    for setting in (
        "mode=opentelemetry",
        f"opentelemetry,url={tracing.endpoint}",
        f"opentelemetry,resource=service.name={SERVICE}",
        "level=TIMESTAMPS",
        f"rate={tracing.rate}",
        "count=-1",
    ):
        yield _Flag("trace-config", setting, "traces")
