"""XTTS-v2's latents to sound, chunk by chunk, with coqui's HiFi-GAN: the same samples as of all latents at once.

Each chunk is made from a window that reaches as far to both sides as the network can see. So the cost is linear in the
length, no cross-fade is needed, and nothing differs from the whole but the order of float32 sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polylip.serving.engines import Float32
from polylip.serving.xtts_weights import Settings


class Vocoder:
    """The shared network. Every running voice has its own `Waveform`."""

    def __init__(self, generator: Any, settings: Settings) -> None:
        self.generator = generator
        self.hop = settings.output_hop_length
        # coqui resamples twice: to the vocoder's frames, then to the output's sample rate.
        self.scales = (
            settings.gpt_code_stride_len / settings.output_hop_length,
            settings.output_sample_rate / settings.input_sample_rate,
        )
        self.sight = sight(generator)

    @torch.inference_mode()
    def sound(self, frames: Tensor, speaker: Tensor) -> Tensor:
        """Frames (n, channels) and a speaker's embedding (1, d_vector, 1) -> samples (n * hop,)."""
        made: Tensor = self.generator(frames.T[None], g=speaker)
        return made.flatten()


class Waveform:
    """One piece's latents as they come, and the sound they make at `speed`."""

    def __init__(self, vocoder: Vocoder, speaker: Tensor, speed: float) -> None:
        self._vocoder, self._speaker = vocoder, speaker
        self._scales = vocoder.scales if speed == 1.0 else (1.0 / speed, *vocoder.scales)
        self._latents: list[Tensor] = []
        self._sounded = 0  # frames

    def push(self, latent: Tensor) -> None:
        self._latents.append(latent)

    @torch.inference_mode()
    def sound(self, final: bool) -> Float32:
        """What can be said for certain of the latents so far, (samples,); with `final` all of it."""
        ready = stretched_length(len(self._latents), self._scales, final)
        end = ready if final else ready - self._vocoder.sight
        if end <= self._sounded:
            return torch.zeros(0).numpy()
        start = max(self._sounded - self._vocoder.sight, 0)
        frames = stretched(torch.stack(self._latents), self._scales, start, ready)
        hop = self._vocoder.hop
        samples = self._vocoder.sound(frames, self._speaker)[(self._sounded - start) * hop : (end - start) * hop]
        self._sounded = end
        return samples.float().cpu().numpy()


def sight(generator: Any) -> int:
    """How many frames to each side can change a sample of HiFi-GAN: its convolutions, from the last to the first."""

    def reach(convolution: Any) -> int:
        return int((convolution.kernel_size[0] - 1) // 2 * convolution.dilation[0])

    far = reach(generator.conv_post)
    kernels = generator.num_kernels
    for index in reversed(range(generator.num_upsamples)):
        blocks = generator.resblocks[index * kernels : (index + 1) * kernels]
        far += max(sum(reach(c) for c in (*block.convs1, *block.convs2)) for block in blocks)
        up = generator.ups[index]
        far = math.ceil((far + up.kernel_size[0] - 1) / up.stride[0])
    return far + reach(generator.conv_pre)


def stretched_length(count: int, scales: Sequence[float], final: bool) -> int:
    """How many frames `count` latents make; before the end only those that later latents cannot change."""
    for scale in scales:
        known = math.floor((count - 0.5) * scale - 0.5) + 1  # places up to the last latent
        count = math.floor(count * scale) if final else max(known, 0)
    return count


def stretched(latents: Tensor, scales: Sequence[float], start: int, stop: int) -> Tensor:
    """Frames start to stop of the latents (n, channels), interpolated linearly by each of the scales in turn.

    As `torch.nn.functional.interpolate` does it, but for any part of the whole.
    """
    if not scales:
        return latents[start:stop]
    *inner, scale = scales
    length = stretched_length(len(latents), inner, final=True)
    places = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) / scale - 0.5).clamp_(0.0, length - 1)
    below = places.long()
    above = (below + 1).clamp_(max=length - 1)
    first = int(below[0])
    known = stretched(latents, inner, first, int(above[-1]) + 1)
    weight = (places - below).to(known).unsqueeze(1)
    return torch.lerp(known[(below - first).to(known.device)], known[(above - first).to(known.device)], weight)
