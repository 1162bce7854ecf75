"""What a profile needs on this machine, checked one by one; each missing thing with the command that installs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from polylip.export.sidecar import GRAPH_FILES, Precision, read_sidecar, sidecar_path
from polylip.serving.abilities import Abilities, commands, profile_abilities
from polylip.serving.cpu_torchaudio import COMMAND, compiled_parts, torch_has_cuda
from polylip.serving.errors import EngineError, MissingError, UnknownProfileError
from polylip.serving.guard import SHM
from polylip.serving.languages import listed
from polylip.serving.plans import fitting_plans
from polylip.serving.runtime import find_model_repository, find_runtime, require_backend

PROFILES = ("lite", "cpu", "gpu", "onnx", "openvino")
LIPS_LITE = "lips/1/lips_lite.onnx"
FIRST_PAIR = ("en", "es")  # the remedy names the pair of the examples
SPEECH_MODELS = frozenset({"transcribe", "translate", "synthesize", "speech"})
PICTURE_MODELS = frozenset({"detect", "track", "faces", "mel", "lips", "lipsync"})
NETWORK_MODELS = PICTURE_MODELS - {"mel", "track"}
LINES = SPEECH_MODELS | PICTURE_MODELS  # what polylip's own commands call; `dub` uses them too
SHARED_MEMORY_MIB = 64  # the lite profile's Python models map about 30 MiB


Look = tuple[str, Callable[[], str]]  # name, and what finds its detail or raises
Looks = list[Look]


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str  # what was found, or what is missing and the command that brings it


def run_checks(profile: str, model_repository: Path | None = None, models: Collection[str] = ()) -> list[Check]:
    """Every check of a profile, in the order in which one would mend them. Raises UnknownProfileError.

    `models`: those that are to be served, if not all.
    """
    if profile not in PROFILES:
        raise UnknownProfileError(f"unknown profile {profile!r}; this version has: {', '.join(PROFILES)}")
    repository = model_repository
    served = set(models) | (LINES if "dub" in models else set())
    checks: Looks = [
        ("tritonserver", lambda: str(find_runtime().binary)),
        ("model repository", lambda: _models(repository or find_model_repository(), models)),
        *(_speech(profile, repository) if not models or SPEECH_MODELS & served else []),
        *(_PICTURE[profile](repository) if not models or NETWORK_MODELS & served else []),
        ("shared memory", _shared_memory),
    ]
    return [_check(name, look) for name, look in checks]


def _speech(profile: str, repository: Path | None) -> Looks:
    try:
        able = profile_abilities(profile, repository)
    except (OSError, MissingError):  # a repository without the speech models, or none at all
        return []
    return [
        (f"recogniser ({able.hears.engine})", partial(_ready, able.hears, "languages")),
        (f"translator ({able.translates.engine})", partial(_translator, able.translates)),
        (f"voice ({able.speaks.engine})", partial(_ready, able.speaks, "languages")),
        *([("torchaudio", _torchaudio)] if able.speaks.engine == "xtts-v2" else []),
    ]


def _ready(engine: Abilities, of: str) -> str:
    if engine.needs:
        raise MissingError(f"run: {'; '.join(commands(engine.needs))}")
    return f"{len(engine.languages)} {of}" if len(engine.languages) > 1 else "".join(engine.languages)


def _translator(engine: Abilities) -> str:
    """At least one pair must be there; the others can come later."""
    ready = sorted("->".join(pair) for pair, needs in engine.pairs.items() if not needs)
    if not ready:
        first = next(iter(sorted(engine.pairs.items(), key=lambda item: item[0] != FIRST_PAIR)))
        raise MissingError(f"no language pair is ready; for {'->'.join(first[0])} run: {'; '.join(commands(first[1]))}")
    return listed(ready)


def _torchaudio() -> str:
    if find_spec("torchaudio") is None:
        raise MissingError("not installed; run: pip install 'polylip[speech]'")
    if compiled_parts() and not torch_has_cuda():
        raise MissingError(f"its compiled parts need CUDA's torch; run: {COMMAND}")
    return "installed"


def _lite_picture(repository: Path | None) -> Looks:
    return [
        ("detector (OpenCV)", lambda: _package("cv2")),
        ("lips runtime (onnxruntime)", lambda: _package("onnxruntime")),
        ("lips graph", lambda: _graph(repository, LIPS_LITE, "polylip export lite")),
    ]


def _cpu_picture(repository: Path | None) -> Looks:
    return [("runtime of detector and lips", _cpu_runtime), *_graphs(repository, "fp32")]


def _gpu_picture(repository: Path | None) -> Looks:
    return [_backend("gpu"), ("TensorRT plans", lambda: _plans(repository))]


def _onnx_picture(repository: Path | None) -> Looks:
    return [_backend("onnx"), *_graphs(repository, "fp16")]


def _openvino_picture(repository: Path | None) -> Looks:
    return [_backend("openvino"), *_graphs(repository, "fp32")]


def _graphs(repository: Path | None, precision: Precision) -> Looks:
    return [
        (f"graph of {network}", partial(_graph, repository, files[precision], f"polylip export onnx {network}"))
        for network, files in GRAPH_FILES.items()
    ]


def _backend(profile: str) -> Look:
    return "tritonserver's backend", lambda: str(require_backend(find_runtime(), profile))


def _plans(repository: Path | None) -> str:
    return ", ".join(plan.name for plan in fitting_plans(repository or find_model_repository()))


_PICTURE = {
    "lite": _lite_picture,
    "cpu": _cpu_picture,
    "gpu": _gpu_picture,
    "onnx": _onnx_picture,
    "openvino": _openvino_picture,
}


def require_ready(profile: str, model_repository: Path | None = None, models: Collection[str] = ()) -> None:
    """Raise MissingError for everything that is missing, in one line."""
    missing = [f"{c.name}: {c.detail}" for c in run_checks(profile, model_repository, models) if not c.ok]
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


def _models(repository: Path, wanted: Collection[str]) -> str:
    have = {path.parent.name for path in repository.glob("*/config.pbtxt")}
    unknown = sorted(set(wanted) - have)
    if unknown:
        raise MissingError(f"no model {', '.join(unknown)} in {repository}; it has: {', '.join(sorted(have))}")
    return str(repository)


def _graph(repository: Path | None, name: str, command: str) -> str:
    path = (repository or find_model_repository()) / name
    if not path.is_file():
        raise MissingError(f"{path} is missing; run: {command}")
    return f"{path}, GENERATED WEIGHTS: its pictures mean nothing" if _is_generated(path) else str(path)


def generated_networks(profile: str, model_repository: Path | None = None) -> list[str]:
    """The networks that a profile would serve with generated weights: what they draw or find means nothing."""
    precision: Precision = "fp16" if profile in ("gpu", "onnx") else "fp32"
    repository = model_repository or find_model_repository()
    served = {} if profile == "lite" else GRAPH_FILES
    return [network for network, files in served.items() if _is_generated(repository / files[precision])]


def _is_generated(graph: Path) -> bool:
    return sidecar_path(graph).is_file() and read_sidecar(graph).source.weights == "generated"


def _cpu_runtime() -> str:
    for module in ("openvino", "onnxruntime"):
        if find_spec(module) is not None:
            return module if module == "openvino" else "onnxruntime; OpenVINO is faster: pip install 'polylip[cpu]'"
    raise MissingError("not installed; run: pip install 'polylip[serve,cpu]'")


def _shared_memory() -> str:
    stat = os.statvfs(SHM)
    free_mib = stat.f_bavail * stat.f_frsize >> 20
    if free_mib < SHARED_MEMORY_MIB:
        raise MissingError(f"{free_mib} MiB free, {SHARED_MEMORY_MIB} needed; run: mount -o remount,size=1G {SHM}")
    return f"{free_mib} MiB free in {SHM}"
