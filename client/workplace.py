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
from polylip.client.journal import Journal, is_kept_dub
from polylip.client.options import DubOptions
from polylip.client.snapshot import pack, rebuild, unpack, write_durable

NAME_LENGTH = 40  # characters of the output's name in the folder's, so that a long name stays short enough
CHECKPOINT, BEGUN = "checkpoint.zip", "begun.zip"
KEPT_SUFFIXES = {".h264", ".f32", ".zip"}  # what else is there was not finished
EDGE_BYTES = 1 << 20  # of the input that are compared, at either end
FORMAT = 2  # of what is kept; counted up whenever an older job could no longer be continued
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
class _Begun:
    key: Key
    engines: dict[str, str]
    runs: int  # that each went on from the one before


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
        self._checkpoint, self._begun_file = self.folder / CHECKPOINT, self.folder / BEGUN
        self._output = options.output
        self._key = _key(options)
        self.done = False  # the output is written
        self.marks = Marks()
        self.state: Any = None  # to go on from: what the job has saved, unpacked
        self.runs = 1  # this one, and those before it that it goes on from
        self._earlier: _Begun | None = None
        if options.resume and is_resumable(options.output):
            self._find()
            self._find_begun()
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
            if not self._is_usable(path):
                path.unlink()
        self.journal = Journal(self.folder)

    def begin(self, engines: dict[str, str]) -> None:
        """From now on a dub that has come whole is something to go on from, if the engines stay. Raises OSError."""
        if self._earlier is not None:
            if self.state is None and self._earlier.engines != engines:
                self.journal.clear()
            else:
                self.runs = self._earlier.runs + 1
        write_durable(self._begun_file, pack(_Begun(self._key, engines, self.runs)))

    @property
    def resumable(self) -> bool:
        """Whether there is something to go on from."""
        return not self.done and is_resumable(self._output)

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

    def _find_begun(self) -> None:
        try:
            found: _Begun = rebuild(_Begun, unpack(self._begun_file.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            raise self._refusal("it is damaged") from None
        self._compare(found.key)
        self._earlier = found

    def _is_usable(self, path: Path) -> bool:
        """Before the first checkpoint only dubs are whole."""
        if self.state is not None:
            return path.suffix in KEPT_SUFFIXES
        return self._earlier is not None and (path == self._begun_file or is_kept_dub(path))

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
    """Whether a job with this output has left something to go on from: a checkpoint, or a dub that came whole."""
    folder = workplace_folder(output)
    if (folder / CHECKPOINT).is_file():
        return True
    return (folder / BEGUN).is_file() and any(is_kept_dub(path) for path in folder.iterdir())


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
