"""The table of what each engine hears, translates and speaks: what is ready on this machine, and what brings the rest.

The engines of a profile are read from the configs of the model repository. No engine is imported or started.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from polylip.export.manifest import Model, read_manifest
from polylip.serving.engines.apertium import installed_modes
from polylip.serving.engines.espeak import installed_languages
from polylip.serving.errors import EngineError, MissingError, UnknownProfileError, UnsupportedError
from polylip.serving.languages import shared_codes, unsupported_pair, unsupported_source, unsupported_target
from polylip.serving.opus_pairs import PIVOT, pair_folders
from polylip.serving.runtime import find_model_repository
from polylip.serving.weights import find_weights, weights_root
from polylip.serving.whisper_languages import LANGUAGES as WHISPER
from polylip.serving.whisper_languages import LONGER_CODES as WHISPER_LONGER
from polylip.serving.xtts_languages import LANGUAGES as XTTS
from polylip.serving.xtts_languages import PACKAGES as XTTS_PACKAGES

BASE_PROFILE = "gpu"  # its configs are the config.pbtxt themselves
PARAMETER = re.compile(r'key:\s*"(\w+)"\s*value:\s*\{\s*string_value:\s*"([^"]*)"')
OPUS_NAME = re.compile(r"opus-mt-([a-z]{2,3})-([a-z]{2,3})")
POCKETSPHINX = frozenset({"en"})  # the model in its wheel
CANTONESE = "yue"  # of Whisper's models only large-v3 knows it, and the manifest has `small`
# Debian 12's packages with English, as far as their modes have names of three letters.
APERTIUM_PACKAGES = {
    ("en", "ca"): "apertium-eng-cat",
    ("ca", "en"): "apertium-eng-cat",
    ("en", "es"): "apertium-eng-spa",
    ("es", "en"): "apertium-eng-spa",
}
# Languages of the voices of espeak-ng 1.51, for where it is not installed to be asked.
ESPEAK = frozenset(
    """
    af am an ar as az ba be bg bn bpy bs ca cs cv cy da de el en eo es et eu fa fi fr ga gd gn grc gu hak haw he hi hr
    ht hu hy hyw ia id io is it ja jbo ka kk kl kn ko kok ku ky la lb lfn lt ltg lv mi mk ml mr ms mt my nb nci ne nl
    nog om or pa pap pl pt qu quc qya ro ru sd shn si sjn sk sl smj sq sr sv sw ta te th tk tn tr tt ug uk ur uz vi yue
    zh
    """.split()  # noqa: SIM905  one string is easier to read than 110
)


@dataclass(frozen=True)
class Need:
    """One missing thing: what brings it, and its name there."""

    command: str  # apt-get install
    item: str  # apertium-eng-spa


Needs = tuple[Need, ...]
PairCodes = tuple[str, str]  # source, target
T = TypeVar("T")
PIP_SPEECH = Need("pip install", "'polylip[speech]'")
PIP_SERVE = Need("pip install", "'polylip[serve]'")
# Modules that an engine imports, all of them in its extra.
POCKETSPHINX_PACKAGES = ("pocketsphinx",)
WHISPER_PACKAGES = ("faster_whisper",)
OPUS_PACKAGES = ("ctranslate2", "sentencepiece", "sentencex")
XTTS_OWN_PACKAGES = ("TTS", "torch", "torchaudio", "num2words", "tokenizers")
NOT_READ = ("LICENSE", "vocabulary.")  # Whisper's vocabulary is .txt or .json; its engine does not ask which
FETCH = "polylip fetch"
EXPORT = "polylip export opus-mt"  # of what was fetched


@dataclass(frozen=True)
class Abilities:
    """What one engine can do; what it needs for that is empty where it is ready."""

    engine: str
    languages: frozenset[str] = frozenset()  # that it hears, or speaks
    needs: Needs = ()  # for any of those languages
    more_needs: Mapping[str, Needs] = field(default_factory=dict)  # for a language of those, beside `needs`
    pairs: Mapping[PairCodes, Needs] = field(default_factory=dict)  # translated directly; the needs of each
    through_english: bool = False  # whether it joins two pairs where there is none


@dataclass(frozen=True)
class ProfileAbilities:
    """The engines of one profile."""

    hears: Abilities
    translates: Abilities
    speaks: Abilities


@dataclass(frozen=True)
class Pair:
    """A source and a target that the engines of a profile can do together."""

    source: str
    target: str
    through: str | None  # English, where two translations are joined
    needs: Needs

    @property
    def ready(self) -> bool:
        return not self.needs

    @property
    def links(self) -> list[PairCodes]:
        """The direct translations that it consists of."""
        stations = [self.source, *([self.through] if self.through else []), self.target]
        return list(pairwise(stations))


@dataclass(frozen=True)
class _Setting:
    """A model of a profile."""

    parameters: Mapping[str, str]  # of its config.pbtxt
    version_dir: Path
    look: bool  # whether to look at this machine; else everything counts as missing


def profiles(model_repository: Path | None = None) -> list[str]:
    """The profiles that the speech models have configs for, `lite` first."""
    repository = model_repository or find_model_repository()
    names = {BASE_PROFILE, *(path.stem for path in repository.glob("*/configs/*.pbtxt"))}
    return sorted(names, key=lambda name: (name != "lite", name))


def profile_abilities(profile: str, model_repository: Path | None = None, look: bool = True) -> ProfileAbilities:
    """What the engines of a profile can do, on this machine or, unless `look`, anywhere. Raises UnknownProfileError."""
    repository = model_repository or find_model_repository()
    known = profiles(repository)
    if profile not in known:
        raise UnknownProfileError(f"unknown profile {profile!r}; this version has: {', '.join(known)}")
    models = (_setting(repository / model, profile, look) for model in ENGINE_ABILITIES)
    hears, translates, speaks = (
        table[setting.parameters["engine"]](setting)
        for table, setting in zip(ENGINE_ABILITIES.values(), models, strict=True)
    )
    return ProfileAbilities(hears, translates, speaks)


def pairs(profile: str, model_repository: Path | None = None, look: bool = True) -> list[Pair]:
    """Every pair of a profile, sorted. Raises UnknownProfileError."""
    return pairs_of(profile_abilities(profile, model_repository, look))


def pairs_of(abilities: ProfileAbilities) -> list[Pair]:
    """Every pair that the three engines can do together, sorted."""
    ways = [
        _way(abilities, source, target)
        for source in sorted(abilities.hears.languages)
        for target in sorted(abilities.speaks.languages)
        if source != target
    ]
    return [way for way in ways if way is not None]


def require_pair(abilities: ProfileAbilities, source: str, target: str) -> Pair:
    """The pair of two shared codes, ready or not. Raises UnsupportedError that says which engine cannot do it.

    It names the profiles whose engines can.
    """
    require_source(abilities, source)
    require_target(abilities, target)
    way = _way(abilities, source, target) if source != target else None
    if way is None:
        supported = [(pair.source, pair.target) for pair in pairs_of(abilities)]
        others = [name for name in profiles() if _way(profile_abilities(name, look=False), source, target)]
        remedy = f"other profiles can: {', '.join(others)}" if others and source != target else ""
        raise UnsupportedError(unsupported_pair(abilities.translates.engine, source, target, supported, remedy))
    return way


def require_source(abilities: ProfileAbilities, source: str) -> None:
    """Raises UnsupportedError when the recogniser does not hear the language."""
    hears = abilities.hears
    if source not in hears.languages:
        raise UnsupportedError(unsupported_source(hears.engine, source, hears.languages))


def require_target(abilities: ProfileAbilities, target: str) -> None:
    """Raises UnsupportedError when the voice does not speak the language."""
    speaks = abilities.speaks
    if target not in speaks.languages:
        raise UnsupportedError(unsupported_target(speaks.engine, target, speaks.languages))


def commands(needs: Iterable[Need]) -> list[str]:
    """What to run, in order: one line for each tool, with its options last, and one for each export."""
    items: dict[str, list[str]] = {}
    exports = []
    for need in dict.fromkeys(needs):
        if need.command == EXPORT:
            exports.append(f"{EXPORT} {need.item}")
        else:
            items.setdefault(need.command, []).extend(need.item.split())
    return [
        " ".join([command, *sorted(dict.fromkeys(words), key=lambda word: word.startswith("--"))])
        for command, words in items.items()
    ] + exports


def _way(abilities: ProfileAbilities, source: str, target: str) -> Pair | None:
    """How a pair is done: what is ready before what is not, then directly before through English."""
    known = abilities.translates.pairs
    joined = abilities.translates.through_english and PIVOT not in (source, target)
    ways = [Pair(source, target, None, ()), *([Pair(source, target, PIVOT, ())] if joined else [])]
    around = abilities.hears.needs, abilities.speaks.needs, abilities.speaks.more_needs.get(target, ())
    found = [
        Pair(source, target, way.through, _together(*around, *(known[link] for link in way.links)))
        for way in ways
        if all(link in known for link in way.links)
    ]
    return min(found, key=lambda way: (not way.ready, way.through is not None), default=None)


def _together(*parts: Needs) -> Needs:
    return tuple(dict.fromkeys(need for part in parts for need in part))


def _setting(model: Path, profile: str, look: bool) -> _Setting:
    own = model / "configs" / f"{profile}.pbtxt"
    text = (own if own.is_file() else model / "config.pbtxt").read_text(encoding="utf-8")
    return _Setting(dict(PARAMETER.findall(text)), model / "1", look)


def _pocketsphinx(setting: _Setting) -> Abilities:
    return Abilities("pocketsphinx", POCKETSPHINX, _packages(setting, POCKETSPHINX_PACKAGES, PIP_SERVE))


def _faster_whisper(setting: _Setting) -> Abilities:
    known = shared_codes((WHISPER | WHISPER_LONGER) - {CANTONESE})
    needs = _packages(setting, WHISPER_PACKAGES, PIP_SPEECH) + _weights(setting, setting.parameters["model"])
    return Abilities("faster-whisper", known, needs)


def _apertium(setting: _Setting) -> Abilities:
    there = set(_installed(installed_modes)) if setting.look else set()
    missing = {pair: (Need("apt-get install", package),) for pair, package in APERTIUM_PACKAGES.items()}
    return Abilities("apertium", pairs=missing | dict.fromkeys(there, ()))


def _opus_mt(setting: _Setting) -> Abilities:
    package = _packages(setting, OPUS_PACKAGES, PIP_SPEECH)
    there = pair_folders(str(setting.version_dir)) if setting.look else {}
    named = {match[0]: (match[1], match[2]) for match in map(OPUS_NAME.fullmatch, _manifest()) if match}
    missing = {
        pair: (*package, *_weights(setting, name), Need(EXPORT, "-".join(pair)))
        for name, pair in named.items()
        if pair not in there
    }
    return Abilities("opus-mt", pairs=missing | dict.fromkeys(there, package), through_english=True)


def _espeak(setting: _Setting) -> Abilities:
    there = shared_codes(_installed(installed_languages)) if setting.look else frozenset()
    return Abilities("espeak-ng", there or ESPEAK, () if there else (Need("apt-get install", "espeak-ng"),))


def _xtts(setting: _Setting) -> Abilities:
    needs = _packages(setting, XTTS_OWN_PACKAGES, PIP_SPEECH) + _weights(setting, setting.parameters["model"])
    more = {
        language: tuple(
            need
            for module, name in packages.items()
            for need in _packages(setting, (module,), Need("pip install", name))
        )
        for language, packages in XTTS_PACKAGES.items()
    }
    return Abilities("xtts-v2", frozenset(XTTS), needs, more)


# For each speech model of the repository, by the `engine` of its config.
ENGINE_ABILITIES: dict[str, dict[str, Callable[[_Setting], Abilities]]] = {
    "transcribe": {"pocketsphinx": _pocketsphinx, "faster-whisper": _faster_whisper},
    "translate": {"apertium": _apertium, "opus-mt": _opus_mt},
    "synthesize": {"espeak-ng": _espeak, "xtts-v2": _xtts},
}


def _installed(ask: Callable[[], Iterable[T]]) -> list[T]:
    """What a program says that it has; nothing where it is not there."""
    try:
        return list(ask())
    except EngineError:
        return []


def _packages(setting: _Setting, modules: Iterable[str], need: Need) -> Needs:
    """`need`, unless all modules can be imported."""
    return () if setting.look and all(map(find_spec, modules)) else (need,)


def _weights(setting: _Setting, name: str) -> Needs:
    """What brings the weights that a config names, unless they are there."""
    model = _manifest().get(name)
    files = [file.name for file in model.files if not file.name.startswith(NOT_READ)] if model else ["config.json"]
    try:
        if setting.look:
            find_weights(name, str(setting.version_dir), files, FETCH)
            return ()
    except MissingError:
        pass
    if model is None:
        return (Need("copy its weights into", str(weights_root() / name)),)
    return (Need(FETCH, name if model.licence.commercial_use else f"{name} --accept-non-commercial"),)


@cache
def _manifest() -> dict[str, Model]:
    return read_manifest()
