"""Engines: each does one model's work behind a small protocol, chosen by the `engine` parameter of its config.pbtxt.

An engine is imported only when its model asks for it, so that one engine's dependencies never touch another model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Parameters = Mapping[str, str]
Cancelled = Callable[[], bool]


def never() -> bool:
    """The `cancelled` of work that nobody can call off."""
    return False


class Status(StrEnum):
    """How one step of the speech line ended; anything but OK passes through the steps behind it."""

    OK = "ok"
    NO_SPEECH = "no_speech"  # nothing was said, or nothing that can be trusted
    UNSUPPORTED = "unsupported"  # a language or a pair that the engine cannot do
    ERROR = "error"  # the engine failed
    CANCELLED = "cancelled"  # nobody waits for it any more


@dataclass(frozen=True)
class Utterance:
    """One segment to be recognised."""

    audio: Float32  # (samples,), mono, 16 kHz, [-1, 1]
    language: str  # ISO 639-1 or "auto"
    context: str = ""  # the words before it
    cancelled: Cancelled = never
    more: bool = False  # the same sound comes again, longer: what is heard so far will do


@dataclass(frozen=True)
class Transcript:
    """What was heard in one segment."""

    text: str
    language: str  # ISO 639-1
    words: tuple[str, ...] = ()
    spans_ms: tuple[tuple[int, int], ...] = ()  # start and end of each word within the segment
    confidence: float = 0.0  # 0 to 1
    status: Status = Status.OK
    message: str = ""  # one line: why the status is not OK, and what helps


class Transcriber(Protocol):
    """Engine of `transcribe`."""

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcript]:
        """One transcript per utterance, in order: one that cannot be had is a status, and touches no other."""
        ...

    def resolve_language(self, language: str) -> str:
        """The ISO 639-1 code that text in `language` (or `auto`) counts as. Raises UnsupportedError."""
        ...


@dataclass(frozen=True)
class Passage:
    """One segment's text to be translated."""

    text: str
    source: str  # ISO 639-1
    target: str  # ISO 639-1
    glossary: str = ""  # lines `term` (kept as it is) or `term = translation` (forced)
    cancelled: Cancelled = never


@dataclass(frozen=True)
class Translation:
    """A passage in the target language."""

    text: str
    status: Status = Status.OK
    message: str = ""  # one line: why the status is not OK, and what helps


class Translator(Protocol):
    """Engine of `translate`."""

    def translate(self, passages: Sequence[Passage]) -> list[Translation]:
        """One translation per passage, in order: one that cannot be had is a status, and touches no other."""
        ...


class Voice(Protocol):
    """Engine of `synthesize`. `polylip.serving.speaking` fits what it says into the time there is."""

    sample_rate_hz: int
    speeds: tuple[float, float]  # what its own speed can do, 1 = normal

    def pieces(self, text: str, language: str) -> list[str]:
        """The text in parts that are synthesised one after another, ready to be read out.

        `language` is ISO 639-1. Raises UnsupportedError for a language without voice.
        """
        ...

    def estimate_ms(self, piece: str, language: str) -> float:
        """How long the piece will last at normal speed, before it is synthesised."""
        ...

    def speaker(self, reference: Float32 | None, stream: str) -> Speaker:
        """The voice to speak with: cloned from reference speech float32 (samples,) at 16 kHz, else a stock voice.

        `stream` names the caller's media stream: what is kept of a voice is kept for that stream alone.
        """
        ...

    def say(self, piece: str, language: str, speaker: Speaker, speed: float, cancelled: Cancelled) -> Iterator[Float32]:
        """The piece's audio, float32 (samples,), as it is made. `speed` lies within `speeds`. Raises EngineError."""
        ...


@dataclass(frozen=True, eq=False)
class Speaker:
    """A voice that is ready to speak."""

    cloned: bool
    state: Any = None  # the engine's own


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
    "transcribe": {
        "pocketsphinx": "polylip.serving.engines.pocketsphinx:Pocketsphinx",
        "faster-whisper": "polylip.serving.engines.faster_whisper:FasterWhisper",
    },
    "translate": {
        "apertium": "polylip.serving.engines.apertium:Apertium",
        "opus-mt": "polylip.serving.engines.opus_mt:OpusMt",
    },
    "synthesize": {
        "espeak-ng": "polylip.serving.engines.espeak:Espeak",
        "xtts-v2": "polylip.serving.engines.xtts:Xtts",
    },
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
