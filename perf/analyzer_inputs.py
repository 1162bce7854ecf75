"""Input data of perf_analyzer for every model and ensemble: real speech, faces and texts as its JSON files.

A model's config decides how it must be called; what it is sent lies in CASES. Nothing is kept in the repository: the
files are made for a run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polylip.client.wire import Inputs, Tensor, rows
from polylip.perf.streams_material import SOURCE, SPOKEN, TARGET, TRANSLATED, Chunk, Material, batches, chunk_plan
from polylip.serving.mel import mel_windows

CHUNKS = 3  # of a sequence
SEQUENCES = 2  # different ones
STREAM_ID = "perf-analyzer"  # one stream, so that its voice is made once and then known
_NO_GLOSSARY = "an engine that takes none would refuse the segment"
# Inputs that are not sent, and why not.
LEFT_OUT: dict[str, dict[str, str]] = {
    "transcribe": {
        "KNOWN_TEXT": "would pass the recogniser by",
        "MORE": "would let the recogniser stop early",
    },
    "translate": {"GLOSSARY": _NO_GLOSSARY},
    "synthesize": {"RIDE": "is of `dub`, and would have all come in one answer"},
    "speech": {"KNOWN_TEXT": "would pass the recogniser by", "GLOSSARY": _NO_GLOSSARY},
}

Streams = list[list[Inputs]]  # of a sequence model one per sequence; of others one, whose steps come in turn


@dataclass(frozen=True)
class Case:
    """What a model is sent."""

    model: str
    streams: Streams
    batch: int = 1  # of a model that Triton batches: items per request, each a step of the data


@dataclass(frozen=True)
class Contract:
    """What of a model's config decides how it is called."""

    name: str
    inputs: dict[str, bool]  # whether each is optional
    batched: bool  # by Triton: perf_analyzer adds the dimension
    sequence: bool
    decoupled: bool
    steps: tuple[str, ...]  # of an ensemble


def cases(material: Material) -> dict[str, Case]:
    """Of every model and ensemble, by name."""
    return {name: make(material) for name, make in CASES.items()}


def contracts(configs: Mapping[str, model_config_pb2.ModelConfig]) -> dict[str, Contract]:
    """From configs; an ensemble is called as its steps must be."""
    return {name: _contract(config, configs) for name, config in configs.items()}


def _contract(config: model_config_pb2.ModelConfig, configs: Mapping[str, model_config_pb2.ModelConfig]) -> Contract:
    steps = tuple(step.model_name for step in config.ensemble_scheduling.step)
    parts = [config, *(configs[step] for step in steps)]
    return Contract(
        config.name,
        {each.name: each.optional for each in config.input},
        config.max_batch_size > 0,
        any(part.HasField("sequence_batching") for part in parts),
        any(part.model_transaction_policy.decoupled for part in parts),
        steps,
    )


def read_configs(repository: Path, profile: str) -> dict[str, model_config_pb2.ModelConfig]:
    """The configs that a server of a profile reads."""
    found = {}
    for common in sorted(repository.glob("*/config.pbtxt")):
        own = common.parent / "configs" / f"{profile}.pbtxt"
        text = (own if own.is_file() else common).read_text(encoding="utf-8")
        found[common.parent.name] = text_format.Parse(text, model_config_pb2.ModelConfig())
    return found


def request(contract: Contract, case: Case, number: int = 0) -> Inputs:
    """A whole request of its data: a step, or as many as it batches; they come in turn."""
    steps = case.streams[0]
    taken = [steps[(number * case.batch + item) % len(steps)] for item in range(case.batch)]
    if not contract.batched:
        return taken[0]
    items = [rows(step) for step in taken]
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def uncovered(contract: Contract, case: Case) -> set[str]:
    """Inputs that are neither sent in every step nor left out for a reason, and those sent that it does not have."""
    expected = set(contract.inputs) - set(LEFT_OUT.get(contract.name, {}))
    return {name for stream in case.streams for step in stream for name in expected ^ set(step)}


def write_case(case: Case, folder: Path) -> Path:
    """The file of perf_analyzer's `--input-data`."""
    data: list[Any] = [[_step(step) for step in stream] for stream in case.streams]
    path = folder / f"{case.model}.json"
    path.write_text(json.dumps({"data": data if len(data) > 1 else data[0]}))
    return path


def _step(inputs: Inputs) -> dict[str, Any]:
    return {name: _content(value) for name, value in inputs.items()}


def _content(value: Tensor | str) -> dict[str, Any]:
    """Text as it is, numbers as their bytes."""
    if isinstance(value, str):
        return {"content": [value], "shape": [1]}
    raw = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"content": {"b64": raw}, "shape": list(value.shape)}


