"""The texts that segmentation is evaluated on: turns of whole sentences, written for it or sampled from a folder."""

from __future__ import annotations

import gzip
import random
import re
from dataclasses import dataclass
from pathlib import Path

from polylip.client.errors import InputError

FOLDER = Path(__file__).parent / "texts"
MARKS = (".", "?", "!")  # at the end of a sentence
DEV, TEST = "dev", "test"
SAMPLED = ("dialogue", "web")  # texts of a folder, as `en_<kind>_dev.txt.gz`
SAMPLED_SENTENCES = 60  # of each
TURN_SENTENCES = 8  # longest stretch taken from one document
SENTENCE_WORDS = 30  # a longer written sentence is a list or a quotation
SAMPLE_SEED = 5

_WORD = re.compile(r"'?[A-Za-z]+(?:['-][A-Za-z]+)*'?[,;.?!]?")  # no digits, brackets, quotations or addresses
_ABBREVIATION = re.compile(r"\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|St|Jr|vs|etc|No|Inc)\.|\.\.|\w\.\w|[!?]{2}|\b[A-Z]{2,}\b")
_SENTENCE_END = re.compile(r"(?<=[.?!]) (?=[^a-z])")


@dataclass(frozen=True)
class Turn:
    """What one person says without a break."""

    genre: str
    sentences: tuple[str, ...]  # with their punctuation


def written_turns(language: str, part: str) -> list[Turn]:
    """The turns of `perf/texts/everyday_<language>.txt` that belong to `part`."""
    turns = []
    for line in (FOLDER / f"everyday_{language}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        own, genre, text = line.split("\t")
        if own == part:
            turns.append(Turn(genre, tuple(_SENTENCE_END.split(text))))
    return turns


def sampled_turns(folder: Path, kind: str, sentences: int = SAMPLED_SENTENCES) -> list[Turn]:
    """At least that many sentences of `en_<kind>_dev.txt.gz`, always the same ones."""
    path = folder / f"en_{kind}_dev.txt.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: {error}; --data names the folder with the held-out texts") from None
    random.Random(SAMPLE_SEED).shuffle(lines)  # noqa: S311  a sample, no secret
    turns: list[Turn] = []
    for line in lines:
        if sum(len(turn.sentences) for turn in turns) >= sentences:
            break
        found = speakable(line)
        if found:
            turns.append(Turn(kind, found))
    return turns


def speakable(line: str) -> tuple[str, ...]:
    """The longest run of sentences of a line that a voice reads as they are written, empty where there is none."""
    runs: list[list[str]] = [[]]
    for sentence in _SENTENCE_END.split(line.strip()):
        words = sentence.split()
        plain = sentence[-1:] in MARKS and all(map(_WORD.fullmatch, words)) and not _ABBREVIATION.search(sentence)
        if plain and len(words) <= SENTENCE_WORDS:
            runs[-1].append(sentence)
        else:
            runs.append([])
    return tuple(max(runs, key=len)[:TURN_SENTENCES])
