"""Experiment I: S3FD and Wav2Lip in every runtime of this machine, side by side: `python -m polylip.perf.networks`.

All contenders of one network take turns, so that a busy moment hits all of them, and each figure is the median of its
turns. The arithmetic limit of the machine is measured in the same run. Weights are generated: times do not depend on
them. Needs the extras `export`, `cpu`, `serve` and, for torch.compile, a C++ compiler.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polylip.export.generated import generated_network
from polylip.export.graphs import DetectGraph, LipsGraph
from polylip.perf import experiment
from polylip.perf.experiment import Result, Setup
from polylip.perf.generated_repository import make_generated_repository
from polylip.perf.machine import arithmetic_limit, timed_s
from polylip.perf.through_triton import compare_triton
from polylip.serving.engines.cpu_graph import CpuGraph

TITLE = "I. Per-network ablation"
WEIGHTS = "S3FD and Wav2Lip full size with generated (random) weights, on which times do not depend"
ROUNDS = 7
TURN_S = 0.5  # of one contender before the next one's turn
GFLOP = {"wav2lip": 7.934, "s3fd 640x360": 146.07, "s3fd 240x135": 20.5}  # per item, two per multiply-add
EAGER = "torch eager fp32"
RUNTIMES = {  # name in the table -> runtime and precision of `CpuGraph`
    "onnxruntime fp32": ("onnxruntime", "fp32"),
    "OpenVINO fp32": ("openvino", "fp32"),
    "OpenVINO bf16": ("openvino", "bf16"),
}

Inputs = dict[str, npt.NDArray[Any]]
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One network at one picture size and batch."""

    network: str  # a key of GFLOP
    batch: int

    @property
    def stem(self) -> str:
        return self.network.split()[0]

    @property
    def model(self) -> str:
        return "lips" if self.stem == "wav2lip" else "detect"

    def inputs(self) -> Inputs:
        random = np.random.default_rng(0)
        if self.model == "lips":
            mel = random.uniform(-4, 4, (self.batch, 80, 16)).astype(np.float32)
            return {"MEL": mel, "FACES": random.integers(0, 256, (self.batch, 96, 96, 3), np.uint8)}
        width, height = (int(side) for side in self.network.split()[1].split("x"))
        return {"FRAMES": random.integers(0, 256, (self.batch, height, width, 3), np.uint8)}


CASES = (Case("wav2lip", 1), Case("wav2lip", 16), Case("s3fd 640x360", 1), Case("s3fd 240x135", 1))


def run(setup: Setup, short: bool = False) -> Result:
    """Both networks in every runtime, and through Triton; `short`: without Triton and torch.compile."""
    rounds, threads = min(ROUNDS, setup.repetitions), os.cpu_count() or 1
    cpu = replace(setup, profile="cpu")  # whose networks they are
    result = experiment.head("networks", TITLE, cpu, weights=WEIGHTS) | {"repetitions": rounds, "warm_up": 1}
    with tempfile.TemporaryDirectory() as folder:
        repository = setup.repository or make_generated_repository(Path(folder) / "repository")
        result["data"] = {
            "limit_gflops": arithmetic_limit(threads),
            "runtimes": [_measure(case, repository, threads, rounds, short) for case in CASES],
            "limit_gflops_after": arithmetic_limit(threads),
            "triton": [] if short else compare_triton(repository, rounds),
        }
    return result


def main() -> None:
    """Run the benchmark, print its tables, write `networks_cpu.json`."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--short", action="store_true", help="without torch.compile and Triton: a minute and a half")
    arguments = parser.parse_args()
    setup = experiment.setup_of(arguments)  # not prepared: a detector without a face costs the same
    result = run(setup, arguments.short)
    print(f"{markdown(result)}\n\n{experiment.caption(result)}\n\n{experiment.write(result, setup.out)}")


def _measure(case: Case, repository: Path, threads: int, rounds: int, short: bool) -> dict[str, Any]:
    """Median milliseconds per item of every contender."""
    works = _contenders(case, repository, threads, short)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(_turn_s(work) * 1000 / case.batch)
    return {
        "network": case.network,
        "batch": case.batch,
        "gflop": GFLOP[case.network],
        "ms_per_item": {name: round(statistics.median(values), 3) for name, values in times.items()},
    }


def _turn_s(work: Work) -> float:
    """Seconds per call, over at least TURN_S, after one call in which the threads of the one before go to sleep."""
    calls = max(1, round(TURN_S / timed_s(work)))
    return timed_s(lambda: [work() for _ in range(calls)]) / calls


def _contenders(case: Case, repository: Path, threads: int, short: bool) -> dict[str, Work]:
    inputs = case.inputs()
    torch.set_num_threads(threads)
    network = generated_network(case.stem)
    graph = (LipsGraph if case.model == "lips" else DetectGraph)(network).eval()
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    works: dict[str, Work] = {EAGER: lambda: _without_gradients(graph, tensors)}
    if not short and (shutil.which("g++") or shutil.which("clang++")):
        compiled = torch.compile(graph)
        works["torch.compile fp32"] = lambda: _without_gradients(compiled, tensors)
    folder = repository / case.model / "1"
    # The detector is compiled for its frame size, as the engine does it.
    shapes = None if case.model == "lips" else {"FRAMES": inputs["FRAMES"].shape}
    for name, (runtime, precision) in RUNTIMES.items():
        parameters = {"graph": case.stem, "runtime": runtime, "precision": precision, "threads": str(threads)}
        run = CpuGraph(parameters, str(folder)).compiled(shapes)
        works[name] = lambda run=run: run(inputs)  # type: ignore[misc]
    return works


@torch.no_grad()
def _without_gradients(network: Callable[..., Any], tensors: list[torch.Tensor]) -> object:
    return network(*tensors)


def markdown(result: Result) -> str:
    """Both tables."""
    return "\n\n".join([runtime_table(result), *([triton_table(result)] if result["data"]["triton"] else [])])


def runtime_table(result: Result) -> str:
    """The runtimes as a table: milliseconds per item, how many times as fast as torch eager, share of the limit."""
    here, limits, runtimes = result["machine"], result["data"]["limit_gflops"], result["data"]["runtimes"]
    names = list(runtimes[0]["ms_per_item"])
    lines = [
        f"Generated weights, {here['cores']} cores ({here['cpu']}; {', '.join(here['instruction_sets'])}), median of "
        f"turns. Limit measured in the same run: {limits['fp32']:.0f} GFLOP/s in FP32, {limits['bf16']:.0f} in bf16. "
        f"Milliseconds per frame, and times as fast as torch eager.",
        "",
        f"| network, batch | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for row in runtimes:
        times = row["ms_per_item"]
        cells = [f"{times[name]:.1f} ({times[EAGER] / times[name]:.1f}x)" for name in names]
        lines.append(f"| {row['network']}, {row['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def triton_table(result: Result) -> str:
    """Triton beside the same engine called in its own process."""
    lines = [
        "Profile `cpu` through tritonserver (gRPC on loopback, two requests in flight) beside the same engine called "
        "in-process with the same threads; frames per second, generated weights:",
        "",
        "| model | batch | precision | in-process | Triton | share |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["data"]["triton"]:
        lines.append(
            f"| `{row['model']}` | {row['batch']} | {row['precision']} | {row['in_process_fps']:.1f} "
            f"| {row['triton_fps']:.1f} | {row['share']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
