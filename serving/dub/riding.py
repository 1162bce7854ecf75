"""What the picture branch of `dub` sends past `synthesize`, as one tensor of bytes: all that `join` needs of it.

After a decoupled step Triton takes only what has passed through it, so the picture rides along with the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Ride:
    """Numbers and texts by name, and the segment's frames as they came."""

    arrays: Arrays
    texts: dict[str, str]
    frames: list[bytes]


def pack(arrays: Mapping[str, npt.NDArray[Any]], texts: Mapping[str, str], frames: Sequence[bytes]) -> list[bytes]:
    """The elements of the tensor: what there is, then the arrays, then the frames."""
    ordered = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    shapes = {name: [value.dtype.str, list(value.shape)] for name, value in ordered.items()}
    head = json.dumps({"arrays": shapes, "texts": {name: str(text) for name, text in texts.items()}})
    return [head.encode("utf-8"), *(value.tobytes() for value in ordered.values()), *frames]


def unpack(elements: Sequence[bytes]) -> Ride:
    """From `pack`. Raises ValueError for anything else."""
    if not elements:
        raise ValueError("nothing rides along; `look` comes before this model")
    head = json.loads(elements[0])
    arrays = {
        name: np.frombuffer(data, np.dtype(kind)).reshape(shape)
        for (name, (kind, shape)), data in zip(head["arrays"].items(), elements[1:], strict=False)
    }
    return Ride(arrays, head["texts"], list(elements[1 + len(arrays) :]))
