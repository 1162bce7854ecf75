"""XTTS-v2's GPT, one audio token at a time: a prefix of voice and text in, tokens and the latents that sound out.

The weights are shared and never change; all that a running voice needs lies in its own `Decoding`. So any number of
them can be advanced in turns, and each gives what it would give alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from polylip.serving.xtts_weights import Settings, tensor_of

EPSILON = 1e-5  # of every layer norm: GPT-2's and torch's default
FILLER_TOKEN = 1  # coqui puts it where the prefix is, and penalises it as if it had been said


@dataclass(frozen=True)
class _Linear:
    weight: Tensor  # (outputs, inputs)
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, EPSILON)


@dataclass(frozen=True)
class _Block:
    before_attention: _Norm
    attention: _Linear
    attention_out: _Linear
    before_mlp: _Norm
    mlp: _Linear
    mlp_out: _Linear


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


class Gpt:
    """The weights, float32 except the matrices, which are `dtype`. Sums and norms are always float32."""

    def __init__(
        self, state: Mapping[str, Tensor], settings: Settings, device: torch.device, dtype: torch.dtype, path: Path
    ) -> None:
        def get(name: str) -> Tensor:
            return tensor_of(state, f"gpt.{name}", path).to(device)

        def norm(name: str) -> _Norm:
            return _Norm(get(f"{name}.weight"), get(f"{name}.bias"))

        def linear(name: str, turned: bool) -> _Linear:
            weight = get(f"{name}.weight")
            return _Linear((weight.T if turned else weight).to(dtype).contiguous(), get(f"{name}.bias").to(dtype))

        def block(name: str) -> _Block:  # GPT-2 keeps its matrices as (inputs, outputs)
            return _Block(
                norm(f"{name}.ln_1"),
                linear(f"{name}.attn.c_attn", True),
                linear(f"{name}.attn.c_proj", True),
                norm(f"{name}.ln_2"),
                linear(f"{name}.mlp.c_fc", True),
                linear(f"{name}.mlp.c_proj", True),
            )

        layers = {name.split(".")[3] for name in state if name.startswith("gpt.gpt.h.")}
        self.blocks = [block(f"gpt.h.{index}") for index in range(len(layers))]
        self.last_norm, self.final_norm = norm("gpt.ln_f"), norm("final_norm")
        self.head = linear("mel_head", False)
        self.text, self.text_places = get("text_embedding.weight"), get("text_pos_embedding.emb.weight")
        self.audio, self.audio_places = get("mel_embedding.weight"), get("mel_pos_embedding.emb.weight")
        self.heads, self.dtype, self.device = settings.gpt_n_heads, dtype, device
        self.start, self.stop = settings.gpt_start_audio_token, settings.gpt_stop_audio_token

    @torch.inference_mode()
    def prefix(self, voice: Tensor, text_tokens: list[int]) -> Tensor:
        """What goes before the audio: voice (1, latents, channels) and text, which has its own start and stop."""
        tokens = torch.tensor(text_tokens, device=self.device)
        return torch.cat([voice[0], self.text[tokens] + self.text_places[: len(text_tokens)]])

    def __call__(self, x: Tensor, cache: Tensor, past: int) -> Tensor:
        """Inputs (n, channels) behind `past` cached ones -> the last one's latent (channels,)."""
        count, channels = x.shape
        for layer, block in enumerate(self.blocks):
            qkv = block.attention(block.before_attention(x)).to(self.dtype)
            query, key, value = qkv.view(count, 3, self.heads, channels // self.heads).permute(1, 2, 0, 3)
            cache[layer, 0, :, past : past + count] = key
            cache[layer, 1, :, past : past + count] = value
            keys, values = cache[layer, :, :, : past + count]
            mixed = F.scaled_dot_product_attention(query[None], keys[None], values[None], is_causal=count > 1)
            x = x + block.attention_out(mixed[0].transpose(0, 1).reshape(count, channels))
            x = x + block.mlp_out(F.gelu(block.mlp(block.before_mlp(x)), approximate="tanh"))
        return self.final_norm(self.last_norm(x[-1]))


class Decoding:
    """One piece being spoken: its cache, what it has said, and its own random numbers."""

    def __init__(self, gpt: Gpt, prefix: Tensor, sampling: Sampling, most_tokens: int, seed: int) -> None:
        self._gpt, self._sampling, self._left = gpt, sampling, most_tokens
        count, channels = prefix.shape
        shape = (len(gpt.blocks), 2, gpt.heads, count + most_tokens, channels // gpt.heads)
        self._cache = torch.empty(shape, dtype=gpt.dtype, device=gpt.device)
        self._inputs, self._past, self._said = prefix, 0, 0
        self._token = gpt.start
        self._seen = torch.zeros(len(gpt.audio), dtype=torch.bool, device=gpt.device)
        self._seen[[FILLER_TOKEN, gpt.start]] = True
        self._random = torch.Generator(gpt.device).manual_seed(seed)
        self.ended = False  # the voice itself has stopped

    @torch.inference_mode()
    def step(self) -> Tensor | None:
        """The next token's latent float32 (channels,), None behind the last one."""
        if self.ended or not self._left:
            return None
        gpt = self._gpt
        audio = (gpt.audio[self._token] + gpt.audio_places[self._said])[None]
        inputs = audio if self._past else torch.cat([self._inputs, audio])
        latent = gpt(inputs, self._cache, self._past)
        self._past += len(inputs)
        self._said += 1
        self._left -= 1
        self._token = self._drawn(gpt.head(latent))
        self._seen[self._token] = True
        self.ended = self._token == gpt.stop
        return latent

    def _drawn(self, scores: Tensor) -> int:
        """A token by what the scores allow, in the order of Hugging Face's processors: penalty, heat, k, p."""
        how = self._sampling
        penalised = torch.where(scores < 0, scores * how.repetition_penalty, scores / how.repetition_penalty)
        scores = torch.where(self._seen, penalised, scores) / how.temperature
        best, tokens = scores.topk(min(how.top_k, len(scores)))
        odds = best.softmax(0)
        odds[odds.cumsum(0) - odds >= how.top_p] = 0.0  # the best one always stays
        return int(tokens[torch.multinomial(odds, 1, generator=self._random)])
