"""Exports Wav2Lip and S3FD to ONNX in FP32 or FP16, each checked against its torch network before it is written.

The precision is in the graph: weights and layers of an FP16 graph are float16, with casts where float32 begins, as
TensorRT's strongly typed networks need. See docs/export.md.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from torch import nn

from polylip.export.gate import (
    DETECT_SIZES,
    LIPS_BATCHES,
    DetectReference,
    LipsReference,
    check_detect,
    check_half_detect,
    check_half_lips,
    check_lips,
    detect_references,
    lips_reference,
)
from polylip.export.graphs import CANDIDATES, SIDE, detect_graph, lips_graph
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.parity import ParityError, require
from polylip.export.sidecar import GRAPH_FILES, Figure, Precision, Sidecar, Source, Tensor, file_sha256, write_sidecar
from polylip.serving.mel import MEL_BANDS, MEL_COLUMNS

# What torch's exporter writes without converting, with IR version 10: onnxruntime 1.18 and TensorRT 10 read them.
# Nothing in these graphs needs a later opset.
OPSET = 18
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
SMALLEST_SIDE_PX = 32  # of a frame: S3FD halves it five times

LIPS_INPUTS = (
    Tensor("MEL", "float32", ("frames", MEL_BANDS, MEL_COLUMNS)),
    Tensor("FACES", "uint8", ("frames", SIDE, SIDE, 3)),
)
LIPS_OUTPUTS = (Tensor("MOUTHS", "uint8", ("frames", SIDE, SIDE, 3)),)
DETECT_INPUTS = (Tensor("FRAMES", "uint8", ("frames", "height", "width", 3)),)
DETECT_OUTPUTS = (
    Tensor("BOXES", "float32", ("frames", CANDIDATES, 4)),
    Tensor("SCORES", "float32", ("frames", CANDIDATES)),
)

Say = Callable[[str], None]


def _say_nothing(_line: str) -> None:
    """Where nobody watches."""


def export_lips(
    network: Wav2LipGenerator,
    repository: Path,
    precision: Precision,
    source: Source,
    reference: LipsReference | None = None,
    say: Say = _say_nothing,
) -> Path:
    """Write Wav2Lip's graph and sidecar into a model repository and return the graph's path.

    `reference` is that of `lips_reference`, made here if not given. Raises ParityError, and leaves what was there, when
    the graph does not do what the network does.
    """
    title = f"wav2lip {precision}"
    say(f"{title}: preparing")
    reference = reference or lips_reference(network)
    graph = lips_graph(network, DTYPES[precision])
    figures = check_half_lips(graph, reference) if precision == "fp16" else []
    require(figures, title)
    say(f"{title}: exporting")
    frames = torch.export.Dim("frames", min=1)
    example = (torch.zeros(2, MEL_BANDS, MEL_COLUMNS), torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8))
    model = _to_onnx(graph, example, {"mel": {0: frames}, "faces": {0: frames}}, LIPS_INPUTS, LIPS_OUTPUTS)

    def check(path: Path) -> list[Figure]:
        say(f"{title}: checking at batch {', '.join(map(str, LIPS_BATCHES))}")
        return check_lips(path, reference, precision) + figures

    sidecar = _sidecar("wav2lip", precision, source, LIPS_INPUTS, LIPS_OUTPUTS)
    return publish(model, repository / GRAPH_FILES["wav2lip"][precision], check, sidecar)


def export_detect(
    network: S3FD,
    repository: Path,
    precision: Precision,
    source: Source,
    rgb: bool = False,
    references: Sequence[DetectReference] | None = None,
    say: Say = _say_nothing,
) -> Path:
    """Write S3FD's graph and sidecar into a model repository and return the graph's path.

    `rgb` feeds the network RGB, as Wav2Lip does. `references` are those of `detect_references`, made here if not given.
    Raises ParityError, and leaves what was there, when the graph does not find what the network finds.
    """
    title = f"s3fd {precision}"
    say(f"{title}: preparing")
    references = references or detect_references(network, rgb)
    graph = detect_graph(network, DTYPES[precision], rgb)
    figures = check_half_detect(graph, references[0]) if precision == "fp16" else []
    require(figures, title)
    say(f"{title}: exporting")
    sides = {axis: torch.export.Dim(name, min=SMALLEST_SIDE_PX) for axis, name in ((1, "height"), (2, "width"))}
    shapes = {"frames": {0: torch.export.Dim("frames", min=1), **sides}}
    example = (torch.zeros(2, 180, 320, 3, dtype=torch.uint8),)
    model = _to_onnx(graph, example, shapes, DETECT_INPUTS, DETECT_OUTPUTS)

    def check(path: Path) -> list[Figure]:
        say(f"{title}: checking at {len(DETECT_SIZES)} picture sizes")
        return check_detect(path, references, precision) + figures

    sidecar = _sidecar("s3fd", precision, source, DETECT_INPUTS, DETECT_OUTPUTS, rgb)
    return publish(model, repository / GRAPH_FILES["s3fd"][precision], check, sidecar)


def publish(model: onnx.ModelProto, path: Path, check: Callable[[Path], list[Figure]], sidecar: Sidecar) -> Path:
    """Put a graph and its sidecar in place, if the file, as it lies in its folder, passes `check`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        partial.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(partial), full_check=True)
        figures = check(partial)
        require(figures, f"{sidecar.network} {sidecar.precision}")
        digest = file_sha256(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_sidecar(path, replace(sidecar, parity=tuple(figures), graph=path.name, graph_sha256=digest))
    return path


def _to_onnx(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    dynamic_shapes: dict[str, dict[int, Any]],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> onnx.ModelProto:
    """The graph as one ONNX model with its weights inside."""
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
        )
    if program is None:
        raise ParityError("torch's exporter returned nothing; nothing was written")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    _cast_pictures_first(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Take out the exporter's notes: they name source files of the machine that exported."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _cast_pictures_first(model: onnx.ModelProto) -> None:
    """Let every reader of a uint8 input read its cast: TensorRT allows no other operator on one, not even Shape."""
    nodes = model.graph.node
    for picture in model.graph.input:
        if picture.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
            continue
        [cast] = [node for node in nodes if node.op_type == "Cast" and picture.name in node.input]
        for node in nodes:
            if node is not cast:
                node.input[:] = [cast.output[0] if name == picture.name else name for name in node.input]
        moved = onnx.NodeProto()
        moved.CopyFrom(cast)
        nodes.remove(cast)
        nodes.insert(0, moved)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's notes on packages that it does not need here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _sidecar(
    network: str,
    precision: Precision,
    source: Source,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    rgb: bool = False,
) -> Sidecar:
    return Sidecar(
        network=network,
        precision=precision,
        source=source,
        channel_order="RGB" if rgb else "BGR",
        inputs=inputs,
        outputs=outputs,
        opset=OPSET,
        torch=torch.__version__,
        onnx=onnx.__version__,
        onnxruntime=ort.__version__,
        parity=(),
        graph="",
        graph_sha256="",
    )
