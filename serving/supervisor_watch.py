"""Whether the processes of a tritonserver's Python models are still there. Triton says ready when they are not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from polylip.serving.guard import PROGRAMS

PROC = Path("/proc")
SERVER, STUB = PROGRAMS
_INSTANCE = re.compile(r"(\w+)_\d+_\d+")  # a model's name, its instance group and its number in that


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same id."""

    pid: int
    started: str  # clock ticks since boot

    @property
    def alive(self) -> bool:
        """False for one that only waits for its parent's notice, too."""
        fields = _stat(self.pid)
        return fields is not None and fields[0] not in "ZX" and fields[19] == self.started


@dataclass(frozen=True)
class StubWatch:
    """The processes of one server, found once it is ready."""

    servers: tuple[Process, ...]  # tritonserver
    stubs: tuple[tuple[str, Process], ...]  # with the model that each runs

    def first_dead(self) -> str | None:
        """The model whose process is gone; None when that of tritonserver is, and all went with it."""
        dead = next((model for model, process in self.stubs if not process.alive), None)
        return dead if all(process.alive for process in self.servers) else None


def watch_stubs(guard_pid: int) -> StubWatch:
    """tritonserver and the Python models' processes below a guard."""
    found = [
        (Path(_arguments(pid)[0]).name, Process(pid, fields[19]))
        for pid in _descendants(guard_pid)
        if (fields := _stat(pid)) is not None
    ]
    return StubWatch(
        tuple(process for name, process in found if name == SERVER),
        tuple((_model(process.pid), process) for name, process in found if name == STUB),
    )


def _model(pid: int) -> str:
    names = [match[1] for part in _arguments(pid) if (match := _INSTANCE.fullmatch(part))]
    return names[0] if names else f"of process {pid}"


def _descendants(pid: int) -> list[int]:
    """Children first. tritonserver has its stubs as children, and they their programs."""
    found = []
    for task in PROC.glob(f"{pid}/task/*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        found += children
        for child in children:
            found += _descendants(child)
    return found


def _arguments(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return [""]


def _stat(pid: int) -> list[str] | None:
    """Fields of proc(5)'s stat behind the name, which may hold anything: the state is the first."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
