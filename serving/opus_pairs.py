"""Which converted Opus-MT pairs are on this machine, how to get from one language to another, and which stay loaded.

Needs no translator: importable where ctranslate2 is not installed.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from polylip.export.manifest import read_manifest
from polylip.serving.weights import weights_root

Pair = tuple[str, str]  # source and target language, ISO 639-1
T = TypeVar("T")

PIVOT = "en"  # Opus-MT has most languages to and from English
RECORD = "opus.json"  # what a converted pair was made from; written last
FILES = ("model.bin", "config.json", "shared_vocabulary.json", "source.spm", "target.spm", RECORD)
BESIDE_MODEL = re.compile(r"([a-z]{2,3})-([a-z]{2,3})")
AMONG_WEIGHTS = re.compile(r"opus-mt-([a-z]{2,3})-([a-z]{2,3})-ct2")


def pair_folders(version_dir: str) -> dict[Pair, Path]:
    """Every complete converted pair: `<version_dir>/en-es`, else `opus-mt-en-es-ct2` in the folder of weights."""
    found: dict[Pair, Path] = {}
    for root, name in ((weights_root(), AMONG_WEIGHTS), (Path(version_dir), BESIDE_MODEL)):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            match = name.fullmatch(folder.name)
            if match and all((folder / file).is_file() for file in FILES):
                found[match[1], match[2]] = folder
    return found


def route(pairs: Collection[Pair], source: str, target: str) -> list[Pair]:
    """The direct pair, else the two through English; empty where there is no way."""
    if (source, target) in pairs:
        return [(source, target)]
    halves = [(source, PIVOT), (PIVOT, target)]
    return halves if source != target and all(half in pairs for half in halves) else []


def installed_pairs(version_dir: str) -> set[Pair]:
    """Every pair that can be translated here, those through English included."""
    direct = pair_folders(version_dir)
    sources, targets = {source for source, _ in direct}, {target for _, target in direct}
    return {(a, b) for a in sources for b in targets if a != b and route(direct, a, b)}


def missing_pair(pairs: Collection[Pair], source: str, target: str) -> str:
    """One line for a pair without route: what there is, and which commands bring what lacks."""
    halves = [(source, PIVOT), (PIVOT, target)]
    lacking = [half for half in halves if half not in pairs]
    wanted = lacking[0] if PIVOT not in (source, target) and len(lacking) == 1 else (source, target)
    there = ", ".join(sorted(f"{a}->{b}" for a, b in pairs)) or "none"
    name = "-".join(wanted)
    through = "" if wanted == (source, target) else f", which completes {source}->{PIVOT}->{target}"
    remedy = f"polylip fetch opus-mt-{name}, then polylip export opus-mt {name}{through}"
    if f"opus-mt-{name}" not in read_manifest():
        remedy = f"polylip languages, for what can be fetched, or polylip export opus-mt {name} --checkpoint DIR"
    return (
        f"language pair {source}->{target} has no Opus-MT model here; there: {there}, and what these give through "
        f"English; run: {remedy}"
    )


@dataclass(frozen=True)
class _Held(Generic[T]):
    model: T
    stamp: tuple[int, int]
    size_bytes: int


class PairCache(Generic[T]):
    """Loaded pairs, by their folder; the least recently used leave when the limit is passed, the last one never."""

    def __init__(self, load: Callable[[Path], T], limit_bytes: int) -> None:
        self._load = load
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[Path, _Held[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, folder: Path) -> T:
        """The model in `folder`: loaded if it is not, and again if another one was put there meanwhile."""
        with self._lock:
            record = (folder / RECORD).stat()
            stamp = (record.st_ino, record.st_mtime_ns)
            held = self._held.pop(folder, None)
            if held is None or held.stamp != stamp:
                held = None  # frees what it held before the next is loaded
                size_bytes = sum((folder / file).stat().st_size for file in FILES)
                self._make_room(size_bytes)
                held = _Held(self._load(folder), stamp, size_bytes)
            self._held[folder] = held
            return held.model

    def loaded(self) -> Mapping[Path, int]:
        """Folder -> bytes of its files, the least recently used first."""
        with self._lock:
            return {folder: held.size_bytes for folder, held in self._held.items()}

    def _make_room(self, size_bytes: int) -> None:
        while self._held and sum(held.size_bytes for held in self._held.values()) + size_bytes > self._limit_bytes:
            self._held.popitem(last=False)
