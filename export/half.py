"""Runs a float16 graph on a CPU with what a GPU would lose: every layer's output rounded to float16.

onnxruntime's CPU kernels compute float16 convolutions in float32 and keep float32 from one layer to the next, so an
overflow or a rounding that spoils the picture on a GPU does not show there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from polylip.export.graphs import DetectGraph, LipsGraph

FLOAT16_MAX = 65504.0

Graph = TypeVar("Graph", LipsGraph, DetectGraph)


@dataclass
class Peak:
    """The largest magnitude that any layer has written, before rounding."""

    value: float = 0.0


def rounded_to_half(graph: Graph) -> tuple[Graph, Peak]:
    """A float32 copy of a float16 graph that rounds what each layer writes; sums between layers stay float32."""
    rounded, peak = copy.deepcopy(graph), Peak()
    rounded.network.to(torch.float32)
    rounded.dtype = torch.float32

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        peak.value = max(peak.value, float(output.abs().nan_to_num(nan=torch.inf).max()))
        return output.to(torch.float16).to(torch.float32)

    def input_hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(torch.float16).to(torch.float32) for tensor in inputs)

    rounded.network.register_forward_pre_hook(input_hook)
    for module in rounded.network.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(hook)
    return rounded, peak
