"""Plain data on the disk and back: dataclasses, enums and arrays in one zip file, written whole or not at all.

A file holds `state.json` and its arrays as .npy, never a pickle: what is read cannot run anything.
"""

from __future__ import annotations

import io
import json
import os
import types
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

STATE = "state.json"


def pack(value: Any) -> bytes:
    """Everything as it is now, ready to be written."""
    arrays: list[np.ndarray[Any, Any]] = []
    text = json.dumps(_plain(value, arrays), ensure_ascii=False)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(STATE, text)
        for number, array in enumerate(arrays):
            with archive.open(f"{number}.npy", "w") as member:
                np.save(member, array, allow_pickle=False)
    return buffer.getvalue()


def unpack(content: bytes) -> Any:
    """Dicts, lists, numbers, texts and arrays. Raises ValueError for what `pack` has not made."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            text = archive.read(STATE).decode()

            def hook(found: dict[str, Any]) -> Any:
                if found.keys() == {"array"}:
                    member = io.BytesIO(archive.read(f"{found['array']}.npy"))
                    return np.load(member, allow_pickle=False)
                if found.keys() == {"pairs"}:
                    return {key: value for key, value in found["pairs"]}
                return found

            return json.loads(text, object_hook=hook)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"no snapshot ({error})") from None


def write_durable(path: Path, content: bytes) -> None:
    """Replace a file in one step that a power cut does not undo."""
    partial = path.with_name(f"{path.name}.new")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def rebuild(kind: Any, value: Any) -> Any:
    """What `kind` says, from what `unpack` gives. Raises TypeError, ValueError or KeyError where it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else rebuild(next(a for a in arguments if a is not type(None)), value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: rebuild(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    return _rebuilt_items(origin, arguments, value)


def _rebuilt_items(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if origin is list:
        return [rebuild(arguments[0], item) for item in value]
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(rebuild(k, item) for k, item in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {key: rebuild(arguments[1], item) for key, item in value.items()}
    return value


def _plain(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), arrays) for f in fields(value)}
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"pairs": [[key, _plain(item, arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(item, arrays) for item in value]
    return value
