"""KServe v2 over gRPC: numpy arrays and strings to a ModelInferRequest, a ModelInferResponse back to them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import ServerError

Tensor = npt.NDArray[Any]
Inputs = Mapping[str, Tensor | str]

# A message holds a chunk of raw analysis frames (about 4 MB) or of audio; 64 MiB leaves room and still bounds memory.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
ENVELOPE_BYTES = 64 * 1024  # left for names, shapes and parameters
ANSWER_WINDOW_BYTES = 1024 * 1024  # on their way at once: the mouths of 16 frames are 0.4 MB
BINARY_TENSORS = frozenset({"MOUTHS_JPEG"})  # STRING tensors that hold no text
RECONNECT_FIRST_MS, RECONNECT_LAST_MS = 200, 1000  # between attempts to connect again
CONNECT_MS = 5_000  # for an attempt: a frozen server's kernel takes the connection, but nobody speaks


# Of any channel. Without keepalive: every call needs a deadline.
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_LAST_MS),
    ("grpc.enable_http_proxy", 0),  # that of the environment is for the web; it knows no server on this machine
]


@dataclass(frozen=True)
class Keepalive:
    """When a frozen server is noticed: nothing came for `time_s`, then a ping went unanswered for `timeout_s`.

    tritonserver 2.51 hangs up on the third ping between two answers ("Too many pings"), so pings alone would end every
    connection at rest. A tiny call every `heartbeat_s` has a healthy server say something before a ping is due.
    """

    time_s: float = 10.0
    timeout_s: float = 10.0
    alone: bool = (
        False  # gRPC has the channels of a process share one connection to a server, unless they want their own
    )

    @property
    def heartbeat_s(self) -> float:
        return 0.4 * self.time_s

    def options(self) -> list[tuple[str, int]]:
        """Arguments of a channel with heartbeats."""
        timeout_ms = round(self.timeout_s * 1000)
        return [
            ("grpc.keepalive_time_ms", round(self.time_s * 1000)),
            ("grpc.keepalive_timeout_ms", timeout_ms),
            ("grpc.http2.ping_timeout_ms", timeout_ms),  # without it the ping has no deadline
            ("grpc.http2.max_pings_without_data", 0),  # its default of 2 would hold back the one that matters
            # Its pings would have the same deadline, so a freeze would be noticed sooner or later by chance.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", ANSWER_WINDOW_BYTES),
            ("grpc.use_local_subchannel_pool", int(self.alone)),
        ]


KEEPALIVE = Keepalive()


@dataclass(frozen=True)
class SequencePosition:
    """Place of a request in a sequence of a sequence-batched model."""

    id: int
    start: bool = False
    end: bool = False
    timeout_s: float = 0.0  # how long the server may let the request wait; 0: as long as it likes
    replaces: int = 0  # id of the caller's earlier sequence whose place this one takes (`dub`)


def new_sequence_id() -> int:
    """A random id of 63 bits that is not 0."""
    return secrets.randbelow(2**63 - 1) + 1


def rows(inputs: Inputs) -> dict[str, Tensor]:
    """Inputs of a model that Triton batches (the speech models): each becomes the one row of its tensor."""
    return {name: _tensor(value)[None] for name, value in inputs.items()}


def _tensor(value: Tensor | str) -> Tensor:
    """A str is a STRING tensor of shape [1]."""
    return np.array([value.encode("utf-8")], dtype=np.object_) if isinstance(value, str) else value


def row(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one row of each output of a model that Triton batches."""
    return {name: value[0] for name, value in outputs.items()}


def infer_request(
    model: str, inputs: Inputs, request_id: str = "", sequence: SequencePosition | None = None
) -> service_pb2.ModelInferRequest:
    """A request with raw contents; a str is a STRING tensor of shape [1]. Raises ServerError when it is too large."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    size = ENVELOPE_BYTES
    for name, value in inputs.items():
        array = _tensor(value)
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        if array.dtype == np.object_:
            serialized = serialize_byte_tensor(array)
            raw = serialized.item() if serialized.size else b""
        else:
            raw = np.ascontiguousarray(array).tobytes()
        size += len(raw)
        if size > MAX_MESSAGE_BYTES:  # gRPC would end the whole stream, with all that is open on it
            limit = MAX_MESSAGE_BYTES // 1024**2
            raise ServerError(f"{model}: the request is larger than {limit} MiB; send less", ErrorCode.TOO_LARGE)
        request.raw_input_contents.append(raw)
    if sequence is not None:
        request.parameters["sequence_id"].int64_param = sequence.id
        request.parameters["sequence_start"].bool_param = sequence.start
        request.parameters["sequence_end"].bool_param = sequence.end
        if sequence.timeout_s:
            request.parameters["timeout"].int64_param = round(sequence.timeout_s * 1e6)
        if sequence.replaces:
            request.parameters["replaces"].int64_param = sequence.replaces
    return request


def read_outputs(response: service_pb2.ModelInferResponse) -> dict[str, Tensor]:
    """Output tensors by name; a STRING tensor becomes an object array of str, or of bytes where it holds pictures."""
    outputs: dict[str, Tensor] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            items = deserialize_bytes_tensor(raw)
            strings = items if output.name in BINARY_TENSORS else [item.decode("utf-8") for item in items]
            outputs[output.name] = np.array(strings, dtype=np.object_).reshape(output.shape)
        else:
            array = np.frombuffer(raw, dtype=triton_to_np_dtype(output.datatype))
            outputs[output.name] = array.reshape(output.shape)
    return outputs


def is_final(response: service_pb2.ModelInferResponse) -> bool:
    """Whether this is the last response of its request."""
    return bool(response.parameters["triton_final_response"].bool_param)
