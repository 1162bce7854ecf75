"""Builds TensorRT plans from the FP16 graphs of `lips` and `detect`, for the GPU and the TensorRT of this machine.

The graph holds the precision (strong typing), which is the only way in TensorRT 11 and one of two in TensorRT 10; the
same code builds with both. A plan gets one optimisation profile with explicit smallest, best and largest shapes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polylip.client.files import write_atomic
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.plans import (
    GRAPHS,
    NETWORKS,
    PlanName,
    gpu_architecture,
    graph_hash,
    link_plan,
    sidecar_path,
)

FORMAT = 1  # of the sidecar
FACE_SHAPE = (96, 96, 3)
MEL_SHAPE = (80, 16)
WORKSPACE_MIB = 4096  # S3FD's convolutions at 16 frames want some hundred MiB each; more only widens the search
OPTIMIZATION_LEVEL = 3  # TensorRT's default: 4 and 5 search for minutes more
CONTAINER_COMMAND = "docker compose -f docker/compose.yaml run --rm plan polylip export plan"

Shape = tuple[int, ...]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Batches:
    """Batch sizes of a plan: the smallest, the one that its kernels are chosen for, the largest."""

    smallest: int
    best: int
    largest: int


# The best is the usual call: 5 or 6 key frames of a chunk, 16 frames of lips. The largest is max_batch_size of the
# config, the most that Triton's dynamic batcher may put together.
BATCHES = {"lips": Batches(1, 16, 32), "detect": Batches(1, 6, 16)}


@dataclass(frozen=True)
class PlanOptions:
    """How to build. The frame size is that of `detect` alone; the client sends no other."""

    batches: Batches
    height: int = 360
    width: int = 640
    workspace_mib: int = WORKSPACE_MIB
    optimization_level: int = OPTIMIZATION_LEVEL


def profile_shapes(model: str, options: PlanOptions) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Input -> its smallest, best and largest shape."""
    rest: dict[str, Shape] = {"FRAMES": (options.height, options.width, 3)}
    if model == "lips":
        rest = {"MEL": MEL_SHAPE, "FACES": FACE_SHAPE}
    b = options.batches
    return {name: ((b.smallest, *tail), (b.best, *tail), (b.largest, *tail)) for name, tail in rest.items()}


def build_plan(model: str, repository: Path, options: PlanOptions, say: Say) -> Path:
    """Build, write and link the plan of a model; its path. Raises MissingError, EngineError."""
    version_dir = repository / model / "1"
    graph = version_dir / GRAPHS[model]
    _require_batches(model, repository, options.batches)
    trt = _tensorrt(model)
    digest = graph_hash(graph)
    architecture = gpu_architecture()
    version = ".".join(trt.__version__.split(".")[:3])
    name = PlanName(NETWORKS[model], architecture, version, digest)
    say(f"{model}: building {name} from {graph.name}")
    cache = timing_cache_path(version_dir, architecture, version)
    start = time.monotonic()
    plan_bytes = _build(
        trt, graph, profile_shapes(model, options), options, cache, lambda line: say(f"{model}: {line}")
    )
    seconds = time.monotonic() - start
    plan = version_dir / str(name)
    sidecar = {
        "format": FORMAT,
        "plan_bytes": len(plan_bytes),
        "plan_sha256": sha256(plan_bytes).hexdigest(),
        **asdict(name),
        "tensorrt_full": trt.__version__,
        "precision": "fp16, strongly typed",
        "shapes": profile_shapes(model, options),
        "workspace_mib": options.workspace_mib,
        "optimization_level": options.optimization_level,
        "timing_cache": cache.name,
        "build_s": round(seconds, 1),
    }
    write_atomic(plan, plan_bytes)
    write_atomic(sidecar_path(plan), f"{json.dumps(sidecar, indent=1)}\n".encode())
    link_plan(plan)
    say(f"{model}: {len(plan_bytes) >> 20} MiB in {seconds:.0f} s")
    return plan


