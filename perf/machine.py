"""The machine under a benchmark: its name, its instruction sets and the arithmetic that it can do at best."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

from polylip.serving.engines.cpu_graph import AMX, BF16, CPU_INFO, cpu_flags

LIMIT_SIDE = 2048  # of the square matrices: 3 x 16 MiB in FP32, far beyond the caches, as a convolution's tensors are
LIMIT_RUNS = 9


def machine() -> dict[str, Any]:
    """CPU, cores, Python and the instruction sets that decide a precision."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    sets = sorted({AMX, BF16} & cpu_flags())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "instruction_sets": sets}


def best_s(work: Callable[[], object], runs: int) -> float:
    """The shortest of `runs` times in seconds, after one run to warm up."""
    work()
    return min(timed_s(work) for _ in range(runs))


def median_s(work: Callable[[], object], runs: int) -> float:
    """The median of `runs` times in seconds, after one run to warm up."""
    work()
    return statistics.median(timed_s(work) for _ in range(runs))


def timed_s(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def arithmetic_limit(threads: int) -> dict[str, float]:
    """GFLOP/s of the best matrix product of torch in FP32 and bf16 on this machine."""
    import torch  # noqa: PLC0415  needs the extra `export`

    torch.set_num_threads(threads)
    operations = 2.0 * LIMIT_SIDE**3
    wide = torch.rand(LIMIT_SIDE, LIMIT_SIDE)
    narrow = wide.bfloat16()
    return {
        "fp32": operations / best_s(lambda: wide @ wide, LIMIT_RUNS) / 1e9,
        "bf16": operations / best_s(lambda: narrow @ narrow, LIMIT_RUNS) / 1e9,
    }
