"""A segment's words in, the probability that a sentence ends behind them out (docs/boundaries.md)

Whether the speaker has finished or is looking for a word cannot be heard from silence alone. English has trained
weights; other languages have the marks that their recogniser writes, and often no answer.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from polylip.client.boundary_features import (
    LOOK_AHEADS,
    MAX_WORDS,
    TABLE_BITS,
    code,
    columns_of,
    ngram_rows,
    normalised,
    shape,
)
from polylip.client.errors import InputError

Float32 = npt.NDArray[np.float32]

ENGLISH_WEIGHTS = Path(__file__).with_name("boundary_en.npz")
ENDING_ROWS = 256  # rows of the embedding that words outside the vocabulary share by their endings
FORMAT = 1  # of the weight file
EVIDENCE = 4  # network, n-grams, length, share of unknown words

# What a mark inside a hypothesis is worth. Chosen, not measured: the recognisers of most languages cannot be tested.
MARKED, UNMARKED = 0.95, 0.05

FINAL_MARKS = frozenset(".!?\u2026\u3002\uff01\uff1f\uff0e\uff61\u061f\u06d4\u0964\u0965\u0589\u1362\u104b\u17d4\u037e")
OPENING_MARKS = frozenset("\u00bf\u00a1")  # Spanish: a sentence begins here
OTHER_MARKS = frozenset(",;:\u3001\uff0c\uff1b\uff1a\u060c\u061b")
CLOSERS = "\"'`)]}\u00bb\u203a\u201d\u2019\u300d\u300f\uff09*"
OPENERS = "\"'`([{\u00ab\u2039\u201c\u2018\u201e\u201a\u300c\u300e\uff08*"
# Of the languages whose recognisers write full stops; lower case, without the stop.
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr sra srta ud uds vs etc inc ltd no mme mlle mgr dott sig ing arch hr fr nr bzw ca "
    "usw evtl ggf inkl max min tel str gen col capt lt sgt rev hon gov sen rep dna p.ej av pag art vol ed"
)
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_INITIALS = re.compile(r"^(?:\w\.)*\w\.$")  # A. U.S. z.B.
_NUMBERED = re.compile(r"^\d+\.$")


class BoundaryScorer(Protocol):
    """Says how likely a sentence is complete."""

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        """That a sentence ends behind `words`, a segment so far as recognised; None where it cannot tell.

        `following` holds up to two words that came after the pause; more are not looked at.
        """


def boundary_scorer(language: str) -> BoundaryScorer:
    """The scorer for a language tag such as `en` or `pt-BR`."""
    return _english() if re.split(r"[-_]", language.strip().lower())[0] == "en" else PunctuationScorer()


@cache
def _english() -> HashedScorer:
    return HashedScorer()


@dataclass(frozen=True)
class Weights:
    """What the trainer found. `calibration` is float32 (look-aheads, 5): factors of the evidence, and the offset."""

    vocabulary: npt.NDArray[np.uint32]  # CRC-32 of the words that have a row of their own, ascending
    embedding: Float32  # (1 + words + ENDING_ROWS, size); row 0 is unused
    input_gates: Float32  # (size, 3 * units): reset, update, new
    hidden_gates: Float32  # (units, 3 * units)
    gate_offsets: Float32  # (2, 3 * units): of the input's and of the hidden gates
    heads: Float32  # (units, look-aheads)
    head_offsets: Float32  # (look-aheads,)
    ngrams: Float32  # (look-aheads, 2**TABLE_BITS)
    calibration: Float32
    about: tuple[str, ...]  # what they were trained on, by what, under which licence


def load_weights(path: Path) -> Weights:
    """A file that `python -m polylip.export.boundary` has written. Nothing in it is executed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        return _unpacked(held)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a file of boundary weights ({error}); write one with python -m polylip.export.boundary"
        ) from None


def _unpacked(held: dict[str, npt.NDArray[np.generic]]) -> Weights:
    if int(held["format"]) != FORMAT:
        raise ValueError(f"format {int(held['format'])}, this version reads {FORMAT}")
    scaled = {
        name: held[name].astype(np.float32) * held[f"{name}_scale"].astype(np.float32)
        for name in ("embedding", "ngrams")
    }
    rest = {
        name: held[name].astype(np.float32)
        for name in ("input_gates", "hidden_gates", "gate_offsets", "heads", "head_offsets", "calibration")
    }
    about = tuple(str(line) for line in held["about"])
    weights = Weights(vocabulary=held["vocabulary"].astype(np.uint32), about=about, **scaled, **rest)
    size, units = weights.embedding.shape[1], weights.hidden_gates.shape[0]
    looks = len(LOOK_AHEADS)
    expected = {
        "embedding": (1 + len(weights.vocabulary) + ENDING_ROWS, size),
        "input_gates": (size, 3 * units),
        "hidden_gates": (units, 3 * units),
        "gate_offsets": (2, 3 * units),
        "heads": (units, looks),
        "head_offsets": (looks,),
        "ngrams": (looks, 1 << TABLE_BITS),
        "calibration": (looks, EVIDENCE + 1),
    }
    for name, wanted in expected.items():
        if getattr(weights, name).shape != wanted:
            raise ValueError(f"{name} has shape {getattr(weights, name).shape} instead of {wanted}")
    return weights


