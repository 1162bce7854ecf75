"""Wav2Lip and S3FD at full size in FP16 and bf16 against FP32, on the demo clip's face; weights are generated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polylip.client.blend import cut_face, frame_planes
from polylip.client.errors import InputError
from polylip.client.faces import Letterbox
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.export.generated import generated_detector, generated_network
from polylip.export.graphs import DetectGraph, LipsGraph, detect_graph, lips_graph
from polylip.export.half import rounded_to_half
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.parity import Detections, compare_faces, iou
from polylip.perf.picture_quality_measures import likeness, summary
from polylip.serving.engines.cascade import Cascade
from polylip.serving.engines.cpu_graph import AMX, BF16, CpuGraph, cpu_flags
from polylip.serving.mel import SAMPLE_RATE_HZ, mel_windows

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Tensors = dict[str, npt.NDArray[Any]]

FACES, PICTURES = 16, 4  # of the clip, evenly spread: for lips, for the detector
QUICK_FACES, QUICK_PICTURES, QUICK_EVERY = 2, 1, 2  # every second pixel
REFERENCE = "FP32 (torch)"
HALF = "FP16, every layer rounded (torch)"  # what a GPU stores between layers, on a CPU
BRAIN = "bf16 (torch)"
SERVED = {"fp32": "FP32 (OpenVINO, as served)", "bf16": "bf16 (OpenVINO, as served)"}
NO_BF16 = "not run: this processor has no bf16"
NO_GRAPH = "not run: no exported graph; profile cpu has one"


def compare_networks(
    clip: Path, repository: Path | None, *, quick: bool = False, fitted: bool = True
) -> dict[str, Any]:
    """Every precision of both networks; those that are served are in the `repository` of profile cpu, if there is one.

    A quick look takes a detector that knows no faces, whose best boxes stand for them, and a picture of half the size.
    """
    mel, faces, pictures = _material(clip, QUICK_FACES if quick else FACES, QUICK_PICTURES if quick else PICTURES)
    pictures = pictures[:, ::QUICK_EVERY, ::QUICK_EVERY].copy() if quick else pictures
    lips = generated_network("wav2lip")
    found = generated_detector(clip) if fitted and not quick else generated_network("s3fd")
    assert isinstance(lips, Wav2LipGenerator) and isinstance(found, S3FD)  # noqa: S101  what the names mean
    return {
        "weights": "generated",
        "reference": REFERENCE,
        "faces": len(faces),
        "pictures": len(pictures),
        "lips": compare_lips(lips, mel, faces) + _served_lips(repository, mel, faces),
        "detector": compare_detector(found, pictures) + _served_detector(repository, pictures),
    }


def compare_lips(network: Wav2LipGenerator, mel: Float32, faces: UInt8) -> list[dict[str, Any]]:
    """SSIM and PSNR of the mouths, by precision."""
    expected = _lips(lips_graph(network, torch.float32), mel, faces)
    half = rounded_to_half(lips_graph(network, torch.float16))[0]
    return [
        _lips_row(HALF, expected, _lips(half, mel, faces)),
        _lips_row(BRAIN, expected, _lips(lips_graph(network, torch.bfloat16), mel, faces)),
    ]


def compare_detector(network: S3FD, pictures: UInt8) -> list[dict[str, Any]]:
    """Whether the same faces are found in the same places, by precision."""
    expected = _detect(detect_graph(network, torch.float32), pictures)
    half = rounded_to_half(detect_graph(network, torch.float16))[0]
    return [
        _detector_row(HALF, expected, _detect(half, pictures)),
        _detector_row(BRAIN, expected, _detect(detect_graph(network, torch.bfloat16), pictures)),
    ]


def _served_lips(repository: Path | None, mel: Float32, faces: UInt8) -> list[dict[str, Any]]:
    """What profile cpu serves in bf16, against the same graph in FP32."""
    if (reason := _not_served(repository)) is not None or repository is None:
        return [{"precision": SERVED["bf16"], "status": reason}]
    inputs: Tensors = {"MEL": mel, "FACES": faces}
    expected, got = (_served(repository, "lips", "wav2lip", p, inputs)["MOUTHS"] for p in ("fp32", "bf16"))
    return [_lips_row(SERVED["bf16"], expected, got, SERVED["fp32"])]


def _served_detector(repository: Path | None, pictures: UInt8) -> list[dict[str, Any]]:
    if (reason := _not_served(repository)) is not None or repository is None:
        return [{"precision": SERVED["bf16"], "status": reason}]
    answers = [_served(repository, "detect", "s3fd", p, {"FRAMES": pictures}) for p in ("fp32", "bf16")]
    expected, got = (Detections(answer["BOXES"], answer["SCORES"]) for answer in answers)
    return [_detector_row(SERVED["bf16"], expected, got, SERVED["fp32"])]


def _not_served(repository: Path | None) -> str | None:
    """Why what is served cannot be compared; None where it can."""
    if repository is None:
        return NO_GRAPH
    return None if {AMX, BF16} & cpu_flags() else NO_BF16


def _served(repository: Path, model: str, stem: str, precision: str, inputs: Tensors) -> Tensors:
    graph = CpuGraph({"graph": stem, "runtime": "openvino", "precision": precision}, str(repository / model / "1"))
    return graph.compiled({name: value.shape for name, value in inputs.items()})(inputs)


def _lips_row(precision: str, expected: UInt8, got: UInt8, against: str = REFERENCE) -> dict[str, Any]:
    levels = np.abs(expected.astype(np.int16) - got.astype(np.int16))
    return {
        "precision": precision,
        "against": against,
        "status": "measured",
        "mean_levels": float(levels.mean()),
        "largest_levels": int(levels.max()),
        **summary([likeness(a, b) for a, b in zip(expected, got, strict=True)]),
    }


def _detector_row(precision: str, expected: Detections, got: Detections, against: str = REFERENCE) -> dict[str, Any]:
    """The exporter's own comparison, and how the best box of each picture overlaps with the nearest of the other."""
    overlaps = [100 * float(iou(a[:1], b).max()) for a, b in zip(expected.boxes, got.boxes, strict=True)]
    figures = compare_faces(expected, got, precision)
    return {
        "precision": precision,
        "against": against,
        "status": "measured",
        "best_box_iou_percent": float(np.mean(overlaps)),
        "raw": overlaps,
        "figures": [asdict(figure) | {"passed": figure.passed} for figure in figures],
    }