def _transcribe(material: Material) -> Case:
    told = {"SOURCE_LANGUAGE": SOURCE, "CONTEXT": SPOKEN[-1]}
    return Case("transcribe", [[{"AUDIO": audio, **told} for audio in material.speech]])


def _translate(material: Material) -> Case:
    passed = {"DETECTED_LANGUAGE": SOURCE, "TARGET_LANGUAGE": TARGET, **_OK}
    return Case("translate", [[{"SOURCE_TEXT": text, **passed} for text in SPOKEN]])


def _synthesize(material: Material) -> Case:
    steps: list[Inputs] = []
    for sentence, text in enumerate(TRANSLATED):
        wishes = {name: value for name, value in _segment(material, sentence).items() if name in _VOICED}
        steps.append(
            {"TARGET_TEXT": text, **wishes, "SOURCE_TEXT": SPOKEN[sentence], "DETECTED_LANGUAGE": SOURCE, **_OK}
        )
    return Case("synthesize", [steps])


def _speech(material: Material) -> Case:
    segments = [_segment(material, sentence) for sentence in range(len(SPOKEN))]
    return Case("speech", [[segment | {"CONTEXT": SPOKEN[-1]} for segment in segments]])


def _segment(material: Material, sentence: int) -> dict[str, Tensor | str]:
    """What the client sends of a segment whose speaker has agreed to be imitated."""
    voice: dict[str, Tensor | str] = {"VOICE": material.speech[0], "VOICE_CONSENT": np.array([True])}
    return material.segment(sentence, STREAM_ID) | voice


def _detect(material: Material) -> Case:
    """A request holds the key frames of a chunk."""
    keys = chunk_plan(60)[1].keys
    return Case("detect", [[{"FRAMES": material.frame(key)} for key in keys]], len(keys))


def _track(material: Material) -> Case:
    return Case("track", [[_tracked(material, chunk) for chunk in stream] for stream in _sequences()])


def _tracked(material: Material, chunk: Chunk) -> Inputs:
    boxes, scores = material.boxes
    shown = np.arange(len(chunk.keys)) % len(boxes)
    times = material.faces(chunk)
    return {
        "BOXES": boxes[shown],
        "SCORES": scores[shown],
        "KEYFRAME_MS": times["KEYFRAME_MS"],
        "QUERY_MS": times["QUERY_MS"],
    }


def _faces(material: Material) -> Case:
    return Case("faces", [[material.faces(chunk) for chunk in stream] for stream in _sequences()])


def _sequences() -> list[list[Chunk]]:
    """The same rhythm, from other pictures on."""
    plan = chunk_plan(100)[:CHUNKS]
    shift = CHUNKS * 25
    return [[_later(chunk, turn * shift) for chunk in plan] for turn in range(SEQUENCES)]


def _later(chunk: Chunk, frames: int) -> Chunk:
    keys, queries = (tuple(number + frames for number in numbers) for numbers in (chunk.keys, chunk.queries))
    return Chunk(keys, queries, chunk.sent_at + frames)


def _mel(material: Material) -> Case:
    return Case("mel", [[{name: step[name] for name in ("AUDIO", "FRAME_OFFSETS_MS")} for step in _dubbed(material)]])


def _lips(material: Material) -> Case:
    """A request holds a whole batch of the client."""
    step = _dubbed(material)[0]
    mel = mel_windows(np.asarray(step["AUDIO"]), np.asarray(step["FRAME_OFFSETS_MS"]))
    return Case("lips", [[{"MEL": m, "FACES": face} for m, face in zip(mel, material.crops, strict=True)]], len(mel))


def _lipsync(material: Material) -> Case:
    return Case("lipsync", [_dubbed(material)])


def _dubbed(material: Material) -> list[Inputs]:
    """The whole batches of the first sentence."""
    whole = [batch for batch in batches(material.lengths_s[0]) if batch[1] == len(material.crops)]
    return [material.lipsync(0, first, count) for first, count in whole]


_OK = {"STATUS": "ok", "STATUS_MESSAGE": ""}  # of the step before
_VOICED = ("TARGET_LANGUAGE", "VOICE", "VOICE_CONSENT", "STREAM_ID", "SLOT_MS", "LIMIT_MS", "FIT")
CASES: dict[str, Callable[[Material], Case]] = {
    "transcribe": _transcribe,
    "translate": _translate,
    "synthesize": _synthesize,
    "detect": _detect,
    "track": _track,
    "mel": _mel,
    "lips": _lips,
    "speech": _speech,
    "faces": _faces,
    "lipsync": _lipsync,
}
