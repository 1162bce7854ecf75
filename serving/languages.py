"""Language tags: what people write for a language, made into the code that the engines share, and back into theirs.

The shared code is that of ISO 639-1, or of ISO 639-3 for the few languages without one (Cantonese is `yue`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache

import langcodes
from langcodes.registry_parser import parse_registry

from polylip.serving.errors import UnsupportedError

EXAMPLE = "a code or an English name, for example: es, es-MX, Spanish"
LISTED = 20  # codes or pairs in a message; more would hide its cause
SHOWN = 40  # characters of a caller's text in a message
NO_LANGUAGE = frozenset({"und", "mul", "mis", "zxx", "sgn"})  # unknown, several, uncoded, none, all that are signed
PRIVATE_LANGUAGE = re.compile(r"q[a-t][a-z]|x-.*")
PRIVATE_REGION = re.compile(r"aa|q[m-z]|x[a-z]|zz")
LOCALE_SUFFIX = re.compile(r"(\.[\w-]+)?(@\w+)?$")  # es_ES.UTF-8, ca_ES@valencia
# What remains after the registry's own replacements (iw to he, cmn to zh): one code each for two that mean the same.
SHARED = {"no": "nb", "fil": "tl"}
# Where the registry's name is not the one in daily use, and names that it lacks.
DAILY_NAMES = {"el": "Greek", "yue": "Cantonese"}
MORE_NAMES = {
    "greek": "el", "mandarin": "zh", "farsi": "fa", "español": "es", "français": "fr", "deutsch": "de",
    "italiano": "it", "português": "pt",
}  # fmt: skip


class UnknownLanguageError(UnsupportedError):
    """A text that names no language; the message gives the nearest guess."""


@dataclass(frozen=True)
class Language:
    """A language, with the region and the script of the variant where they were given."""

    code: str  # ISO 639-1, else ISO 639-3
    script: str | None = None  # ISO 15924: Hant
    region: str | None = None  # ISO 3166-1 or UN M.49: MX, 419

    @property
    def tag(self) -> str:
        """The BCP 47 tag."""
        return "-".join(part for part in (self.code, self.script, self.region) if part)


@lru_cache(maxsize=4096)
def parse_language(text: str) -> Language:
    """The language that a tag (`es-MX`, `pt_BR`, `eng`, `iw`) or an English name means. Raises UnknownLanguageError."""
    tag = LOCALE_SUFFIX.sub("", text.strip())
    try:
        found = langcodes.Language.get(tag)
    except ValueError:
        return Language(_code_of_name(text))
    code = found.prefer_macrolanguage().language
    if code is None or code in NO_LANGUAGE or PRIVATE_LANGUAGE.fullmatch(code):
        raise _unknown(text)
    if not langcodes.tag_is_valid(tag):
        return Language(_code_of_name(text))
    return Language(SHARED.get(code, code), found.script, found.territory)


def normalise(text: str) -> str:
    """The shared code of a tag or an English name, without script and region. Raises UnknownLanguageError."""
    return parse_language(text).code


def best_variant(tag: str, available: Collection[str]) -> str | None:
    """The one of an engine's own codes or voices that fits a tag best; None when none is of its language.

    `es-MX` takes `es-419` where there is one, else `es`; `nb` takes `no`, and `zh` takes `zh-cn`.
    """
    wanted = parse_language(tag)
    fitting = [own for own in available if _code_or_none(own) == wanted.code]
    return min(fitting, key=lambda own: _unfitness(wanted, own), default=None)


def _unfitness(wanted: Language, own: str) -> tuple[bool, bool, int, int, str]:
    """The smaller the better: the same variant, no dialect that nobody asked for, near, short."""
    language = parse_language(own)
    dialect = len(own.split("-")) > len(language.tag.split("-"))  # en-gb-x-rp
    near = langcodes.tag_distance(wanted.tag, language.tag)
    return language != wanted or dialect, dialect, near, len(own), own


def _code_or_none(own: str) -> str | None:
    try:
        return normalise(own)
    except UnknownLanguageError:
        return None


def shared_codes(own: Iterable[str]) -> frozenset[str]:
    """The shared codes of an engine's own codes or voices, without those that name no language."""
    return frozenset(code for code in map(_code_or_none, own) if code is not None)


