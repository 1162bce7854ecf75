"""Reads the weights of a TorchScript archive without running anything of it.

`torch.jit.load` compiles and can run the code that an archive carries. Its weights are a pickle of plain objects and
one file per tensor, which this reads with an unpickler that knows tensors and inert objects only.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DEPTH = 32  # modules within modules; an archive that nests deeper is not one of ours


class UnsafeArchiveError(Exception):
    """The archive names something that is neither tensor nor plain object; the message is that name."""


def is_torchscript(path: Path) -> bool:
    """Whether a zip file is a TorchScript archive: only they hold their constants apart."""
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every parameter and buffer by its name in the module, as `state_dict` gives them."""
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].split("/")[0]
        with archive.open(f"{folder}/data.pkl") as file:
            module = _Unpickler(file, archive, folder).load()
    return dict(_tensors(module, "", DEPTH))


class _Object:
    """A module or a value of a type that the archive's code defines: its attributes and nothing else."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    """Makes tensors and `_Object`s; every other name ends it."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder
        self._flat: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__") or module in {"torch.jit._pickle", "torch.device"}:
            return _Object
        if module == "torch" and (name in STORAGES or name == "device"):
            return STORAGES.get(name, _Object)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        raise UnsafeArchiveError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """The values of one storage, flat."""
        _, dtype, key, _, _ = pid
        if key not in self._flat:
            values = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            self._flat[key] = torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
        return self._flat[key]


def _tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of its storage; torch refuses one that reaches beyond it."""
    return flat.as_strided(size, stride, offset)


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Object):
        if depth == 0:
            raise ValueError("modules are nested too deeply")
        for key, inner in value.attributes.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key), depth - 1)