@torch.inference_mode()
def _lips(graph: LipsGraph, mel: Float32, faces: UInt8) -> UInt8:
    mouths: UInt8 = graph(torch.from_numpy(mel), torch.from_numpy(faces)).numpy()
    return mouths


@torch.inference_mode()
def _detect(graph: DetectGraph, pictures: UInt8) -> Detections:
    graph.get_buffer("min_score").zero_()  # so that all boxes are compared, not only those on faces
    found = [graph(torch.from_numpy(picture[None])) for picture in pictures]  # one at a time: 1 GB each in FP32
    return Detections(*(torch.cat(parts).numpy() for parts in zip(*found, strict=True)))


def _material(clip: Path, faces: int, pictures: int) -> tuple[Float32, UInt8, UInt8]:
    """Mel windows and face crops of so many frames, and analysis pictures of some of them."""
    info, audio = probe_media(clip), mono(clip)
    letterbox, cascade = Letterbox(info.width, info.height), Cascade({}, "")
    times, crops, shrunk = [], [], []
    for time_ms, frame in _spread(info, faces):
        small = letterbox.shrink(frame)
        boxes, scores = cascade.detect(small[None])
        planes = frame_planes(frame, "yuv420p")[1]
        cut = cut_face(planes, tuple((boxes[0, 0] / letterbox.scale).tolist())) if scores[0, 0] > 0 else None
        if cut is not None:
            times.append(round(time_ms))
            crops.append(cut.face)
            shrunk.append(small)
    if not crops:
        raise InputError(f"{clip.name}: the cascade finds no face in {faces} of its pictures")
    shown = np.linspace(0, len(shrunk) - 1, min(pictures, len(shrunk))).round().astype(int)
    mel = mel_windows(audio, np.array(times, np.int64))
    return mel, np.stack(crops), np.stack([shrunk[i] for i in shown])


def _spread(info: MediaInfo, count: int) -> Sequence[tuple[float, Any]]:
    """So many (time_ms, frame) at even distances."""
    step = max(1, int((info.duration_s or 1.0) * info.frame_rate / count))
    taken: list[tuple[float, Any]] = []
    with closing(VideoReader(info)) as reader:
        while len(taken) < count and (batch := reader.read(step)):
            taken.append(batch[-1])
    return taken


def mono(clip: Path) -> Float32:
    """The clip's sound, float32 (samples,) at 16 kHz."""
    pieces: list[Float32] = []
    with closing(AudioReader(probe_media(clip), SAMPLE_RATE_HZ, 1)) as reader:
        while (piece := reader.read(1.0)) is not None:
            pieces.append(piece[1])
    return np.concatenate(pieces)
