"""Weights for benchmarks of the speech line without public ones: full size and random, but with words learnt by heart.

A random recogniser or translator runs on until it is stopped, which costs many times what speech costs. Here one
component of the decoder's width stands for each place in the answer, so that the same words come out of whatever goes
in, as many as real speech has, and the end behind them. All other numbers are random; every layer does its full work.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import sentencepiece
from tokenizers import Tokenizer

from polylip.export.generated_marian import EOS, make_marian
from polylip.export.generated_whisper import make_whisper
from polylip.export.generated_xtts import make_xtts
from polylip.export.opus_mt import convert_opus_mt

Size = Literal["tiny", "full"]
WHISPER_SIZES = {"tiny": "tiny-random", "full": "small-random"}

# Words that generated_whisper's tokenizer has whole: a lone space is among the tokens that are never written.
HEARD = "we saw them again and it was good hello friend the water is green thank you we saw the green water again"
SPANISH = "Nos vamos mañana a las siete."  # one of those that generated_marian's SentencePiece models learn from
WHISPER_PROMPT = 4  # tokens before the first word: start, language, task, no timestamps
PLACE = 1000.0  # in a position's component: far above what the layers and the words add; float16 ends at 65504
SURE = 25.0  # logit of the word whose turn it is; the others, all together, weigh 11
FAINT = 0.01  # what is left of each layer's outputs, which else would cover the places in a network this deep
OUTPUTS = re.compile(r"decoder/layer_\d+/(self_attention/linear_1|attention/linear_2|ffn/linear_1)/weight")
TYPES = {0: np.float32, 4: np.float16}  # of CTranslate2's files


@dataclass(frozen=True)
class _Variable:
    """Where a tensor lies in CTranslate2's model.bin."""

    shape: tuple[int, ...]
    kind: int  # a key of TYPES for floats
    start: int  # byte

    def array(self, data: bytearray) -> npt.NDArray[Any]:
        """A view of it, to be written to."""
        count = int(np.prod(self.shape))
        return np.frombuffer(data, TYPES[self.kind], count, self.start).reshape(self.shape)


def make_speech_weights(folder: Path, size: Size) -> Path:
    """Fill `folder`, which then is a $POLYLIP_WEIGHTS for profiles `cpu` and `gpu`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    learn_whisper(make_whisper(folder / "faster-whisper-small", WHISPER_SIZES[size]))
    with TemporaryDirectory() as checkpoint:
        marian = make_marian(Path(checkpoint), "en-es", size)
        learn_marian(convert_opus_mt(marian, folder / "opus-mt-en-es-ct2", generated=True))
    make_xtts(folder / "xtts-v2", size)
    return folder


def learn_whisper(folder: Path) -> None:
    """A generated Whisper that hears HEARD in every sound."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = tokenizer.encode(f" {HEARD}", add_special_tokens=False).ids
    end = tokenizer.get_vocab()["<|endoftext|>"]
    learn_by_heart(folder / "model.bin", [*words, end], WHISPER_PROMPT - 1)


def learn_marian(folder: Path) -> None:
    """A generated and converted Opus-MT that says SPANISH to every text."""
    vocabulary = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm")).encode(SPANISH, out_type=str)
    learn_by_heart(folder / "model.bin", [vocabulary.index(piece) for piece in (*pieces, EOS)], 0)


def learn_by_heart(model: Path, tokens: Sequence[int], first: int) -> None:
    """Change model.bin, once: behind `first` tokens the decoder writes `tokens`, the last of them for ever."""
    data = bytearray(model.read_bytes())
    variables = _variables(data)
    places = variables["decoder/position_encodings/encodings"].array(data)
    words = variables["decoder/embeddings/weight"].array(data)
    if len(tokens) > words.shape[1]:
        raise ValueError(f"{len(tokens)} tokens are too many for a width of {words.shape[1]}")
    for name, variable in variables.items():
        if OUTPUTS.fullmatch(name):
            variable.array(data)[:] *= FAINT
    sure = SURE / words.shape[1] ** 0.5  # the last norm makes a place the root of the width
    words[:, : len(tokens)] = 0
    words[list(tokens), : len(tokens)] = -sure / 2  # or words that come often would come everywhere
    for component, token in enumerate(tokens):
        words[token, component] = sure
        place = first + component
        rows = slice(place, place + 1) if component < len(tokens) - 1 else slice(place, None)
        places[rows, component] = PLACE
    model.write_bytes(data)


def _variables(data: bytearray) -> dict[str, _Variable]:
    """The table of contents: version, name, revision, then name, shape, type and bytes of each variable."""
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(code)
        return int(value)

    def name() -> str:
        nonlocal at
        length = number("H")  # with the zero behind it
        at += length
        return data[at - length : at - 1].decode()

    number("I"), name(), number("I")
    found = {}
    for _ in range(number("I")):
        own = name()
        shape = tuple(number("I") for _ in range(number("B")))
        kind, size = number("B"), number("I")
        found[own] = _Variable(shape, kind, at)
        at += size
    return found
