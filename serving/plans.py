"""TensorRT plans in the model repository: how they are named, which one fits this machine, and the link that serves it.

A plan runs on one GPU architecture and one TensorRT version and holds the weights of one ONNX graph, so its name says
all three. Triton loads `model.plan`, a relative link beside the plans. Nothing here needs TensorRT. See docs/plans.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from polylip.serving.errors import MissingError

LINK = "model.plan"  # what Triton's TensorRT backend loads when a config names no file
HASH_DIGITS = 12
HASH_CHUNK_BYTES = 1 << 20
NVIDIA_SMI_TIMEOUT_S = 20.0  # wakes a sleeping driver in some seconds
LIBRARY = "libnvinfer.so"
LIBRARY_DIRS = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/local/tensorrt/lib"), Path("/opt/tensorrt/lib"))
# A model that has plans -> the network in it and the graph that its plans are built from, in the version folder.
NETWORKS = {"lips": "wav2lip", "detect": "s3fd"}
GRAPHS = {model: f"{network}_fp16.onnx" for model, network in NETWORKS.items()}

_NAME = re.compile(
    r"(?P<network>[a-z0-9]+)-(?P<architecture>sm\d+)-trt(?P<tensorrt>[\d.]+)-fp16-(?P<graph>[0-9a-f]+)\.plan"
)


@dataclass(frozen=True)
class PlanName:
    """What a plan's file name says."""

    network: str
    architecture: str  # sm90 for compute capability 9.0
    tensorrt: str  # major.minor.patch
    graph: str  # first HASH_DIGITS of the SHA-256 of the ONNX graph

    def __str__(self) -> str:
        return f"{self.network}-{self.architecture}-trt{self.tensorrt}-fp16-{self.graph}.plan"

    @classmethod
    def parse(cls, name: str) -> PlanName | None:
        """None for any other file."""
        found = _NAME.fullmatch(name)
        return cls(**found.groupdict()) if found else None


def fitting_plans(repository: Path) -> list[Path]:
    """The plan for this machine of every model that has plans. Raises MissingError."""
    architecture, tensorrt = gpu_architecture(), tensorrt_version()
    plans = []
    for model in NETWORKS:
        version_dir = repository / model / "1"
        graph = version_dir / GRAPHS[model]
        digest = graph_hash(graph) if graph.is_file() else None  # a machine that only serves needs no graphs
        plans.append(find_plan(version_dir, architecture, tensorrt, digest))
    return plans


def link_plans(repository: Path) -> list[Path]:
    """Point `model.plan` of every model that has plans at the one for this machine. Raises MissingError."""
    return [link_plan(plan) for plan in fitting_plans(repository)]


def find_plan(version_dir: Path, architecture: str, tensorrt_version: str, onnx_hash: str | None) -> Path:
    """The plan for this GPU, this TensorRT and this graph; `onnx_hash` None takes the newest of any graph.

    Raises MissingError with what differs and the command that builds.
    """
    model = version_dir.parent.name
    remedy = f"run: {build_command(model)}"
    wanted = {"GPU": architecture, "TensorRT": tensorrt_version}
    if onnx_hash is not None:
        wanted["ONNX graph"] = onnx_hash[:HASH_DIGITS]
    plans = sorted(_plans(version_dir), key=lambda item: item[0].stat().st_mtime, reverse=True)
    if not plans:
        raise MissingError(f"{model}: no TensorRT plan in {version_dir}; {remedy}")
    path, differences = min(((path, _differences(name, wanted)) for path, name in plans), key=lambda item: len(item[1]))
    if differences:
        raise MissingError(f"{model}: {path.name} is for {', '.join(differences)}; {remedy}")
    _require_whole(path, model, remedy)
    return path


def link_plan(plan: Path) -> Path:
    """Make `model.plan` beside a plan a relative link to it, if it is not yet. Raises MissingError."""
    link = plan.with_name(LINK)
    if link.is_symlink() and os.readlink(link) == plan.name:
        return link
    partial = link.with_name(f".{LINK}.{os.getpid()}")
    try:
        partial.symlink_to(plan.name)
        partial.replace(link)
    except OSError as error:
        raise MissingError(f"cannot link {link} to {plan.name} ({error.strerror}); make the folder writable") from None
    finally:
        partial.unlink(missing_ok=True)
    return link


def build_command(model: str) -> str:
    """What builds the plan of a model on a machine with TensorRT."""
    return f"polylip export plan {model}"


def graph_hash(graph: Path) -> str:
    """First HASH_DIGITS of the SHA-256 of a graph. Raises MissingError."""
    digest = sha256()
    try:
        with graph.open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        network = graph.name.partition("_")[0]
        raise MissingError(f"{graph} is missing; run: polylip export onnx {network}") from None
    return digest.hexdigest()[:HASH_DIGITS]


def gpu_architecture() -> str:
    """`sm90` for GPUs of compute capability 9.0. Raises MissingError without a GPU, or with several kinds of them."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        raise MissingError(
            "no NVIDIA GPU: nvidia-smi gives none; use profile cpu or lite, or start the container with access to one"
        ) from None
    return parse_architecture(done.stdout)


def parse_architecture(text: str) -> str:
    """One architecture from nvidia-smi's lines, one line per GPU. Raises MissingError."""
    found = sorted({f"sm{line.strip().replace('.', '')}" for line in text.splitlines() if line.strip()})
    if len(found) == 1 and re.fullmatch(r"sm\d+", found[0]):
        return found[0]
    if len(found) > 1:
        raise MissingError(f"GPUs of several kinds ({', '.join(found)}), and a plan fits one; give the server one kind")
    raise MissingError(f"nvidia-smi names no GPU architecture but {text.strip()!r}; update the driver")


def tensorrt_version(folders: tuple[Path, ...] = LIBRARY_DIRS) -> str:
    """major.minor.patch of the TensorRT library that the server loads. Raises MissingError."""
    searched = [*(Path(d) for d in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if d), *folders]
    for folder in searched:
        for path in sorted(folder.glob(f"{LIBRARY}.*.*.*")):
            found = re.fullmatch(rf"{re.escape(LIBRARY)}\.(\d+\.\d+\.\d+)", path.name)
            if found:
                return found[1]
    raise MissingError(f"no TensorRT here ({LIBRARY}); profile gpu runs in NVIDIA's container, docs/docker.md")


def sidecar_path(plan: Path) -> Path:
    """`X.plan` -> `X.plan.json`, in the same folder."""
    return plan.with_name(f"{plan.name}.json")


def _plans(version_dir: Path) -> list[tuple[Path, PlanName]]:
    named = ((path, PlanName.parse(path.name)) for path in version_dir.glob("*.plan") if not path.is_symlink())
    network = NETWORKS[version_dir.parent.name]
    return [(path, name) for path, name in named if name is not None and name.network == network]


def _differences(name: PlanName, wanted: dict[str, str]) -> list[str]:
    has = {"GPU": name.architecture, "TensorRT": name.tensorrt, "ONNX graph": name.graph}
    return [f"{what} {has[what]} and not {value}" for what, value in wanted.items() if has[what] != value]


def _require_whole(plan: Path, model: str, remedy: str) -> None:
    """Compare a plan with the size in its sidecar: a copy that broke off would end the server."""
    try:
        size = json.loads(sidecar_path(plan).read_bytes())["plan_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise MissingError(f"{model}: {sidecar_path(plan).name} is missing or unreadable; {remedy}") from None
    if plan.stat().st_size != size:
        raise MissingError(f"{model}: {plan.name} has {plan.stat().st_size} bytes and should have {size}; {remedy}")
