"""What a profile needs on this machine, checked one by one; each missing thing with the command that installs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from polylip.serving.engines.apertium import installed_modes
from polylip.serving.errors import EngineError, MissingError, UnknownProfileError
from polylip.serving.guard import SHM
from polylip.serving.runtime import find_model_repository, find_runtime

PROFILES = ("lite",)
LIPS_LITE = "lips/1/lips_lite.onnx"
SHARED_MEMORY_MIB = 64  # the lite profile's Python models map about 30 MiB


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str  # what was found, or what is missing and the command that brings it


def run_checks(profile: str, model_repository: Path | None = None) -> list[Check]:
    """Every check of a profile, in the order in which one would mend them. Raises UnknownProfileError."""
    if profile not in PROFILES:
        raise UnknownProfileError(f"unknown profile {profile!r}; this version has: {', '.join(PROFILES)}")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("tritonserver", lambda: str(find_runtime().binary)),
        ("recogniser (pocketsphinx)", lambda: _package("pocketsphinx")),
        ("translator (apertium)", _apertium),
        ("voice (espeak-ng)", lambda: _program("espeak-ng", "espeak-ng")),
        ("detector (OpenCV)", lambda: _package("cv2")),
        ("lips runtime (onnxruntime)", lambda: _package("onnxruntime")),
        ("model repository", lambda: str(model_repository or find_model_repository())),
        ("lips graph", lambda: _lips_graph(model_repository or find_model_repository())),
        ("shared memory", _shared_memory),
    ]
    return [_check(name, look) for name, look in checks]


def require_ready(profile: str, model_repository: Path | None = None) -> None:
    """Raise MissingError for everything that is missing, in one line."""
    missing = [f"{c.name}: {c.detail}" for c in run_checks(profile, model_repository) if not c.ok]
    if missing:
        raise MissingError("; ".join(missing))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except (MissingError, EngineError) as error:
        return Check(name, False, str(error))


def _package(module: str) -> str:
    if find_spec(module) is None:
        raise MissingError("not installed; run: pip install 'polylip[serve]'")
    return "installed"


def _program(name: str, debian_package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MissingError(f"not installed; run: apt-get install {debian_package}")
    return path


def _apertium() -> str:
    path = _program("apertium", "apertium-eng-spa")
    pairs = sorted(f"{a}->{b}" for a, b in installed_modes())
    if not pairs:
        raise MissingError("no language pair is installed; run: apt-get install apertium-eng-spa")
    return f"{path}, {', '.join(pairs)}"


def _lips_graph(repository: Path) -> str:
    path = repository / LIPS_LITE
    if not path.is_file():
        raise MissingError(f"{path} is missing; run: polylip export lite")
    return str(path)


def _shared_memory() -> str:
    stat = os.statvfs(SHM)
    free_mib = stat.f_bavail * stat.f_frsize >> 20
    if free_mib < SHARED_MEMORY_MIB:
        raise MissingError(f"{free_mib} MiB free, {SHARED_MEMORY_MIB} needed; run: mount -o remount,size=1G {SHM}")
    return f"{free_mib} MiB free in {SHM}"
