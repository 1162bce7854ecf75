"""A model repository whose engines are stand-ins: the real tensors, batching, sequences and ensembles, fixed times.

A stand-in sleeps, so several servers share a machine without taking each other's time. What it says means nothing;
only how long it takes is of use. `track` does its real work and then sleeps, so a sequence is a real one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.errors import InputError
from polylip.serving.engines import (
    Cancelled,
    Passage,
    Speaker,
    Transcript,
    Translation,
    Utterance,
)
from polylip.serving.speaking import Speaking
from polylip.serving.turns import Turns

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

SPEECH_RATE_HZ = 16_000
WORD_S = 0.4  # of speech, as long as it took to say in the source
CHUNK_S = 0.8  # of speech that the voice makes at once
FACE = (0.4, 0.3, 0.6, 0.7)  # the one face of every frame: x1 y1 x2 y2 as parts of width and height
FACE_SCORE = 0.95

# Appended to an adapter, whose tensors and batching stay as they are.
PACED = """

from polylip.perf.paced_repository import Pace, paced

TritonPythonModel = paced(TritonPythonModel, {model!r}, Pace({seconds!r}, {call_seconds!r}))
"""


@dataclass(frozen=True)
class Pace:
    """How long a stand-in takes: for each item, and for each call whatever it holds.

    Items are seconds of sound (`transcribe`, `synthesize`), segments (`translate`), key frames (`detect`, `track`) and
    frames (`mel`, `lips`).
    """

    seconds: float
    call_seconds: float = 0.0

    def sleep(self, items: float) -> None:
        """As long as a call with so many items takes."""
        time.sleep(self.call_seconds + self.seconds * items)


def paced_repository(source: Path, folder: Path, paces: Mapping[str, Pace]) -> Path:
    """A copy of `source` in `folder` with stand-ins for all Python models in `paces`. Raises InputError for others."""
    repository = folder / "repository"
    shutil.copytree(source, repository, ignore=shutil.ignore_patterns("__pycache__"), copy_function=_link)
    for model, pace in paces.items():
        adapter = repository / model / "1" / "model.py"
        if model not in _STAND_INS or not adapter.is_file():
            raise InputError(f"no stand-in for {model}; there are: {', '.join(_STAND_INS)}")
        text = adapter.read_text() + PACED.format(model=model, seconds=pace.seconds, call_seconds=pace.call_seconds)
        adapter.unlink()  # the link
        adapter.write_text(text)
    return repository


def _link(source: str, target: str) -> None:
    """In place of a copy: graphs are large."""
    os.symlink(Path(source).resolve(), target)


def paced(adapter: type[Any], model: str, pace: Pace) -> type[Any]:
    """The adapter of a model with a stand-in for its engine. Called inside the server."""
    return _STAND_INS[model](adapter, pace)


class PacedTranscriber:
    """Hears one word for each WORD_S of sound."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcript]:
        lengths_s = [len(utterance.audio) / SPEECH_RATE_HZ for utterance in utterances]
        self._pace.sleep(sum(lengths_s))
        return [Transcript(_words(length_s), "en", confidence=1.0) for length_s in lengths_s]

    def resolve_language(self, language: str) -> str:
        return "en" if language in ("", "auto") else language


class PacedTranslator:
    """Gives back the text."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def translate(self, passages: Sequence[Passage]) -> list[Translation]:
        self._pace.sleep(len(passages))
        return [Translation(passage.text) for passage in passages]


class PacedVoice:
    """Silence, WORD_S for each word."""

    sample_rate_hz = SPEECH_RATE_HZ
    speeds = (1.0, 1.0)

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def pieces(self, text: str, language: str) -> list[str]:
        return [text] if text else []

    def estimate_ms(self, piece: str, language: str) -> float:
        return len(piece.split()) * WORD_S * 1000

    def speaker(self, reference: Float32 | None, stream: str) -> Speaker:
        return Speaker(cloned=False)

    def say(self, piece: str, language: str, speaker: Speaker, speed: float, cancelled: Cancelled) -> Iterator[Float32]:
        left_s = len(piece.split()) * WORD_S
        while left_s > 0 and not cancelled():
            chunk_s = min(CHUNK_S, left_s)
            self._pace.sleep(chunk_s)
            yield np.zeros(round(chunk_s * SPEECH_RATE_HZ), np.float32)
            left_s = round(left_s - chunk_s, 6)


class PacedDetector:
    """Finds the same face in every frame."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def detect(self, frames: UInt8) -> tuple[Float32, Float32]:
        count, height, width = frames.shape[:3]
        self._pace.sleep(count)
        box = np.array(FACE, np.float32) * np.array([width, height, width, height], np.float32)
        return np.tile(box, (count, 1, 1)), np.full((count, 1), FACE_SCORE, np.float32)


class PacedLips:
    """Gives back the faces."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def render(self, mel: Float32, faces: UInt8) -> UInt8:
        self._pace.sleep(len(faces))
        return faces


def _words(length_s: float) -> str:
    return " ".join(["word"] * max(1, round(length_s / WORD_S)))


def _with_engine(engine: Callable[[Pace], Any]) -> Callable[[type[Any], Pace], type[Any]]:
    """For adapters that keep their engine in `engine`."""

    def stand_in(adapter: type[Any], pace: Pace) -> type[Any]:
        def initialize(self: Any, args: Mapping[str, str]) -> None:
            self.engine = engine(pace)

        return type("TritonPythonModel", (adapter,), {"initialize": initialize})

    return stand_in


def _voice(adapter: type[Any], pace: Pace) -> type[Any]:
    def initialize(self: Any, args: Mapping[str, str]) -> None:
        self.speaking = Speaking(PacedVoice(pace))
        self.turns = Turns()

    return type("TritonPythonModel", (adapter,), {"initialize": initialize})


def _mel(adapter: type[Any], pace: Pace) -> type[Any]:
    def mel(self: Any, request: Any) -> dict[str, Float32]:
        from polylip.serving.adapter import array  # noqa: PLC0415  importable inside the server only

        frames = array(request, "FRAME_OFFSETS_MS").size
        pace.sleep(frames)
        return {"MEL": np.zeros((frames, 80, 16), np.float32)}

    return type("TritonPythonModel", (adapter,), {"_mel": mel})


def _track(adapter: type[Any], pace: Pace) -> type[Any]:
    def track(self: Any, request: Any) -> Any:
        from polylip.serving.adapter import array  # noqa: PLC0415  importable inside the server only

        pace.sleep(array(request, "KEYFRAME_MS").size)
        return adapter._track(self, request)

    return type("TritonPythonModel", (adapter,), {"_track": track})


_STAND_INS: dict[str, Callable[[type[Any], Pace], type[Any]]] = {
    "transcribe": _with_engine(PacedTranscriber),
    "translate": _with_engine(PacedTranslator),
    "synthesize": _voice,
    "detect": _with_engine(PacedDetector),
    "track": _track,
    "mel": _mel,
    "lips": _with_engine(PacedLips),
}
