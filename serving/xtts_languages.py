"""The languages that XTTS-v2 speaks, and how fast. Importable without its packages."""

from __future__ import annotations

# ISO 639-1 -> XTTS's own code: the 17 languages of the public config.json.
LANGUAGES: dict[str, str] = {
    "ar": "ar",
    "cs": "cs",
    "de": "de",
    "en": "en",
    "es": "es",
    "fr": "fr",
    "hi": "hi",
    "hu": "hu",
    "it": "it",
    "ja": "ja",
    "ko": "ko",
    "nl": "nl",
    "pl": "pl",
    "pt": "pt",
    "ru": "ru",
    "tr": "tr",
    "zh": "zh-cn",
}

# Packages that a language needs beside XTTS's own, as pip names them, by the module that is imported.
PACKAGES: dict[str, dict[str, str]] = {
    "ja": {"cutlet": "cutlet", "fugashi": "fugashi", "unidic_lite": "unidic-lite"},
    "zh": {"pypinyin": "pypinyin"},
}

# How many characters XTTS can speak at once: upstream's tokenizer.
CHARACTER_LIMITS: dict[str, int] = {
    "ar": 166,
    "cs": 186,
    "de": 253,
    "en": 250,
    "es": 239,
    "fr": 273,
    "hi": 150,
    "hu": 224,
    "it": 213,
    "ja": 71,
    "ko": 95,
    "nl": 251,
    "pl": 224,
    "pt": 203,
    "ru": 182,
    "tr": 226,
    "zh": 82,
}

# Characters per second at normal speed. English: 150 words a minute of six characters, with the space. The others by
# how many characters say the same: languages differ in density but hardly in information per second (Coupe et al.
# 2019, 39 bit/s). "The same" is the geometric mean of two counts, each relative to English: Article 1 of the Universal
# Declaration of Human Rights, and CHARACTER_LIMITS, which upstream chose for the same length of sound.
CHARACTERS_PER_SECOND: dict[str, float] = {
    "ar": 9.9,
    "cs": 11.7,
    "de": 14.8,
    "en": 15.0,
    "es": 14.7,
    "fr": 16.4,
    "hi": 12.2,
    "hu": 14.6,
    "it": 14.2,
    "ja": 5.7,
    "ko": 6.6,
    "nl": 15.8,
    "pl": 14.2,
    "pt": 13.6,
    "ru": 12.4,
    "tr": 13.8,
    "zh": 4.3,
}
