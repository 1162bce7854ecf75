"""Makes Opus-MT checkpoints in the public Hugging Face form, for tests and benchmarks without public weights.

Their SentencePiece models are trained on the spot. Their weights are random, which is right for timing and says
nothing; or a small network is taught a handful of sentences by heart, so that a test can expect words.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel

Size = Literal["tiny", "full"]
Pairs = Sequence[tuple[str, str]]

EOS, UNKNOWN, PADDING = "</s>", "<unk>", "<pad>"  # first, second and last of every Opus-MT vocabulary
POSITIONS = 512
MAX_PIECES = 8000  # of one SentencePiece model; text this short gives far fewer
FILLER = "▁filler{}"  # pieces that no text holds, to reach the public vocabulary's size
IGNORED = -100  # torch's label of a place that is no target

# Sentences of our own for SentencePiece to learn from where none are given.
SENTENCES: Pairs = (
    ("Good morning, how are you?", "Buenos días, ¿cómo estás?"),
    ("The house is near the river.", "La casa está cerca del río."),
    ("I would like a cup of coffee.", "Quisiera una taza de café."),
    ("We are leaving tomorrow at seven.", "Nos vamos mañana a las siete."),
    ("She reads a book in the garden.", "Ella lee un libro en el jardín."),
    ("Where is the train station?", "¿Dónde está la estación de tren?"),
    ("The weather is fine today.", "Hoy hace buen tiempo."),
    ("He works in a small office.", "Él trabaja en una oficina pequeña."),
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Marian network."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int | None = None  # filled up to this size, padding included


SHAPES: dict[Size, Shape] = {
    "tiny": Shape(layers=1, width=128, heads=4, feed_forward=256),
    "full": Shape(layers=6, width=512, heads=8, feed_forward=2048, vocabulary=65001),  # Opus-MT en-es
}


@dataclass(frozen=True)
class Lesson:
    """How a tiny network is taught its sentences."""

    most_steps: int = 600
    warm_up_steps: int = 20
    learning_rate: float = 2e-3
    enough: float = 0.005  # mean loss per piece below which it knows them by heart


def make_marian(
    folder: Path,
    pair: str = "en-es",
    size: Size = "tiny",
    sentences: Pairs = SENTENCES,
    train_on: Pairs = (),
    seed: int = 0,
) -> Path:
    """A checkpoint folder of the public form; the same for the same arguments.

    SentencePiece learns from `sentences`, (source, target), and from `train_on`, which the network itself is taught.
    """
    source, target = pair.split("-")
    text = [*train_on, *sentences] if sentences is not SENTENCES or not train_on else list(train_on)
    pieces = [train_pieces([row[side] for row in text]) for side in (0, 1)]
    shape = SHAPES[size]
    vocabulary = _vocabulary(pieces, shape.vocabulary)
    torch.manual_seed(seed)
    network = MarianMTModel(_config(shape, len(vocabulary)))
    _randomise(network)
    if train_on:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # matrices this small gain nothing from more, and lose much where cores are busy
        try:
            _teach(network, pieces, vocabulary, train_on, Lesson())
        finally:
            torch.set_num_threads(threads)
    _write(folder, network.eval(), pieces, vocabulary, {"source_lang": source, "target_lang": target})
    return folder


def train_pieces(sentences: Sequence[str]) -> bytes:
    """A SentencePiece unigram model of these sentences, as Opus-MT has one for each side."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=MAX_PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _vocabulary(models: Sequence[bytes], size: int | None) -> dict[str, int]:
    """Both sides' pieces in one vocabulary, as the public checkpoints have it."""
    names = dict.fromkeys((EOS, UNKNOWN))
    for model in models:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        names.update(dict.fromkeys(processor.id_to_piece(i) for i in range(processor.get_piece_size())))
    fillers = max(0, size - 1 - len(names)) if size else 0
    names.update(dict.fromkeys(FILLER.format(i) for i in range(fillers)))
    return {name: index for index, name in enumerate([*names, PADDING])}


def _config(shape: Shape, vocabulary: int) -> MarianConfig:
    padding = vocabulary - 1
    return MarianConfig(
        vocab_size=vocabulary,
        d_model=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.feed_forward,
        decoder_ffn_dim=shape.feed_forward,
        max_position_embeddings=POSITIONS,
        init_std=shape.width**-0.5,  # every layer matters to what comes out, as in a network that has learnt
        activation_function="swish",
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        eos_token_id=0,
        forced_eos_token_id=0,
        pad_token_id=padding,
        decoder_start_token_id=padding,
        max_length=POSITIONS,
        num_beams=4,
        bad_words_ids=[[padding]],
    )


@torch.no_grad()
def _randomise(network: MarianMTModel) -> None:
    """Bias of the output too, which starts as zeros and would then not be tested."""
    bias = network.final_logits_bias
    bias.copy_(0.1 * torch.randn(bias.shape))
    _clear_padding(network)


@torch.no_grad()
def _clear_padding(network: MarianMTModel) -> None:
    """Marian begins a translation with zeros, which the public form has as the embedding of padding."""
    network.get_input_embeddings().weight[network.config.pad_token_id] = 0


def _teach(
    network: MarianMTModel, models: Sequence[bytes], vocabulary: dict[str, int], pairs: Pairs, lesson: Lesson
) -> None:
    """Raises RuntimeError if the network did not learn them."""
    source, target = (_ids(models[side], vocabulary, [row[side] for row in pairs]) for side in (0, 1))
    padding = vocabulary[PADDING]
    labels = target.masked_fill(target == padding, IGNORED)
    optimiser = torch.optim.AdamW(network.parameters(), lr=lesson.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, total_iters=lesson.warm_up_steps)
    network.train()
    loss = torch.tensor(torch.inf)
    for _ in range(lesson.most_steps):
        loss = network(input_ids=source, attention_mask=source != padding, labels=labels).loss
        if loss.item() < lesson.enough:
            return
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        _clear_padding(network)
    raise RuntimeError(f"the network did not learn its {len(pairs)} sentences: loss {loss.item():.3g}")


def _ids(model: bytes, vocabulary: dict[str, int], sentences: Sequence[str]) -> torch.Tensor:
    """Int64 (sentences, longest), padded, each with its end."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rows = [[vocabulary[piece] for piece in processor.encode(s, out_type=str)] + [0] for s in sentences]
    longest = max(map(len, rows))
    return torch.tensor([row + [vocabulary[PADDING]] * (longest - len(row)) for row in rows])


def _write(
    folder: Path,
    network: MarianMTModel,
    models: Sequence[bytes],
    vocabulary: dict[str, int],
    tokenizer: dict[str, Any],
) -> None:
    """The files of the public repositories, weights as a pickled state dict as most of them have it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in zip(("source.spm", "target.spm"), models, strict=True):
        (folder / name).write_bytes(model)
    contents = {
        "vocab.json": vocabulary,
        "tokenizer_config.json": tokenizer,
        "config.json": {**network.config.to_dict(), "architectures": ["MarianMTModel"], "model_type": "marian"},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
