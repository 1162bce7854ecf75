"""A deep probe: one tiny real inference per model of a repository. Readiness alone lies (docs/server.md)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.wire import CHANNEL_OPTIONS, Inputs, SequencePosition, infer_request, new_sequence_id, rows

READY_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 60.0  # of a full-size voice on two busy cores; the first inference may still import its engine

_AUDIO = np.zeros(8000, dtype=np.float32)  # half a second at 16 kHz
_FRAMES = np.zeros((1, 360, 640, 3), dtype=np.uint8)  # the size that engines get compiled for
_FACES = np.zeros((1, 96, 96, 3), dtype=np.uint8)
_INSTANT = np.zeros(1, dtype=np.int64)
PROBES: dict[str, Inputs] = {
    "transcribe": rows({"AUDIO": _AUDIO, "SOURCE_LANGUAGE": "en"}),
    "translate": rows({"SOURCE_TEXT": "yes", "DETECTED_LANGUAGE": "en", "TARGET_LANGUAGE": "es"}),
    "synthesize": rows({"TARGET_TEXT": "a", "TARGET_LANGUAGE": "es"}),
    "detect": {"FRAMES": _FRAMES},
    "mel": {"AUDIO": _AUDIO, "FRAME_OFFSETS_MS": _INSTANT},
    "lips": {"MEL": np.full((1, 80, 16), -4, dtype=np.float32), "FACES": _FACES},
    "speech": rows({"AUDIO": _AUDIO, "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es", "KNOWN_TEXT": "yes"}),
    "faces": {"FRAMES": _FRAMES, "KEYFRAME_MS": _INSTANT, "QUERY_MS": _INSTANT},  # goes through `track`
    "lipsync": {"AUDIO": _AUDIO, "FRAME_OFFSETS_MS": _INSTANT, "FACES": _FACES},
}
SEQUENCE_MODELS = frozenset({"faces"})


def is_ready(url: str) -> bool:
    """Whether the server says that all its models are loaded."""
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=READY_TIMEOUT_S).ready)
        except grpc.RpcError:
            return False


def loaded_models(url: str) -> set[str]:
    """Names of the models that the server has loaded. Raises grpc.RpcError."""
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=READY_TIMEOUT_S)
    return {model.name for model in index.models}


def probe_models(
    url: str, repository: Path, timeout_s: float = CALL_TIMEOUT_S, models: Iterable[str] = ()
) -> str | None:
    """Infer once with every model in the repository, or with `models`; None when all answer, else the first failure.

    `track` is a part of `faces` alone: it has no probe of its own.
    """
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        wanted = set(models) or {path.parent.name for path in repository.glob("*/config.pbtxt")}
        for name in [name for name in PROBES if name in wanted]:
            failure = _probe(stub, name, timeout_s)
            if failure:
                return f"model {name}: {failure}"
    return None


def _probe(stub: service_pb2_grpc.GRPCInferenceServiceStub, model: str, timeout_s: float) -> str | None:
    sequence = SequencePosition(new_sequence_id(), start=True, end=True) if model in SEQUENCE_MODELS else None
    request = infer_request(model, PROBES[model], secrets.token_hex(4), sequence)
    try:
        for reply in stub.ModelStreamInfer(iter([request]), timeout=timeout_s):
            if reply.error_message:
                return str(reply.error_message)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return None
