"""Calls from inside a model to other models of the same server, so that no weight is loaded twice.

Decoupled models are not called so: a caller of those crashes after some hundred calls (tritonserver 2.51). Importable
only inside Triton's Python backend, which provides `triton_python_backend_utils`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from polylip.serving.errors import EngineError

Arrays = Mapping[str, npt.NDArray[Any]]
Outputs = dict[str, npt.NDArray[Any]]

TIMEOUT_US = 60_000_000  # of a call: a full-size voice on two busy cores takes seconds


def call(model: str, inputs: Arrays, outputs: tuple[str, ...]) -> Outputs:
    """Of a model that answers once. Raises EngineError."""
    return _read(model, _request(model, inputs, outputs).exec(), outputs)


def _request(model: str, inputs: Arrays, outputs: tuple[str, ...]) -> Any:
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in inputs.items()]
    return pb_utils.InferenceRequest(
        model_name=model, inputs=tensors, requested_output_names=list(outputs), timeout=TIMEOUT_US
    )


def _read(model: str, answer: Any, outputs: tuple[str, ...]) -> Outputs:
    """Copies: the tensors' memory is another's when the answer is gone."""
    if answer.has_error():
        raise EngineError(f"{model}: {answer.error().message()}")
    return {name: pb_utils.get_output_tensor_by_name(answer, name).as_numpy().copy() for name in outputs}
