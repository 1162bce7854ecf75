"""Files of weights on this machine: hashing and checking them, and taking those that the user already has."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from polylip.client.errors import InputError
from polylip.export.manifest import Model, WeightFile

CHUNK_BYTES = 1 << 18
SPARE_BYTES = 64 << 20  # disk space that stays free beside what is written


class MismatchError(InputError):
    """A file is not what the manifest states; the message names what was expected and what was found."""


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes | None: ...


class Digest(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Fetched:
    """A file that is in its folder, and where it came from."""

    bytes: int
    sha256: str
    source: str
    revision: str | None = None
    mirror: bool = False


def take(model: Model, file: WeightFile, found: list[Path], source: Path, folder: Path) -> Fetched:
    """Copy the right one of the files `found` under `source`; all of them stay as they are. Raises MismatchError."""
    sized = [path for path in found if file.bytes is None or path.stat().st_size == file.bytes]
    if found and not sized:
        raise MismatchError(f"{found[0]} has {found[0].stat().st_size} bytes, {file.name} must have {file.bytes}")
    if file.sha256 is None:
        sized = [path for path in sized if any(model.name in part for part in path.absolute().parts[:-1])]
    if not sized:
        raise MismatchError(
            f"{file.name} of {model.name} is not under {source}"
            + (f"; its SHA-256 is not known, so it must lie in a folder named {model.name}" if found else "")
            + f"; get it from {model.page}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    need_space(folder, sized[0].stat().st_size)
    for path in sized[:-1]:
        with suppress(MismatchError):
            return _copy(file, path, folder)
    return _copy(file, sized[-1], folder)


def find_files(source: Path, names: set[str]) -> dict[str, list[Path]]:
    """Where files of these names lie anywhere under `source`."""
    if not source.is_dir():
        raise InputError(f"--from {source} is no folder")
    found: dict[str, list[Path]] = {}
    for base, _, files in os.walk(source):
        for name in sorted(names.intersection(files)):
            path = Path(base, name)
            if path.is_file():
                found.setdefault(name, []).append(path)
    return found


def hash_file(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as stream:
        feed(stream, digest)
    return digest.hexdigest()


def demand_hash(file: WeightFile, found: str, what: str) -> None:
    """Raises MismatchError unless `found` is what the manifest states, as far as it states anything."""
    if file.sha256 is not None and found != file.sha256:
        stated = "" if file.sha256_checked else f" (stated by {file.stated_by[0]}, never downloaded here)"
        raise MismatchError(f"{what} has SHA-256 {found}, expected {file.sha256}{stated}")
    if not file.fits_name(found):
        raise MismatchError(f"{what} has SHA-256 {found}, which does not begin with the digits in its name")


def need_space(folder: Path, size: int) -> None:
    """Raises InputError when the disk of `folder` has not enough room."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if size + SPARE_BYTES > free:
        raise InputError(
            f"{size / 1e6:.0f} MB are needed in {folder}, {free / 1e6:.0f} MB are free; free some or use --to"
        )


def feed(stream: Readable, digest: Digest) -> None:
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)


def replace(temporary: Path, target: Path) -> None:
    """Rename within a folder, so that a loss of power leaves one of the two."""
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copy(file: WeightFile, path: Path, folder: Path) -> Fetched:
    digest = sha256()
    temporary = folder / f".{file.name}.{os.getpid()}.part"
    try:
        with path.open("rb") as source, temporary.open("wb") as copy:
            while chunk := source.read(CHUNK_BYTES):
                copy.write(chunk)
                digest.update(chunk)
            copy.flush()
            os.fsync(copy.fileno())
            size = copy.tell()
        demand_hash(file, digest.hexdigest(), str(path))
        replace(temporary, folder / file.name)
    finally:
        temporary.unlink(missing_ok=True)
    return Fetched(size, digest.hexdigest(), str(path))
