"""Whether processes stay as they are: samples of memory, threads, open files and shared memory, and a verdict on them.

A process is flat when the last third of a run brings no new high over the middle one: until then caches fill, and an
allocator's arenas each meet their largest request, which takes tritonserver with its hundred threads a quarter of an
hour.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil

from polylip.serving.guard import SHM
from polylip.serving.launcher import Server

MIB = 1 << 20
ALLOWED_STEP = 0.02  # of the middle third's highest, by which the last third's may be higher; or this, if it is more:
ALLOWED_STEP_MIB = 1.0  # a leak of 6 MiB an hour shows in half an hour
REGIONS_MIB = 17  # of profile lite's speech models at their largest: python docker/shm.py lite
_INSTANCE = re.compile(r"^(\w+?)_\d+_\d+$")  # among the arguments of a Python model's process


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    private_mib: float  # resident, without files and regions that others can map too
    threads: int
    files: int  # open descriptors


@dataclass(frozen=True)
class Regions:
    """The server's shared memory at one moment."""

    count: int
    mib: float


@dataclass(frozen=True)
class Growth:
    """What became of a process's memory after the warm-up."""

    slope_mib_per_h: float  # least squares, of the last half; told, not judged: it still shows the settling
    step_mib: float  # highest of the last third over that of the middle one
    allowed_step_mib: float

    @property
    def flat(self) -> bool:
        return self.step_mib <= self.allowed_step_mib


class Watch:
    """Samples of a server's lasting processes, told apart by process id, and of this one."""

    def __init__(self, server: Server) -> None:
        self._prefix = server.shm_prefix
        self._processes = {"client": psutil.Process(), **server_processes(server)}
        self._started = time.monotonic()
        self.times_s: list[float] = []
        self.samples: dict[str, list[Sample]] = {name: [] for name in self._processes}
        self.regions: list[Regions] = []

    def sample(self) -> None:
        """Take one of each. Raises psutil.NoSuchProcess when one of them has ended."""
        taken = {name: _sample(process) for name, process in self._processes.items()}
        self.times_s.append(time.monotonic() - self._started)
        self.regions.append(_regions(self._prefix))
        for name, sample in taken.items():
            self.samples[name].append(sample)

    def verdict(self) -> dict[str, Any]:
        """Every figure, and `flat`: no process grew, and the shared memory stayed within its bounds."""
        processes = {name: judge(self.times_s, samples) for name, samples in self.samples.items()}
        regions = judge_regions(self.regions)
        flat = regions["within"] and all(process["flat"] for process in processes.values())
        return {"flat": flat, "processes": processes, "shared_memory": regions}


def judge(times_s: Sequence[float], samples: Sequence[Sample]) -> dict[str, Any]:
    """One process: its memory's growth, and whether it gained threads or open files."""
    memory = [sample.private_mib for sample in samples]
    growth = judge_memory(times_s, memory)
    threads, files = [s.threads for s in samples], [s.files for s in samples]
    constant = is_constant(threads) and is_constant(files)
    return {
        "start_mib": round(memory[0], 1),
        "end_mib": round(memory[-1], 1),
        "highest_mib": round(max(memory), 1),
        **{name: round(value, 2) for name, value in asdict(growth).items()},
        "threads": [min(third) for third in thirds(threads)],
        "files": [min(third) for third in thirds(files)],
        "flat": growth.flat and constant,
    }


def judge_memory(times_s: Sequence[float], mib: Sequence[float]) -> Growth:
    """Line and thirds of one process's memory."""
    times, memory = np.asarray(times_s, np.float64), np.asarray(mib, np.float64)
    after = times >= (times[0] + times[-1]) / 2
    slope_per_s = np.polyfit(times[after], memory[after], 1)[0]
    _, middle, last = thirds(mib)
    allowed = max(ALLOWED_STEP_MIB, ALLOWED_STEP * max(middle))
    return Growth(float(slope_per_s * 3600), max(last) - max(middle), allowed)


def judge_regions(regions: Sequence[Regions]) -> dict[str, Any]:
    """Shared memory grows in steps to what the largest requests at once need, and must stay within what is computed."""
    counts, sizes = [r.count for r in regions], [r.mib for r in regions]
    return {
        "regions": sorted({*counts}),
        "start_mib": round(sizes[0], 1),
        "end_mib": round(sizes[-1], 1),
        "allowed_mib": REGIONS_MIB,
        "within": len({*counts}) == 1 and max(sizes) <= REGIONS_MIB,
    }


def is_constant(values: Sequence[float]) -> bool:
    """Whether the lowest of the last third is no higher than that of the middle one: pipes and timers come and go."""
    _, middle, last = thirds(values)
    return bool(min(last) <= min(middle))


def thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """First, middle and last third of at least three."""
    first, second = len(values) // 3, 2 * len(values) // 3
    return values[:first], values[first:second], values[second:]


def server_processes(server: Server) -> dict[str, psutil.Process]:
    """`tritonserver` and the process of each Python model, by the model's name."""
    [triton] = psutil.Process(server.guard_pid).children()
    found = {"tritonserver": triton}
    for process in triton.children():
        names = [match[1] for argument in process.cmdline() if (match := _INSTANCE.match(argument))]
        if names:
            found[names[0]] = process
    return found


def _sample(process: psutil.Process) -> Sample:
    with process.oneshot():
        memory = process.memory_info()
        return Sample((memory.rss - memory.shared) / MIB, process.num_threads(), process.num_fds())


def _regions(prefix: str) -> Regions:
    sizes = [region.st_size for region in regions_of(prefix)]
    return Regions(len(sizes), sum(sizes) / MIB)


def regions_of(prefix: str) -> list[os.stat_result]:
    """The regions of shared memory of one server; of one that ends, those that are still there."""
    found = []
    for name in os.listdir(SHM):
        with contextlib.suppress(FileNotFoundError):
            found += [os.stat(SHM / name)] if name.startswith(prefix) else []
    return found
