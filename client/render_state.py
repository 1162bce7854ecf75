"""Where the output is cut into parts, and what it knows there: enough to go on from the last part."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from polylip.client.face_book import FaceEntry
from polylip.client.quality import QualityState
from polylip.client.results import FaceChoice, FaceSample, HiddenSpan
from polylip.client.ring import Box, Slot
from polylip.client.speaker import Choice
from polylip.client.sync import OffsetState
from polylip.client.timeline import RAMP_MS, Dub

PART_MS = 5000.0  # least length of a part: every one starts with a key frame, and costs a few syncs of the disk
PATIENCE_MS = 10_000.0  # longer than that, the next pause between two dubs is waited for no more
MAX_SAMPLES = 240  # face samples kept for the contact sheet, however long the video


@dataclass
class RenderCounts:
    """What the output did."""

    frames: int = 0
    lipsynced: int = 0  # frames with new pixels
    without_face: int = 0
    lips_calls: int = 0
    lips_frames: int = 0  # asked for; those in silence often come back as they were
    lips_failures: int = 0
    lips_missed: int = 0  # frames of these calls: they show their own mouth
    lips_retries: int = 0
    damaged_packets: int = 0


@dataclass(frozen=True)
class Prepared:
    """What was known when the last frames of a part had been prepared; by the time they are written more is."""

    speakers: dict[int, FaceChoice]
    choices: dict[str, Choice]
    hidden: list[HiddenSpan]
    lips_calls: int
    lips_frames: int
    damaged_packets: int


@dataclass(frozen=True)
class PictureState:
    """The output behind its last part."""

    position_ms: float  # of the last frame
    prepared: Prepared
    counts: RenderCounts
    samples: list[FaceSample]
    sample_step: int
    shot: int
    faces: dict[int, FaceEntry]
    last_boxes: dict[int, Box]  # by track, in the last frame
    offsets: OffsetState
    quality: QualityState


class SeenFaces:
    """The faces of the frames that were written."""

    def __init__(self) -> None:
        self.entries: dict[int, FaceEntry] = {}
        self.last: dict[int, Box] = {}
        self.shot = 0

    def add(self, slot: Slot) -> None:
        self.shot = slot.shot
        self.last = {face.track_id: face.box_px for face in slot.faces}
        for track, box in self.last.items():
            self.entries.setdefault(track, FaceEntry(slot.time_ms)).add(slot.time_ms, box)

    def restore(self, state: PictureState) -> None:
        self.entries, self.last, self.shot = dict(state.faces), dict(state.last_boxes), state.shot


class FaceSamples:
    """Every so manieth frame that was written, and its faces."""

    def __init__(self) -> None:
        self.kept: list[FaceSample] = []
        self.step = 1

    def wants(self, frame: int) -> bool:
        return frame % self.step == 0

    def add(self, sample: FaceSample) -> None:
        self.kept.append(sample)
        if len(self.kept) > MAX_SAMPLES:
            self.step *= 2
            self.kept = self.kept[::2]

    def restore(self, state: PictureState) -> None:
        self.kept, self.step = list(state.samples), state.sample_step


Save = Callable[[PictureState], Awaitable[None]]


class PartEnds:
    """Decides which frame is the last of its part: the last of a batch in a pause, if one comes in time."""

    def __init__(self, save: Save, begin_ms: float = 0.0) -> None:
        self.save = save
        self._begin_ms = begin_ms

    def ends_at(self, time_ms: float, active: Sequence[Dub]) -> bool:
        """Whether a part ends with the frame at this time."""
        length_ms = time_ms - self._begin_ms
        around = [dub for dub in active if _begin_ms(dub) - RAMP_MS <= time_ms < _end_ms(dub) + RAMP_MS]
        patient = length_ms < PATIENCE_MS and bool(around)
        if length_ms < PART_MS or patient or not all(dub.ended for dub in around):
            return False
        self._begin_ms = time_ms
        return True


def _begin_ms(dub: Dub) -> float:
    return min(float(dub.segment.start_ms), dub.lips_start_ms) if dub.audible else float(dub.segment.start_ms)


def _end_ms(dub: Dub) -> float:
    return max(float(dub.segment.end_ms), dub.end_ms)
