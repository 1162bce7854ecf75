"""Makes an XTTS-v2 with generated weights, in the public one's files, for tests and benchmarks without public weights.

It has the form and, with `--size full`, the cost of the real one, and it makes sound in every voice; it has learnt
nothing, so what it says is noise. It never stops by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from TTS.tts.configs.xtts_config import XttsArgs, XttsConfig
from TTS.tts.layers.xtts.gpt import GPT
from TTS.tts.layers.xtts.hifigan_decoder import HifiDecoder

from polylip.serving.xtts_languages import LANGUAGES
from polylip.serving.xtts_weights import CONFIG, MODEL, SPEAKERS, VOCABULARY

NOTE = "these weights are generated: what is said with them is noise"
STOCK_VOICES = ("Claribel Dervla", "Daisy Studious", "Gracie Wise")  # the first of the public file
LATENTS = 32  # of a voice: the perceiver's
SIZES: dict[str, dict[str, int]] = {
    # Small where the format lets it be: the vocoder's and the speaker encoder's sizes are fixed, 100 MB of float32.
    "tiny": {"gpt_layers": 2, "gpt_n_model_channels": 64, "gpt_n_heads": 4, "decoder_input_dim": 64},
    "full": {"gpt_layers": 30, "gpt_n_model_channels": 1024, "gpt_n_heads": 16, "decoder_input_dim": 1024},
}
# How the public config.json differs from coqui's defaults.
PUBLIC_SETTINGS = {
    "temperature": 0.75,
    "repetition_penalty": 5.0,
    "gpt_cond_len": 30,
    "gpt_cond_chunk_len": 4,
    "max_ref_len": 30,
}
LOUDNESS = 0.1  # root mean square of the sound, about that of speech
MEASURED_LATENTS = 3  # the vocoder is slow
NEVER = -1e4  # logit of the stop token
CORPUS = "the quick brown fox jumps over the lazy dog and speaks to every person in their own voice"


def make_xtts(folder: Path, size: str = "tiny", seed: int = 0) -> Path:
    """Write config.json, model.pth, vocab.json and speakers_xtts.pth into `folder`; the same for the same seed."""
    if size not in SIZES:
        raise ValueError(f"there is no size {size!r}; take {', '.join(SIZES)}")
    folder.mkdir(parents=True, exist_ok=True)
    arguments = XttsArgs(gpt_use_perceiver_resampler=True, **SIZES[size])
    tokenizer = _tokenizer()
    arguments.gpt_number_text_tokens = tokenizer.get_vocab_size()
    arguments.gpt_start_text_token = tokenizer.token_to_id("[START]")
    arguments.gpt_stop_text_token = tokenizer.token_to_id("[STOP]")
    config = XttsConfig(model_args=arguments, **PUBLIC_SETTINGS)
    (folder / CONFIG).write_text(json.dumps(config.to_dict(), indent=4), encoding="utf-8")
    tokenizer.save(str(folder / VOCABULARY))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        torch.save({"model": _state(arguments)}, folder / MODEL)
        torch.save(_speakers(arguments), folder / SPEAKERS)
    return folder


def _tokenizer() -> Tokenizer:
    """Pairs of the letters of a few words; other characters are unknown to it."""
    special = ["[STOP]", "[UNK]", "[SPACE]", *(f"[{code}]" for code in LANGUAGES.values()), "[START]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(code) for code in (*range(0x20, 0x7F), *range(0xC0, 0x180), *range(0x400, 0x460))]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=letters, vocab_size=512, show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def gpt_network(arguments: Any) -> GPT:
    """coqui's GPT for these model arguments."""
    return GPT(
        layers=arguments.gpt_layers,
        model_dim=arguments.gpt_n_model_channels,
        start_text_token=arguments.gpt_start_text_token,
        stop_text_token=arguments.gpt_stop_text_token,
        heads=arguments.gpt_n_heads,
        max_text_tokens=arguments.gpt_max_text_tokens,
        max_mel_tokens=arguments.gpt_max_audio_tokens,
        max_prompt_tokens=arguments.gpt_max_prompt_tokens,
        number_text_tokens=arguments.gpt_number_text_tokens,
        num_audio_tokens=arguments.gpt_num_audio_tokens,
        start_audio_token=arguments.gpt_start_audio_token,
        stop_audio_token=arguments.gpt_stop_audio_token,
        use_perceiver_resampler=arguments.gpt_use_perceiver_resampler,
        code_stride_len=arguments.gpt_code_stride_len,
    )


def _state(arguments: Any) -> dict[str, Tensor]:
    gpt = gpt_network(arguments)
    gpt.mel_head.bias[arguments.gpt_stop_audio_token] = NEVER
    decoder = HifiDecoder(decoder_input_dim=arguments.decoder_input_dim, d_vector_dim=arguments.d_vector_dim).eval()
    _set_loudness(decoder, arguments)
    model = nn.ModuleDict({"gpt": gpt, "hifigan_decoder": decoder})
    state = {_older_name(name): tensor for name, tensor in model.state_dict().items()}
    return {**state, "mel_stats": torch.full((80,), 4.0)}


def _set_loudness(decoder: HifiDecoder, arguments: Any) -> None:
    """Sound of LOUDNESS around zero from latents as a layer norm gives them."""
    latents = torch.randn(1, MEASURED_LATENTS, arguments.decoder_input_dim)
    voice = nn.functional.normalize(torch.randn(1, arguments.d_vector_dim, 1), dim=1)
    last = decoder.waveform_decoder.conv_post
    last.weight.sub_(last.weight.mean(dim=2, keepdim=True))  # it has no bias: what stays the same must add up to zero
    last.weight.mul_(LOUDNESS / decoder(latents, g=voice).atanh().std())


def _older_name(name: str) -> str:
    """Weight-normalised layers as torch named them when the public file was written."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def _speakers(arguments: Any) -> dict[str, dict[str, Tensor]]:
    return {
        name: {
            "gpt_cond_latent": torch.randn(1, LATENTS, arguments.gpt_n_model_channels),
            "speaker_embedding": nn.functional.normalize(torch.randn(1, arguments.d_vector_dim, 1), dim=1),
        }
        for name in STOCK_VOICES
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.export.generated_xtts",
        description="Write an XTTS-v2 with generated weights, in the public one's files.",
        epilog="example: python -m polylip.export.generated_xtts weights/xtts-v2",
    )
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="full: the real one's, 1.9 GB")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other weights")
    options = parser.parse_args(arguments)
    try:
        print(f"{make_xtts(options.out, options.size, options.seed)}: {NOTE}")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
