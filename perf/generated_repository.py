"""A copy of the model repository with graphs of generated weights, for benchmarks and tests that have no public ones.

The graphs are full size and exported and checked like any other; only the weights are random, so times are right and
pictures are meaningless.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from polylip.export.generated import generated_network
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.onnx_export import export_detect, export_lips
from polylip.export.sidecar import Precision, Source
from polylip.serving.runtime import find_model_repository


def make_generated_repository(
    folder: Path, precisions: Sequence[Precision] = ("fp32",), detector: S3FD | None = None
) -> Path:
    """Copy the repository to `folder`, which must not exist, and export both networks into it; returns the folder.

    `detector`: another network than the random one, for example one fitted to a clip.
    """
    shutil.copytree(
        find_model_repository(), folder, ignore=shutil.ignore_patterns("__pycache__", "*.plan", "s3fd*", "wav2lip*")
    )
    lips = generated_network("wav2lip")
    found = detector or generated_network("s3fd")
    assert isinstance(lips, Wav2LipGenerator) and isinstance(found, S3FD)  # noqa: S101  what the names mean
    for precision in precisions:
        export_lips(lips, folder, precision, Source("generated"))
        export_detect(found, folder, precision, Source("generated"))
    return folder
