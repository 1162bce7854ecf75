"""Streams of words in, weights of the boundary scorer out: a recurrent network and hashed n-grams, trained apart.

Both see every word of the text, weighted so that places count as often as people pause at them. Runs on one core in
minutes, and gives the same weights for the same seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from polylip.client.boundary import ENDING_ROWS, ending_row
from polylip.client.boundary_features import (
    BACK,
    LENGTH_STEPS,
    LOOK_AHEADS,
    NOTHING,
    START,
    TABLE_BITS,
    UInt32,
    code,
    ngram_rows,
    shape,
)
from polylip.export.boundary_examples import COMPLETE_SHARE, Lexicon, Stream, misheard, segments, shuffled, with_answers
from polylip.export.boundary_text import Place, Unit

Float32 = npt.NDArray[np.float32]
Log = Callable[[str], None]

LOOKS = len(LOOK_AHEADS)
CLIP_GRADIENT = 1.0
RARE = 6  # a word seen less often than this is sometimes learnt by its ending alone
RARE_AS_ENDING, ANY_AS_ENDING = 0.25, 0.02


@dataclass(frozen=True)
class Settings:
    """Chosen on the held-out slice of the train files (docs/boundaries.md)."""

    seed: int = 1
    units: int = 96
    embedding: int = 48
    epochs: int = 5
    ngram_epochs: int = 3
    web_times: int = 3  # the web text is a quarter of the dialogues: each document is heard so often per epoch
    seen: int = 3  # times that a word must occur to have a row of its own
    batch: int = 96  # segments
    rate: float = 3e-3
    dropout: float = 0.35
    decay: float = 0.01
    ngram_batch: int = 256  # pauses
    ngram_rate: float = 0.08
    ngram_decay: float = 1e-6


@dataclass(frozen=True)
class Parts:
    """What was learnt, not yet calibrated: arrays by the names of `client.boundary.Weights`."""

    vocabulary: UInt32
    recurrent: Mapping[str, Float32]
    ngrams: Float32


class Network(nn.Module):
    """Words to a logit per look-ahead; the one for look-ahead k is read k words behind the pause."""

    def __init__(self, vocabulary: int, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1 + vocabulary + ENDING_ROWS, settings.embedding, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.gru = nn.GRU(settings.embedding, settings.units, batch_first=True)
        self.head = nn.Linear(settings.units, LOOKS)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.gru(self.dropout(self.embedding(rows)))
        logits: Tensor = self.head(self.dropout(states))
        return logits

    def arrays(self) -> dict[str, Float32]:
        """Laid out as the scorer multiplies them."""
        held = {name: value.detach().numpy().copy() for name, value in self.named_parameters()}
        return {
            "embedding": held["embedding.weight"],
            "input_gates": held["gru.weight_ih_l0"].T,
            "hidden_gates": held["gru.weight_hh_l0"].T,
            "gate_offsets": np.stack([held["gru.bias_ih_l0"], held["gru.bias_hh_l0"]]),
            "heads": held["head.weight"].T,
            "head_offsets": held["head.bias"],
        }


def train(units: Mapping[str, Sequence[Unit]], settings: Settings, log: Log) -> Parts:
    """`units` by kind of text; a line per epoch goes to `log`."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    counts = Counter(token for some in units.values() for unit in some for token in unit.tokens)
    vocabulary = np.array(sorted({code(word) for word, seen in counts.items() if seen >= settings.seen}), np.uint32)
    rare = frozenset(word for word, seen in counts.items() if seen < RARE)
    heard = _Heard(units, settings, Lexicon(), np.random.default_rng(settings.seed))
    recurrent = _train_network(heard, vocabulary, rare, log)
    return Parts(vocabulary, recurrent, _train_ngrams(heard, log))


@dataclass
class _Heard:
    """The training text as it is heard anew in each epoch."""

    units: Mapping[str, Sequence[Unit]]
    settings: Settings
    lexicon: Lexicon
    random: np.random.Generator

    def epoch(self) -> tuple[Stream, list[tuple[int, int]], Float32]:
        """(the stream, its segments, each with two words behind it; the weight of every Place)."""
        repeated = [unit for kind, some in self.units.items() for unit in self._times(kind, some)]
        clean = self.lexicon.stream(shuffled(with_answers(repeated, self.random), self.random))
        stream = misheard(clean, self.lexicon, self.random)
        found = [span for span in segments(stream, self.random) if span[1] + LOOKS - 1 <= len(stream.tokens)]
        return stream, found, place_weights(stream.places)

    def _times(self, kind: str, some: Sequence[Unit]) -> list[Unit]:
        return list(some) * (self.settings.web_times if kind == "web" else 1)


def place_weights(places: npt.NDArray[np.int8]) -> Float32:
    """float32 (Places,): so that sentence ends, comma-like places and all others weigh as pauses at them would.

    Incomplete places weigh double; the calibration takes that out again.
    """
    counts = np.maximum(np.bincount(places, minlength=len(Place)), 1)
    ends, rest = counts[Place.END], counts[: Place.END].sum()
    incomplete = 2 * (1 - COMPLETE_SHARE) / COMPLETE_SHARE * ends
    weights = np.full(len(Place), incomplete / 2 / rest)
    weights[[Place.COMMA, Place.JOINT]] += incomplete / 4 / counts[[Place.COMMA, Place.JOINT]]
    weights[Place.END] = 1
    return weights.astype(np.float32)


