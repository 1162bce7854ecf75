"""Detector of profile cpu: the exported S3FD graph, one frame at a time, on whole frames or on smaller ones."""

from __future__ import annotations

import cv2
import numpy as np

from polylip.export.gate_inputs import gate_frames
from polylip.export.parity import Detections, compare_faces
from polylip.export.sidecar import Figure
from polylip.serving.engines import Float32, Parameters, UInt8
from polylip.serving.engines.cpu_graph import AMX, CpuGraph, Run, Tensors, cpu_flags

KEPT_SHAPES = 2  # compiled graphs held: the client's analysis size and one other
SIDE_PX = (64, 2160)  # frames outside of this are refused: six poolings need 64, and a graph is compiled for each size
# A pass over 640x360 costs 146 GFLOP: 60 ms on two cores with AMX, 325 ms in bf16 without, which with five a second
# leaves nothing for the lips. At 240x135 it costs 20. S3FD finds faces from about 10 px on: there, those of 27 px of
# 360, which have a mouth of 8 px.
WHOLE_HEIGHT, SMALL_HEIGHT = 360, 135


class S3fd:
    """Parameters: those of `CpuGraph`; `pass_height`, rows to shrink frames to, or auto: 360 with AMX, else 135."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        cv2.setNumThreads(1)
        self._graph = CpuGraph(parameters, version_dir)
        asked = parameters.get("pass_height", "auto")
        self._height = (WHOLE_HEIGHT if AMX in cpu_flags() else SMALL_HEIGHT) if asked == "auto" else int(asked)
        self._compiled: dict[tuple[int, int], Run] = {}

    @property
    def precision(self) -> str:
        """What the graph computes in; known for certain after the first frame."""
        return self._graph.precision

    def detect(self, frames: UInt8) -> tuple[Float32, Float32]:
        height, width = frames.shape[1:3]
        if not all(SIDE_PX[0] <= side <= SIDE_PX[1] for side in (height, width)):
            raise ValueError(
                f"FRAMES are {width}x{height}; send sides of {SIDE_PX[0]} to {SIDE_PX[1]} px, best 640x360"
            )
        scale = min(1.0, self._height / height)
        size = max(SIDE_PX[0], round(width * scale)), max(SIDE_PX[0], round(height * scale))
        run = self._run_for(size)
        found = [run({"FRAMES": _shrunk(frame, size)[None]}) for frame in frames]
        growth = np.array([width / size[0], height / size[1]] * 2, np.float32)
        return _join(found, "BOXES") * growth, _join(found, "SCORES")

    def _run_for(self, size: tuple[int, int]) -> Run:
        """Compiled for the size: with open sides the same network takes twice as long."""
        if size not in self._compiled:
            while len(self._compiled) >= KEPT_SHAPES:
                del self._compiled[next(iter(self._compiled))]
            width, height = size
            self._compiled[size] = self._graph.checked(
                {"FRAMES": gate_frames(1, height, width)}, _compare, {"FRAMES": (1, height, width, 3)}
            )
        return self._compiled[size]


def _shrunk(frame: UInt8, size: tuple[int, int]) -> UInt8:
    if frame.shape[1::-1] == size:
        return frame
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))


def _compare(exact: Tensors, fast: Tensors) -> list[Figure]:
    first, second = (Detections(t["BOXES"], t["SCORES"]) for t in (exact, fast))
    return compare_faces(first, second, "bf16 at load")


def _join(found: list[dict[str, Float32]], name: str) -> Float32:
    return np.concatenate([outputs[name] for outputs in found])
