"""Units of text in, pauses with what was said around them out: what the boundary scorer learns and is tested on.

Nobody marked pauses in written text. They are drawn where people make them: at sentence ends; at commas, before
conjunctions and prepositions and behind fillers; and anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from polylip.client.boundary_features import MAX_WORDS, NUMBER, Int64
from polylip.export.boundary_text import Place, Unit

COMPLETE_SHARE = 0.71  # of pauses that lie at a sentence end (the paper's figure)
SENTENCES = (0.65, 0.25, 0.10)  # share of segments that hold one, two or three sentences when the pause comes
LATE_START = 0.08  # share of segments that begin inside a sentence, behind a forced split
FILLERS = (("um",), ("uh",), ("well",), ("so",), ("like",), ("you", "know"), ("i", "mean"), ("er",), ("hmm",))
FILLER_SHARE = 0.015  # of gaps that get a hesitation word
REPEAT_SHARE = 0.01  # of words that are said twice
RESTART_SHARE = 0.02  # of sentences that break off, and another begins
ANSWER_SHARE = 0.01  # of units that are a short answer; a written one is mostly followed by more
ANSWERS = (
    "yes",
    "no",
    "okay",
    "thanks",
    "thank you",
    "right",
    "hello",
    "good morning",
    "of course",
    "not really",
    "sure",
)
DROPPED, REPLACED = 0.015, 0.03  # share of words that a recogniser misses or mistakes
SPLIT_NUMBERS = 0.08  # share of numbers that a pause cuts in two


@dataclass(frozen=True)
class Stream:
    """Units one behind the other: int64 (tokens,) into `lexicon`, and int8 (tokens,) Places."""

    lexicon: tuple[str, ...]
    tokens: Int64
    places: npt.NDArray[np.int8]

    @cached_property
    def ends(self) -> Int64:
        """Where sentences end."""
        return np.flatnonzero(self.places == Place.END)


@dataclass(frozen=True)
class Pause:
    """A pause behind `words`; `following` holds the two words after it."""

    words: tuple[str, ...]
    following: tuple[str, ...]
    place: Place
    drawn_as: str  # end, comma, joint or gap

    @property
    def complete(self) -> bool:
        return self.place == Place.END


class Lexicon:
    """Numbers for words."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def stream(self, units: Sequence[Unit]) -> Stream:
        ids = [self._ids.setdefault(token, len(self._ids)) for unit in units for token in unit.tokens]
        places = np.concatenate([unit.places for unit in units])
        return Stream(self.words, np.array(ids, np.int64), places)

    def id(self, word: str) -> int:
        return self._ids.setdefault(word, len(self._ids))

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._ids)


def shuffled(units: Sequence[Unit], random: np.random.Generator) -> list[Unit]:
    return [units[int(i)] for i in random.permutation(len(units))]


def with_answers(units: Sequence[Unit], random: np.random.Generator) -> list[Unit]:
    """The units and, added, some that are nothing but a short answer."""
    chosen = random.integers(len(ANSWERS), size=int(len(units) * ANSWER_SHARE))
    added = (tuple(ANSWERS[int(i)].split()) for i in chosen)
    places = (Place.GAP, Place.END)
    return [*units, *(Unit(words, np.array(places[-len(words) :], np.int8)) for words in added)]


def misheard(stream: Stream, lexicon: Lexicon, random: np.random.Generator) -> Stream:
    """The stream with hesitations, false starts, cut numbers, and a recogniser's errors."""
    tokens, places = _broken_off(stream, random)
    tokens = _replaced(tokens, random)
    tokens, places = _dropped(tokens, places, random)
    tokens, places = _with_fillers(tokens, places, lexicon, random)
    return Stream(lexicon.words, tokens, places)


def _broken_off(stream: Stream, random: np.random.Generator) -> tuple[Int64, npt.NDArray[np.int8]]:
    """Some sentences left unfinished."""
    keep = np.ones(len(stream.tokens), np.bool_)
    places = stream.places.copy()
    for i in np.flatnonzero(random.random(len(stream.ends) - 1) < RESTART_SHARE):
        first, end = int(stream.ends[i]) + 1, int(stream.ends[i + 1])
        if end - first >= 3:
            last = int(random.integers(first, end))
            keep[last + 1 : end + 1] = False
            places[last] = Place.JOINT
    return stream.tokens[keep], places[keep]


def _replaced(tokens: Int64, random: np.random.Generator) -> Int64:
    """Some words exchanged for words as common in the text as they are."""
    others = tokens[random.integers(len(tokens), size=len(tokens))]
    return np.where(random.random(len(tokens)) < REPLACED, others, tokens)


