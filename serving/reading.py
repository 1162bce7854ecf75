"""Text in pieces that a voice can speak at once: sentences, else clauses, else words. No word is ever lost."""

# ruff: noqa: RUF001  the punctuation of other scripts looks like Latin signs
from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Fits = Callable[[str], bool]
Reader = Callable[[str], str]

SHORTEST_CHARACTERS = 16  # a sentence below it is spoken with its neighbour: voices babble after very short texts

CLOSING = "\"'”’»)\\]」』"
# Chinese and Japanese write no space behind a sentence; the others do, and "3.5" or "z.B." must stay whole.
_SENTENCE = re.compile(rf"(?<=[.!?…؟۔।])[{CLOSING}]*\s+|(?<=[。！？])[{CLOSING}]*")
_CLAUSE = re.compile(r"(?<=[,;:،؛–—])\s+|(?<=[，、；：])")
_SPACE = re.compile(r"\s+")
_LETTER = re.compile(r"\w")
_LAST_NUMBER = re.compile(r"(?<=\d)\.(?=\s*$)")
_DIGIT = re.compile(r"\d")


def split(text: str, fits: Fits) -> list[str]:
    """The text in pieces that `fits` accepts, none of them without a letter or a digit."""
    pieces: list[str] = []
    for sentence in _joined(_parts(text, _SENTENCE), fits):
        pieces += [sentence] if fits(sentence) else _packed(sentence, fits, (_CLAUSE, _SPACE))
    return [piece for piece in pieces if _LETTER.search(piece)]


def read_out(text: str, reader: Reader) -> str:
    """The text with its numbers in words. A number that `reader` cannot read is read digit by digit.

    The full stop behind a number that ends the text is set apart: several languages write ordinals with a dot.
    """
    text = _LAST_NUMBER.sub(" .", _SPACE.sub(" ", text).strip())
    try:
        read = reader(text)
    except Exception:  # what num2words raises has no common type: overflows, missing languages, ...
        read = reader(_DIGIT.sub(lambda digit: f" {digit[0]} ", text))
    return re.sub(r"\s+(?=[.,!?;:…](\s|$))", "", _SPACE.sub(" ", read)).strip()


def _parts(text: str, boundary: re.Pattern[str]) -> list[str]:
    """The text cut behind each match of `boundary`, without the spaces between."""
    ends = [match.end() for match in boundary.finditer(text)]
    cuts = [text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [cut for cut in cuts if cut]


def _joined(sentences: list[str], fits: Fits) -> list[str]:
    """Sentences too short to be spoken alone with the one before or behind them, where that fits."""
    joined: list[str] = []
    for sentence in sentences:
        short = joined and min(len(joined[-1]), len(sentence)) < SHORTEST_CHARACTERS
        if short and fits(together := _together(joined[-1], sentence)):
            joined[-1] = together
        else:
            joined.append(sentence)
    return joined


def _packed(text: str, fits: Fits, boundaries: tuple[re.Pattern[str], ...]) -> list[str]:
    """As few pieces as the first of `boundaries` allows; a part that is too long itself is cut at the next ones."""
    if not boundaries:
        return list(_runs(text, fits))
    pieces: list[str] = []
    for part in _parts(text, boundaries[0]):
        if pieces and fits(together := _together(pieces[-1], part)):
            pieces[-1] = together
        elif fits(part):
            pieces.append(part)
        else:
            pieces += _packed(part, fits, boundaries[1:])
    return pieces


def _runs(word: str, fits: Fits) -> Iterator[str]:
    """A word without a place to cut, in the longest runs of characters that fit; a single character always does."""
    while word:
        low, high = 1, len(word)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(word[:middle]) else (low, middle - 1)
        yield word[:low]
        word = word[low:]


def _together(first: str, second: str) -> str:
    return first + second if first[-1] in "。！？，、；：" else f"{first} {second}"
