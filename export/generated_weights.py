"""What generated weights are made with: random layers, batch norms that fit them, and inputs to measure them on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

NORM_SCALES = (0.7, 1.3)  # of batch norms, uniform
BIAS_STD = 0.1  # of convolutions and batch norms
PICTURE_CELLS = (2, 4, 8, 16, 32)  # patches per side of the random patterns that a structured picture is the sum of
PICTURE_CONTRAST = (1.0, 1.0, 0.7, 0.5, 0.35)  # of each
PICTURE_GRAIN = 0.3  # of the noise per pixel: without it the layers would amplify a camera's noise
MEL_BANDS, MEL_COLUMNS = 80, 16


def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """He's initialisation for layers before a ReLU; small random biases; batch norms near 1."""
    for layer in network.modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / _inputs_per_output(layer)), generator=generator)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=BIAS_STD, generator=generator)
        elif isinstance(layer, _BatchNorm):
            nn.init.uniform_(layer.weight, *NORM_SCALES, generator=generator)
            nn.init.normal_(layer.bias, std=BIAS_STD, generator=generator)


def _inputs_per_output(layer: _ConvNd | nn.Linear) -> float:
    if isinstance(layer, _ConvTransposeNd):
        return layer.weight.shape[0] * math.prod(layer.kernel_size) / math.prod(layer.stride)
    return layer.weight[0].numel()


def measure_batch_norms(network: nn.Module, passing: Mapping[nn.Module, int], *inputs: Tensor) -> None:
    """Give every batch norm the statistics of what reaches it; the first `passing` channels of one pass unchanged."""
    hooks = [
        layer.register_forward_pre_hook(lambda norm, x: _measure(norm, x[0], passing.get(norm, 0)))
        for layer in network.modules()
        if isinstance(layer, _BatchNorm)
    ]
    network.eval()(*inputs)
    for hook in hooks:
        hook.remove()


def _measure(norm: nn.Module, x: Tensor, passing: int) -> None:
    places = [axis for axis in range(x.ndim) if axis != 1]
    mean, variance = x.mean(places), x.var(places, unbiased=False)
    for buffer, value in (("running_mean", mean), ("running_var", variance), ("num_batches_tracked", 1)):
        norm.get_buffer(buffer).copy_(torch.as_tensor(value))
    norm.get_parameter("weight")[:passing] = (variance[:passing] + cast(_BatchNorm, norm).eps).sqrt()
    norm.get_parameter("bias")[:passing] = mean[:passing]


def structured_pictures(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random pictures with large shapes and small ones, float32 (count, 3, height, width) in [0, 1]."""
    total = PICTURE_GRAIN * torch.randn(count, 3, height, width, generator=generator)
    for cells, contrast in zip(PICTURE_CELLS, PICTURE_CONTRAST, strict=True):
        grey = torch.randn(count, 1, cells, cells, generator=generator)
        colour = torch.randn(count, 3, cells, cells, generator=generator)
        pattern = F.interpolate(grey + colour / 2, (height, width), mode="bicubic", align_corners=False)
        total += contrast * pattern
    return torch.sigmoid(total)


def structured_mel(count: int, generator: torch.Generator) -> Tensor:
    """Mel windows from silence to loud speech, float32 (count, 1, 80, 16) in [-4, 4]."""
    level = torch.linspace(-4.0, 1.5, count)[:, None, None, None]
    bands = F.interpolate(torch.randn(count, 1, 10, 4, generator=generator), (MEL_BANDS, MEL_COLUMNS), mode="bicubic")
    tilt = torch.linspace(1.0, -1.0, MEL_BANDS)[:, None]
    grain = 0.3 * torch.randn(count, 1, MEL_BANDS, MEL_COLUMNS, generator=generator)
    mel = (level + bands + tilt + grain).clamp(-4, 4)
    mel[0] = -4.0
    return mel
