"""A Wav2Lip generator with generated weights whose picture is the reference face with a mouth that darkens when loud.

Two signals are led through the otherwise random network: the reference's colours through the first skip, and the
loudness of the mel window down the audio encoder and up the decoder, where it spreads over the place of the mouth.
All other channels are random and reach the picture as a faint texture, so that an error anywhere shows in it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from polylip.export.generated_weights import measure_batch_norms, randomise, structured_mel, structured_pictures
from polylip.export.networks import Wav2LipGenerator
from polylip.export.networks.wav2lip import ConvBlock, UpBlock

SIDE = 96  # px of a crop
CALIBRATION_FRAMES = 24  # the batch norms of 1x1 maps have no more values than that to measure

COLOURS = 3
# The piecewise linear inverse of the sigmoid, per colour: max(0, sign * (colour - knot)). The steep pieces are zero in
# the middle, so that no large terms cancel there and lower precisions lose no more than their own step.
HINGES = ((1, 0.0), (-1, 0.02), (-1, 0.06), (-1, 0.2), (1, 0.8), (1, 0.94), (1, 0.98))
DARKEST, LIGHTEST = 0.004, 0.996  # of 1, what the inverse aims at: one level from black and from white
TEXTURE = 0.004  # of 1, times the size of the random channels, which is near 2: about two levels
STEEPEST = 4.0  # logits per unit of colour in the middle of the range

LOUDNESS_BANDS = (1.0, 0.5, 0.0)  # of the low, middle and high third: hissing is spoken with closed teeth
QUIET, LOUD = 0.05, 0.12  # what arrives at the end of the audio encoder where the mouth begins to open and is open
MOUTH_CELLS = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0))  # of the 3x3 map that the decoder begins with
MOUTH_LOWER = 0.75  # of a row of 8 px: with it the middle of the mouth is on row 70
MOUTH_EDGE = 0.35  # of the openness: what spreads less than that is face
MOUTH_DARKENS = (0.65, 0.7, 0.5)  # of 1, of B, G and R at full openness
SMOOTHING = 0.25  # share of the neighbours' mean in a residual block


def generated_wav2lip(generator: torch.Generator) -> Wav2LipGenerator:
    """The same network for the same state of `generator`."""
    network = Wav2LipGenerator()
    randomise(network, generator)
    passing: dict[nn.Module, int] = {}  # batch norm -> how many of its first channels are led through
    _lead_loudness(network, passing)
    _lead_colours(network, passing)
    _make_output(network.output_block, generator, passing)
    faces = structured_pictures(CALIBRATION_FRAMES, SIDE, SIDE, generator)
    masked = faces.clone()
    masked[:, :, SIDE // 2 :] = 0
    mel = structured_mel(CALIBRATION_FRAMES, generator)
    measure_batch_norms(network, passing, mel, torch.cat((masked, faces), dim=1))
    return network


def _lead_loudness(network: Wav2LipGenerator, passing: dict[nn.Module, int]) -> None:
    """Channel 0 of audio encoder and decoder: positive everywhere, so that no ReLU cuts it but where it is meant to."""
    blocks = [
        block
        for name, block in network.named_modules()
        if isinstance(block, ConvBlock | UpBlock) and name.startswith(("audio_encoder", "face_decoder"))
    ]
    for block in blocks:
        _isolate(block)
        kernel = _kernel(block)
        if kernel.shape == (3, 3):
            kernel.copy_(_smoothing() if getattr(block, "residual", False) else _spreading(block))
        else:
            kernel.fill_(1.0)
        passing[_norm(block)] = 1

    first, last_map, last = network.audio_encoder[0], network.audio_encoder[-2], network.audio_encoder[-1]
    _kernel(first).copy_(_centre(1 / 8))  # (mel + 4) / 8
    _bias(first)[0] = 0.5
    bands = torch.tensor(LOUDNESS_BANDS)[:, None].expand(3, 3)
    _kernel(last_map).copy_(bands / bands.sum())
    for channel, threshold in enumerate((QUIET, LOUD)):
        _conv(last).weight[channel] = 0
        _conv(last).weight[channel, 0] = 1 / (LOUD - QUIET)
        _bias(last)[channel] = -threshold / (LOUD - QUIET)
    passing[_norm(last)] = 2
    _conv(network.get_submodule("face_decoder_blocks.0.0")).weight[
        0, 1
    ] = -1.0  # more than loud opens the mouth no further

    _kernel(network.get_submodule("face_decoder_blocks.1.0")).copy_(torch.tensor(MOUTH_CELLS))
    lower = _centre(-MOUTH_LOWER)
    lower[0, 1] = MOUTH_LOWER
    _kernel(network.get_submodule("face_decoder_blocks.3.1")).copy_(lower)
    edge = network.get_submodule("face_decoder_blocks.6.0")
    _kernel(edge).mul_(1 / (1 - MOUTH_EDGE))
    _bias(edge)[0] = -MOUTH_EDGE / (1 - MOUTH_EDGE)


def _lead_colours(network: Wav2LipGenerator, passing: dict[nn.Module, int]) -> None:
    """The first channels of the first skip are the reference's colours, which follow those of the masked face."""
    block = network.get_submodule("face_encoder_blocks.0.0")
    conv = _conv(block)
    conv.weight[:COLOURS] = 0
    _bias(block)[:COLOURS] = 0
    for colour in range(COLOURS):
        conv.weight[colour, COLOURS + colour, 3, 3] = 1
    passing[_norm(block)] = COLOURS


