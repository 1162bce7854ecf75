"""The languages that Whisper knows, and the codes in which it differs from ISO 639-1. Importable without its packages.

Whisper names Javanese `jw` where ISO 639-1 says `jv`. Hawaiian and Cantonese have no ISO 639-1 code: `haw` keeps its
ISO 639-3 code, and `yue` (only in large-v3) counts as Chinese behind the recogniser, because that is how it is written.
"""

from __future__ import annotations

# The two-letter codes of OpenAI's tokenizer, with Javanese as ISO 639-1 has it.
LANGUAGES = frozenset(
    """
    af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha he hi hr ht hu hy id is it
    ja jv ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl
    sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh
    """.split()  # noqa: SIM905  a list of them would fill a page
)
LONGER_CODES = frozenset({"haw", "yue"})  # ISO 639-3, understood beside LANGUAGES
UNSPACED = frozenset(
    {"ja", "km", "lo", "my", "th", "yue", "zh"}
)  # written without spaces: a "word" is a few characters

_WHISPER_CODES = {"jv": "jw"}
_CODES = {"jw": "jv", "yue": "zh"}


def whisper_code(language: str) -> str:
    """The code in Whisper's language token for a code of LANGUAGES or LONGER_CODES."""
    return _WHISPER_CODES.get(language, language)


def code_of(whisper: str) -> str:
    """The code that the models behind the recogniser know for a code in Whisper's language token."""
    return _CODES.get(whisper, whisper)
