"""The picture networks as they are served: uint8 pictures in, uint8 pictures or boxes in pixels out.

Everything between the wire and the network is in the graph: scaling, masking, means, softmax, box decoding, the choice
of the best boxes. Tensors are those of docs/models.md. In a float16 graph only the network's own layers are float16;
what comes before and after them, and S3FD's normalisation, stays float32.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor, nn

from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.networks.s3fd import HEAD_STRIDES

Network = TypeVar("Network", bound=nn.Module)

SIDE = 96  # rows and columns of a face crop
FIRST_MASKED_ROW = SIDE // 2  # upstream's Wav2Lip hides the lower half of the face that is to be re-lipped
PIXEL_MAX = 255.0

CHANNEL_MEANS = (104.0, 117.0, 123.0)  # upstream's s3fd: Caffe's means of B, G, R
PRIOR_STRIDES = 4.0  # side of a prior in strides of its head
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2  # upstream's s3fd: units of the predicted offsets
CANDIDATES = 256  # K of BOXES and SCORES; `track` compares as many
MIN_SCORE = 0.05  # upstream's s3fd: not a candidate at or below
# A VGG trunk on unscaled pixels has activations of thousands, and float16 ends at 65504. All its layers but the first
# only pass a factor on, so a power of two moves them to the middle of float16's range without any rounding.
TRUNK_SCALE = 1.0 / 16.0


class LipsGraph(nn.Module):
    """MEL float32 (frames, 80, 16), FACES uint8 (frames, 96, 96, 3) BGR -> MOUTHS uint8 (frames, 96, 96, 3) BGR."""

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        shown = torch.ones(1, 1, SIDE, 1)
        shown[:, :, FIRST_MASKED_ROW:] = 0.0
        self.register_buffer("shown", shown)

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        reference = faces.to(torch.float32).permute(0, 3, 1, 2) / PIXEL_MAX
        both = torch.cat((reference * self.get_buffer("shown"), reference), dim=1)
        mouths: Tensor = self.network(mel[:, None].to(self.dtype), both.to(self.dtype))
        # Rounded to the nearest grey level; upstream cuts the fraction off and so darkens by half a level.
        pixels = (mouths.to(torch.float32) * PIXEL_MAX).round().clamp(0.0, PIXEL_MAX)
        return pixels.permute(0, 2, 3, 1).to(torch.uint8)


class DetectGraph(nn.Module):
    """FRAMES uint8 (frames, H, W, 3) BGR -> BOXES float32 (frames, K, 4) x1 y1 x2 y2 in pixels, SCORES (frames, K).

    Best first; where fewer than K cells score above 0.05, the rest is 0. Boxes that overlap are all there: `track`
    suppresses them. The public weights were trained on BGR; `rgb` feeds them RGB with the same means, as Wav2Lip does.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype = torch.float32, rgb: bool = False, min_score: float = MIN_SCORE
    ) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.rgb = rgb
        self.register_buffer("min_score", torch.tensor(min_score))  # named in the exported graph, for its check
        self.register_buffer("means", torch.tensor(CHANNEL_MEANS))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        pixels = frames.to(torch.float32)
        if self.rgb:
            pixels = pixels.flip(-1)
        images = (pixels - self.get_buffer("means")).permute(0, 3, 1, 2)
        maps = [output.to(torch.float32) for output in self.network(images.to(self.dtype))]
        # The softmax over two classes is the sigmoid of their difference. One zero per candidate, so that K can be had.
        scores = torch.cat([torch.sigmoid(logits[:, 1] - logits[:, 0]).flatten(1) for logits in maps[0::2]], dim=1)
        best, cells = F.pad(scores, (0, CANDIDATES)).topk(CANDIDATES, dim=1)
        cells = cells.clamp(max=scores.shape[1] - 1)
        offsets = torch.cat([offset.flatten(2) for offset in maps[1::2]], dim=2)
        offsets = offsets.gather(2, cells[:, None].expand(-1, 4, -1)).permute(0, 2, 1)
        priors = torch.cat([_priors(m, s) for m, s in zip(maps[1::2], HEAD_STRIDES, strict=True)])[cells]
        is_candidate = best > self.get_buffer("min_score")
        boxes = torch.where(is_candidate[..., None], _decode(offsets, priors), 0.0)
        return boxes, torch.where(is_candidate, best, 0.0)


