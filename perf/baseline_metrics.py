"""What tritonserver's metrics endpoint says of the GPU; nothing on a machine without one."""

from __future__ import annotations

import re

from polylip.serving.drain import read_metrics

GPU_USE, GPU_MEMORY = "nv_gpu_utilization", "nv_gpu_memory_used_bytes"  # 0 to 1, bytes
_LINE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def gpu_figures(url: str) -> dict[str, float]:
    """Mean use and summed memory over all GPUs; empty without one. Raises OSError where the server does not answer."""
    return gpu_of(read_metrics(url))


def has_gpu(url: str) -> bool:
    """Whether the server tells of one."""
    return bool(gpu_figures(url))


def gpu_of(text: str) -> dict[str, float]:
    """Both figures of a GPU in the endpoint's text."""
    values: dict[str, list[float]] = {GPU_USE: [], GPU_MEMORY: []}
    for name, value in _LINE.findall(text):
        if name in values:
            values[name].append(float(value))
    if not values[GPU_USE] or not values[GPU_MEMORY]:
        return {}
    return {GPU_USE: sum(values[GPU_USE]) / len(values[GPU_USE]), GPU_MEMORY: sum(values[GPU_MEMORY])}
