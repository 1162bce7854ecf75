"""The talks that translation is judged on: English with Spanish references, spoken with drawn pauses."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

from polylip.perf.segmentation_streams import Stream, scripts, speak
from polylip.perf.segmentation_texts import Turn
from polylip.perf.segmentation_voices import Flite

TALKS = Path(__file__).parent / "texts" / "talks_en_es.txt"
SOURCE, TARGET = "en", "es"
VOICE = "rms"  # of flite: pocketsphinx reads it best


@dataclass(frozen=True)
class Talk:
    """What one person says, sentence by sentence, and what it means in Spanish."""

    name: str
    source: tuple[str, ...]
    reference: tuple[str, ...]

    def first(self, sentences: int) -> Talk:
        """Its beginning."""
        return Talk(self.name, self.source[:sentences], self.reference[:sentences])


def talks() -> list[Talk]:
    """In the order of the file."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for line in TALKS.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, english, spanish = line.split("\t")
            rows.setdefault(name, []).append((english, spanish))
    return [Talk(name, tuple(e for e, _ in pairs), tuple(s for _, s in pairs)) for name, pairs in rows.items()]


def spoken(talk: Talk, seed: int) -> Stream:
    """The talk with pauses at its sentence ends and hesitations within sentences, as in `polylip.perf.segmentation`."""
    own = zlib.crc32(f"{seed} {talk.name}".encode())
    [script] = scripts([Turn("talk", talk.source)], SOURCE, own)
    return speak(script, Flite(VOICE, [token for sentence in script.sentences for token in sentence]), own)
