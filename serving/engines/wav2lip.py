"""Lips of profile cpu: the exported Wav2Lip graph."""

from __future__ import annotations

from polylip.export.gate_inputs import gate_faces, gate_mel
from polylip.export.parity import compare_mouths
from polylip.serving.engines import Float32, Parameters, UInt8
from polylip.serving.engines.cpu_graph import CpuGraph

CHECKED_FRAMES = 4  # of drawn faces, when bf16 is compared with FP32 at load: 0.2 s


class Wav2Lip:
    """Parameters: those of `CpuGraph`."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        graph = CpuGraph(parameters, version_dir)
        self._run = graph.checked(
            {"MEL": gate_mel(CHECKED_FRAMES), "FACES": gate_faces(CHECKED_FRAMES)},
            lambda exact, fast: compare_mouths(exact["MOUTHS"], fast["MOUTHS"], "fp16", "bf16 at load"),
        )
        self.precision = graph.precision

    def render(self, mel: Float32, faces: UInt8) -> UInt8:
        if len(mel) != len(faces):
            raise ValueError(f"MEL has {len(mel)} windows but FACES has {len(faces)} crops; send one window per crop")
        return self._run({"MEL": mel, "FACES": faces})["MOUTHS"]
