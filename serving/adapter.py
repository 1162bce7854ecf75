"""What every model.py shares: read tensors of a request, build the response, turn exceptions into Triton errors.

Importable only inside Triton's Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from polylip.serving import logs
from polylip.serving.errors import UnsupportedError

logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # of engines, into the server's log

Outputs = Mapping[str, npt.NDArray[Any] | str | list[str]]
Arrays = Mapping[str, npt.NDArray[Any]]

STREAM_ID_HEADER = "x-stream-id"  # of every call of the client; tritonserver forwards it as a parameter of the request


def parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of the model's config.pbtxt, from the `args` of `initialize`."""
    config = json.loads(args["model_config"])
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def engine_name(args: Mapping[str, str]) -> str:
    """The engine that the config asks for; `python` where the work is the model's own."""
    return parameters(args).get("engine", "python")


def version_dir(args: Mapping[str, str]) -> str:
    """The folder that holds model.py and the files beside it."""
    return f"{args['model_repository']}/{args['model_version']}"


def array(request: Any, name: str) -> npt.NDArray[Any]:
    """The numeric input `name`."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()  # type: ignore[no-any-return]


def optional_array(request: Any, name: str) -> npt.NDArray[Any] | None:
    """The numeric input `name`, or None when the request leaves it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def optional_int(request: Any, name: str) -> int | None:
    """The integer input `name` of shape [1], or None when the request leaves it out."""
    value = optional_array(request, name)
    return None if value is None else int(value.reshape(-1)[0])


def text(request: Any, name: str, default: str = "") -> str:
    """The string input `name` of shape [1], or `default` when the request leaves it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    value = tensor.as_numpy().reshape(-1)
    if value.size != 1:
        raise ValueError(f"{name} must hold one string, it holds {value.size}")
    return str(value[0].decode("utf-8"))


def sequence_ends(request: Any) -> tuple[bool, bool]:
    """Whether the request is the first of its sequence, and whether it is the last."""
    flags = request.flags()
    return (
        bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
        bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
    )


def row(request: Any, name: str) -> npt.NDArray[Any] | None:
    """The one row of the numeric input `name` of a model that Triton batches; None when the request leaves it out."""
    value = optional_array(request, name)
    if value is None:
        return None
    if value.shape[0] != 1:
        raise ValueError(f"{name} must hold one row per request, it has shape {list(value.shape)}")
    one: npt.NDArray[Any] = value[0]
    return one


def flag(request: Any, name: str) -> bool:
    """The boolean input `name`; False when the request leaves it out."""
    value = optional_array(request, name)
    return value is not None and bool(value.reshape(-1)[0])


def request_parameters(request: Any) -> dict[str, Any]:
    """The parameters that came with a request, forwarded headers among them."""
    found = json.loads(request.parameters() or "{}")
    return found if isinstance(found, dict) else {}


def stream_id(request: Any) -> str:
    """The id of the caller's media stream, from its header or the input STREAM_ID; empty where it gave none."""
    try:
        return str(request_parameters(request).get(STREAM_ID_HEADER, "")) or text(request, "STREAM_ID")
    except ValueError:
        return ""


def row_response(outputs: Outputs) -> Any:
    """A response of a model that Triton batches: each output becomes the one row of its tensor."""
    rows = {name: _tensor(name, value) for name, value in outputs.items()}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, t.as_numpy()[None]) for name, t in rows.items()])


def response(outputs: Outputs) -> Any:
    """A response with these tensors; a str becomes a STRING tensor of shape [1], a list of str one of shape [n]."""
    return pb_utils.InferenceResponse([_tensor(name, value) for name, value in outputs.items()])


def error_response(error: Exception, model: str, stream: str = "") -> Any:
    """The Triton error for an exception, with its message; what is not the caller's fault is logged, without it."""
    cause = " ".join(str(error).split())  # OpenCV's end with a line break
    if isinstance(error, UnsupportedError):
        code = pb_utils.TritonError.UNSUPPORTED
    elif isinstance(error, ValueError):
        code = pb_utils.TritonError.INVALID_ARG
    else:
        code = pb_utils.TritonError.INTERNAL
        pb_utils.Logger.log_error(f"{model}: {logs.named(stream)}: {logs.cause(error)}")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{model}: {cause}", code))


def finish(
    sender: Any, model: str, stream: str, last: Callable[[], Outputs] | None = None
) -> Callable[[Exception | None], None]:
    """What ends a decoupled request, with an error or without; `last` makes the row of an answer that is also the end.

    Answer and end go in one message: after an error sent apart from it an ensemble never ends, and a model that calls
    this one from inside the server crashes of several messages (tritonserver 2.51).
    """

    def end(error: Exception | None) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is not None:
            sender.send(error_response(error, model, stream), flags=final)
        elif last is not None:
            sender.send(row_response(last()), flags=final)
        else:
            sender.send(flags=final)

    return end


def answer(model: str, handle: Callable[[Any], Outputs], requests: list[Any]) -> list[Any]:
    """One response per request, in order; a request that fails does not touch the others."""
    responses = []
    for request in requests:
        try:
            responses.append(response(handle(request)))
        except Exception as error:  # the process must outlive any request
            responses.append(error_response(error, model, stream_id(request)))
    return responses


def answer_rows(
    model: str, read: Callable[[Any], Any], handle: Callable[[list[Any]], list[Outputs]], requests: list[Any]
) -> list[Any]:
    """One response per request, in order, each one row; `handle` gets together what `read` made of the requests.

    A request that cannot be read gets its own error.
    """
    responses: dict[int, Any] = {}
    jobs: dict[int, Any] = {}
    for index, request in enumerate(requests):
        try:
            jobs[index] = read(request)
        except Exception as error:  # the process must outlive any request
            responses[index] = error_response(error, model, stream_id(request))
    try:
        done = [row_response(outputs) for outputs in handle(list(jobs.values()))]
    except Exception as error:
        done = [error_response(error, model, stream_id(requests[index])) for index in jobs]
    responses.update(zip(jobs, done, strict=True))
    return [responses[index] for index in range(len(requests))]


def answer_together(
    model: str, handle: Callable[..., Arrays], names: tuple[str, ...], requests: list[Any]
) -> list[Any]:
    """Like `answer`, with the requests joined along their first dimension into one call of `handle`.

    `handle` takes the arrays of the inputs `names` and returns outputs with the same first dimension. Requests that do
    not fit together, or of which one fails, are handled one by one.
    """
    inputs = [[array(request, name) for name in names] for request in requests]
    if len(requests) > 1 and all(_fits(own, inputs[0]) for own in inputs):
        with contextlib.suppress(Exception):  # one of them is at fault: below it gets its own error
            outputs = handle(*(np.concatenate(parts) for parts in zip(*inputs, strict=True)))
            ends = np.cumsum([len(own[0]) for own in inputs])[:-1]
            split = {name: np.split(value, ends) for name, value in outputs.items()}
            return [response({name: parts[i] for name, parts in split.items()}) for i in range(len(requests))]
    return answer(model, lambda request: handle(*(array(request, name) for name in names)), requests)


def _fits(own: list[npt.NDArray[Any]], other: list[npt.NDArray[Any]]) -> bool:
    return len({len(a) for a in own}) == 1 and all(a.shape[1:] == b.shape[1:] for a, b in zip(own, other, strict=True))


def _tensor(name: str, value: npt.NDArray[Any] | str | list[str]) -> Any:
    if isinstance(value, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(value))
    strings = [value] if isinstance(value, str) else value
    return pb_utils.Tensor(name, np.array([s.encode("utf-8") for s in strings], dtype=np.object_))
