"""Text in sentences, as translators want it: tidied, split, cut where too long for the network, and joined again.

Sentence ends are found by sentencex (Wikimedia, MIT): a few microseconds per text, no dependencies, about 300
languages with their abbreviations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Span = tuple[int, int]  # of characters

# Written without spaces between words: sentences are joined without one as well.
UNSPACED_LANGUAGES = ("zh", "ja", "th", "lo", "km", "my")
# Those typographic forms that Opus-MT's training text was rid of; a network has hardly seen them.
PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201a": "'",
        "\u201b": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u201e": '"',
        "\u2026": "...",
        "\u2013": "-",
        "\u00ad": None,  # a hyphen that is only seen at line ends
    }
)
INITIAL = re.compile(r"\W*\w\.\s*")  # `M. Dupont`, `J. Bach`: sentencex ends sentences there
CLAUSE_END = re.compile(r"[,;:،、，；：]\s*")  # noqa: RUF001  full-width ones as well
SPACE = re.compile(r"\s+")
EARLIEST_CLAUSE = 0.4  # of the longest possible part: an earlier comma would leave a stump


def tidy(text: str) -> str:
    """One line, single spaces, plain quotes, dashes and dots."""
    return " ".join(text.translate(PLAIN).split())


def split_sentences(text: str, language: str, protected: Sequence[Span] = ()) -> list[str]:
    """The sentences of a tidied text; a `protected` span is never divided."""
    from sentencex import segment  # noqa: PLC0415  of the extra `speech`

    sentences: list[str] = []
    pending, position = "", 0
    for part in segment(language, text):
        pending += part
        position += len(part)
        divided = any(start < position < end for start, end in protected)
        if not divided and not INITIAL.fullmatch(pending):
            sentences.append(pending.strip())
            pending = ""
    return [sentence for sentence in (*sentences, pending.strip()) if sentence]


def cut(
    text: str, piece_ends: Callable[[str], Sequence[int]], limit: int, protect: Callable[[str], Sequence[Span]]
) -> list[str]:
    """Parts of at most `limit` pieces, cut behind a comma, else at a space, else anywhere; nothing is lost.

    `piece_ends` gives the end of each piece as a place in the text; `protect` the spans that are not to be divided.
    """
    parts = []
    while len(ends := piece_ends(text)) > limit:
        place = _cut_place(text, max(1, ends[limit - 1]), protect(text))
        parts.append(text[:place].strip())
        text = text[place:].strip()
    return [part for part in (*parts, text) if part]


def _cut_place(text: str, longest: int, protected: Sequence[Span]) -> int:
    def last(pattern: re.Pattern[str], earliest: float) -> int:
        places = (match.end() for match in pattern.finditer(text))
        fitting = (place for place in places if earliest < place <= longest and not inside(place))
        return max(fitting, default=0)

    def inside(place: int) -> bool:
        return any(start < place < end for start, end in protected)

    anywhere = next((place for place in range(longest, 0, -1) if not inside(place)), longest)
    return last(CLAUSE_END, EARLIEST_CLAUSE * longest) or last(SPACE, 0) or anywhere


def join_sentences(sentences: Sequence[str], language: str) -> str:
    """In the way of the language, without doubled spaces."""
    return ("" if language in UNSPACED_LANGUAGES else " ").join(s.strip() for s in sentences if s.strip())
