"""SyncNet v2, the network that LSE-D and LSE-C are defined with: five face frames and 0.2 s of MFCC to embeddings.

Layers and names are those of `syncnet_v2.model` (github.com/joonson/syncnet_python, 6efbb1c): 13 631 616 parameters.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

EMBEDDING = 1024


def _conv2d(inputs: int, outputs: int, kernel: int | tuple[int, int], padding: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, 1, padding), nn.BatchNorm2d(outputs), nn.ReLU()]


def _conv3d(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """Stride and padding are those of the picture; in time they are 1 and 0."""
    spatial, edge = (1, stride, stride), (0, padding, padding)
    return [nn.Conv3d(inputs, outputs, kernel, spatial, edge), nn.BatchNorm3d(outputs), nn.ReLU()]


def _audio() -> nn.Sequential:
    return nn.Sequential(
        *_conv2d(1, 64, 3, 1),
        nn.MaxPool2d(1, 1),
        *_conv2d(64, 192, 3, 1),
        nn.MaxPool2d(3, (1, 2)),
        *_conv2d(192, 384, 3, 1),
        *_conv2d(384, 256, 3, 1),
        *_conv2d(256, 256, 3, 1),
        nn.MaxPool2d(3, 2),
        *_conv2d(256, 512, (5, 4), 0),
    )


def _lips() -> nn.Sequential:
    return nn.Sequential(
        *_conv3d(3, 96, (5, 7, 7), stride=2),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *_conv3d(96, 256, (1, 5, 5), stride=2, padding=1),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        *_conv3d(256, 256, (1, 3, 3), padding=1),
        *_conv3d(256, 256, (1, 3, 3), padding=1),
        *_conv3d(256, 256, (1, 3, 3), padding=1),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
        *_conv3d(256, 512, (1, 6, 6)),
    )


def _embedding() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))


class SyncNet(nn.Module):
    """Both embeddings are raw: no normalisation, no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _audio()
        self.netfcaud = _embedding()
        self.netfclip = _embedding()
        self.netcnnlip = _lips()

    def forward(self, lips: Tensor, mfcc: Tensor) -> tuple[Tensor, Tensor]:
        """Lips (B, 3, 5, 224, 224) and MFCC (B, 1, 13, 20) -> both embeddings (B, 1024)."""
        return self.embed_lips(lips), self.embed_audio(mfcc)

    def embed_lips(self, lips: Tensor) -> Tensor:
        """Float32 (B, 3, 5, 224, 224), BGR 0..255 without mean subtraction, five frames at 25 fps -> (B, 1024)."""
        return cast(Tensor, self.netfclip(self.netcnnlip(lips).flatten(1)))

    def embed_audio(self, mfcc: Tensor) -> Tensor:
        """Float32 (B, 1, 13, 20): 13 MFCC rows of 20 steps of 10 ms -> (B, 1024)."""
        return cast(Tensor, self.netfcaud(self.netcnnaud(mfcc).flatten(1)))
