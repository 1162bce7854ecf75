"""The command line of tritonserver, for versions that know more or fewer flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from polylip.serving.errors import MissingError
from polylip.serving.runtime import find_runtime, server_environment
from polylip.serving.server_flags import (
    Address,
    LogLevel,
    ServerTls,
    Settings,
    Tracing,
    command_line,
    known_flags,
)

RUNTIME = find_runtime()
KNOWN = known_flags(RUNTIME.binary, server_environment(RUNTIME))
NEWER = KNOWN | {"http-max-input-size"}  # of the container
PLAIN = Settings(Path("/models"), Path("/backends"), "polylip_1_a_", Address("127.0.0.1", 8001))


def flags(settings: Settings, known: frozenset[str] = KNOWN) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in command_line(settings, known):
        name, _, value = part.removeprefix("--").partition("=")
        found.setdefault(name, []).append(value)
    return found


def test_what_a_version_knows_is_read_from_itself(tmp_path: Path):
    assert {"grpc-restricted-protocol", "trace-config", "model-config-name"} <= KNOWN
    assert "http-max-input-size" not in KNOWN
    broken = tmp_path / "tritonserver"
    broken.write_text("#!/bin/sh\necho libfoo.so: cannot open shared object file >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(MissingError, match=r"does not run \(libfoo.so: cannot open shared object file\)"):
        known_flags(broken, {})
    with pytest.raises(MissingError, match="cannot be run"):
        known_flags(tmp_path / "nobody", {})


def test_as_it_comes_nothing_is_open_but_gRPC_on_loopback():  # noqa: N802
    found = flags(PLAIN)
    assert found["grpc-address"] == ["127.0.0.1"]
    assert found["allow-http"] == found["allow-metrics"] == ["false"]
    assert found["model-control-mode"] == ["none"]
    assert found["grpc-restricted-protocol"][0].startswith("shared-memory,model-repository,trace,logging:NOBODY=")
    assert not {"grpc-use-ssl", "trace-config", "http-port", "log-verbose"} & found.keys()


def test_every_flag_is_one_that_the_installed_tritonserver_has():
    everything = replace(
        PLAIN,
        http=Address("127.0.0.1", 8000),
        metrics=Address("0.0.0.0", 8002),  # noqa: S104  a string
        config_name="lite",
        models=("mel", "lips"),
        tls=ServerTls(Path("s.pem"), Path("s.key"), Path("ca.pem")),
        tracing=Tracing("http://127.0.0.1:4318/v1/traces", 10),
        log_level=LogLevel.VERBOSE,
    )
    found = flags(everything)
    assert found.keys() <= KNOWN
    assert found["load-model"] == ["mel", "lips"] and found["model-control-mode"] == ["explicit"]
    assert found["grpc-use-ssl-mutual"] == ["true"] and found["grpc-root-cert"] == ["ca.pem"]
    assert found["trace-config"] == [
        "mode=opentelemetry",
        "opentelemetry,url=http://127.0.0.1:4318/v1/traces",
        "opentelemetry,resource=service.name=polylip",
        "level=TIMESTAMPS",
        "rate=10",
        "count=-1",
    ]
    assert found["metrics-address"] == ["0.0.0.0"] and found["http-address"] == ["127.0.0.1"]  # noqa: S104


def test_a_flag_of_newer_versions_is_used_there_and_left_out_here():
    with_http = replace(PLAIN, http=Address("127.0.0.1", 8000))
    assert flags(with_http, NEWER)["http-max-input-size"] == [str(64 * 1024**2)]
    assert "http-max-input-size" not in flags(with_http)
    assert "http-max-input-size" not in flags(PLAIN, NEWER)


@pytest.mark.parametrize(
    ("lacking", "settings", "wanted_for"),
    [
        ("trace-config", replace(PLAIN, tracing=Tracing("http://c/v1/traces")), "traces"),
        ("model-config-name", replace(PLAIN, config_name="lite"), "profile lite"),
        ("grpc-use-ssl", replace(PLAIN, tls=ServerTls(Path("a"), Path("b"))), "TLS"),
        ("metrics-address", replace(PLAIN, metrics=Address("127.0.0.1", 1)), "the address of metrics"),
        ("grpc-restricted-protocol", PLAIN, "keeping administration from clients"),
    ],
)
def test_what_a_version_cannot_do_and_somebody_relies_on_is_refused(lacking: str, settings: Settings, wanted_for: str):
    told = rf"^this tritonserver has no --{lacking}, which is needed for {wanted_for}; use a newer one$"
    with pytest.raises(MissingError, match=told):
        command_line(settings, KNOWN - {lacking})


def test_a_build_without_a_protocol_that_is_off_is_fine():
    assert "allow-http" not in flags(PLAIN, KNOWN - {"allow-http", "http-port", "allow-sagemaker"})


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (LogLevel.ERROR, {"log-info": ["false"], "log-warning": ["false"]}),
        (LogLevel.WARNING, {"log-info": ["false"]}),
        (LogLevel.INFO, {}),
        (LogLevel.VERBOSE, {"log-verbose": ["1"]}),
    ],
)
def test_the_log_level_is_that_of_the_least_important_lines(level: LogLevel, expected: dict[str, list[str]]):
    found = flags(replace(PLAIN, log_level=level))
    assert {name: value for name, value in found.items() if name.startswith("log-")} == expected