def _priors(feature: Tensor, stride: int) -> Tensor:
    """Priors of a feature map (n, c, h, w), row by row: centre x, centre y, side; float32 (h * w, 3) in pixels."""
    rows, columns = feature.shape[2], feature.shape[3]
    ys = torch.arange(rows).to(torch.float32) * stride + stride / 2  # TensorRT counts dynamic ranges in integers only
    xs = torch.arange(columns).to(torch.float32) * stride + stride / 2
    grid = (xs[None, :].expand(rows, -1), ys[:, None].expand(-1, columns))
    centres = torch.stack(grid, dim=2).reshape(-1, 2)
    return F.pad(centres, (0, 1), value=PRIOR_STRIDES * stride)


def _decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """Offsets dx dy dw dh (..., 4) on priors (..., 3) -> corners x1 y1 x2 y2 (..., 4) in pixels."""
    side = priors[..., 2:]
    centres = priors[..., :2] + CENTRE_VARIANCE * offsets[..., :2] * side
    half_sizes = side * torch.exp(SIZE_VARIANCE * offsets[..., 2:]) / 2
    return torch.cat((centres - half_sizes, centres + half_sizes), dim=-1)


def lips_graph(network: Wav2LipGenerator, dtype: torch.dtype) -> LipsGraph:
    """The graph to export: batch norms folded, weights in `dtype`. The given network is left as it is."""
    return LipsGraph(fold_batch_norms(network).to(dtype), dtype).eval()


def detect_graph(network: S3FD, dtype: torch.dtype, rgb: bool = False) -> DetectGraph:
    """The graph to export: weights in `dtype`, the trunk scaled for float16. The given network is left as it is."""
    prepared = copy.deepcopy(network)
    if dtype == torch.float16:
        scale_trunk(prepared, TRUNK_SCALE)
    return DetectGraph(prepared.to(dtype), dtype, rgb).eval()


def fold_batch_norms(network: Network) -> Network:
    """A copy in which each batch norm that follows a convolution is part of that convolution's weight and bias."""
    folded = copy.deepcopy(network)
    for sequence in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        for index, (first, second) in enumerate(pairwise(list(sequence)), 1):
            if isinstance(first, nn.Conv2d | nn.ConvTranspose2d) and isinstance(second, nn.BatchNorm2d):
                _fold(first, second)
                sequence[index] = nn.Identity()
    return folded


@torch.no_grad()
def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """Worked out in float64, so that a small variance costs no digits."""
    if norm.running_mean is None or norm.running_var is None or convolution.bias is None:
        raise ValueError("only a batch norm with running statistics behind a convolution with a bias can be folded")
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    output_axis = 1 if isinstance(convolution, nn.ConvTranspose2d) else 0
    shape = [-1 if axis == output_axis else 1 for axis in range(4)]
    convolution.weight.copy_(convolution.weight.double() * factor.reshape(shape))
    convolution.bias.copy_((convolution.bias.double() - norm.running_mean.double()) * factor + norm.bias.double())


@torch.no_grad()
def scale_trunk(network: S3FD, scale: float) -> None:
    """Multiply all activations of the trunk by `scale`, leaving every output as it is.

    The first weight and all biases are scaled; ReLU and pooling pass the factor on, L2Norm removes it, and the heads
    without L2Norm undo it.
    """
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if "_mbox_" not in name:
            if name == "conv1_1":
                module.weight.mul_(scale)
            if module.bias is not None:
                module.bias.mul_(scale)
        elif "_norm_" not in name:
            module.weight.div_(scale)
