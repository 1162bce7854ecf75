"""The manifest of public weights: what each model is, from where, of which revision, size and hash, and its licence.

Reading it checks it, so that nothing else has to. A value that nobody could check is marked so and never guessed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polylip.client.errors import InputError

MANIFEST = Path(__file__).with_name("weights.json")
FORMAT = 1
FLOATING_REVISION = "main"  # fetched where no revision is known; the record then states what it resolved to
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROFILES = ("cpu", "onnx", "gpu", "openvino")

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # no separators, no leading dot: nothing can leave the folder
SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_PREFIX = re.compile(r"-([0-9a-f]{8,})\.pth?$")  # torch hub's naming: the start of the SHA-256


class ManifestError(InputError):
    """The manifest cannot be used; the message names the entry."""


@dataclass(frozen=True)
class Licence:
    """What the weights may be used for."""

    name: str
    url: str
    commercial_use: bool


@dataclass(frozen=True)
class Place:
    """One source of all files of a model; `url` holds `{file}` and, where there are revisions, `{revision}`."""

    url: str
    revision: str | None  # None: unknown, or the place has none
    revision_checked: bool  # whether a download of this project has seen it
    mirror: bool  # a copy by somebody other than the author

    def url_of(self, file: str) -> str:
        return self.url.replace("{revision}", self.revision or FLOATING_REVISION).replace("{file}", file)


@dataclass(frozen=True)
class WeightFile:
    """One file. A SHA-256 that is stated but not checked is still demanded; one that is None is reported instead."""

    name: str
    bytes: int | None
    sha256: str | None
    sha256_checked: bool  # whether a download of this project has seen it
    stated_by: tuple[str, ...]  # where size and SHA-256 were read
    aliases: tuple[str, ...] = ()  # other names under which people keep it

    def fits_name(self, sha256: str) -> bool:
        """Whether the hash begins with the digits in the file's name, if it has any."""
        prefix = HUB_PREFIX.search(self.name)
        return prefix is None or sha256.startswith(prefix[1])


@dataclass(frozen=True)
class Model:
    """One set of weights, fetched into a folder of its name."""

    name: str
    kind: str
    title: str
    page: str  # where a person reads about it and gets it by hand
    licence: Licence
    profiles: tuple[str, ...]
    places: tuple[Place, ...]  # in the order in which they are tried
    files: tuple[WeightFile, ...]
    note: str

    @property
    def known_bytes(self) -> int:
        return sum(file.bytes or 0 for file in self.files)

    @property
    def all_sizes_known(self) -> bool:
        return all(file.bytes is not None for file in self.files)


def read_manifest(path: Path = MANIFEST) -> dict[str, Model]:
    """The models by name, in the order of the file. Raises ManifestError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"cannot read the manifest of weights {path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ManifestError(f"{path} is no manifest of weights of format {FORMAT}")
    models: dict[str, Model] = {}
    for entry in content.get("models", []):
        name = entry.get("name") if isinstance(entry, dict) else None
        try:
            model = _model(entry)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ManifestError(f"{path}: model {name!r}: {_reason(error)}") from error
        if model.name in models:
            raise ManifestError(f"{path}: model {name!r} is there twice")
        models[model.name] = model
    return models


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _model(entry: dict[str, Any]) -> Model:
    licence = entry["licence"]
    model = Model(
        name=_name(entry["name"]),
        kind=_text(entry["kind"]),
        title=_text(entry["title"]),
        page=_url(entry["page"]),
        licence=Licence(_text(licence["name"]), _url(licence["url"]), _flag(licence["commercial_use"])),
        profiles=tuple(entry["profiles"]),
        places=tuple(map(_place, entry["places"])),
        files=tuple(map(_file, entry["files"])),
        note=str(entry["note"]),
    )
    names = [file.name for file in model.files]
    _demand(bool(names), "it has no files")
    _demand(bool(model.places), "it has no place to be fetched from")
    _demand(len(set(names)) == len(names), "a file is there twice")
    _demand(set(model.profiles) <= set(PROFILES), f"profiles must be among {', '.join(PROFILES)}")
    return model


def _place(entry: dict[str, Any]) -> Place:
    place = Place(_url(entry["url"]), entry["revision"], _flag(entry["revision_checked"]), _flag(entry["mirror"]))
    _demand("{file}" in place.url, f"{place.url} does not say where the file name goes")
    _demand("{revision}" in place.url or place.revision is None, f"{place.url} has no place for its revision")
    _demand(place.revision is not None or not place.revision_checked, "an unknown revision cannot be checked")
    return place


def _file(entry: dict[str, Any]) -> WeightFile:
    file = WeightFile(
        name=_name(entry["name"]),
        bytes=entry["bytes"],
        sha256=entry["sha256"],
        sha256_checked=_flag(entry["sha256_checked"]),
        stated_by=tuple(map(_text, entry["stated_by"])),
        aliases=tuple(map(_name, entry.get("aliases", ()))),
    )
    _demand(file.bytes is None or (isinstance(file.bytes, int) and file.bytes > 0), f"{file.name}: bytes is no size")
    if file.sha256 is None:
        _demand(not file.sha256_checked, f"{file.name}: an unknown SHA-256 cannot be checked")
        return file
    _demand(bool(SHA256.fullmatch(file.sha256)), f"{file.name}: a SHA-256 has 64 lower-case hexadecimal digits")
    _demand(file.fits_name(file.sha256), f"{file.name}: its SHA-256 must begin with the digits in its name")
    _demand(file.sha256_checked or bool(file.stated_by), f"{file.name}: who states its SHA-256?")
    return file


def _name(value: Any) -> str:
    _demand(isinstance(value, str) and bool(SAFE_NAME.fullmatch(value)), f"{value!r} is no plain file name")
    return str(value)


def _text(value: Any) -> str:
    _demand(isinstance(value, str) and bool(value.strip()), f"{value!r} must be a text")
    return str(value)


def _flag(value: Any) -> bool:
    _demand(isinstance(value, bool), f"{value!r} must be true or false")
    return bool(value)


def _url(value: Any) -> str:
    parts = urlsplit(_text(value))
    secure = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    _demand(secure and bool(parts.hostname) and parts.username is None, f"{value} is no https address")
    return str(value)


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
