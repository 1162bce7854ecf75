"""XTTS-v2's files as data: settings from config.json, tensors from model.pth and speakers_xtts.pth.

The public model.pth carries pickled config objects beside its weights. Nothing of them is built or run: they are read
as empty stand-ins, and any other object makes the file be refused.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polylip.serving.errors import EngineError

CONFIG, MODEL, VOCABULARY, SPEAKERS = "config.json", "model.pth", "vocab.json", "speakers_xtts.pth"
FILES = (CONFIG, MODEL, VOCABULARY, SPEAKERS)
REMEDY = "polylip fetch xtts-v2 --accept-non-commercial"

TRAINER_PREFIX = "xtts."  # before the names in a checkpoint of coqui's trainer
# Of training, or the same tensor under a second name.
UNUSED = ("dvae.", "torch_mel_spectrogram", "gpt.gpt_inference.", "gpt.gpt.wte.", "gpt.text_head.")
CONFIG_CLASSES = (
    "TTS.tts.configs.xtts_config.XttsConfig",
    "TTS.tts.configs.xtts_config.XttsArgs",
    "TTS.tts.configs.xtts_config.XttsAudioConfig",
    "TTS.tts.models.xtts.XttsArgs",
    "TTS.tts.models.xtts.XttsAudioConfig",
    "TTS.config.shared_configs.BaseDatasetConfig",
)
SHOWN = 3  # names that a message lists


@dataclass(frozen=True)
class Settings:
    """What the engine needs of config.json; the defaults are coqui's own."""

    gpt_n_heads: int = 16
    gpt_max_audio_tokens: int = 605
    gpt_max_text_tokens: int = 402
    gpt_start_audio_token: int = 8192
    gpt_stop_audio_token: int = 8193
    gpt_code_stride_len: int = 1024  # samples at input_sample_rate per audio token: 21.5 tokens per second
    gpt_use_perceiver_resampler: bool = False
    input_sample_rate: int = 22050
    output_sample_rate: int = 24000
    output_hop_length: int = 256
    decoder_input_dim: int = 1024
    d_vector_dim: int = 512
    cond_d_vector_in_each_upsampling_layer: bool = True
    temperature: float = 0.85
    repetition_penalty: float = 2.0
    top_k: int = 50
    top_p: float = 0.85
    gpt_cond_len: int = 12  # seconds of the reference that the GPT hears
    gpt_cond_chunk_len: int = 4  # seconds of each part of it
    max_ref_len: int = 10  # seconds of the reference that the vocoder hears

    @property
    def tokens_per_second(self) -> float:
        return self.input_sample_rate / self.gpt_code_stride_len

    @property
    def most_tokens(self) -> int:
        """Audio tokens of one piece: the positions less the conditioning input and the two ends."""
        return self.gpt_max_audio_tokens - 3


def read_settings(path: Path) -> Settings:
    """Raises EngineError for a file that is no XTTS-v2 config."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        given = {**config, **config["model_args"]}
        settings = Settings(**{f.name: given[f.name] for f in fields(Settings) if given.get(f.name) is not None})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineError(f"{path} is not the config of an XTTS model; run: {REMEDY}") from None
    if not settings.gpt_use_perceiver_resampler:
        raise EngineError(f"{path} is of XTTS version 1, which this engine does not speak; run: {REMEDY}")
    return settings


class _Ignored:
    """Stands in for an object of the checkpoint that is not needed."""

    def __setstate__(self, state: object) -> None:
        pass


def read_model(path: Path) -> dict[str, Tensor]:
    """The state dict in model.pth by the names that coqui's networks use. Raises EngineError."""
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type("Ignored", (_Ignored,), {}), name) for name in CONFIG_CLASSES
    ]
    with torch.serialization.safe_globals(stand_ins):
        found = _load(path)
    state = found.get("model") if isinstance(found, dict) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise EngineError(f"{path} holds no weights of XTTS; run: {REMEDY}")
    named = {name.removeprefix(TRAINER_PREFIX): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(UNUSED)}


def read_speakers(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Stock voices by name: latents float32 (1, latents, channels) and embedding float32 (1, d_vector, 1)."""
    found = _load(path)
    try:
        speakers = {str(name): (voice["gpt_cond_latent"], voice["speaker_embedding"]) for name, voice in found.items()}
    except (AttributeError, KeyError, TypeError):
        speakers = {}
    if not speakers or not all(isinstance(part, Tensor) for voice in speakers.values() for part in voice):
        raise EngineError(f"{path} holds no stock voices of XTTS; run: {REMEDY}")
    return speakers


def fill(network: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """Load what lies under `prefix` into `network`, all of it or nothing. Raises EngineError."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        outcome = network.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise _unfitting(path, str(error).splitlines()[-1].strip()) from None
    if outcome.missing_keys:
        raise _unfitting(path, f"missing {_some(prefix + name for name in outcome.missing_keys)}")
    if outcome.unexpected_keys:
        raise _unfitting(path, f"unknown {_some(prefix + name for name in outcome.unexpected_keys)}")


def tensor_of(state: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """Raises EngineError where the checkpoint has none of that name."""
    if name not in state:
        raise _unfitting(path, f"missing {name}")
    return state[name].float()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "GLOBAL" in text or "Unsupported" in text:
            raise EngineError(
                f"{path} holds more than weights, which could run code and is refused; run: {REMEDY}"
            ) from None
        raise _damaged(path) from None
    except MemoryError:
        raise
    except Exception:  # what a parser raises on damaged input has no common type
        raise _damaged(path) from None


def _damaged(path: Path) -> EngineError:
    return EngineError(f"{path} is cut short or damaged ({path.stat().st_size} bytes); run: {REMEDY}")


def _unfitting(path: Path, what: str) -> EngineError:
    return EngineError(f"{path} does not fit XTTS-v2: {what}; run: {REMEDY}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