def _dropped(
    tokens: Int64, places: npt.NDArray[np.int8], random: np.random.Generator
) -> tuple[Int64, npt.NDArray[np.int8]]:
    """Some words gone; a sentence end behind one is then behind the word before."""
    keep = random.random(len(tokens)) >= DROPPED
    keep[0] = True
    places = places.copy()
    np.maximum.at(places, np.flatnonzero(keep)[np.cumsum(keep) - 1], places)
    return tokens[keep], places[keep]


def _with_fillers(
    tokens: Int64, places: npt.NDArray[np.int8], lexicon: Lexicon, random: np.random.Generator
) -> tuple[Int64, npt.NDArray[np.int8]]:
    """Hesitation words in some gaps, some words twice, and some numbers in two parts."""
    fillers = [[lexicon.id(word) for word in filler] for filler in FILLERS]
    number = lexicon.id(NUMBER)
    out_tokens: list[npt.ArrayLike] = []
    out_places: list[npt.ArrayLike] = []
    done = 0
    chance = random.random(len(tokens))
    for at in np.flatnonzero(chance < np.where(tokens == number, SPLIT_NUMBERS, FILLER_SHARE + REPEAT_SHARE)):
        at = int(at)  # noqa: PLW2901  behind this word
        if tokens[at] == number:
            added, marks, before = [number], [int(places[at])], int(Place.GAP)
        elif chance[at] < REPEAT_SHARE and places[at] != Place.END:
            added, marks, before = [int(tokens[at])], [int(places[at])], int(Place.JOINT)
        else:
            added = fillers[int(random.integers(len(fillers)))]
            marks = [int(Place.GAP)] * (len(added) - 1) + [int(Place.JOINT)]
            before = max(int(places[at]), int(Place.JOINT))
        out_tokens += [tokens[done : at + 1], added]
        out_places += [places[done:at], [before, *marks]]
        done = at + 1
    out_tokens.append(tokens[done:])
    out_places.append(places[done:])
    return np.concatenate(out_tokens).astype(np.int64), np.concatenate(out_places).astype(np.int8)


def segments(stream: Stream, random: np.random.Generator) -> list[tuple[int, int]]:
    """[start, end) of segments that together cover the stream, of one to three sentences and MAX_WORDS words."""
    found = []
    start, at = 0, 0
    ends = stream.ends
    while at < len(ends):
        at += int(random.choice(len(SENTENCES), p=SENTENCES))
        end = int(ends[min(at, len(ends) - 1)]) + 1
        if random.random() < LATE_START and end - start > 3:
            end = int(random.integers(start + 2, end - 1))  # the next one begins inside the sentence
            at -= 1
        end = min(end, start + MAX_WORDS)
        found.append((start, end))
        start = end
        at = int(np.searchsorted(ends, start))
    return found


def pauses(stream: Stream, count: int, random: np.random.Generator) -> list[Pause]:
    """`count` pauses at the paper's share of complete ones; half of the others at comma-like places, half anywhere."""
    places = stream.places
    last = len(places) - 2
    count = min(count, int(len(stream.ends) / COMPLETE_SHARE) - 2)  # or the share would sink
    complete = round(count * COMPLETE_SHARE)
    rest = count - complete
    pools = {
        "end": (np.flatnonzero(places == Place.END), complete),
        "comma": (np.flatnonzero(places == Place.COMMA), rest // 4),
        "joint": (np.flatnonzero(places == Place.JOINT), rest // 4),
        "gap": (np.flatnonzero(places != Place.END), rest - 2 * (rest // 4)),
    }
    found = []
    for drawn_as, (pool, wanted) in pools.items():
        pool = pool[pool < last]  # noqa: PLW2901
        for at in random.choice(pool, size=min(wanted, len(pool)), replace=False):
            found.append(_pause(stream, int(at), drawn_as, random))
    return found


def _pause(stream: Stream, at: int, drawn_as: str, random: np.random.Generator) -> Pause:
    """The pause behind token `at`, in a segment that began one to three sentences before, or inside one."""
    ends = stream.ends
    sentence = int(np.searchsorted(ends, at))
    first = sentence - int(random.choice(len(SENTENCES), p=SENTENCES))
    start = int(ends[first - 1]) + 1 if first > 0 else 0
    if random.random() < LATE_START and at - start > 1:
        start = int(random.integers(start, at))
    start = max(start, at + 1 - MAX_WORDS)
    words = stream.lexicon
    said = tuple(words[int(i)] for i in stream.tokens[start : at + 1])
    following = tuple(words[int(i)] for i in stream.tokens[at + 1 : at + 3])
    return Pause(said, following, Place(int(stream.places[at])), drawn_as)
