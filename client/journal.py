"""The dubs that have come whole, each in a file of its own: a job that goes on plays them instead of asking again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polylip.client.mix import Levels
from polylip.client.results import SegmentResult
from polylip.client.segmentation import Segment
from polylip.client.snapshot import pack, rebuild, unpack, write_durable
from polylip.client.timeline import Dub

Float32 = npt.NDArray[np.float32]

NAME = re.compile(r"segment-(\d+)\.zip")


@dataclass(frozen=True)
class KeptDub:
    """A dub that has ended, with all that its end depends on."""

    segment: Segment
    result: SegmentResult
    start_ms: int | None  # None: nothing is heard of it
    lips_start_ms: float
    speech: Float32
    pcm: Float32
    levels: Levels  # of source and voice, behind it
    detected_language: str


class Journal:
    """The files of one job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = set(self._found())

    def __contains__(self, index: int) -> bool:
        return index in self._kept

    def keep(self, index: int, packed: bytes) -> None:
        """A `KeptDub`, packed when it had just ended."""
        with suppress(OSError):  # a full disk ends the job elsewhere; without its file a dub is only asked for again
            write_durable(self._path(index), packed)
            self._kept.add(index)

    def read(self, index: int) -> KeptDub | None:
        """None where there is none that can be read."""
        try:
            kept: KeptDub = rebuild(KeptDub, unpack(self._path(index).read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            self._kept.discard(index)
            return None
        return kept

    def find(self, segment: Segment) -> KeptDub | None:
        """The dub of exactly this sound at exactly this time."""
        kept = self.read(segment.index) if segment.index in self else None
        if kept is None or (kept.segment.start_ms, kept.segment.end_ms) != (segment.start_ms, segment.end_ms):
            return None
        return kept if np.array_equal(kept.segment.audio, segment.audio) else None

    def forget(self, before: int) -> None:
        """What has been written, and is in a checkpoint."""
        for index in [index for index in self._kept if index < before]:
            self._path(index).unlink(missing_ok=True)
            self._kept.discard(index)

    def clear(self) -> None:
        """Forget every dub."""
        self.forget(max(self._kept, default=-1) + 1)

    def _path(self, index: int) -> Path:
        return self._folder / f"segment-{index}.zip"

    def _found(self) -> Iterator[int]:
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if match := NAME.fullmatch(path.name):
                yield int(match[1])


def is_kept_dub(path: Path) -> bool:
    """Whether it is a file of a journal, by its name."""
    return NAME.fullmatch(path.name) is not None


def packed_dub(dub: Dub, levels: Levels, detected_language: str) -> bytes:
    """For `Journal.keep`."""
    placed = dub.start_ms, dub.lips_start_ms, dub.speech, dub.pcm
    return pack(KeptDub(dub.segment, dub.result, *placed, levels, detected_language))
