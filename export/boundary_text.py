"""Written text in, the words that a recogniser would give and what stands behind each out."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polylip.client.boundary_features import merged, pieces
from polylip.client.errors import InputError

KINDS_OF_TEXT = ("dialogue", "web")
TRAIN_FILES = {kind: f"en_{kind}_train.txt.gz" for kind in KINDS_OF_TEXT}
DEV_FILES = {kind: f"en_{kind}_dev.txt.gz" for kind in KINDS_OF_TEXT}
CHOOSE_EVERY = {"dialogue": 20, "web": 8}  # every 20th turn and every 8th document of the train files is held out

END_MARKS = ".!?\u2026"
COMMA_MARKS = ",;:"
DASHES = frozenset(["-", "--", "\u2013", "\u2014"])
CLOSERS = "\"')]}\u201d\u2019*_"
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr vs eg ie etc no inc ltd co corp gen col sgt capt lt rev hon gov sen rep jan feb mar "
    "apr jun jul aug sep sept oct nov dec mt ft approx dept est fig al ave blvd rd"
)
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
_JOINTS = (  # words before which people pause, though the sentence goes on
    "and or but because so if when while although though since until unless that which who where whether than "
    "of in on at to for from with by about into over after before under between through during against without"
)
BEFORE_JOINTS = frozenset(_JOINTS.split())
_MISSING_SPACE = re.compile(r"(?<=[a-z]{2})([.?!])(?=[A-Z][a-z])")
_ELLIPSIS = re.compile(r"(?:\.{2,}|\u2026)(?=\w)")
_ADDRESS = re.compile(r"@|://|^www\.", re.IGNORECASE)  # of the net: nobody reads them out
_LONG_DASH = re.compile(r"(?<=\w)(?:--|[\u2013\u2014])(?=\w)")
_LIST_ITEM = re.compile(r"^\(?\w[.)]$")


class Place(IntEnum):
    """What stands behind a word."""

    GAP = 0  # nothing: the sentence goes on
    JOINT = 1  # nothing either, but a conjunction or preposition follows, or the word is a filler
    COMMA = 2  # comma, semicolon, colon, dash
    END = 3  # the end of a sentence


@dataclass(frozen=True)
class Unit:
    """One dialogue turn or document: its tokens and, int8 (tokens,), the Place behind each."""

    tokens: tuple[str, ...]
    places: npt.NDArray[np.int8]


def read_units(path: Path) -> list[Unit]:
    """Every line of a gzip file that holds a word."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; --data names the folder with {', '.join(all_files())}")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            units = [unit for line in file if (unit := unit_of(line)) is not None]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not gzip-compressed UTF-8 text ({error}); copy it again") from None
    if not units:
        raise InputError(f"{path}: holds no words; it should hold one dialogue turn or document per line")
    return units


def all_files() -> list[str]:
    return [*TRAIN_FILES.values(), *DEV_FILES.values()]


def unit_of(line: str) -> Unit | None:
    """A line of written text; None without a word."""
    tokens: list[str] = []
    places: list[Place] = []
    for stretch, place in _stretches(line):
        found = merged([piece for word in stretch for piece in pieces(word)])
        if found:
            tokens += found
            places += [Place.GAP] * (len(found) - 1) + [place]
        elif places:
            places[-1] = max(places[-1], place)
    if not tokens:
        return None
    places[-1] = Place.END
    for i, following in enumerate(tokens[1:]):
        if places[i] == Place.GAP and following in BEFORE_JOINTS:
            places[i] = Place.JOINT
    return Unit(tuple(tokens), np.array(places, np.int8))


def _stretches(line: str) -> Iterator[tuple[list[str], Place]]:
    """The line's words up to each mark, and the mark."""
    spaced = _ELLIPSIS.sub("... ", _LONG_DASH.sub(" - ", _MISSING_SPACE.sub(r"\1 ", line)))
    words = [word for word in spaced.split() if not _ADDRESS.search(word)]
    stretch: list[str] = []
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        stretch.append(word)
        place = _mark(word, following)
        if place != Place.GAP:
            yield stretch, place
            stretch = []
    yield stretch, Place.END


def _mark(word: str, following: str) -> Place:
    bare = word.rstrip(CLOSERS)
    if word in DASHES or (bare and bare[-1] in COMMA_MARKS):
        return Place.COMMA
    if not bare or bare[-1] not in END_MARKS:
        return Place.GAP
    if bare[-1] != ".":
        return Place.END
    if bare.endswith(("..", "...")):
        return Place.END if not following[:1].islower() else Place.COMMA
    return Place.GAP if _abbreviated(bare, following) else Place.END


def _abbreviated(word: str, following: str) -> bool:
    """Whether the full stop belongs to the word."""
    letters = word[:-1].lstrip("\"'([").lower()
    if _LIST_ITEM.match(word) and letters != "i":
        return True
    if letters.replace(".", "") in ABBREVIATIONS:
        return bool(following)
    if "." in letters:  # U.S., p.m.
        return bool(following) and not following[:1].isupper()
    return False


def split_for_choosing(units: Sequence[Unit], kind: str) -> tuple[list[Unit], list[Unit]]:
    """(to train on, to choose and calibrate on), by whole turns or documents."""
    every = CHOOSE_EVERY[kind]
    kept = [unit for i, unit in enumerate(units) if i % every != every - 1]
    return kept, [unit for i, unit in enumerate(units) if i % every == every - 1]
