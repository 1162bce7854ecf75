"""XTTS-v2's voice cloning: reference speech in, what the GPT and the vocoder need of a voice out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torchaudio.functional import resample
from torchaudio.transforms import MelSpectrogram
from TTS.tts.layers.tortoise.autoregressive import ConditioningEncoder
from TTS.tts.layers.xtts.hifigan_decoder import HifiDecoder
from TTS.tts.layers.xtts.perceiver_encoder import PerceiverResampler

from polylip.serving.engines import Float32
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.xtts_weights import Settings, fill, tensor_of

# The mel spectrogram that the GPT hears a voice through: upstream's, for XTTS version 2.
MELS, FFT, HOP, WINDOW, HIGHEST_HZ = 80, 2048, 256, 1024, 8000
QUIETEST = 1e-5
SHORTEST_CHUNK_S = 0.33  # upstream leaves out what is shorter
# The perceiver that upstream builds into its GPT; none of it is in config.json.
PERCEIVER = {"depth": 2, "num_latents": 32, "dim_head": 64, "heads": 8, "ff_mult": 4, "use_flash_attn": False}


class VoiceEncoder:
    """The networks that listen, and the vocoder's generator, which lies in the same part of the checkpoint."""

    def __init__(self, state: Mapping[str, Tensor], settings: Settings, device: torch.device, path: Path) -> None:
        self._settings, self._device = settings, device
        channels = tensor_of(state, "gpt.final_norm.weight", path).shape[0]
        self._conditioning = ConditioningEncoder(MELS, channels, num_attn_heads=settings.gpt_n_heads)
        self._perceiver = PerceiverResampler(dim=channels, dim_context=channels, **PERCEIVER)
        decoder = HifiDecoder(
            input_sample_rate=settings.input_sample_rate,
            output_sample_rate=settings.output_sample_rate,
            output_hop_length=settings.output_hop_length,
            ar_mel_length_compression=settings.gpt_code_stride_len,
            decoder_input_dim=settings.decoder_input_dim,
            d_vector_dim=settings.d_vector_dim,
            cond_d_vector_in_each_upsampling_layer=settings.cond_d_vector_in_each_upsampling_layer,
        )
        fill(self._conditioning, state, "gpt.conditioning_encoder.", path)
        fill(self._perceiver, state, "gpt.conditioning_perceiver.", path)
        fill(decoder, state, "hifigan_decoder.", path)
        _fold_weight_norms(decoder)
        for network in (self._conditioning, self._perceiver, decoder):
            network.to(device).eval().requires_grad_(False)
        self.generator, self._speaker = decoder.waveform_decoder, decoder.speaker_encoder
        self._mel_stats = tensor_of(state, "mel_stats", path)[:, None]
        self._mel = MelSpectrogram(
            sample_rate=settings.input_sample_rate,
            n_fft=FFT,
            hop_length=HOP,
            win_length=WINDOW,
            f_max=HIGHEST_HZ,
            n_mels=MELS,
            norm="slaney",
        )

    @torch.inference_mode()
    def __call__(self, reference: Float32) -> tuple[Tensor, Tensor]:
        """Speech (samples,) at 16 kHz -> latents (1, latents, channels) and embedding (1, d_vector, 1)."""
        settings, rate = self._settings, self._settings.input_sample_rate
        audio = torch.from_numpy(reference).clamp(-1, 1)[None]
        heard = resample(audio, SAMPLE_RATE_HZ, rate)[:, : settings.gpt_cond_len * rate]
        chunks = [
            self._style(chunk)
            for chunk in heard.split(settings.gpt_cond_chunk_len * rate, dim=1)
            if chunk.shape[1] >= SHORTEST_CHUNK_S * rate
        ]
        whole = audio[:, : settings.max_ref_len * SAMPLE_RATE_HZ].to(self._device, copy=True)
        embedding = self._speaker(whole, l2_norm=True).unsqueeze(-1)
        return torch.stack(chunks).mean(dim=0), embedding

    def _style(self, audio: Tensor) -> Tensor:
        """Speech (1, samples) of a few seconds -> (1, latents, channels)."""
        mel = self._mel(audio).clamp(min=QUIETEST).log() / self._mel_stats
        style: Tensor = self._perceiver(self._conditioning(mel.to(self._device)).transpose(1, 2))
        return style


def _fold_weight_norms(network: nn.Module) -> None:
    """Keep each normalised weight as it is, instead of computing it anew for every chunk."""
    for layer in network.modules():
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight")
