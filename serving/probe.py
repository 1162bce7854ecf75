"""A deep probe: one tiny real inference per model of a repository. Readiness alone lies (docs/server.md)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import cv2
import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.wire import Inputs, SequencePosition, infer_request, new_sequence_id, rows
from polylip.serving.supervisor_identity import Endpoint

READY_TIMEOUT_S = 2.0
NO_ANSWER = grpc.StatusCode.DEADLINE_EXCEEDED.name  # how the failure of a probe begins that nobody answered in time
CALL_TIMEOUT_S = 60.0  # of a full-size voice on two busy cores; the first inference may still import its engine

_AUDIO = np.zeros(8000, dtype=np.float32)  # half a second at 16 kHz
_FRAMES = np.zeros((1, 360, 640, 3), dtype=np.uint8)  # the size that engines get compiled for
_FACES = np.zeros((1, 96, 96, 3), dtype=np.uint8)
_INSTANT = np.zeros(1, dtype=np.int64)
_JPEG = np.array([cv2.imencode(".jpg", _FRAMES[0])[1].tobytes()], np.object_)
# A tiny request per model; a new model or ensemble gets its line here, and one that is sequence-batched a place below.
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
    "dub": {  # goes through `gate`, `look`, `join` and `mouth`
        "AUDIO": _AUDIO[:0],
        "SOURCE_LANGUAGE": "en",
        "TARGET_LANGUAGE": "es",
        "FRAMES": _JPEG,
        "FRAME_MS": _INSTANT,
        "KNOWN_TEXT": "yes",
    },
}
SEQUENCE_MODELS = frozenset({"faces", "dub"})


def stub_of(channel: grpc.Channel) -> service_pb2_grpc.GRPCInferenceServiceStub:
    """The generated calls on a channel."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def endpoint(server: str | Endpoint) -> Endpoint:
    """A bare `host:port` is one without TLS."""
    return server if isinstance(server, Endpoint) else Endpoint(server)


def repository_models(repository: Path, models: Iterable[str] = ()) -> set[str]:
    """Names of the models of a repository, or `models`."""
    return set(models) or {path.parent.name for path in repository.glob("*/config.pbtxt")}


def is_ready(server: str | Endpoint) -> bool:
    """Whether the server says that all its models are loaded."""
    with endpoint(server).channel() as channel:
        try:
            return bool(stub_of(channel).ServerReady(service_pb2.ServerReadyRequest(), timeout=READY_TIMEOUT_S).ready)
        except grpc.RpcError:
            return False


def loaded_models(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> set[str]:
    """Names of the models that the server has loaded: those that it counts requests of. Raises grpc.RpcError."""
    answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=READY_TIMEOUT_S)
    return {model.name for model in answer.model_stats}


def probe_models(
    server: str | Endpoint, repository: Path, timeout_s: float = CALL_TIMEOUT_S, models: Iterable[str] = ()
) -> str | None:
    """Infer once with every model in the repository, or with `models`; None when all answer, else the first failure.

    A model without a probe of its own (`track`, `gate`) is a part of an ensemble that has one.
    """
    wanted = repository_models(repository, models)
    with endpoint(server).channel() as channel:
        for name in [name for name in PROBES if name in wanted]:
            failure = probe_model(stub_of(channel), name, timeout_s)
            if failure:
                return f"model {name}: {failure}"
    return None


def probe_model(stub: service_pb2_grpc.GRPCInferenceServiceStub, model: str, timeout_s: float) -> str | None:
    """Infer once; None when it answered, else what went wrong."""
    whole = SequencePosition(new_sequence_id(), start=True, end=True, timeout_s=timeout_s)
    sequence = whole if model in SEQUENCE_MODELS else None
    request = infer_request(model, PROBES[model], secrets.token_hex(4), sequence)
    try:
        for reply in stub.ModelStreamInfer(iter([request]), timeout=timeout_s):
            if reply.error_message:
                return str(reply.error_message)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return None
