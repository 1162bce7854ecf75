"""The folder beside the output in which a job keeps its finished parts, and what is needed to go on behind them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from polylip.client.errors import InputError
from polylip.client.journal import Journal
from polylip.client.options import DubOptions
from polylip.client.snapshot import pack, rebuild, unpack, write_durable

NAME_LENGTH = 40  # characters of the output's name in the folder's, so that a long name stays short enough
KEPT_SUFFIXES = {".h264", ".f32", ".zip"}  # what else is there was not finished
EDGE_BYTES = 1 << 20  # of the input that are compared, at either end
FORMAT = 1  # of what is kept; counted up whenever an older job could no longer be continued
# Of the options: where the server is and how it is reached may change from one run to the next.
FREE_OPTIONS = {"input", "output", "url", "tls", "reconnect_s", "resume"}


@dataclass(frozen=True)
class Key:
    """Which job it is: only the same one can go on."""

    input: dict[str, str]
    options: dict[str, str]
    versions: dict[str, str]


@dataclass(frozen=True)
class Marks:
    """How much of the files is whole."""

    picture_bytes: int = 0
    sound_bytes: int = 0
    last_pts: int | None = None  # of the last picture, in ticks of the output's clock


@dataclass(frozen=True)
class _Saved:
    key: Key
    marks: Marks
    state: Any  # uint8 array: the job's own snapshot


class Workplace:
    """Opened by one job at a time. Raises InputError where the job cannot go on, or another one is at work."""

    def __init__(self, options: DubOptions) -> None:
        self.folder = workplace_folder(options.output)
        self.pictures, self.sound = self.folder / "pictures.h264", self.folder / "sound.f32"
        self._checkpoint = self.folder / "checkpoint.zip"
        self._output = options.output
        self._key = _key(options)
        self.done = False  # the output is written
        self.marks = Marks()
        self.state: Any = None  # to go on from: what the job has saved, unpacked
        if options.resume:
            self._find()
        self._lock: int | None = None

    def enter(self) -> None:
        """Take the folder; what is in it and cannot be used goes. Raises InputError, OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise InputError(f"{self._output}: another job is writing it; wait, or choose another output") from None
        except OSError:
            pass  # a file system without locks
        for path in self.folder.iterdir():
            if self.state is None or path.suffix not in KEPT_SUFFIXES:
                path.unlink()
        self.journal = Journal(self.folder)

    @property
    def resumable(self) -> bool:
        """Whether there is something to go on from."""
        return not self.done and self._checkpoint.is_file()

    def save(self, marks: Marks, state: bytes) -> None:
        """From now on the job goes on from here."""
        write_durable(self._checkpoint, pack(_Saved(self._key, marks, np.frombuffer(state, np.uint8))))

    def leave(self) -> None:
        """Remove the folder, unless there is something to go on from. Safe to call twice."""
        if self._lock is None:
            return
        if not self.resumable:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def _find(self) -> None:
        with suppress(FileNotFoundError):
            content = self._checkpoint.read_bytes()
            try:
                found = unpack(content)
                self._compare(rebuild(Key, found["key"]))
                self.marks = rebuild(Marks, found["marks"])
                self.state = unpack(found["state"].tobytes())
                if not self._all_there():
                    raise ValueError
            except (ValueError, TypeError, KeyError):
                raise self._refusal("it is damaged") from None

    def _all_there(self) -> bool:
        pairs = (self.pictures, self.marks.picture_bytes), (self.sound, self.marks.sound_bytes)
        return all(path.is_file() and path.stat().st_size >= length for path, length in pairs)

    def _compare(self, earlier: Key) -> None:
        for name, what in (("input", "the input"), ("options", "the options"), ("versions", "the software")):
            changed = _differences(getattr(earlier, name), getattr(self._key, name))
            if changed:
                raise self._refusal(f"{what} changed since ({changed})")

    def _refusal(self, cause: str) -> InputError:
        return InputError(f"{self._output}: the earlier run cannot be continued: {cause}; run without --resume")


def workplace_folder(output: Path) -> Path:
    """Where a job with this output keeps its parts."""
    name = output.name
    if len(name) > NAME_LENGTH:
        name = f"{name[:NAME_LENGTH]}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return output.absolute().with_name(f".{name}.polylip")


def is_resumable(output: Path) -> bool:
    """Whether a job with this output has left something to go on from."""
    return (workplace_folder(output) / "checkpoint.zip").is_file()


def _key(options: DubOptions) -> Key:
    status = options.input.stat()
    return Key(
        {"size": str(status.st_size), "date": str(status.st_mtime_ns), "content": _edges(options.input)},
        {f.name: str(getattr(options, f.name)) for f in fields(options) if f.name not in FREE_OPTIONS},
        {"polylip": version("polylip"), "av": version("av"), "format": str(FORMAT)},
    )


def _edges(path: Path) -> str:
    """A digest of the first and the last bytes of a file: what tells two videos apart, however long they are."""
    with path.open("rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, path.stat().st_size - EDGE_BYTES))
        return hashlib.sha256(head + file.read(EDGE_BYTES)).hexdigest()


def _differences(earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Names of what is not the same."""
    names = [*now, *(name for name in earlier if name not in now)]
    return ", ".join(name for name in names if earlier.get(name) != now.get(name))
