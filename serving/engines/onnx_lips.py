"""Lips on onnxruntime: any graph with the tensors MEL, FACES -> MOUTHS."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from polylip.serving.engines import Float32, Parameters, UInt8
from polylip.serving.errors import MissingError


class OnnxLips:
    """Parameters: `graph`, a file beside model.py; `threads` within one call."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        path = Path(version_dir) / parameters["graph"]
        if not path.is_file():
            raise MissingError(f"{path.name} is missing; run: polylip export lite")
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("threads", "1"))
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def render(self, mel: Float32, faces: UInt8) -> UInt8:
        if len(mel) != len(faces):
            raise ValueError(f"MEL has {len(mel)} windows but FACES has {len(faces)} crops; send one window per crop")
        return self._session.run(["MOUTHS"], {"MEL": mel, "FACES": faces})[0]  # type: ignore[no-any-return]
