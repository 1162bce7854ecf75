"""Wav2Lip and S3FD on a CUDA GPU: `python -m polylip.perf.networks_gpu [--out DIR]`.

Torch in FP32, torch in FP16 as a CUDA graph, and onnxruntime's CUDA provider on the FP16 graph: mean, standard
deviation and minimum over RUNS runs after WARM_UPS. Weights are generated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from polylip.export.generated import generated_network
from polylip.export.graphs import detect_graph, lips_graph
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.perf.generated_repository import make_generated_repository
from polylip.perf.networks import Case
from polylip.serving.errors import MissingError

RUNS, WARM_UPS = 100, 5
BATCHES = (1, 8, 64)
NETWORKS = ("wav2lip", "s3fd 640x360")
EAGER, CAPTURED = "torch eager fp32", "torch fp16, CUDA graph"

Work = Callable[[], object]


def main() -> None:
    """Run the benchmark, print its table, write `networks_gpu.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU is at hand; run this on a machine with one and a CUDA build of torch")
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # FP32 means FP32
    with tempfile.TemporaryDirectory() as folder:
        repository = make_generated_repository(Path(folder) / "repository", precisions=("fp16",))
        rows = [_measure(Case(network, batch), repository) for network in NETWORKS for batch in BATCHES]
    result = {
        "weights": "generated",
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "onnxruntime": version("onnxruntime")},
        "rows": rows,
    }
    path = arguments.out / "networks_gpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{table(result)}\n\n{path}")


def _measure(case: Case, repository: Path) -> dict[str, Any]:
    works = {EAGER: _eager(case), CAPTURED: _captured(case)}
    try:
        works["onnxruntime CUDA fp16"] = _onnxruntime(case, repository)
    except MissingError as error:
        print(f"{case.network}, batch {case.batch}: {error}", file=sys.stderr)
    return {
        "network": case.network,
        "batch": case.batch,
        "ms": {name: _times_ms(work) for name, work in works.items()},
    }


def _times_ms(work: Work) -> dict[str, float]:
    for _ in range(WARM_UPS):
        work()
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1000)
    return {"mean": statistics.mean(times), "sd": statistics.stdev(times), "min": min(times)}


def _graph(case: Case, dtype: torch.dtype) -> torch.nn.Module:
    network = generated_network(case.stem)
    graph: torch.nn.Module
    if isinstance(network, Wav2LipGenerator):
        graph = lips_graph(network, dtype)
    else:
        assert isinstance(network, S3FD)  # noqa: S101  the only other one
        graph = detect_graph(network, dtype)
    return graph.cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _tensors(case: Case) -> list[torch.Tensor]:
    return [torch.from_numpy(value).cuda() for value in case.inputs().values()]


def _eager(case: Case) -> Work:
    graph, tensors = _graph(case, torch.float32), _tensors(case)

    @torch.no_grad()
    def work() -> object:
        return graph(*tensors)

    return work


def _captured(case: Case) -> Work:
    graph, tensors = _graph(case, torch.float16), _tensors(case)
    with torch.no_grad():
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # capture wants a warm network on a stream of its own
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                graph(*tensors)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            graph(*tensors)
    return captured.replay


def _onnxruntime(case: Case, repository: Path) -> Work:
    """Inputs and outputs stay on the GPU, as they do for the others."""
    import onnxruntime as ort  # noqa: PLC0415  the GPU build need not be there

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingError("this onnxruntime has no CUDA provider; run: pip install onnxruntime-gpu")
    path = repository / case.model / "1" / f"{case.stem}_fp16.onnx"
    session = ort.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
    binding = session.io_binding()
    for name, value in case.inputs().items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)


def table(result: dict[str, Any]) -> str:
    """Milliseconds per call as mean, standard deviation and minimum; frames per second and the ratio to FP32 eager."""
    lines = [
        f"Generated weights, {result['gpu']}; {RUNS} runs after {WARM_UPS} warm-ups.",
        "",
        "| network | batch | runtime | mean ms | sd | min | frames/s | times FP32 eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        eager = row["ms"][EAGER]["mean"]
        for name, ms in row["ms"].items():
            lines.append(
                f"| {row['network']} | {row['batch']} | {name} | {ms['mean']:.3f} | {ms['sd']:.3f} | {ms['min']:.3f} "
                f"| {row['batch'] / ms['mean'] * 1000:.0f} | {eager / ms['mean']:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
