"""How well each keeps the machine at work: `python -m polylip.perf.efficiency [--profile lite]`.

The baseline and the pipeline dub the same clip in turns, each in a process of its own, while every process is sampled:
share of the cores, memory, and what the server says of its models (and of a GPU where there is one). See
docs/baseline.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import psutil

from polylip.perf import experiment, server_work
from polylip.perf.baseline_metrics import GPU_MEMORY, GPU_USE, gpu_figures, has_gpu
from polylip.perf.baseline_runs import BASELINE, NAMES, PIPELINE, Timed, make_clip
from polylip.perf.baseline_worker import Worker, worker
from polylip.perf.experiment import Result, Setup
from polylip.perf.steadiness import MIB, server_processes
from polylip.serving.launcher import Server, running_server

TITLE = "CPU and memory at work"
CLIP_S, QUICK_CLIP_S = 5.0, 3.0
EVERY_S = 0.05  # between samples; the kernel counts CPU time in steps of 0.01 s
COMPUTING = ("transcribe", "translate", "synthesize", "detect", "track", "mel", "lips")  # steps of the baseline
PUBLISHED_GPU = (42.0, 78.0)  # % of a GPU in use: sequential, pipelined


class Sampler:
    """Samples groups of processes in the background; use as a context manager."""

    def __init__(self, groups: dict[str, list[psutil.Process]], metrics_url: str | None = None) -> None:
        """`metrics_url`: of a server with a GPU."""
        self._groups = groups
        self._metrics_url = metrics_url
        self._over = Event()
        self._thread = Thread(target=self._run)
        self.times_s: list[float] = []
        self.cpu_s: dict[str, list[float]] = {name: [] for name in groups}  # so far
        self.memory_mib: dict[str, list[float]] = {name: [] for name in groups}  # resident, without what others map
        self.gpu: list[dict[str, float]] = []

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._sample()

    def _sample(self) -> None:
        self.times_s.append(time.perf_counter() - self._started)
        for name, processes in self._groups.items():
            cpu_s = memory = 0.0
            for process in processes:
                with suppress(psutil.NoSuchProcess), process.oneshot():
                    times, used = process.cpu_times(), process.memory_info()
                    cpu_s += times.user + times.system
                    memory += (used.rss - used.shared) / MIB
            self.cpu_s[name].append(cpu_s)
            self.memory_mib[name].append(memory)
        if self._metrics_url is not None:
            self.gpu.append(gpu_figures(self._metrics_url))

    def cut(self, end_s: float) -> None:
        """Forget what came behind a time: the call goes on to write a report, the video is there."""
        kept = max(2, sum(time_s <= end_s for time_s in self.times_s) + 1)
        for values in (self.times_s, *self.cpu_s.values(), *self.memory_mib.values()):
            del values[kept:]
        del self.gpu[kept:]

    def shares(self, name: str, cores: int) -> list[float]:
        """Of the machine's cores, between each sample and the one before."""
        pairs = zip(self.times_s, self.cpu_s[name], strict=True)
        before_s, before_cpu = next(pairs)
        shares = []
        for now_s, cpu in pairs:
            shares.append(max(0.0, cpu - before_cpu) / max(now_s - before_s, 1e-6) / cores)
            before_s, before_cpu = now_s, cpu
        return shares


@dataclass(frozen=True)
class Watched:
    """One run and what was seen of it."""

    timed: Timed
    sampler: Sampler
    models: dict[str, server_work.ModelWork] = field(default_factory=dict)  # of the server; empty for the baseline


def run(setup: Setup) -> Result:
    """Both in turns; who begins changes from round to round."""
    result = experiment.head("efficiency", TITLE, setup)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running_server(setup.server))
        clip = make_clip(folder / "talk.mp4", QUICK_CLIP_S if setup.quick else CLIP_S)
        workers = {
            name: stack.enter_context(worker(name, setup.profile, setup.repository, server.url))
            for name in (BASELINE, PIPELINE)
        }
        seen: dict[str, list[Watched]] = {name: [] for name in workers}
        for turn in range(setup.warm_up + setup.repetitions):
            for name in sorted(workers, reverse=turn % 2 == 1):
                watched = _watched(workers[name], clip, server if name == PIPELINE else None)
                if turn >= setup.warm_up:
                    seen[name].append(watched)
        return {**result, "data": summary(seen)}


def _watched(contender: Worker, clip: Path, server: Server | None) -> Watched:
    """One run, sampled from before its first step to the closed video."""
    own = psutil.Process(contender.pid)
    if server is None:
        with Sampler({"baseline": [own, *own.children(recursive=True)]}) as sampler:
            timed = contender.dub(clip)
        sampler.cut(timed.closed_s)
        return Watched(timed, sampler)
    groups = {"client": [own]}
    for name, process in server_processes(server).items():
        groups[name] = [process] if name == "tritonserver" else [process, *process.children(recursive=True)]
    metrics_url = f"http://127.0.0.1:{server.ports.metrics}/metrics"
    before = server_work.look(server.url)
    with Sampler(groups, metrics_url if has_gpu(metrics_url) else None) as sampler:
        timed = contender.dub(clip)
    sampler.cut(timed.closed_s)
    return Watched(timed, sampler, server_work.since(before, server_work.look(server.url)))


def summary(seen: dict[str, list[Watched]]) -> dict[str, Any]:
    """`data` of the result."""
    cores = os.cpu_count() or 1
    return {
        "cores": cores,
        "contenders": {name: _contender(runs, cores) for name, runs in seen.items()},
        "published_gpu_percent": list(PUBLISHED_GPU),
    }


