"""Recognised words in, what the boundary scorer's weights are looked up by out. Training and scoring share this module.

Everything is hashed by CRC-32, so that another process, machine or Python finds the same rows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]

LOOK_AHEADS = (0, 1, 2)  # words behind a pause that a scorer may know
MAX_WORDS = 48  # of a segment that are looked at: 10 s hold about 35
BACK = 6  # last words of a segment that n-grams reach
TABLE_BITS = 18  # rows of the n-gram table: 2**18

NUMBER, ORDINAL, START, NOTHING = "<num>", "<ord>", "<s>", "<none>"
_NUMBERS = (
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion"
)
NUMBER_WORDS = frozenset(_NUMBERS.split())
_ORDINALS = (
    "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth "
    "seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth hundredth thousandth"
)
ORDINAL_WORDS = frozenset(_ORDINALS.split())
SHORT_ORDINALS = {"1st": "first", "2nd": "second"}  # these two are words of their own
CURRENCIES = {"$": "dollars", "£": "pounds", "€": "euros"}
# Words that carry grammar rather than content; all others are known to the shapes by their endings only.
_FUNCTION_WORDS = (
    "a an the this that these those my your his her its our their i you he she it we they me him us them mine yours "
    "and or but so because if when while although though since until unless than as that whether which who whom whose "
    "what where why how of in on at to for from with by about into over after before under between through during "
    "against without within around near is are was were be been being am do does did have has had will would can could "
    "shall should may might must not no yes yeah ok okay well um uh oh please thanks thank sure right there here then "
    "now too also just very really more most some any all each every both another other much many few lot like want "
    "need know think going gonna get got let lets let's i'm you're it's that's there's he's she's we're they're i've "
    "you've we've they've i'd you'd i'll you'll it'll we'll don't doesn't didn't can't won't isn't aren't wasn't "
    "couldn't wouldn't shouldn't haven't hasn't what's where's who's how's one ones me up down out off back away again "
    "only even still yet ever never always maybe first second <num> <ord> <s> <none> am pm dollars percent"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
ENDING = 3  # last letters that stand for a content word's class

_VARIANT = re.compile(r"\(\d+\)$")  # pocketsphinx's mark of a second pronunciation
_MONEY = re.compile(r"^([$£€])\d[\d.,]*([kmb]?)$")
_PERCENT = re.compile(r"^\d[\d.,]*%$")
_CLOCK = re.compile(r"^\d{1,2}(?:[:.]\d\d)?([ap])\.?m\.?$")
_ORDINAL_DIGITS = re.compile(r"^\d+(?:st|nd|rd|th)$")
_DIGITS = re.compile(r"^#?\d[\d.,:]*$")
_EDGES = re.compile(r"^[^\w$£€#<]+|[^\w%>]+$")
_INNER = re.compile(r"[-\u2010-\u2015/_&+]+")
_UNWANTED = re.compile(r"[^\w'<>]")


def pieces(word: str) -> list[str]:
    """One recognised word in lower case without punctuation: mostly one piece, none for a mere mark, two for "$5"."""
    word = _VARIANT.sub("", word.lower().replace("\u2019", "'"))
    word = "and" if word == "&" else _EDGES.sub("", word)
    if word[:1].isdigit() or word[:1] in (*CURRENCIES, "#"):
        found = _of_digits(word)
        if found:
            return found
    parts = [part for part in _INNER.split(word) if part]
    if len(parts) > 1:
        return [piece for part in parts for piece in pieces(part)]
    word = _UNWANTED.sub("", word).strip("'")
    return [word] if word else []


def _of_digits(word: str) -> list[str]:
    """Money, shares, times of day, ordinals and plain numbers; nothing for a word that only begins with a digit."""
    found: list[str] = []
    if (money := _MONEY.match(word)) is not None:
        found = [NUMBER, CURRENCIES[money[1]]]
    elif _PERCENT.match(word):
        found = [NUMBER, "percent"]
    elif (clock := _CLOCK.match(word)) is not None:
        found = [NUMBER, clock[1] + "m"]
    elif _ORDINAL_DIGITS.match(word):
        found = [SHORT_ORDINALS.get(word, ORDINAL)]
    elif _DIGITS.match(word):
        found = ["one" if word == "1" else NUMBER]
    return found


def merged(tokens: Sequence[str]) -> list[str]:
    """Runs of number words as one class, so that "two hundred and five" and "205" read alike."""
    out: list[str] = []
    number = ""  # the last raw word of a run that is open
    for i, word in enumerate(tokens):
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        if _numeric(word) or (word == "one" and (number or _numeric(following))):
            if not number:
                out.append(NUMBER)
            number = word
        elif number and _numeric(following) and (word in ("point", "oh") or (word == "and" and _large(number))):
            continue
        elif word in ORDINAL_WORDS or word == ORDINAL or (number and word in ("first", "second")):
            if number:
                out.pop()
            out.append(ORDINAL)
            number = ""
        else:
            out.append(word)
            number = ""
    return out


def normalised(words: Sequence[str]) -> list[str]:
    """Words of any recogniser as the scorer's tokens."""
    return merged([piece for word in words for piece in pieces(word)])


