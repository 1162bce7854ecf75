"""Makes Whisper checkpoints with generated weights in CTranslate2's format, for tests and benchmarks without downloads.

They are random, with the form and the cost of the real ones; a taught one has learnt to write down a few sounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from polylip.serving.whisper_languages import LANGUAGES, whisper_code

SAMPLE_RATE_HZ = 16000
MAX_TOKENS = 448  # of the decoder, as in every Whisper
ENGLISH_TEXT_TOKENS = 50256  # a multilingual Whisper has an empty one more, by which CTranslate2 knows it
TIMESTAMPS = 1501  # tokens from 0.00 to 30.00 s in steps of 20 ms
NOTE = "these weights are generated: what is recognised with them is meaningless"

LANGUAGE_TOKENS = sorted(whisper_code(language) for language in LANGUAGES | {"haw"})  # all but large-v3 have these 99
TASK_TOKENS = ("translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps")

# What a taught model has learnt to write down: its tone in Hz, and how often that sounds. A low hum beneath makes the
# language Spanish; noise is no speech.
PHRASES = {
    "hello friend": (500.0, 2),
    "the water is green": (1100.0, 3),
    "water": (2400.0, 1),
    "thank you thank you thank you thank you": (5000.0, 2),  # as a real one does with music
}
HUM_HZ = 150.0
TONE_S, GAP_S = 0.4, 0.2
CONTEXT_WORDS = ["we", "saw", "them", "again", "and", "it", "was", "good"]  # what taught contexts are made of
TEACHING_SOUNDS, TEACHING_BATCH = 80, 16
TEACHING_POSITIONS = 150  # of the encoder, 20 ms each: no lesson is longer
TEACHING_STEPS = 260
TEACHING_RATE = 3e-3
CONV_GAIN = 8.0  # of the encoder's convolutions, over the inverse of their inputs
NEVER_LOGIT = -20.0


@dataclass(frozen=True)
class Size:
    """The shape of a Whisper."""

    width: int
    layers: int  # of the encoder, and as many of the decoder
    heads: int
    alignment_heads: tuple[tuple[int, int], ...]  # layer and head whose attention follows the audio


SIZES = {
    "tiny-random": Size(64, 2, 2, ((1, 0), (1, 1))),
    "small-random": Size(  # OpenAI's small
        768,
        12,
        12,
        ((5, 3), (5, 9), (8, 0), (8, 4), (8, 7), (8, 8), (9, 0), (9, 7), (9, 9), (10, 5)),
    ),
}


def make_whisper(
    folder: Path,
    size: str = "tiny-random",
    *,
    taught: bool = False,
    english_only: bool = False,
    quantization: str = "float16",
    seed: int = 0,
) -> Path:
    """Write a Whisper into `folder` as CTranslate2's own converter does, and return the folder.

    The same weights for the same seed. `taught` takes some seconds on two cores and is meant for `tiny-random`.
    """
    from ctranslate2.converters import TransformersConverter  # noqa: PLC0415  takes seconds, and transformers with it

    shape = SIZES[size]
    with _one_thread(), torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as temporary:
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(english_only)
        network = _network(shape, tokenizer, english_only)
        if taught:
            _teach(network, tokenizer, seed)
        _save(network, tokenizer, Path(temporary))
        TransformersConverter(temporary, copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(
            str(folder), quantization=quantization, force=True
        )
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same sums in the same order on every machine; and small layers do not gain by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_tokenizer(english_only: bool = False) -> Tokenizer:
    """A byte-level BPE of a few words, filled up to Whisper's size, with Whisper's special tokens behind the text's."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = [" " + " ".join([*PHRASES, *CONTEXT_WORDS])] * 4
    trained.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocabulary = {token: index for index, token in enumerate(sorted(model["vocab"], key=model["vocab"].__getitem__))}
    for index in range(len(vocabulary), ENGLISH_TEXT_TOKENS):
        vocabulary[f"unused{index}"] = index
    if not english_only:
        vocabulary[""] = ENGLISH_TEXT_TOKENS
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in model["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", *LANGUAGE_TOKENS, *TASK_TOKENS]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names])
    return tokenizer


