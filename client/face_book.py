"""Every face of a job: which track is whom, how sure the tracker usually is, and where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.client.results import FaceTrack
from polylip.client.ring import Box, Face
from polylip.client.speaker import MouthMeter

UInt8 = npt.NDArray[np.uint8]

SAME_OVERLAP = 0.5  # of two boxes over what they cover together: the same face before and behind a lost sequence
USUAL_SCORE_DECAY = 0.998  # per frame: what is usual for a face follows it within some 10 s


@dataclass
class FaceEntry:
    """What is known of one track so far."""

    start_ms: float
    end_ms: float = 0.0
    frames: int = 0
    sum_x: float = 0.0
    sum_y: float = 0.0
    usual_score: float = 0.0

    def add(self, time_ms: float, box: Box) -> None:
        """A further frame."""
        self.end_ms = time_ms
        self.frames += 1
        self.sum_x += (box[0] + box[2]) / 2
        self.sum_y += (box[1] + box[3]) / 2


class FaceBook:
    """Every face of the job: ids that no two sequences share, usual scores, mouth motion, where it was and when."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._entries: dict[int, FaceEntry] = {}
        self._highest = 0  # id so far
        self._offset = 0  # from the tracker's ids, which each sequence counts from 1, to the job's
        self._same: dict[int, int] = {}  # of this sequence: ids of the tracker that go on as known ids of the job
        self._last: dict[int, Box] = {}  # in the newest frame
        self._meter = MouthMeter()

    def job_ids(self, ids: list[int], starts: bool, first: Mapping[int, Box] | None = None) -> list[int]:
        """The tracker's ids of one answer, unique over the job; `starts`: it is the first of its sequence.

        A sequence that starts within a shot says where its faces are in its `first` frame: those that were there in the
        frame before keep their ids.
        """
        if starts:
            self._offset = self._highest
            self._same = {}
            for track, box in (first or {}).items():
                known, overlap = max(
                    ((known, _overlap(box, there)) for known, there in self._last.items()),
                    key=lambda pair: pair[1],
                    default=(0, 0.0),
                )
                if overlap >= SAME_OVERLAP and known not in self._same.values():
                    self._same[track] = known
        self._highest = max([self._highest, *(self._offset + track for track in ids)])
        return [self._same.get(track, self._offset + track) for track in ids]

    def enter(self, time_ms: float, thumb: UInt8, found: dict[int, tuple[Box, float]]) -> tuple[Face, ...]:
        """The next frame's faces, from box and score by track."""
        scale = thumb.shape[1] / self._width
        boxes = {
            track: (scale * x1, scale * y1, scale * x2, scale * y2) for track, ((x1, y1, x2, y2), _) in found.items()
        }
        mouths = self._meter.measure(thumb, boxes)
        self._last = {track: box for track, (box, _) in found.items()}
        faces = []
        for track, (box, score) in found.items():
            entry = self._entries.setdefault(track, FaceEntry(time_ms))
            entry.usual_score = max(score, entry.usual_score * USUAL_SCORE_DECAY)
            entry.add(time_ms, box)
            faces.append(Face(box, track, score / entry.usual_score, *mouths.get(track, (0.0, None))))
        return tuple(faces)

    def usual_scores(self) -> dict[int, float]:
        """By track."""
        return {track: entry.usual_score for track, entry in self._entries.items()}

    def restore(self, entries: Mapping[int, FaceEntry], last: Mapping[int, Box]) -> None:
        """Of a job that goes on: the faces so far, and those of the last frame."""
        self._entries = dict(entries)
        self._last = dict(last)
        self._highest = max(self._entries, default=0)

    @property
    def tracks(self) -> list[FaceTrack]:
        return [
            FaceTrack(
                track,
                round(entry.start_ms),
                round(entry.end_ms),
                (entry.sum_x / entry.frames / self._width, entry.sum_y / entry.frames / self._height),
            )
            for track, entry in sorted(self._entries.items())
        ]


def _overlap(one: Box, other: Box) -> float:
    """Of two boxes over what they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    both = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other))
    return common / (both - common) if both > common else 0.0
