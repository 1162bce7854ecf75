"""Asks a supervisor on this machine how it is, or to drain: `python -m polylip.serving.control [--ready]` exits 0 or 1.

A supervisor (`polylip serve`) listens on a Unix socket in the state folder, which nobody but its user can open. A
request is one line of JSON, `{"do": "status"}` or `{"do": "drain", "timeout_s": 30}`; the answer is a line, or for
`drain` a line for each step and one that ends it. Standard library only: a probe runs every few seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STATE_DIR_VARIABLE = "POLYLIP_STATE_DIR"
SOCKETS = "serve-*.sock"
ASK_TIMEOUT_S = 5.0  # a supervisor answers in milliseconds
MAX_PATH_BYTES = 107  # of a Unix socket on Linux


class ControlError(RuntimeError):
    """No supervisor could be asked; one line."""


@dataclass(frozen=True)
class Status:
    """How a supervisor and its server are."""

    state: str  # starting, ready, draining, dead, restarting or stopping
    live: bool  # false: nothing will mend it but a new start
    ready: bool  # takes new streams
    detail: str  # of a state that is not ready
    grpc_port: int  # 0 while it is not known
    streams: int | None = None  # left, while draining

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def state_dir() -> Path:
    """The folder of the sockets, private to this user; made if need be. Raises ControlError."""
    folder = _state_dir()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ControlError(f"cannot make {folder} ({error.strerror}); set {STATE_DIR_VARIABLE} to a folder") from None
    _require_private(folder)
    return folder


def _require_private(folder: Path) -> None:
    """Where others can write, a socket could be anybody's. Raises ControlError."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ControlError(f"{folder} is open to others; run: chmod 700, or set {STATE_DIR_VARIABLE} to another folder")


def _state_dir() -> Path:
    if named := os.environ.get(STATE_DIR_VARIABLE):
        return Path(named)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "polylip"
    return Path(tempfile.gettempdir()) / f"polylip-state-{os.geteuid()}"


def ask(request: dict[str, Any], port: int | None = None, timeout_s: float = ASK_TIMEOUT_S) -> Iterator[dict[str, Any]]:
    """The answers of the supervisor whose server has this gRPC port, or of the only one. Raises ControlError.

    `timeout_s`: between two answers.
    """
    with _connect(_choose(port)[0], timeout_s) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        yield from _lines(connection)


def read_status(port: int | None = None) -> Status:
    """Raises ControlError."""
    return _choose(port)[1]


def _choose(port: int | None) -> tuple[Path, Status]:
    """Where the supervisor listens, and what it has just said."""
    found = dict(_supervisors())
    if port is not None:
        for path, status in found.items():
            if status.grpc_port == port:
                return path, status
        others = f"; those found have {_ports(found.values())}" if found else ""
        raise ControlError(f"no `polylip serve` with gRPC port {port} of this user is found in {_state_dir()}{others}")
    if len(found) == 1:
        return next(iter(found.items()))
    if not found:
        raise ControlError(f"no `polylip serve` of this user is found in {_state_dir()}; start one first")
    raise ControlError(f"several servers run here; choose one with --grpc-port: {_ports(found.values())}")


def _ports(found: Iterable[Status]) -> str:
    return ", ".join(str(status.grpc_port) for status in found)


def _supervisors() -> Iterator[tuple[Path, Status]]:
    """Those that answer. What a killed one has left is removed. Raises ControlError."""
    folder = _state_dir()
    if folder.exists():
        _require_private(folder)
    for path in sorted(folder.glob(SOCKETS)):
        try:
            with _connect(path, ASK_TIMEOUT_S) as connection:
                connection.sendall(b'{"do": "status"}\n')
                yield path, Status(**next(_lines(connection)))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (ControlError, OSError):
            continue


@contextlib.contextmanager
def _connect(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        yield connection


def _lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    try:
        with connection.makefile("rb") as file:
            some = False
            for line in file:
                some = True
                yield json.loads(line)
    except TimeoutError:
        raise ControlError("the supervisor does not answer; look at it, or end it") from None
    except OSError as error:
        raise ControlError(f"the supervisor hung up ({error.strerror})") from None
    if not some:
        raise ControlError("the supervisor hung up without an answer")


def probe(ready: bool, port: int | None = None) -> str | None:
    """What is wrong, in one line; None when the server lives, or with `ready` takes new streams."""
    try:
        status = read_status(port)
    except (ControlError, OSError) as error:
        return str(error)
    good = status.ready if ready else status.live
    return None if good else f"{status.state}: {status.detail}" if status.detail else status.state


def main() -> int:
    """0 when all is well, else 1 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m polylip.serving.control", description=probe.__doc__)
    parser.add_argument("--ready", action="store_true", help="whether it takes new streams; else whether it lives")
    parser.add_argument("--grpc-port", type=int, help="of the server; by default the only one")
    arguments = parser.parse_args()
    problem = probe(arguments.ready, arguments.grpc_port)
    if problem is not None:
        print(problem, file=sys.stderr)
    return int(problem is not None)


if __name__ == "__main__":
    sys.exit(main())
