"""The Wav2Lip generator: a mel window and a face with its mouth masked in, the face with a new mouth out.

Layers and names are those of the public checkpoints (github.com/Rudrabha/Wav2Lip, 5c90fa9): 36 298 035 parameters,
3.97 GMAC per frame.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

Pair = int | tuple[int, int]


class ConvBlock(nn.Module):
    """Convolution, batch norm, the input added where `residual`, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: Pair = 1, padding: int = 0, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_block(x)
        return torch.relu(y + x if self.residual else y)


class UpBlock(nn.Module):
    """Transposed convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 3, stride, padding, output_padding=padding), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv_block(x))


def _same(channels: int) -> ConvBlock:
    """A residual 3x3 block that keeps size and channels."""
    return ConvBlock(channels, channels, 3, 1, 1, residual=True)


def _audio_encoder() -> nn.Sequential:
    """Mel (1, 80, 16) -> embedding (512, 1, 1)."""
    return nn.Sequential(
        ConvBlock(1, 32, 3, 1, 1),
        _same(32),
        _same(32),
        ConvBlock(32, 64, 3, (3, 1), 1),
        _same(64),
        _same(64),
        ConvBlock(64, 128, 3, 3, 1),
        _same(128),
        _same(128),
        ConvBlock(128, 256, 3, (3, 2), 1),
        _same(256),
        ConvBlock(256, 512, 3),
        ConvBlock(512, 512, 1),
    )


def _face_encoder() -> nn.ModuleList:
    """Faces (6, 96, 96) -> seven groups, 16 channels at 96 px down to 512 at 1 px."""
    groups: list[nn.Module] = [nn.Sequential(ConvBlock(6, 16, 7, 1, 3))]
    for inputs, outputs, same in ((16, 32, 2), (32, 64, 3), (64, 128, 2), (128, 256, 2), (256, 512, 1)):
        groups.append(nn.Sequential(ConvBlock(inputs, outputs, 3, 2, 1), *(_same(outputs) for _ in range(same))))
    groups.append(nn.Sequential(ConvBlock(512, 512, 3), ConvBlock(512, 512, 1)))
    return nn.ModuleList(groups)


def _face_decoder() -> nn.ModuleList:
    """Embedding (512, 1, 1) -> seven groups up to 64 channels at 96 px; each takes the group before and a skip."""
    groups: list[nn.Module] = [
        nn.Sequential(ConvBlock(512, 512, 1)),
        nn.Sequential(UpBlock(1024, 512, 1, 0), _same(512)),
    ]
    for inputs, outputs in ((1024, 512), (768, 384), (512, 256), (320, 128), (160, 64)):
        groups.append(nn.Sequential(UpBlock(inputs, outputs, 2, 1), _same(outputs), _same(outputs)))
    return nn.ModuleList(groups)


class Wav2LipGenerator(nn.Module):
    """Pixels are BGR / 255 in [0, 1]; the mel is that of `polylip.serving.mel`."""

    def __init__(self) -> None:
        super().__init__()
        self.face_encoder_blocks = _face_encoder()
        self.audio_encoder = _audio_encoder()
        self.face_decoder_blocks = _face_decoder()
        self.output_block = nn.Sequential(ConvBlock(80, 32, 3, 1, 1), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def forward(self, mel: Tensor, faces: Tensor) -> Tensor:
        """Mel float32 (B, 1, 80, 16), faces (B, 6, 96, 96): masked half first, then whole -> (B, 3, 96, 96)."""
        skips: list[Tensor] = []
        x = faces
        for group in self.face_encoder_blocks:
            x = group(x)
            skips.append(x)
        x = self.audio_encoder(mel)
        for group in self.face_decoder_blocks:
            x = torch.cat((group(x), skips.pop()), dim=1)
        return cast(Tensor, self.output_block(x))
