"""A copy of the model repository with generated weights, for benchmarks and tests that have no public ones.

The graphs of the picture are full size and exported and checked like any other; only the weights are random, so times
are right and pictures are meaningless. The speech models come tiny, knowing a few words, or full size and random.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from polylip.export.generated import generated_detector, generated_network
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.onnx_export import export_detect, export_lips
from polylip.export.sidecar import Precision, Source
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.runtime import find_model_repository

SpeechSize = Literal["tiny", "full"]
WHISPER_SIZES = {"tiny": "tiny-random", "full": "small-random"}
SPOKEN_PAIRS = (  # what the tiny translator is taught; the tiny recogniser hears the English side as tones
    ("hello friend", "hola amigo"),
    ("the water is green", "el agua es verde"),
    ("water", "agua"),
)


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


@contextlib.contextmanager
def prepared_repository() -> Iterator[Path]:
    """For end-to-end experiments in profile cpu: full-size networks of the picture, the detector fitted to the face of
    the demo clip, and speech by the engines of profile lite. Removed at the end.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detector = generated_detector(make_demo_clip(folder / "demo.mp4"))
        repository = make_generated_repository(folder / "repository", detector=detector)
        speak_like_lite(repository)
        yield repository


def speak_like_lite(repository: Path) -> None:
    """Let profile cpu of a copied repository hear, translate and speak with the engines of profile lite."""
    for model in ("transcribe", "translate", "synthesize"):
        configs = repository / model / "configs"
        shutil.copyfile(configs / "lite.pbtxt", configs / "cpu.pbtxt")


def make_generated_speech(
    repository: Path, weights: Path, size: SpeechSize = "tiny", pairs: Sequence[str] = ("en-es",)
) -> None:
    """Write the weights that profile cpu's recogniser and voice look for into `weights`, its pairs into `repository`.

    Tiny ones translate SPOKEN_PAIRS from English and hear `polylip.export.generated_whisper.sounds` of them; the voice
    babbles.
    """
    from polylip.export.generated_marian import make_marian  # noqa: PLC0415  the extra `speech`, which pictures lack
    from polylip.export.generated_whisper import make_whisper  # noqa: PLC0415
    from polylip.export.generated_xtts import make_xtts  # noqa: PLC0415
    from polylip.export.opus_mt import convert_opus_mt  # noqa: PLC0415

    make_whisper(weights / "faster-whisper-small", WHISPER_SIZES[size], taught=size == "tiny")
    make_xtts(weights / "xtts-v2", size)
    for pair in pairs:
        lesson = SPOKEN_PAIRS if pair.startswith("en") else [(target, source) for source, target in SPOKEN_PAIRS]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder)
            make_marian(checkpoint, pair, size, train_on=lesson if size == "tiny" else ())
            convert_opus_mt(checkpoint, repository / "translate" / "1" / pair, generated=True)
