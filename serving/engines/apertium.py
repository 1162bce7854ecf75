"""Translator of the lite profile: apertium, for the pairs whose Debian packages are installed."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence

from polylip.serving.engines import Parameters, Passage, Translation
from polylip.serving.engines.apertium_line import ENVIRONMENT, ApertiumLine
from polylip.serving.errors import EngineError, UnsupportedError
from polylip.serving.languages import unsupported_pair

log = logging.getLogger(__name__)

# ISO 639-1 to the ISO 639-3 codes in apertium's mode names; the languages of Debian's apertium pairs.
ISO_639_3 = {
    "af": "afr", "an": "arg", "ar": "ara", "be": "bel", "bg": "bul", "br": "bre", "ca": "cat", "cy": "cym",
    "da": "dan", "en": "eng", "eo": "epo", "es": "spa", "eu": "eus", "fr": "fra", "gl": "glg", "hi": "hin",
    "id": "ind", "is": "isl", "it": "ita", "kk": "kaz", "mk": "mkd", "ms": "msa", "mt": "mlt", "nb": "nob",
    "nl": "nld", "nn": "nno", "oc": "oci", "pl": "pol", "pt": "por", "ro": "ron", "ru": "rus", "sc": "srd",
    "sl": "slv", "sv": "swe", "tt": "tat", "uk": "ukr", "ur": "urd",
}  # fmt: skip
ISO_639_1 = {three: two for two, three in ISO_639_3.items()}
REMEDY = "`polylip languages` says what can be installed, and `--profile cpu` adds others"
TIMEOUT_S = 20.0  # a segment takes 0.2 s; a hung pipeline must not hold the stream


class Apertium:
    """A pair's programs stay between segments: 0.01 s each. One that breaks is left, and its text starts all anew."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        self._modes = installed_modes()
        self._lines: dict[str, ApertiumLine] = {}  # by mode, from the first text on

    def translate(self, passages: Sequence[Passage]) -> list[Translation]:
        if any(passage.glossary for passage in passages):
            raise UnsupportedError("apertium takes no glossary; leave it out, or use profile cpu or gpu")
        return [Translation(self._translate(p.text, p.source, p.target)) for p in passages]

    def _translate(self, text: str, source: str, target: str) -> str:
        mode = self._modes.get((source, target))
        if mode is None:
            raise UnsupportedError(unsupported_pair("apertium", source, target, self._modes, REMEDY))
        if not text.strip():
            return ""
        return _tidy(self._through_line(mode, text))

    def _through_line(self, mode: str, text: str) -> str:
        try:
            if mode not in self._lines:
                self._lines[mode] = ApertiumLine(mode)
            return self._lines[mode].translate(text)
        except EngineError as error:
            log.warning("%s; one process per text instead, once", error)
            if mode in self._lines:
                self._lines.pop(mode).close()
            return _run(["apertium", "-u", mode], text)


def installed_modes() -> dict[tuple[str, str], str]:
    """(source, target) in ISO 639-1 -> apertium mode, for every installed pair of plain languages."""
    modes = {}
    for mode in _run(["apertium", "-l"], "").split():
        codes = [ISO_639_1.get(code) for code in mode.split("-")]
        if len(codes) == 2 and codes[0] and codes[1]:
            modes[codes[0], codes[1]] = mode
    return modes


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, **ENVIRONMENT},
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise EngineError("apertium is not installed; apt-get install apertium-eng-spa") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"apertium did not answer within {TIMEOUT_S:.0f} s") from None
    # `apertium -l` prints its list and exits 1 in some versions: output decides, not the exit status.
    if done.returncode != 0 and not done.stdout.strip():
        raise EngineError(f"apertium failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _tidy(text: str) -> str:
    """One line, without apertium's marks for words it could not handle, and without stray spaces."""
    unmarked = re.sub(r"[*#@](?=\w)", "", text)
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(unmarked.split()))