def _make_output(block: nn.Sequential, generator: torch.Generator, passing: dict[nn.Module, int]) -> None:
    """Colour less mouth plus texture, through the inverse of the sigmoid; what units are left stay random."""
    conv, last = _conv(block[0]), cast(nn.Conv2d, block[1])
    inputs = conv.weight.shape[1]
    skip = inputs - 16  # the first skip's channels come last
    slopes, offset = _inverse_sigmoid()
    nn.init.normal_(last.weight, std=STEEPEST * TEXTURE, generator=generator)
    for colour in range(COLOURS):
        kernel = torch.randn(inputs, 3, 3, generator=generator) * TEXTURE / (9 * inputs) ** 0.5
        for place, value in ((0, -MOUTH_DARKENS[colour]), *((skip + c, float(c == colour)) for c in range(COLOURS))):
            kernel[place] = _centre(value)
        units = slice(colour * len(HINGES), (colour + 1) * len(HINGES))
        signs, knots = torch.tensor(HINGES).T
        conv.weight[units] = signs[:, None, None, None] * kernel
        _bias(block[0])[units] = -signs * knots
        last.weight[:, units] = 0
        last.weight[colour, units, 0, 0] = slopes
    last.get_parameter("bias").fill_(offset)
    passing[_norm(block[0])] = COLOURS * len(HINGES)


def _inverse_sigmoid() -> tuple[Tensor, float]:
    """Slopes (hinges,) and offset with logit(p) = offset + sum of slope * hinge(p), as the sigmoid sees it."""
    colours = torch.linspace(0, 1, 256, dtype=torch.float64)
    signs, knots = torch.tensor(HINGES, dtype=torch.float64).T
    bent = torch.cat(((signs * (colours[:, None] - knots)).clamp(min=0), torch.ones(256, 1)), dim=1)
    aim = colours.clamp(DARKEST, LIGHTEST)
    weight = (aim * (1 - aim))[:, None]  # the sigmoid's slope there
    solution = torch.linalg.lstsq(bent * weight, aim.logit()[:, None] * weight).solution[:, 0].float()
    return solution[:-1], float(solution[-1])


def _conv(block: nn.Module) -> nn.Conv2d:
    return cast(nn.Conv2d, cast(ConvBlock, block).conv_block[0])


def _bias(block: nn.Module) -> Tensor:
    return _conv(block).get_parameter("bias")


def _norm(block: nn.Module) -> nn.Module:
    return cast(ConvBlock, block).conv_block[1]


def _isolate(block: nn.Module) -> None:
    """Output channel 0 reads nothing any more."""
    conv = _conv(block)
    _bias(block)[0] = 0
    (conv.weight[:, 0] if isinstance(block, UpBlock) else conv.weight[0]).zero_()


def _kernel(block: nn.Module) -> Tensor:
    """The kernel (k, k) from input channel 0 to output channel 0."""
    return _conv(block).weight[0, 0]


def _spreading(block: nn.Module) -> Tensor:
    """Going up, each cell to its place and half to the three places between cells; going down, the mean."""
    if isinstance(block, UpBlock):
        taps = torch.tensor([0.5, 1.0, 0.5])
        return taps[:, None] * taps
    return torch.full((3, 3), 1 / 9)


def _smoothing() -> Tensor:
    """To be added to its input."""
    return torch.full((3, 3), SMOOTHING / 9) - _centre(SMOOTHING)


def _centre(value: float) -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = value
    return kernel