def default_options(model: str, smallest: int | None, best: int | None, largest: int | None) -> PlanOptions:
    """The options of a model, with the batch sizes that were given. Raises ValueError."""
    given = {"smallest": smallest, "best": best, "largest": largest}
    batches = replace(BATCHES[model], **{key: value for key, value in given.items() if value is not None})
    if not 1 <= batches.smallest <= batches.best <= batches.largest:
        raise ValueError(f"batches must rise: {batches.smallest}, {batches.best}, {batches.largest}")
    return PlanOptions(batches)


def timing_cache_path(version_dir: Path, architecture: str, version: str) -> Path:
    """Measured kernel times, so that a second build takes seconds; of one GPU architecture and TensorRT version."""
    return version_dir / f"timing-{architecture}-trt{version}.cache"


def _require_batches(model: str, repository: Path, batches: Batches) -> None:
    """Triton refuses a plan that takes less than the config's max_batch_size, or not single frames."""
    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    most = text_format.Parse(text, model_config_pb2.ModelConfig()).max_batch_size
    if batches.largest != most:
        raise MissingError(
            f"{model}: --max-batch {batches.largest} is not max_batch_size {most} of {model}/config.pbtxt; "
            "make them the same"
        )
    if batches.smallest != 1:
        raise MissingError(f"{model}: --min-batch must be 1, or a call with a single frame fails")


def _tensorrt(model: str) -> Any:
    """The TensorRT package. Raises MissingError with the command that runs this where there is one."""
    if find_spec("tensorrt") is None:
        raise MissingError(
            f"TensorRT is not installed here; it is in NVIDIA's container, run: {CONTAINER_COMMAND} {model}"
        )
    if find_spec("polygraphy") is None:
        raise MissingError("polygraphy is not installed; run: pip install 'polylip[plan]'")
    import tensorrt  # noqa: PLC0415  only where a plan is built

    return tensorrt


def _build(
    trt: Any,
    graph: Path,
    shapes: dict[str, tuple[Shape, Shape, Shape]],
    options: PlanOptions,
    cache: Path,
    say: Say,
) -> bytes:
    from polygraphy.backend.trt import (  # noqa: PLC0415  only where a plan is built
        CreateConfig,
        EngineBytesFromNetwork,
        NetworkFromOnnxPath,
        Profile,
    )
    from polygraphy.exception import PolygraphyException  # noqa: PLC0415
    from polygraphy.logger import G_LOGGER  # noqa: PLC0415

    profile = Profile()
    for name, (smallest, best, largest) in shapes.items():
        profile.add(name, min=smallest, opt=best, max=largest)
    config = CreateConfig(
        profiles=[profile],
        memory_pool_limits={trt.MemoryPoolType.WORKSPACE: options.workspace_mib << 20},
        builder_optimization_level=options.optimization_level,
        load_timing_cache=str(cache) if cache.is_file() else None,
        progress_monitor=_progress(trt, say),
        profiling_verbosity=trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
    )
    # TensorRT 11 knows strong typing only; should a later one drop the flag, not naming it means the same.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = NetworkFromOnnxPath(str(graph), strongly_typed=typed)
    try:
        with G_LOGGER.verbosity(G_LOGGER.ERROR):  # the progress lines say the rest
            return bytes(EngineBytesFromNetwork(network, config, save_timing_cache=str(cache))())
    except (PolygraphyException, RuntimeError, TypeError) as error:  # TypeError: no builder, the driver does not start
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise EngineError(f"TensorRT could not build {graph.name}: {cause}") from error


def _progress(trt: Any, say: Say) -> Any:
    """TensorRT's progress as one line at each tenth of each outermost phase."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps
                say(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name, 0)
            if steps and (step + 1) * 10 // steps > step * 10 // steps:
                say(f"{phase_name}: {(step + 1) * 100 // steps} %")
            return True  # False would end the build

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Progress()
