"""Every experiment of the benchmark: its module, its place in the report, and how long it usually takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from polylip.perf.experiment import Result


@dataclass(frozen=True)
class Entry:
    """One experiment. `quick_s` None: too long for a quick look."""

    name: str  # of its result files
    title: str
    about: str  # what its figures say, in a sentence or two
    full_s: float  # usual time with profile lite on two cores; half of it where it runs beside another
    quick_s: float | None
    module_name: str = ""  # in polylip.perf, where it is not `name`
    uses_profile: bool = True  # False: the same whatever the profile
    timed: bool = True  # False: no figure is a time, so that another experiment may run beside it
    options: tuple[str, ...] = ()  # of a run that is not quick, so that all together take a quarter of an hour

    @property
    def module(self) -> str:
        return f"polylip.perf.{self.module_name or self.name}"

    @property
    def markdown(self) -> Callable[[Result], str]:
        """The function that makes the experiment's tables."""
        function: Callable[[Result], str] = importlib.import_module(self.module).markdown
        return function


CATALOGUE = (
    Entry(
        "networks",
        "I. Per-network ablation",
        "The two networks of the picture in every runtime of this machine. The published generator takes 4.50 ms in "
        "PyTorch FP32, 2.19 ms as a TensorRT plan in FP32 and 0.96 ms in FP16, on a GPU.",
        full_s=60,
        quick_s=None,
        uses_profile=False,
        options=("--repetitions", "1", "--short"),
    ),
    Entry(
        "latency",
        "II. End-to-end latency",
        "One clip at a time, at hand from the beginning, through the same engines: one after another in one process "
        "(baseline), and through the server and the client (pipeline).",
        full_s=350,
        quick_s=45,
    ),
    Entry(
        "efficiency",
        "III. Resource use",
        "What the processes and the server's own metrics show while a clip of 5 s runs.",
        full_s=40,
        quick_s=25,
        options=("--repetitions", "3", "--warm-up", "1"),
    ),
    Entry(
        "overhead",
        "What Triton, gRPC and the client add",
        "The same requests for one segment, in the engines' own process and through the server.",
        full_s=40,
        quick_s=20,
        options=("--repetitions", "6", "--warm-up", "1"),
    ),
    Entry(
        "translation",
        "IV. Translation quality",
        "Silence-only and semantic segments of the same speech, against human references.",
        full_s=65,
        quick_s=None,
        timed=False,
        options=("--talks", "5"),
    ),
    Entry(
        "picture_quality",
        "V. Picture and sync quality",
        "Reduced precision against FP32, and a finished dub against its source.",
        full_s=65,
        quick_s=None,
        timed=False,
        options=("--random-detector",),
    ),
    Entry(
        "perf_analyzer",
        "perf_analyzer",
        "NVIDIA's own load generator against every model and ensemble.",
        full_s=40,
        quick_s=None,
        module_name="analyzer",
        options=("--repetitions", "1", "--concurrency", "1"),
    ),
    Entry(
        "streams",
        "Live streams per server",
        "Paced streams, each chunk's latency counted from the moment at which it was due.",
        full_s=55,
        quick_s=None,
        options=("--window-s", "8"),
    ),
    Entry(
        "capacity",
        "Capacity: predicted and measured",
        "A paper model against three servers behind HAProxy. The engines sleep for fixed times here, because three "
        "servers share this machine.",
        full_s=70,
        quick_s=None,
        module_name="capacity_run",
        uses_profile=False,
        options=("--repetitions", "1"),
    ),
    Entry(
        "real_time",
        "Real-time factor of whole clips",
        "Wall time over the clip's duration; below 1 is faster than the clip plays.",
        full_s=35,
        quick_s=None,
        options=("--repetitions", "1"),
    ),
    Entry(
        "work",
        "Counted work",
        "No clock: the same on every machine, and held by the tests.",
        full_s=20,
        quick_s=None,
        timed=False,
    ),
)