def _train_network(heard: _Heard, vocabulary: UInt32, rare: frozenset[str], log: Log) -> dict[str, Float32]:
    settings = heard.settings
    network = Network(len(vocabulary), settings)
    others = [*network.gru.parameters(), *network.head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": network.embedding.parameters(), "weight_decay": 0.0},
        {"params": others},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.rate, weight_decay=settings.decay)
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (0.03 + 0.97 * (1 + np.cos(np.pi * epoch / settings.epochs)) / 2)
        losses = [_step(network, optimizer, batch) for batch in _batches(heard, vocabulary, rare)]
        log(f"network, epoch {epoch + 1} of {settings.epochs}: loss {np.mean(losses):.4f}")
    return network.arrays()


def _step(network: Network, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    rows, ends, weights = batch
    losses = functional.binary_cross_entropy_with_logits(network(rows), ends, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), CLIP_GRADIENT)
    optimizer.step()
    return loss.item()


def _batches(heard: _Heard, vocabulary: UInt32, rare: frozenset[str]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Segments of like length: rows (segments, words), and ends and weights, both (segments, words, look-aheads)."""
    stream, spans, weights = heard.epoch()
    tokens = _rows(stream, vocabulary, rare, heard.random)
    lengths = np.array([end - start for start, end in spans]) + heard.random.random(len(spans)) * 3
    order = np.argsort(lengths, kind="stable")
    batches = [order[i : i + heard.settings.batch] for i in range(0, len(order), heard.settings.batch)]
    for i in heard.random.permutation(len(batches)):
        chosen = [spans[int(j)] for j in batches[int(i)]]
        longest = max(end - start for start, end in chosen) + LOOKS - 1
        rows = np.zeros((len(chosen), longest), np.int64)
        ends, weight = np.zeros((2, len(chosen), longest, LOOKS), np.float32)
        for j, (start, end) in enumerate(chosen):
            rows[j, : end - start + LOOKS - 1] = tokens[start : end + LOOKS - 1]
            places = stream.places[start:end]
            for look in LOOK_AHEADS:
                ends[j, look : look + end - start, look] = places == Place.END
                weight[j, look : look + end - start, look] = weights[places]
        yield torch.from_numpy(rows), torch.from_numpy(ends), torch.from_numpy(weight)


def _rows(
    stream: Stream, vocabulary: UInt32, rare: frozenset[str], random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The row of the embedding for every token; for some the row of the ending."""
    known = {int(word): i for i, word in enumerate(vocabulary, 1)}
    endings = np.array([ending_row(word, len(vocabulary)) for word in stream.lexicon])
    own = np.array([known.get(code(word), ending) for word, ending in zip(stream.lexicon, endings, strict=True)])
    chance = np.where([word in rare for word in stream.lexicon], RARE_AS_ENDING, ANY_AS_ENDING)
    hidden = random.random(len(stream.tokens)) < chance[stream.tokens]
    return np.where(hidden, endings[stream.tokens], own[stream.tokens])


def _train_ngrams(heard: _Heard, log: Log) -> Float32:
    """float32 (look-aheads, 2**TABLE_BITS): logistic regression by AdaGrad."""
    settings = heard.settings
    table = np.zeros((LOOKS, 1 << TABLE_BITS))
    squares = np.full_like(table, 1e-3)
    for epoch in range(settings.ngram_epochs):
        stream, spans, weights = heard.epoch()
        at, starts = _positions(stream, spans, heard.random)
        columns = _stream_columns(stream, at, starts)
        places = stream.places[at]
        weight = weights[places] * np.where(places == Place.GAP, 2, 1)
        for look in LOOK_AHEADS:
            rows = ngram_rows(columns, look)
            order = heard.random.permutation(len(at))
            for i in range(0, len(order), settings.ngram_batch):
                some = order[i : i + settings.ngram_batch]
                _ngram_step(table[look], squares[look], rows[some], places[some] == Place.END, weight[some], settings)
        log(f"n-grams, epoch {epoch + 1} of {settings.ngram_epochs}")
    return table.astype(np.float32)


def _ngram_step(
    table: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    ends: npt.NDArray[np.bool_],
    weight: Float32,
    settings: Settings,
) -> None:
    errors = (1 / (1 + np.exp(-table[rows].sum(axis=1))) - ends) * weight
    used, inverse = np.unique(rows, return_inverse=True)
    slopes = np.bincount(inverse.reshape(-1), np.repeat(errors, rows.shape[1]), len(used)) * 4 / settings.ngram_batch
    slopes += settings.ngram_decay * table[used]
    squares[used] += slopes**2
    table[used] -= settings.ngram_rate * slopes / np.sqrt(squares[used])


def _positions(
    stream: Stream, spans: Sequence[tuple[int, int]], random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(tokens behind which to learn, starts of their segments): all places, and every second gap."""
    at = np.concatenate([np.arange(start, end) for start, end in spans])
    starts = np.repeat([start for start, _ in spans], [end - start for start, end in spans])
    keep = (stream.places[at] != Place.GAP) | (random.random(len(at)) < 0.5)
    return at[keep], starts[keep]


def _stream_columns(stream: Stream, at: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> dict[str, UInt32]:
    """`boundary_features.columns_of` for many pauses at once."""
    words = np.array([code(word) for word in stream.lexicon], np.uint32)[stream.tokens]
    shapes = np.array([code(shape(word)) for word in stream.lexicon], np.uint32)[stream.tokens]
    columns = {"n": np.searchsorted(LENGTH_STEPS, at - starts + 1).astype(np.uint32)}
    for i in range(1, BACK + 1):
        back = at - i + 1
        said = back >= starts
        columns[f"w{i}"] = np.where(said, words[back], np.uint32(code(START)))
        columns[f"s{i}"] = np.where(said, shapes[back], np.uint32(code(shape(START))))
    for i in (1, 2):
        columns[f"f{i}"], columns[f"g{i}"] = words[at + i], shapes[at + i]
        columns[f"b{i}"] = np.where(starts + i - 1 <= at, words[starts + i - 1], np.uint32(code(NOTHING)))
    return columns
