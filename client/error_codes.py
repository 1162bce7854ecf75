"""A stable code for each way in which the server or the connection fails, read from what gRPC and tritonserver say.

docs/transport.md shows the table below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import grpc


class ErrorCode(StrEnum):
    """What went wrong with a request. The values are part of the report: they never change their meaning."""

    SERVER_LOST = "server_lost"
    FROZEN = "frozen"
    UNAVAILABLE = "unavailable"
    QUEUE_FULL = "queue_full"
    MODEL_NOT_READY = "model_not_ready"
    SEQUENCE_LOST = "sequence_lost"
    DEADLINE = "deadline"
    UNKNOWN_MODEL = "unknown_model"
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    ENGINE_FAILED = "engine_failed"
    PYTHON_MODEL_DIED = "python_model_died"
    CANCELLED = "cancelled"
    TLS = "tls"
    INTERNAL = "internal"

    @property
    def retry(self) -> bool:
        """Whether the same request may well succeed when it is sent again."""
        return MEANINGS[self].retry


@dataclass(frozen=True)
class Meaning:
    """One row of the table."""

    text: str
    retry: bool = False
    note: str = ""  # on the retry


MEANINGS = {
    ErrorCode.SERVER_LOST: Meaning("the connection ended: the server died or was stopped, or the network broke", True),
    ErrorCode.FROZEN: Meaning("the connection is there, but the server has stopped answering pings", True),
    ErrorCode.UNAVAILABLE: Meaning("the server is starting or stopping and takes no requests", True),
    ErrorCode.QUEUE_FULL: Meaning("the model's queue is full", True),
    ErrorCode.MODEL_NOT_READY: Meaning("the model is in the repository but not loaded", True),
    ErrorCode.SEQUENCE_LOST: Meaning(
        "the server does not know the sequence: no START, never begun, ended, idle for too long",
        note="in a new sequence",
    ),
    ErrorCode.DEADLINE: Meaning("no answer within the request's deadline", note="the time is up"),
    ErrorCode.UNKNOWN_MODEL: Meaning("the server has no model of this name or version"),
    ErrorCode.BAD_REQUEST: Meaning("inputs are missing or have the wrong name, type, shape or size"),
    ErrorCode.TOO_LARGE: Meaning("the message is larger than a message may be"),
    ErrorCode.ENGINE_FAILED: Meaning("the model's own code answered with an error: it refused the content, or failed"),
    ErrorCode.PYTHON_MODEL_DIED: Meaning(
        "the process of a Python model is gone; the server must be started again",
        True,
        "yes, once the server is started again; no when that does not happen within 5 s",
    ),
    ErrorCode.CANCELLED: Meaning("the call was cancelled"),
    ErrorCode.TLS: Meaning("the TLS handshake failed"),
    ErrorCode.INTERNAL: Meaning("anything else; the message says what"),
}

# What tritonserver 2.51 writes, the same on streams, which carry no status, and behind unary calls; first match wins.
_MESSAGES = [
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"unknown model: .* has no available versions|model '.*' is not ready", ErrorCode.MODEL_NOT_READY),
        (r"request for unknown model", ErrorCode.UNKNOWN_MODEL),
        (
            r"must specify the START flag|must specify a non-zero or non-empty correlation ID|"
            r"^track: sequence \d+ is not running",
            ErrorCode.SEQUENCE_LOST,
        ),
        (r"stub process .*is not healthy|stub process .*(unexpectedly|terminated|killed)", ErrorCode.PYTHON_MODEL_DIED),
        (r"server is stopping|has stopped accepting new inference requests|server not ready", ErrorCode.UNAVAILABLE),
        (r"exceeds maximum queue size", ErrorCode.QUEUE_FULL),
        (r"request timeout expired", ErrorCode.DEADLINE),
        (r"message larger than max", ErrorCode.TOO_LARGE),
        (r"protocol is restricted", ErrorCode.BAD_REQUEST),
        (
            r"^(\[request id: .*\] )?(unexpected shape for input|expected \d+ inputs but got|"
            r"inference input '.*' data-type|input byte size mismatch|input '.*' batch size does not match|"
            r"inference request batch-size must be)|doesn't support models with decoupled",
            ErrorCode.BAD_REQUEST,
        ),
        (r"failed to process the request\(s\) for model", ErrorCode.ENGINE_FAILED),
    )
]
_MODELS_OWN = re.compile(r"^[a-z_]\w*: ")  # our models put their name before what they say
# What gRPC itself writes, always with a status.
_TRANSPORT = [
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"message larger than max", ErrorCode.TOO_LARGE),
        (r"handshake|\bssl\b|\btls\b|certificate|verification check", ErrorCode.TLS),
        (r"ping timeout|keepalive", ErrorCode.FROZEN),
        # "Internal error from Core" is a write on a connection that has just broken.
        (r"socket closed|connection reset|broken pipe|rst_stream|goaway|error from core", ErrorCode.SERVER_LOST),
    )
]
_STATUSES = {
    grpc.StatusCode.UNAVAILABLE: ErrorCode.SERVER_LOST,
    grpc.StatusCode.DEADLINE_EXCEEDED: ErrorCode.DEADLINE,
    grpc.StatusCode.CANCELLED: ErrorCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND: ErrorCode.UNKNOWN_MODEL,
    grpc.StatusCode.INVALID_ARGUMENT: ErrorCode.BAD_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: ErrorCode.BAD_REQUEST,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorCode.QUEUE_FULL,
}
_OF_MODELS = (None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def error_code(status: grpc.StatusCode | None, message: str) -> ErrorCode:
    """The code for a failure: gRPC's status, None for an error inside a stream, and the message that came with it."""
    for pattern, code in _MESSAGES if status is None else [*_MESSAGES, *_TRANSPORT]:
        if pattern.search(message):
            return code
    if status in _OF_MODELS and _MODELS_OWN.search(message):
        return ErrorCode.ENGINE_FAILED
    return ErrorCode.INTERNAL if status is None else _STATUSES.get(status, ErrorCode.INTERNAL)


def markdown() -> str:
    """The table of docs/transport.md."""
    lines = ["| code | what happened | sent again |", "|---|---|---|"]
    for code, meaning in MEANINGS.items():
        lines.append(f"| `{code}` | {meaning.text} | {meaning.note or ('yes' if meaning.retry else 'no')} |")
    return "\n".join(lines)
