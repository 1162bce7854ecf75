"""Runs exported graphs on fixed pictures and speech and compares them with their torch networks, file by file.

A graph is run by onnxruntime at several batch sizes and picture sizes; a float16 one also in torch, as a GPU stores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper

from polylip.export.gate_inputs import gate_faces, gate_frames, gate_mel
from polylip.export.graphs import MIN_SCORE, DetectGraph, LipsGraph
from polylip.export.half import FLOAT16_MAX, rounded_to_half
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.parity import (
    Detections,
    ParityError,
    compare_exact,
    compare_faces,
    compare_mouths,
    require_contrast,
    require_spread,
)
from polylip.export.sidecar import Figure, Precision

LIPS_BATCHES = (1, 2, 5, 16)  # one frame, the smallest real batch, a remainder, the client's usual call
DETECT_SIZES = (((1, 2, 3), 180, 320), ((1,), 360, 640), ((1,), 135, 241))  # small, the client's, one with remainders
HALF_CASE = "rounded after each layer"
HEADROOM = 2.0  # an activation on the check's pictures must stay this factor below float16's largest number

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LipsReference:
    """The check's input and what the torch network makes of it."""

    mel: npt.NDArray[np.float32]
    faces: UInt8
    mouths: UInt8


@dataclass(frozen=True)
class DetectReference:
    """Pictures of one size, the batches to cut them into, and what the torch network finds in them."""

    frames: UInt8
    batches: tuple[int, ...]
    found: Detections

    def case(self, batch: int) -> str:
        height, width = self.frames.shape[1:3]
        return f"batch {batch}, {width}x{height}"


def lips_reference(network: Wav2LipGenerator) -> LipsReference:
    """Faces and speech, and the mouths of the torch network as it is: FP32, batch norms not folded.

    Raises ParityError when they are too flat to show a fault.
    """
    count = max(LIPS_BATCHES)
    mel, faces = gate_mel(count), gate_faces(count)
    mouths = _run_lips(LipsGraph(network), mel, faces)
    require_contrast(mouths)
    return LipsReference(mel, faces, mouths)


def detect_references(network: S3FD, rgb: bool = False) -> list[DetectReference]:
    """Pictures, and what the torch network as it is finds in them, however low it scores.

    Raises ParityError when the scores are too much alike to show a fault.
    """
    graph = DetectGraph(network, rgb=rgb, min_score=0.0)
    references = []
    for batches, height, width in DETECT_SIZES:
        frames = gate_frames(max(batches), height, width)
        references.append(DetectReference(frames, batches, _run_detect(graph, frames)))
    require_spread(reference.found for reference in references)
    return references


def check_lips(path: Path, reference: LipsReference, precision: Precision) -> list[Figure]:
    """Run a graph file at every batch size against the reference."""
    session = _session(path)
    figures = []
    for batch in LIPS_BATCHES:
        inputs = {"MEL": reference.mel[:batch], "FACES": reference.faces[:batch]}
        mouths = session.run(["MOUTHS"], inputs)[0]
        figures += compare_mouths(reference.mouths[:batch], mouths, precision, f"batch {batch}")
    return figures


def check_detect(path: Path, references: Sequence[DetectReference], precision: Precision) -> list[Figure]:
    """Run a graph file at every size and batch against the references.

    A copy of the graph with the lowest score at 0 is run, so that all K boxes are compared, and not only those on the
    drawn faces; the lowest score itself is then checked on the first picture.
    """
    compare = compare_exact if precision == "fp32" else compare_faces
    session = _session(_listing_all(path))
    figures = []
    for reference in references:
        for batch in reference.batches:
            got = _find(session, reference.frames[:batch])
            figures += compare(reference.found.first(batch), got, reference.case(batch))
    _check_min_score(session, _session(path), references[0].frames[:1])
    return figures


def _check_min_score(all_boxes: ort.InferenceSession, as_served: ort.InferenceSession, frames: UInt8) -> None:
    everything, served = _find(all_boxes, frames), _find(as_served, frames)
    is_candidate = everything.scores > MIN_SCORE
    boxes = np.where(is_candidate[..., None], everything.boxes, 0)
    scores = np.where(is_candidate, everything.scores, 0)
    if not (np.array_equal(boxes, served.boxes) and np.array_equal(scores, served.scores)):
        raise ParityError(f"the graph does not leave out boxes scored {MIN_SCORE} or less; nothing was written")


def _find(session: ort.InferenceSession, frames: UInt8) -> Detections:
    return Detections(*session.run(["BOXES", "SCORES"], {"FRAMES": frames}))


def check_half_lips(graph: LipsGraph, reference: LipsReference) -> list[Figure]:
    """The same comparison for float16 as a GPU stores it, and how near the layers come to its end."""
    rounded, peak = rounded_to_half(graph)
    mouths = _run_lips(rounded, reference.mel, reference.faces)
    return [_headroom(peak.value), *compare_mouths(reference.mouths, mouths, "fp16", HALF_CASE)]


def check_half_detect(graph: DetectGraph, reference: DetectReference) -> list[Figure]:
    """The same for S3FD, on one size of pictures."""
    rounded, peak = rounded_to_half(graph)
    rounded.get_buffer("min_score").zero_()
    found = _run_detect(rounded, reference.frames)
    case = f"{reference.case(len(reference.frames))}, {HALF_CASE}"
    return [_headroom(peak.value), *compare_faces(reference.found, found, case)]


def _headroom(peak: float) -> Figure:
    return Figure(HALF_CASE, "largest activation", peak, FLOAT16_MAX / HEADROOM)


@torch.inference_mode()
def _run_lips(graph: LipsGraph, mel: npt.NDArray[np.float32], faces: UInt8) -> UInt8:
    mouths: UInt8 = graph(torch.from_numpy(mel), torch.from_numpy(faces)).numpy()
    return mouths


@torch.inference_mode()
def _run_detect(graph: DetectGraph, frames: UInt8) -> Detections:
    boxes, scores = graph(torch.from_numpy(frames))
    return Detections(boxes.numpy(), scores.numpy())


def _session(model: Path | bytes) -> ort.InferenceSession:
    return ort.InferenceSession(str(model) if isinstance(model, Path) else model, providers=["CPUExecutionProvider"])


def _listing_all(path: Path) -> bytes:
    """The graph of a file with its lowest score set to 0."""
    model = onnx.load(path)
    [lowest] = [constant for constant in model.graph.initializer if constant.name == "min_score"]
    lowest.CopyFrom(numpy_helper.from_array(np.array(0.0, np.float32), "min_score"))
    data: bytes = model.SerializeToString()
    return data
