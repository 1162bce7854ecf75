"""An exported graph on this machine's processor: OpenVINO where it is installed, onnxruntime otherwise.

The precision is chosen for the processor (docs/cpu.md has the measurements): bf16 where it multiplies in bf16, if that
answers as FP32 does, else FP32.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy.typing as npt

from polylip.export.sidecar import Figure
from polylip.serving.errors import MissingError

Tensors = dict[str, npt.NDArray[Any]]
Inputs = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Inputs], Tensors]
Shapes = Mapping[str, tuple[int, ...]]
Compare = Callable[[Tensors, Tensors], Sequence[Figure]]

log = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")
AMX, BF16 = "amx_bf16", "avx512_bf16"
PRECISIONS = ("auto", "bf16", "fp32")


class CpuGraph:
    """The graph of one network, `<stem>_fp32.onnx` in a version folder.

    Parameters of the model's config: `graph`, the stem; `precision`, one of PRECISIONS; `threads`, 0 for every core;
    `runtime`, `openvino` or `onnxruntime`, by default what is installed.
    """

    def __init__(self, parameters: Mapping[str, str], version_dir: str) -> None:
        self._folder, self._stem = Path(version_dir), parameters["graph"]
        self._asked = parameters.get("precision", "auto")
        self._threads = int(parameters.get("threads", "0")) or os.cpu_count() or 1
        self.runtime = parameters.get("runtime") or ("openvino" if find_spec("openvino") else "onnxruntime")
        self.precision = self._choose(self._asked)

    def compiled(self, shapes: Shapes | None = None) -> Run:
        """A function from named inputs to named outputs; `shapes` fixes inputs, -1 leaves a dimension open."""
        return self._compile(self.precision, shapes)

    def checked(self, inputs: Inputs, compare: Compare, shapes: Shapes | None = None) -> Run:
        """`compiled`, but where bf16 was this class's own choice, FP32 if bf16 answers `inputs` too differently.

        `compare` gets what FP32 and what bf16 answer, and gives figures with limits. What a processor's bf16 does to
        these weights can only be seen on that processor, so it is looked at whenever a model is loaded.
        """
        run = self.compiled(shapes)
        log.info("%s: %s, %s, %d threads", self._stem, self.runtime, self.precision, self._threads)
        if self._asked != "auto" or self.precision != "bf16":
            return run
        exact = self._compile("fp32", shapes)
        failed = [figure for figure in compare(exact(inputs), run(inputs)) if not figure.passed]
        if not failed:
            return run
        log.warning("%s: FP32 instead of bf16, which is twice as fast: %s", self._stem, failed[0])
        self.precision = "fp32"
        return exact

    def _compile(self, precision: str, shapes: Shapes | None) -> Run:
        path = self._path()
        if self.runtime == "openvino":
            return _openvino(path, precision, self._threads, shapes or {})
        return _onnxruntime(path, self._threads)

    def _choose(self, asked: str) -> str:
        if asked not in PRECISIONS:
            raise ValueError(f"unknown precision {asked!r}; use one of: {', '.join(PRECISIONS)}")
        if asked != "auto":
            return asked
        return "bf16" if self.runtime == "openvino" and {AMX, BF16} & cpu_flags() else "fp32"

    def _path(self) -> Path:
        path = self._folder / f"{self._stem}_fp32.onnx"
        if not path.is_file():
            raise MissingError(f"{path.name} is missing; run: polylip export onnx {self._stem}")
        return path


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor, as Linux names them; empty elsewhere."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def _openvino(path: Path, precision: str, threads: int, shapes: Shapes) -> Run:
    # Its import sends a report of itself to its makers, from a fork of this process, unless this package is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov  # noqa: PLC0415  0.2 s, and not installed where onnxruntime stands in

    core = ov.Core()
    model = core.read_model(path)
    if shapes:
        model.reshape({name: ov.PartialShape(list(shape)) for name, shape in shapes.items()})
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",  # all threads on one request: twice the speed of one thread each on 2 cores
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    names = [output.get_any_name() for output in model.outputs]

    def run(inputs: Inputs) -> Tensors:
        # A view of the result lives until the next call; the caller gets its own copy.
        results = request.infer(dict(inputs), share_inputs=True)
        return {name: results[name].copy() for name in names}

    return run


def _onnxruntime(path: Path, threads: int) -> Run:
    import onnxruntime as ort  # noqa: PLC0415  not needed beside OpenVINO

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> Tensors:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run
