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

Tensor = npt.NDArray[Any]
Inputs = Mapping[str, Tensor | str]

# A message holds a chunk of raw analysis frames (about 4 MB) or of audio; 64 MiB leaves room and still bounds memory.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A frozen server is noticed after keepalive_time + ping_timeout; without the last the ping has no deadline.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
]


@dataclass(frozen=True)
class SequencePosition:
    """Place of a request in a sequence of a sequence-batched model."""

    id: int
    start: bool = False
    end: bool = False


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
    """A request with raw contents; a str is a STRING tensor of shape [1]."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, value in inputs.items():
        array = _tensor(value)
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        if array.dtype == np.object_:
            raw = serialize_byte_tensor(array)
            request.raw_input_contents.append(raw.item() if raw.size else b"")
        else:
            request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    if sequence is not None:
        request.parameters["sequence_id"].int64_param = sequence.id
        request.parameters["sequence_start"].bool_param = sequence.start
        request.parameters["sequence_end"].bool_param = sequence.end
    return request


def read_outputs(response: service_pb2.ModelInferResponse) -> dict[str, Tensor]:
    """Output tensors by name; a STRING tensor becomes an object array of str."""
    outputs: dict[str, Tensor] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            strings = [item.decode("utf-8") for item in deserialize_bytes_tensor(raw)]
            outputs[output.name] = np.array(strings, dtype=np.object_).reshape(output.shape)
        else:
            array = np.frombuffer(raw, dtype=triton_to_np_dtype(output.datatype))
            outputs[output.name] = array.reshape(output.shape)
    return outputs


def is_final(response: service_pb2.ModelInferResponse) -> bool:
    """Whether this is the last response of its request."""
    return bool(response.parameters["triton_final_response"].bool_param)
