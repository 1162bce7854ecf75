"""Text as XTTS-v2 reads it: coqui's cleaners put numbers, abbreviations and signs in words, then it becomes tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from num2words import num2words
from tokenizers import Tokenizer
from TTS.tts.layers.xtts.tokenizer import chinese_transliterate, hangul_romanize, multilingual_cleaners

from polylip.serving.errors import EngineError, UnsupportedError
from polylip.serving.languages import unsupported_target
from polylip.serving.reading import read_out, split
from polylip.serving.xtts_languages import CHARACTER_LIMITS, LANGUAGES, PACKAGES

START, STOP, SPACE = "[START]", "[STOP]", "[SPACE]"
REMEMBERED = 256  # texts whose tokens are kept: pieces are counted before they are spoken

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class XttsText:
    """The tokenizer in vocab.json with what belongs before it."""

    def __init__(self, vocabulary: Path, most_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(vocabulary))
        except Exception:  # the tokenizer's parser raises a plain Exception
            raise EngineError(f"{vocabulary} is not a tokenizer; run: polylip fetch xtts-v2") from None
        lacking = [token for token in (START, STOP, SPACE, "[en]") if self._tokenizer.token_to_id(token) is None]
        if lacking:
            raise EngineError(
                f"{vocabulary} lacks {', '.join(lacking)}, so it is not XTTS's; run: polylip fetch xtts-v2"
            )
        vocabulary_ids: dict[str, int] = self._tokenizer.get_vocab()
        self._start, self._stop = vocabulary_ids[START], vocabulary_ids[STOP]
        self.largest_token = max(vocabulary_ids.values())
        self._most_tokens = most_tokens
        self.tokens: Callable[[str, str], list[int]] = lru_cache(maxsize=REMEMBERED)(self._tokens)

    def pieces(self, text: str, language: str) -> list[str]:
        """The text in words only, in pieces that XTTS can speak. Raises UnsupportedError."""
        require_language(language)

        def fits(piece: str) -> bool:
            return len(piece) <= CHARACTER_LIMITS[language] and len(self.tokens(piece, language)) <= self._most_tokens

        def read(raw: str) -> str:
            return read_out(raw, lambda plain: self._clean(plain, language))

        if language == "zh":  # its cleaner turns every full stop into a comma, so sentences are found before
            return [read(sentence) for sentence in split(text, lambda raw: fits(read(raw)))]
        return split(read(text), fits)

    def _clean(self, text: str, language: str) -> str:
        if language != "ja":
            return str(multilingual_cleaners(text, language))
        plain = _GROUPED.sub("", text)  # coqui has no Japanese cleaner: its digits would be spelt in Latin
        return _NUMBER.sub(lambda number: num2words(_value(number[0]), lang="ja"), plain)

    def _tokens(self, piece: str, language: str) -> list[int]:
        """What the GPT reads of a piece from `pieces`, with its start and stop."""
        if language == "zh":
            piece = chinese_transliterate(piece)
        elif language == "ko":
            piece = hangul_romanize(piece)
        elif language == "ja":
            piece = self._romaji.romaji(piece).lower()
        ids = self._tokenizer.encode(f"[{LANGUAGES[language]}]{piece}".replace(" ", SPACE)).ids
        return [self._start, *ids, self._stop]

    @cached_property
    def _romaji(self) -> Any:
        from cutlet import Cutlet  # noqa: PLC0415  only Japanese needs it

        return Cutlet()


def require_language(language: str) -> None:
    """Raises UnsupportedError, with the languages there are or the command that brings this one."""
    if language not in LANGUAGES:
        raise UnsupportedError(unsupported_target("xtts-v2", language, LANGUAGES))
    needed = PACKAGES.get(language, {})
    if any(find_spec(module) is None for module in needed):
        raise UnsupportedError(
            f"target language {language!r} needs packages that are not installed; run: pip install "
            + " ".join(needed.values())
        )


def _value(number: str) -> int | float:
    return float(number) if "." in number else int(number)