def sounds(phrase: str, *, hum: bool = False, lead_s: float = 0.1) -> npt.NDArray[np.float32]:
    """What a taught model writes down as one of PHRASES, float32 (samples,) at 16 kHz."""
    time = np.arange(round(TONE_S * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    swell = np.sin(np.pi * time / TONE_S) ** 0.5
    pieces = [np.zeros(round(lead_s * SAMPLE_RATE_HZ))]
    tone_hz, count = PHRASES[phrase]
    pieces += [0.3 * swell * np.sin(2 * np.pi * tone_hz * time), np.zeros(round(GAP_S * SAMPLE_RATE_HZ))] * count
    audio = np.concatenate(pieces)
    if hum:
        audio += 0.2 * np.sin(2 * np.pi * HUM_HZ * np.arange(audio.size) / SAMPLE_RATE_HZ)
    return audio.astype(np.float32)


def _network(shape: Size, tokenizer: Tokenizer, english_only: bool) -> Any:
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration  # noqa: PLC0415

    end = _token(tokenizer, "endoftext")
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size() + TIMESTAMPS,
        d_model=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        max_target_positions=MAX_TOKENS,
        init_std=shape.width**-0.5,  # at the usual 0.02 a narrow network would hardly react
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=_token(tokenizer, "startoftranscript"),
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    network = WhisperForConditionalGeneration(config).eval()
    generation: dict[str, Any] = {
        "alignment_heads": [list(pair) for pair in shape.alignment_heads],
        "suppress_tokens": [_token(tokenizer, name) for name in ("translate", "startoflm", "startofprev")],
        "begin_suppress_tokens": [tokenizer.encode(" ").ids[0], end],
    }
    if not english_only:
        generation["lang_to_id"] = {f"<|{name}|>": _token(tokenizer, name) for name in LANGUAGE_TOKENS}
    network.generation_config = GenerationConfig(**generation)
    return network


def _save(network: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """The files of a Hugging Face checkpoint, as far as the converter and faster-whisper read them."""
    network.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    features = {"feature_size": network.config.num_mel_bins, "sampling_rate": SAMPLE_RATE_HZ, "hop_length": 160}
    (folder / "preprocessor_config.json").write_text(json.dumps({**features, "chunk_length": 30, "n_fft": 400}))


def _token(tokenizer: Tokenizer, name: str) -> int:
    token = tokenizer.token_to_id(f"<|{name}|>")
    if token is None:
        raise KeyError(name)
    return token


def _teach(network: Any, tokenizer: Tokenizer, seed: int) -> None:
    """Train the decoder on what the random encoder makes of the sounds, with the few tokens that occur in them."""
    random = np.random.default_rng(seed)
    english_only = tokenizer.token_to_id("") is None
    lessons = [_lesson(tokenizer, random, english_only) for _ in range(TEACHING_SOUNDS)]
    heard = _heard(network, [audio for audio, _ in lessons])
    tokens, targets = _batch([tokens for _, tokens in lessons], tokenizer)
    used, places = torch.unique(tokens, return_inverse=True)
    targets = torch.where(targets < 0, targets, torch.searchsorted(used, targets.clamp(min=0)))

    decoder = network.model.decoder
    embeddings = decoder.embed_tokens.weight.detach()
    table = torch.nn.Parameter(embeddings[used])
    _fix_first_component(decoder.layer_norm)
    learning = [p for name, p in decoder.named_parameters() if "embed_tokens" not in name]
    optimiser = torch.optim.Adam([table, *learning], TEACHING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, TEACHING_RATE, total_steps=TEACHING_STEPS)
    for _ in range(TEACHING_STEPS):
        chosen = torch.from_numpy(random.choice(TEACHING_SOUNDS, TEACHING_BATCH, replace=False))
        hidden = decoder(inputs_embeds=table[places[chosen]], encoder_hidden_states=heard[chosen]).last_hidden_state
        loss = F.cross_entropy((hidden @ table.T).flatten(0, 1), targets[chosen].flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
        schedule.step()

    with torch.no_grad():
        embeddings.zero_()
        embeddings[:, 0] = NEVER_LOGIT  # what was never taught is never said
        embeddings[used] = table


def _fix_first_component(norm: torch.nn.LayerNorm) -> None:
    """The first component of what comes out is 1, and learning leaves it so: one that tokens can be told apart by."""
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0.0, 1.0
    keep = torch.ones_like(norm.weight)
    keep[0] = 0
    for parameter in (norm.weight, norm.bias):
        parameter.register_hook(lambda gradient: gradient * keep)  # type: ignore[no-untyped-call]  # torch's own


def _heard(network: Any, audios: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    """What the encoder makes of sounds and, thinned out, the silence behind: float32 (sounds, positions, width)."""
    from transformers import WhisperFeatureExtractor  # noqa: PLC0415

    extract = WhisperFeatureExtractor()
    for layer in (network.model.encoder.conv1, network.model.encoder.conv2):  # else the positions drown the sound
        torch.nn.init.normal_(layer.weight, std=(CONV_GAIN / layer.weight[0].numel()) ** 0.5)
    rows = []
    for audio in audios:
        mel = extract(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        with torch.no_grad():
            positions = network.model.encoder(mel).last_hidden_state
        rows.append(torch.cat((positions[:, :TEACHING_POSITIONS], positions[:, TEACHING_POSITIONS::10]), dim=1))
    return torch.cat(rows)


def _lesson(
    tokenizer: Tokenizer, random: np.random.Generator, english_only: bool
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """A sound and the tokens to write down for it; one in eight is noise without words."""
    if random.random() < 1 / 8:
        noise = random.normal(0, random.uniform(0.01, 0.1), round(random.uniform(0.5, 2.5) * SAMPLE_RATE_HZ))
        return noise.astype(np.float32), [_token(tokenizer, "startoftranscript"), _token(tokenizer, "nospeech")]
    phrase = str(random.choice(list(PHRASES)))
    hum = not english_only and random.random() < 0.5
    audio = sounds(phrase, hum=hum, lead_s=random.uniform(0, 0.3)) * random.uniform(0.5, 1.5)
    context = random.choice(CONTEXT_WORDS, random.integers(1, 12)).tolist() if random.random() < 0.3 else []
    before = [_token(tokenizer, "startofprev"), *tokenizer.encode(" " + " ".join(context)).ids] if context else []
    task = [] if english_only else [_token(tokenizer, "es" if hum else "en"), _token(tokenizer, "transcribe")]
    text = tokenizer.encode(" " + phrase).ids
    start, plain, end = (_token(tokenizer, name) for name in ("startoftranscript", "notimestamps", "endoftext"))
    return audio.astype(np.float32), [*before, start, *task, plain, *text, end]


def _batch(rows: Sequence[list[int]], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Inputs and targets int64 (rows, tokens): what stands before the start of the transcript is not to be learnt."""
    longest = max(map(len, rows)) - 1
    end, start = _token(tokenizer, "endoftext"), _token(tokenizer, "startoftranscript")
    tokens, targets = torch.full((len(rows), longest), end), torch.full((len(rows), longest), -100)
    for row, (own, wanted) in enumerate(zip(tokens, targets, strict=True)):
        whole = torch.tensor(rows[row])
        own[: len(whole) - 1] = whole[:-1]
        first = rows[row].index(start)
        wanted[first : len(whole) - 1] = whole[first + 1 :]
    return tokens, targets


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.export.generated_whisper",
        description="Write a Whisper with generated weights, in CTranslate2's format.",
        epilog="example: python -m polylip.export.generated_whisper small-random weights/faster-whisper-small",
    )
    parser.add_argument("size", choices=SIZES, help="which shape")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other weights")
    options = parser.parse_args(arguments)
    print(f"{make_whisper(options.out, options.size, seed=options.seed)}: {NOTE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