def language_name(code: str) -> str:
    """The English name of a shared code; the code itself where it has none."""
    return _names().get(code, code)


def unsupported_source(engine: str, given: str, supported: Iterable[str]) -> str:
    """One line for a language that a recogniser does not hear."""
    return f"source language {_described(given)} is not supported by {engine}; supported: {listed(supported)}"


def unsupported_target(engine: str, given: str, supported: Iterable[str]) -> str:
    """One line for a language that an engine does not speak."""
    return f"target language {_described(given)} has no voice in {engine}; supported: {listed(supported)}"


def unsupported_pair(
    engine: str, source: str, target: str, supported: Iterable[tuple[str, str]], remedy: str = ""
) -> str:
    """One line for a pair that a translator cannot do here; `remedy` says what would bring it."""
    pairs = listed(f"{a}->{b}" for a, b in supported)
    way = f"; {remedy}" if remedy else ""
    return f"language pair {source}->{target} is not supported by {engine} here; supported: {pairs}{way}"


def listed(items: Iterable[str]) -> str:
    """Sorted, with commas, and cut where the list gets long."""
    ordered = sorted(items)
    more = ", ... (polylip languages shows all)" if len(ordered) > LISTED else ""
    return f"{', '.join(ordered[:LISTED])}{more}" or "none"


def _described(given: str) -> str:
    """`'fi' (Finnish)`."""
    code = _code_or_none(given)
    return f"{_shown(given)} ({language_name(code)})" if code and language_name(code) != given else _shown(given)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _code_of_name(text: str) -> str:
    """The code of a language's English name. Raises UnknownLanguageError."""
    code = _codes_by_name().get(_folded(text))
    if code is None:
        raise _unknown(text)
    return normalise(code)


def _unknown(text: str) -> UnknownLanguageError:
    guess = _guess(_folded(text))
    hint = f"did you mean {guess} ({language_name(guess)})? Use" if guess else "use"
    return UnknownLanguageError(f"{_shown(text)} is not a language code; {hint} {EXAMPLE}")


def _guess(text: str) -> str | None:
    """What somebody may have meant: a country for its language (`jp`), a tag with a wrong end, or a misspelt name."""
    if re.fullmatch("[a-z]{2}", text) and not PRIVATE_REGION.fullmatch(text):
        country = f"und-{text}"
        return normalise(str(langcodes.Language.get(country).maximize())) if langcodes.tag_is_valid(country) else None
    start = re.match(r"[a-z]{2,3}(?=[^a-z])", text)
    if start and start[0] in _names():
        return start[0]
    major = {name: code for name, code in _codes_by_name().items() if len(code) == 2}
    near = get_close_matches(text[:SHOWN], major, n=1, cutoff=0.75) if len(text) > 3 else []
    return normalise(major[near[0]]) if near else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split())


@cache
def _registry() -> list[tuple[str, list[str]]]:
    """Codes and their names in the IANA registry, which langcodes carries; two-letter codes first."""
    return [
        (entry["Subtag"], [re.sub(r" \(.*\)$", "", name) for name in entry["Description"]])
        for entry in parse_registry()
        if entry["Type"] == "language"
        and "Deprecated" not in entry
        and entry.get("Scope") not in ("collection", "special", "private-use")
    ]


@cache
def _names() -> dict[str, str]:
    """Code -> its English name."""
    return {code: names[0] for code, names in _registry()} | DAILY_NAMES


@cache
def _codes_by_name() -> dict[str, str]:
    """English name in lower case -> code of the registry."""
    codes = dict(MORE_NAMES)
    for code, own in _registry():
        for name in own:
            codes.setdefault(_folded(name), code)
    return codes
