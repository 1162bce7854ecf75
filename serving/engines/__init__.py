"""Engines: each does one model's work behind a small protocol, chosen by the `engine` parameter of its config.pbtxt.

An engine is imported only when its model asks for it, so that one engine's dependencies never touch another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from polylip.serving.isochrony import Slot

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Parameters = Mapping[str, str]


@dataclass(frozen=True)
class Transcript:
    """What was heard in one segment."""

    text: str
    language: str  # ISO 639-1
    words: tuple[str, ...] = ()
    spans_ms: tuple[tuple[int, int], ...] = ()  # start and end of each word within the segment
    confidence: float = 0.0  # 0 to 1


@dataclass(frozen=True)
class SpeechChunk:
    """A piece of synthesised speech."""

    audio: Float32  # (samples,), mono, [-1, 1]
    sample_rate_hz: int
    rate: float  # speaking rate used, 1 = the normal speed of the voice


class Transcriber(Protocol):
    """Engine of `transcribe`."""

    def transcribe(self, audio: Float32, language: str, context: str) -> Transcript:
        """Audio float32 (samples,) at 16 kHz; language ISO 639-1 or `auto`. Raises UnsupportedError."""
        ...

    def resolve_language(self, language: str) -> str:
        """The ISO 639-1 code that text in `language` (or `auto`) counts as. Raises UnsupportedError."""
        ...


class Translator(Protocol):
    """Engine of `translate`."""

    def translate(self, text: str, source: str, target: str) -> str:
        """Raises UnsupportedError with the supported pairs, EngineError when the engine fails."""
        ...


class Voice(Protocol):
    """Engine of `synthesize`."""

    def speak(self, text: str, language: str, voice: Float32 | None, slot: Slot) -> Iterator[SpeechChunk]:
        """Chunks as they are made. Raises UnsupportedError, EngineError."""
        ...


class Detector(Protocol):
    """Engine of `detect`."""

    def detect(self, frames: UInt8) -> tuple[Float32, Float32]:
        """Frames uint8 (n, h, w, 3) BGR -> boxes float32 (n, k, 4) xyxy px, scores float32 (n, k), 0 = padding."""
        ...


class Lips(Protocol):
    """Engine of `lips`."""

    def render(self, mel: Float32, faces: UInt8) -> UInt8:
        """Mel float32 (m, 80, 16), faces uint8 (m, 96, 96, 3) BGR -> mouths uint8 (m, 96, 96, 3) BGR."""
        ...


ENGINES: dict[str, dict[str, str]] = {
    "transcribe": {"pocketsphinx": "polylip.serving.engines.pocketsphinx:Pocketsphinx"},
    "translate": {"apertium": "polylip.serving.engines.apertium:Apertium"},
    "synthesize": {"espeak-ng": "polylip.serving.engines.espeak:Espeak"},
    "detect": {
        "cascade": "polylip.serving.engines.cascade:Cascade",
        "s3fd": "polylip.serving.engines.s3fd:S3fd",
    },
    "lips": {
        "onnxruntime": "polylip.serving.engines.onnx_lips:OnnxLips",
        "wav2lip": "polylip.serving.engines.wav2lip:Wav2Lip",
    },
}


def load_engine(model: str, parameters: Parameters, version_dir: str) -> Any:
    """The engine that the model's config names. Raises ValueError listing the known ones."""
    name = parameters.get("engine", "")
    known = ENGINES[model]
    if name not in known:
        raise ValueError(f"{model} has no engine {name!r}; this version has: {', '.join(known)}")
    module, cls = known[name].split(":")
    return getattr(import_module(module), cls)(parameters, version_dir)
