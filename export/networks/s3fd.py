"""The S3FD face detector: a picture in, class logits and box offsets at six strides out.

Layers and names are those of `s3fd-619a316812.pth` (github.com/1adrianb/face-alignment, 608505f): 22 459 110
parameters, 73 GMAC for 640x360.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor, nn

NORM_EPSILON = 1e-10
HEAD_STRIDES = (4, 8, 16, 32, 64, 128)  # px; a cell's prior is a square of four strides
HEAD_NAMES = ("conv3_3_norm", "conv4_3_norm", "conv5_3_norm", "fc7", "conv6_2", "conv7_2")
_HEAD_CHANNELS = (256, 512, 512, 1024, 512, 256)
_FIRST_HEAD_CLASSES = 4  # three backgrounds, of which the likeliest counts, and the face


class L2Norm(nn.Module):
    """Scales each pixel's feature vector to length 1 and each channel by a learned weight, in float32."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # squares of float16 features overflow
        length = wide.pow(2).sum(dim=1, keepdim=True).sqrt() + NORM_EPSILON
        return (wide / length * self.weight.float()[:, None, None]).to(x.dtype)


class S3FD(nn.Module):
    """Input: channels less their means (104, 117, 123), no scaling."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
        for stage, channels in enumerate(widths, 1):
            for layer, (inputs, outputs) in enumerate(pairwise(channels), 1):
                self.add_module(f"conv{stage}_{layer}", nn.Conv2d(inputs, outputs, 3, 1, 1))
        self._layers_per_stage = [len(channels) - 1 for channels in widths]
        self.fc6 = nn.Conv2d(512, 1024, 3, 1, 3)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, 2, 1)
        self.conv7_1 = nn.Conv2d(512, 128, 1)
        self.conv7_2 = nn.Conv2d(128, 256, 3, 2, 1)
        self.conv3_3_norm = L2Norm(256, 10.0)
        self.conv4_3_norm = L2Norm(512, 8.0)
        self.conv5_3_norm = L2Norm(512, 5.0)
        for index, (name, inputs) in enumerate(zip(HEAD_NAMES, _HEAD_CHANNELS, strict=True)):
            classes = _FIRST_HEAD_CLASSES if index == 0 else 2
            self.add_module(f"{name}_mbox_conf", nn.Conv2d(inputs, classes, 3, 1, 1))
            self.add_module(f"{name}_mbox_loc", nn.Conv2d(inputs, 4, 3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Float32 (B, 3, H, W) -> class logits (B, 2, h, w) and offsets (B, 4, h, w) of head 1, of head 2, ..."""
        outputs: list[Tensor] = []
        for index, (name, feature) in enumerate(zip(HEAD_NAMES, self.features(images), strict=True)):
            logits = self.get_submodule(f"{name}_mbox_conf")(feature)
            if index == 0:
                background = logits[:, : _FIRST_HEAD_CLASSES - 1].amax(dim=1, keepdim=True)
                logits = torch.cat((background, logits[:, _FIRST_HEAD_CLASSES - 1 :]), dim=1)
            outputs += [logits, self.get_submodule(f"{name}_mbox_loc")(feature)]
        return outputs

    def features(self, images: Tensor) -> list[Tensor]:
        """What the six heads read, at strides 4 to 128."""
        x, stages = images, []
        for stage, layers in enumerate(self._layers_per_stage, 1):
            for layer in range(1, layers + 1):
                x = torch.relu(self.get_submodule(f"conv{stage}_{layer}")(x))
            stages.append(x)
            x = F.max_pool2d(x, 2)
        fc7 = torch.relu(self.fc7(torch.relu(self.fc6(x))))
        conv6 = torch.relu(self.conv6_2(torch.relu(self.conv6_1(fc7))))
        conv7 = torch.relu(self.conv7_2(torch.relu(self.conv7_1(conv6))))
        norms = (self.conv3_3_norm, self.conv4_3_norm, self.conv5_3_norm)
        return [*(norm(x) for norm, x in zip(norms, stages[2:], strict=True)), fc7, conv6, conv7]
