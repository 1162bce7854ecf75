"""Detector of profile cpu: the exported S3FD graph, one frame at a time, on whole frames or on frames of half size."""

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
# A pass over 640x360 costs 146 GFLOP: 60 ms on two cores with AMX, 325 ms in bf16 without. S3FD's smallest prior is
# 16 px, so half the size still finds every face whose mouth is large enough to be replaced (32 px of 360).
FULL_SIZE, HALF_SIZE = "1", "2"


class S3fd:
    """Parameters: those of `CpuGraph`; `shrink` 1, 2 or auto: 1 where the processor has AMX, else 2."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        cv2.setNumThreads(1)
        self._graph = CpuGraph(parameters, version_dir)
        shrink = parameters.get("shrink", "auto")
        if shrink == "auto":
            shrink = FULL_SIZE if AMX in cpu_flags() else HALF_SIZE
        self._shrink = int(shrink)
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
        size = width // self._shrink, height // self._shrink
        run = self._run_for(size)
        found = [run({"FRAMES": self._shrunk(frame, size)[None]}) for frame in frames]
        scale = np.array([width / size[0], height / size[1]] * 2, np.float32)
        return _join(found, "BOXES") * scale, _join(found, "SCORES")

    def _shrunk(self, frame: UInt8, size: tuple[int, int]) -> UInt8:
        return frame if self._shrink == 1 else np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))

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


def _compare(exact: Tensors, fast: Tensors) -> list[Figure]:
    first, second = (Detections(t["BOXES"], t["SCORES"]) for t in (exact, fast))
    return compare_faces(first, second, "bf16 at load")


def _join(found: list[dict[str, Float32]], name: str) -> Float32:
    return np.concatenate([outputs[name] for outputs in found])