class HashedScorer:
    """Trained weights: a recurrent network over the words, and hashed n-grams around the pause."""

    def __init__(self, path: Path = ENGLISH_WEIGHTS) -> None:
        self._path = path
        self._loaded: Weights | None = None
        self._rows: dict[int, int] = {}

    @property
    def weights(self) -> Weights:
        """Read at the first use."""
        if self._loaded is None:
            self._loaded = load_weights(self._path)
            self._rows = {int(found): i for i, found in enumerate(self._loaded.vocabulary, 1)}
        return self._loaded

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        """See BoundaryScorer; None without a word."""
        tokens = normalised(words)[-MAX_WORDS:]
        if not tokens:
            return None
        ahead = normalised(following)[: LOOK_AHEADS[-1]]
        *factors, offset = self.weights.calibration[len(ahead)]
        return _sigmoid(float(self.evidence(tokens, ahead) @ np.array(factors) + offset))

    def evidence(self, tokens: Sequence[str], ahead: Sequence[str]) -> Float32:
        """float32 (EVIDENCE,), for tokens as `normalised` gives them: two logits, and what they depend on.

        Long segments and words that training has not seen tell writing and rare subjects from everyday talk.
        """
        weights, look = self.weights, len(ahead)
        rows = [self.row(token) for token in [*tokens, *ahead]]
        network = float(self._state(rows) @ weights.heads[:, look] + weights.head_offsets[look])
        ngrams = float(weights.ngrams[look][ngram_rows(columns_of(tokens, ahead), look)].sum())
        unknown = float(np.mean([row > len(weights.vocabulary) for row in rows[: len(tokens)]]))
        return np.array([network, ngrams, np.log(len(tokens)), unknown], np.float32)

    def row(self, token: str) -> int:
        """Of the embedding."""
        weights = self.weights
        known = self._rows.get(code(token))
        return ending_row(token, len(weights.vocabulary)) if known is None else known

    def _state(self, rows: Sequence[int]) -> Float32:
        """float32 (units,): a gated recurrent unit behind the last of the embedding's rows."""
        weights = self.weights
        units = len(weights.hidden_gates)
        inputs = weights.embedding[rows] @ weights.input_gates + weights.gate_offsets[0]
        state = np.zeros(units, np.float32)
        for given in inputs:
            own = state @ weights.hidden_gates + weights.gate_offsets[1]
            gates = 1 / (1 + np.exp(-(given[: 2 * units] + own[: 2 * units])))
            new = np.tanh(given[2 * units :] + gates[:units] * own[2 * units :])
            state = new + gates[units:] * (state - new)
        return state


def ending_row(token: str, vocabulary: int) -> int:
    """The row of the embedding for a word that is not among the `vocabulary` ones."""
    return 1 + vocabulary + code(shape(token)) % ENDING_ROWS


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))


class PunctuationScorer:
    """The recogniser's own marks, in any language: believed only inside a hypothesis, where words follow.

    Recognisers close every stretch of sound with a full stop, a cut one too, so the last token's mark says nothing.
    """

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        """See BoundaryScorer; None without following words, and where the hypothesis bears no marks at all."""
        said = [word for word in words if word.strip()]
        ahead = [word for word in following if word.strip()]
        if not said or not ahead:
            return None
        if ahead[0].strip().lstrip(OPENERS)[:1] in OPENING_MARKS or ends_sentence(said[-1], ahead[0]):
            return MARKED
        return UNMARKED if any(_marked(word) for word in [*said, *ahead[:-1]]) else None


def ends_sentence(word: str, following: str) -> bool:
    """Whether the mark behind `word` ends a sentence, given the word that follows."""
    word = word.strip().rstrip(CLOSERS)
    if not word or word[-1] not in FINAL_MARKS:
        return False
    following = following.strip().lstrip(OPENERS)
    if following[:1].islower() and word[-1] in ".\u2026":
        return False
    if word[-1] != "." or word.endswith(".."):
        return True
    bare = word.lstrip(OPENERS).lower()
    return not (bare[:-1] in ABBREVIATIONS or _INITIALS.match(bare) or _NUMBERED.match(bare))


def _marked(word: str) -> bool:
    bare = word.strip().rstrip(CLOSERS)
    return bool(bare) and (bare[-1] in FINAL_MARKS or bare[-1] in OTHER_MARKS or bare[0] in OPENING_MARKS)