def _contender(runs: Sequence[Watched], cores: int) -> dict[str, Any]:
    groups = list(runs[0].sampler.cpu_s)
    figures = [_figures(watched, cores) for watched in runs]
    middle = sorted(runs, key=lambda watched: watched.timed.total_s)[len(runs) // 2].sampler
    return {
        **{key: experiment.spread([figure[key] for figure in figures]) for key in figures[0]},
        "frames": runs[0].timed.frames,
        "processes": {name: _process([watched.sampler for watched in runs], name, cores) for name in groups},
        "models": _models(runs),
        "gpu": _gpu(runs),
        "series": {
            "times_s": middle.times_s[1:],
            "cpu_share": {name: middle.shares(name, cores) for name in groups},
            "memory_mib": {name: middle.memory_mib[name][1:] for name in groups},
        },
    }


def _figures(watched: Watched, cores: int) -> dict[str, float]:
    """Of one run."""
    sampler, timed = watched.sampler, watched.timed
    wall_s = sampler.times_s[-1] - sampler.times_s[0]
    cpu_s = sum(values[-1] - values[0] for values in sampler.cpu_s.values())
    shares = [sum(values) for values in zip(*(sampler.shares(name, cores) for name in sampler.cpu_s), strict=True)]
    memory = [sum(values) for values in zip(*sampler.memory_mib.values(), strict=True)]
    if watched.models:
        # What `synthesize` says in its own thread is not in the server's count: the request's span has it.
        computing_s = sum(work.compute_ms for name, work in watched.models.items() if name in COMPUTING) / 1000
        computing_s += timed.stages_s.get("speak", 0.0)
    else:
        computing_s = sum(timed.stages_s.get(step, 0.0) for step in COMPUTING)
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "cpu_share": cpu_s / wall_s / cores,
        "cpu_share_peak": max(shares),
        "memory_mib_peak": max(memory),
        "computing_s": computing_s,
        "computing_per_wall_s_and_core": computing_s / wall_s / cores,
        "frames_per_cpu_s": timed.frames / cpu_s if cpu_s else 0.0,
    }


def _process(samplers: Sequence[Sampler], name: str, cores: int) -> dict[str, float]:
    """Means over the runs, and the highest of all."""
    walls = [sampler.times_s[-1] - sampler.times_s[0] for sampler in samplers]
    used = [sampler.cpu_s[name][-1] - sampler.cpu_s[name][0] for sampler in samplers]
    return {
        "cpu_s": statistics.mean(used),
        "cpu_share": statistics.mean(cpu / wall / cores for cpu, wall in zip(used, walls, strict=True)),
        "cpu_share_peak": max(max(sampler.shares(name, cores)) for sampler in samplers),
        "memory_mib_peak": max(max(sampler.memory_mib[name]) for sampler in samplers),
    }


def _models(runs: Sequence[Watched]) -> dict[str, dict[str, float]]:
    """What the server says of each model, means over the runs."""
    return {
        model: {
            key: statistics.mean(getattr(watched.models[model], key) for watched in runs)
            for key in ("inferences", "passes", "queue_ms", "compute_ms")
        }
        for model in runs[0].models
    }


def _gpu(runs: Sequence[Watched]) -> dict[str, float] | None:
    """Mean use and highest memory of the GPU as the server tells it; None without one."""
    samples = [sample for watched in runs for sample in watched.sampler.gpu]
    if not samples:
        return None
    return {
        "use": statistics.mean(sample[GPU_USE] for sample in samples),
        "memory_mib_peak": max(sample[GPU_MEMORY] for sample in samples) / MIB,
    }


def markdown(result: Result) -> str:
    """Both beside each other, then the pipeline's processes."""
    data = result["data"]
    own, served = data["contenders"][BASELINE], data["contenders"][PIPELINE]
    lines = [f"| on {data['cores']} cores | {NAMES[BASELINE]} | {NAMES[PIPELINE]} |", "|---|---|---|"]
    rows = (
        ("from the call to the closed video", "wall_s", "{:.2f} s"),
        ("CPU time of all processes", "cpu_s", "{:.2f} s"),
        ("share of the cores, mean", "cpu_share", "{:.0%}"),
        ("share of the cores, highest sample (50 ms, counted in steps of 10 ms)", "cpu_share_peak", "{:.0%}"),
        ("models computing, seconds per second and core", "computing_per_wall_s_and_core", "{:.2f}"),
        ("frames per CPU second", "frames_per_cpu_s", "{:.1f}"),
        ("memory of all processes, highest", "memory_mib_peak", "{:.0f} MiB"),
    )
    for title, key, shown in rows:
        cells = [f"{shown.format(c[key]['mean'])} ± {shown.format(c[key]['sd'])}" for c in (own, served)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), _processes_table(served)])


def _processes_table(served: dict[str, Any]) -> str:
    lines = [
        "| process of the pipeline | CPU | share of the cores | highest share | memory | passes | in its queue |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in served["processes"].items():
        work = served["models"].get(name)
        told = f"{work['passes']:.0f} | {work['queue_ms']:.0f} ms" if work else "- | -"
        lines.append(
            f"| `{name}` | {row['cpu_s']:.2f} s | {row['cpu_share']:.0%} | {row['cpu_share_peak']:.0%} "
            f"| {row['memory_mib_peak']:.0f} MiB | {told} |"
        )
    if served["gpu"] is not None:
        gpu = served["gpu"]
        lines.append(f"| GPU | | {gpu['use']:.0%} | | {gpu['memory_mib_peak']:.0f} MiB | - | - |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, write the result."""
    experiment.command(__doc__, run, markdown)


if __name__ == "__main__":
    main()