def _numeric(token: str) -> bool:
    return token in NUMBER_WORDS or token == NUMBER


def _large(token: str) -> bool:
    return token in ("hundred", "thousand", "million", NUMBER)


def code(token: str) -> int:
    return zlib.crc32(token.encode())


def shape(token: str) -> str:
    """A function word itself, any other word's ending."""
    return token if token in FUNCTION_WORDS else "~" + token[-ENDING:]


# What an n-gram is made of: w1 is the last word of the segment, w2 the one before; s1, s2 their shapes; f1, f2 the
# words that follow and g1, g2 their shapes; b1, b2 the segment's first words; n the segment's length, in steps.
HISTORY = (
    "w1|w2 w1|w3 w2 w1|w4 w3 w2 w1|w5 w4 w3 w2 w1|w2|w3|w4|w3 w1|w4 w1|w5 w1|w4 w2 w1|s1|s2 s1|s3 s2 s1|s4 s3 s2 s1|"
    "s5 s4 s3 s2 s1|s6 s5 s4 s3 s2 s1|s3 s1|s4 s1|s5 s1|s4 s2 s1|s3 s2 w1|n|w1 n|s1 n|s2 s1 n|b1 n|b1 w1|b1 s1|"
    "b1 s2 s1|b2 b1 n|b2 b1 w1|b2 b1 s2 s1"
)
ONE_AHEAD = "f1|w1 f1|w2 w1 f1|w3 w2 w1 f1|s1 f1|s2 s1 f1|s3 s2 s1 f1|s4 s3 s2 s1 f1|g1|w1 g1|w2 w1 g1|s1 g1|f1 n|b1 f1"
TWO_AHEAD = (
    "f2|f1 f2|w1 f1 f2|w2 w1 f1 f2|s1 f1 f2|s2 s1 f1 f2|s3 s2 s1 f1 f2|g1 g2|s1 g1 g2|s2 s1 g1 g2|w1 g1 g2|w1 f2|s1 f2|"
    "f1 f2 n|b1 f1 f2"
)
TEMPLATES = {0: HISTORY, 1: f"{HISTORY}|{ONE_AHEAD}", 2: f"{HISTORY}|{ONE_AHEAD}|{TWO_AHEAD}"}
LENGTH_STEPS = np.array([1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30])
_MULTIPLIER, _HALF, _UNUSED_BITS = np.uint32(0x9E3779B1), np.uint32(15), np.uint32(32 - TABLE_BITS)


@cache
def _templates(look_ahead: int) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """(seed, columns) of every template."""
    texts = TEMPLATES[look_ahead].split("|")
    return tuple((code(f"{look_ahead} {text}"), tuple(text.split())) for text in texts)


def ngram_rows(columns: Mapping[str, UInt32], look_ahead: int) -> Int64:
    """int64 (pauses, templates): the row of the n-gram table for each template; columns hold uint32 (pauses,)."""
    found = []
    for seed, names in _templates(look_ahead):
        value: UInt32 = np.full(len(columns["w1"]), seed, np.uint32)
        for name in names:
            value = (value ^ columns[name]) * _MULTIPLIER
            value ^= value >> _HALF
        found.append(value >> _UNUSED_BITS)
    rows: Int64 = np.stack(found, axis=1).astype(np.int64)
    return rows


def columns_of(tokens: Sequence[str], following: Sequence[str]) -> dict[str, UInt32]:
    """What one pause behind `tokens` gives to `ngram_rows`."""
    columns = dict(_columns(tokens, following))
    columns["n"] = np.searchsorted(LENGTH_STEPS, [len(tokens)]).astype(np.uint32)
    return columns


def _columns(tokens: Sequence[str], following: Sequence[str]) -> Iterator[tuple[str, UInt32]]:
    back = [*([START] * BACK), *tokens][-BACK:][::-1]
    ahead = [*following, NOTHING, NOTHING][:2]
    for i, token in enumerate(back, 1):
        yield f"w{i}", _one(token)
        yield f"s{i}", _one(shape(token))
    for i, token in enumerate(ahead, 1):
        yield f"f{i}", _one(token)
        yield f"g{i}", _one(shape(token))
    for i, token in enumerate([*tokens, NOTHING, NOTHING][:2], 1):
        yield f"b{i}", _one(token)


def _one(token: str) -> UInt32:
    return np.array([code(token)], np.uint32)
