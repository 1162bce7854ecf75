"""A `polylip serve` with a state folder of its own, as an orchestrator keeps it, and what can be asked of it."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from polylip.serving import control
from polylip.serving.errors import EngineError
from polylip.serving.guard import LOCK_PREFIX, PREFIX, SHM
from polylip.serving.supervisor_watch import SERVER, STUB

POLYLIP = str(Path(sys.executable).with_name("polylip"))
START_S = 90.0
END_S = 40.0
POLL_S = 0.05
_READY = re.compile(r"ready: grpc (\S+:\d+), metrics ")


class Supervised:
    """The command at work."""

    def __init__(self, state_dir: Path, *arguments: str, **environment: str) -> None:
        """On free ports unless the arguments name some; `close` ends it with all that it has started."""
        self.state_dir = state_dir
        ports = ("--grpc-port", "0", "--metrics-port", "0", "--log", str(state_dir / "log"))
        self.process = subprocess.Popen(
            [POLYLIP, "serve", *ports, *arguments],
            env=os.environ | {control.STATE_DIR_VARIABLE: str(state_dir)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []  # on standard error
        self._ready: queue.Queue[str] = queue.Queue()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_out, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        for line in self.process.stdout or ():
            self._ready.put(line)
        self._ready.put("")  # nothing more will come

    def _read_errors(self) -> None:
        self.said.extend(line.rstrip("\n") for line in self.process.stderr or ())

    def wait_until_ready(self) -> str:
        """`host:port` of gRPC, of this start or of the next one. Raises EngineError."""
        try:
            line = self._ready.get(timeout=START_S)
        except queue.Empty:
            raise EngineError(f"not ready within {START_S:.0f} s: {self.said[-1:]}") from None
        if (found := _READY.match(line)) is None:
            raise EngineError(f"it has ended: {self.said[-1:]}")
        return found[1]

    def ended(self) -> tuple[int, list[str]]:
        """Its exit code and what it said."""
        code = self.process.wait(END_S)
        for reader in self._readers:
            reader.join(END_S)
        return code, self.said

    def close(self) -> None:
        """End it however it is; its guard clears up. Safe to call twice."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + END_S
        lock = f"{LOCK_PREFIX}{self.process.pid}_"
        while any(name.startswith(lock) for name in os.listdir(SHM)) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _below(self) -> list[psutil.Process]:
        below: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return below

    def stubs(self) -> dict[str, psutil.Process]:
        """By model: the processes that Triton's Python backend runs them in."""
        arguments = {process: arguments_of(process) for process in self._below()}
        return {
            Path(found[1]).parents[1].name: process  # .../MODEL/VERSION/model.py
            for process, found in arguments.items()
            if len(found) > 1 and Path(found[0]).name == STUB
        }

    def tritonserver(self) -> psutil.Process:
        return next(process for process in self._below() if program_of(process) == SERVER)

    def guard(self) -> psutil.Process:
        [guard] = psutil.Process(self.process.pid).children()
        return guard

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def until(self, wanted: Callable[[control.Status | None], bool], timeout_s: float) -> float:
        """Seconds until its status, or None when nobody answers any more, is as wanted. Raises EngineError."""
        started = time.monotonic()
        while not wanted(status := self.status()):
            if time.monotonic() - started > timeout_s:
                raise EngineError(f"after {timeout_s:.0f} s it is still {status}")
            time.sleep(POLL_S)
        return time.monotonic() - started

    def status(self) -> control.Status | None:
        for path in self.state_dir.glob(control.SOCKETS):
            try:
                with control._connect(path, 5) as connection:
                    connection.sendall(b'{"do": "status"}\n')
                    return control.Status(**next(control._lines(connection)))
            except (OSError, control.ControlError):
                pass
        return None

    def ask(self, *arguments: str, timeout_s: float = START_S) -> subprocess.CompletedProcess[str]:
        """A `polylip` command that speaks to it."""
        return subprocess.run(
            [POLYLIP, *arguments],
            env=os.environ | {control.STATE_DIR_VARIABLE: str(self.state_dir)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def left(self) -> list[str]:
        """What it has left on the machine."""
        own = (f"{PREFIX}{self.process.pid}_", f"{LOCK_PREFIX}{self.process.pid}_")
        return [name for name in os.listdir(SHM) if name.startswith(own)] + [
            str(path) for path in self.state_dir.glob(control.SOCKETS)
        ]


def is_red(status: control.Status | None) -> bool:
    """What a probe would say of it."""
    return status is None or not status.ready


@contextmanager
def state_folder() -> Iterator[Path]:
    """One with a short name: the path of a socket is short."""
    with tempfile.TemporaryDirectory(prefix="pl-") as folder:
        yield Path(folder)


@contextmanager
def supervised(*arguments: str, **environment: str) -> Iterator[Supervised]:
    """One, ended with all that it has started."""
    with state_folder() as folder:
        server = Supervised(folder, *arguments, **environment)
        try:
            yield server
        finally:
            server.close()


def arguments_of(process: psutil.Process) -> list[str]:
    """Of its command; none of one that has just ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def program_of(process: psutil.Process) -> str:
    """Its file's name; empty for one that has just ended."""
    return Path("".join(arguments_of(process)[:1])).name
