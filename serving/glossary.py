"""Terms that a translation must hold: found in the source, and put into the translation where they are missing.

A glossary has a line per term: `term` is kept as the glossary writes it, `term = translation` is translated so, and
`#` begins a comment. Networks cannot be made to obey, so the translation is corrected afterwards: the words that the
network's attention ties to the term are replaced.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from polylip.serving.sentences import Span, tidy

MAX_TERMS = 1000
MAX_CHARACTERS = 100  # of a term: far below what the network can take in one piece
COMMENT = re.compile(r"(^|\s)#.*")
FINAL = re.compile(r"[\s.!?。！？…\"'»)]*$")  # noqa: RUF001  full-width ones as well

MARKS = "".join(map(chr, filter(lambda c: unicodedata.category(chr(c)).startswith("M"), range(0x300, 0x10000))))
WORD = rf"[\w{MARKS}]"  # vowel signs belong to words, `\w` leaves them out
# Thai, Lao, Burmese, Khmer, kana and Chinese characters: no spaces between words, so no boundaries to demand.
UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
BEFORE = rf"(?:(?<!{WORD})|(?<={UNSPACED}))"
AFTER = rf"(?:(?!{WORD})|(?={UNSPACED}))"


@dataclass(frozen=True)
class Match:
    """A term in a source text."""

    start: int
    end: int
    forced: str  # what the translation must hold for it


@dataclass(frozen=True)
class Glossary:
    """What each term must become, by the term as it is looked for."""

    terms: Mapping[str, str]

    def find(self, text: str) -> list[Match]:
        """Whole words in any case, from left to right, at each place the longest term."""
        if not self.terms:
            return []
        forced = list(self._longest_first.values())
        return [Match(*m.span(), forced[(m.lastindex or 1) - 1]) for m in self._pattern.finditer(text)]

    def with_more(self, other: Glossary) -> Glossary:
        """Both; the other's terms win."""
        again = {term.casefold() for term in other.terms}
        return Glossary({t: f for t, f in self.terms.items() if t.casefold() not in again} | dict(other.terms))

    @cached_property
    def _longest_first(self) -> dict[str, str]:
        return dict(sorted(self.terms.items(), key=lambda item: -len(item[0])))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"({_whole(term)})" for term in self._longest_first), re.IGNORECASE)


def parse_glossary(text: str, name: str = "glossary") -> Glossary:
    """Raises ValueError with the number of the line that is wrong."""
    terms: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = COMMENT.sub("", line).strip()
        if not content:
            continue
        sides = [" ".join(side.split()) for side in content.split("=")]
        if len(sides) > 2 or not all(sides):
            raise ValueError(f"{name}, line {number}: {_shown(content)} is neither `term` nor `term = translation`")
        if any(len(side) > MAX_CHARACTERS or not side.isprintable() for side in sides):
            raise ValueError(
                f"{name}, line {number}: {_shown(content)} is no term; one has up to {MAX_CHARACTERS} letters or signs"
            )
        term, forced = tidy(sides[0]), sides[-1]
        if not term:
            raise ValueError(f"{name}, line {number}: {_shown(content)} holds nothing that could be looked for")
        terms = {t: f for t, f in terms.items() if t.casefold() != term.casefold()} | {term: forced}
        if len(terms) > MAX_TERMS:
            raise ValueError(f"{name}, line {number}: more than {MAX_TERMS} terms; leave some out")
    return Glossary(terms)


def keep(forced: Iterable[str]) -> Glossary:
    """Terms that an earlier step has put in and a later one must not touch."""
    return Glossary({tidy(term): term for term in forced})


def enforce(translation: str, wanted: Sequence[tuple[str, Sequence[Span]]]) -> str:
    """The translation with each forced term in it as often as it is wanted.

    `wanted`: for each term in the source its forced form and the spans of the translation that may stand for it, best
    first. A term that is there already is only written as the glossary has it; one that is not takes the place of the
    first span that is free, made whole words; where none is free, it is added at the end.
    """
    claimed: list[tuple[Span, str]] = []

    def free(span: Span) -> bool:
        return all(span[1] <= start or end <= span[0] for (start, end), _ in claimed)

    missing = []
    for forced, spans in sorted(wanted, key=lambda item: -len(item[0])):
        places = (match.span() for match in re.finditer(_whole(forced), translation, re.IGNORECASE))
        place = next(filter(free, places), None)
        if place is None:
            missing.append((forced, spans))
        else:
            claimed.append((place, forced))
    homeless = []
    for forced, spans in missing:
        whole = (_whole_words(translation, span) for span in spans)
        place = next((span for span in whole if span[0] < span[1] and free(span)), None)
        if place is None:
            homeless.append(forced)
        else:
            claimed.append((place, forced))
    for (start, end), forced in sorted(claimed, reverse=True):
        translation = _put(translation[:start], forced, translation[end:])
    return _append(translation, homeless)


def aligned_spans(
    attention: Sequence[Sequence[float]], targets: Sequence[Span], columns: Sequence[int], text: str
) -> list[Span]:
    """Spans of the translation `text` that may stand for the source pieces `columns`, best first.

    `attention` has a row per target piece and a column per source piece; `targets` is where each target piece lies in
    the text. First the runs of pieces that look most at those columns, then single pieces by how much they do.
    """
    weight = [sum(row[column] for column in columns) for row in attention]
    worded = [bool(re.search(r"\w", text[start:end])) for start, end in targets]
    runs: list[list[int]] = []
    for index, row in enumerate(attention):
        if not worded[index] or max(range(len(row)), key=row.__getitem__) not in columns:
            continue
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    runs.sort(key=lambda run: -sum(weight[index] for index in run))
    single = sorted((index for index in range(len(attention)) if worded[index]), key=lambda index: -weight[index])
    return [(targets[run[0]][0], targets[run[-1]][1]) for run in (*runs, *([index] for index in single))]


def _whole(term: str) -> str:
    before = "" if re.match(UNSPACED, term[0]) else BEFORE
    after = "" if re.match(UNSPACED, term[-1]) else AFTER
    return f"{before}{re.escape(term)}{after}"


def _whole_words(text: str, span: Span) -> Span:
    """Grown over the rest of the words that it begins and ends in, where words have ends."""
    start, end = _stripped(text, span)
    while start > 0 and _within_word(text[start - 1 : start + 1]):
        start -= 1
    while 0 < end < len(text) and _within_word(text[end - 1 : end + 1]):
        end += 1
    return start, end


def _within_word(two: str) -> bool:
    return re.fullmatch(WORD * 2, two) is not None and not re.search(UNSPACED, two)


def _stripped(text: str, span: Span) -> Span:
    inner = text[slice(*span)]
    return span[0] + len(inner) - len(inner.lstrip()), span[1] - len(inner) + len(inner.rstrip())


def _put(before: str, forced: str, after: str) -> str:
    """Never grown together with a neighbour, which would hide the term."""
    left = " " if _within_word(before[-1:] + forced[0]) else ""
    right = " " if _within_word(forced[-1] + after[:1]) else ""
    return f"{before}{left}{forced}{right}{after}"


def _append(text: str, terms: Sequence[str]) -> str:
    """Before the final punctuation."""
    if not terms:
        return text
    end = FINAL.search(text)
    place = end.start() if end else len(text)
    return " ".join(filter(None, (text[:place].strip(), *terms))) + text[place:].rstrip()


def _shown(content: str) -> str:
    return repr(content if len(content) <= 40 else content[:39] + "…")
