"""Which face speaks: each mouth against the sound, segment by segment, like with like.

The speech's energy E is correlated with how dark, that is how open, the mouth is, and |dE/dt| with how much it moves;
both relative to the upper face, so that light, a moving head and the camera count for little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.errors import InputError
from polylip.client.results import FaceChoice
from polylip.client.ring import Box, Face, Slot
from polylip.client.segmentation import SPEECH_RATE_HZ, Segment
from polylip.serving.crops import MIN_BOX_PX

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

# Mouth motion, on crops of CROP x CROP from small pictures of the whole frame.
CROP = 40
MOUTH_ROWS, MOUTH_COLUMNS = slice(24, 38), slice(10, 30)  # of the crop; as in the mouth graph of profile lite
UPPER_ROWS, UPPER_COLUMNS = slice(4, 20), slice(6, 34)  # brows, eyes, nose: they move with the head alone
MAX_FACES = 8  # measured per frame, the largest ones

STEP_MS = 10  # grid of the sound's energy
SMOOTH_MS = 60  # a syllable lasts 100 to 200 ms
SMOOTH_FRAMES = 3  # motion is noisy
MAX_LAG_MS = 120  # between sound and picture; beyond it viewers would see that they are apart (ITU-R BT.1359)
LAG_STEP_MS = 40
OPENING_WEIGHT = 2 / 3  # of the correlation with opening, which tells strangers apart better; the rest is for motion
MIN_FRAMES = 12  # seen in a segment before a correlation means anything
SPEAKING_CORRELATION = 0.2  # of both together: sentences of 2 to 3 s have 0.25 to 0.65, other mouths 0.15 to 0.4
SWITCH_MARGIN = 0.1  # a face must correlate so much better than the one who spoke last, or else the largest
QUIET_SHARE = 0.5  # a mouth that moves less than this share of the liveliest one counts in proportion ...
STILL_LEVELS = 0.2  # ... as does any that moves less than this, in grey levels: noise has 0.02, a real speaker 0.5 ...
SHORT_SHARE = 0.8  # ... and so does a face seen for less than this share of the longest time, which may fit by chance
SAME_PLACE = 1.0  # sides of the face: a new track so near to a lost one is the same person


@dataclass(frozen=True)
class FaceWish:
    """The face that the user names: the id of a track, or a place in fractions of the picture's width and height."""

    track_id: int | None = None
    place: tuple[float, float] | None = None


def parse_wish(text: str | None) -> FaceWish | None:
    """`2` or `0.7,0.4`; None for None. Raises InputError."""
    if text is None:
        return None
    if re.fullmatch(r"[1-9]\d{0,8}", text):
        return FaceWish(track_id=int(text))
    if re.fullmatch(r"(0?\.\d+|[01](\.0*)?),(0?\.\d+|[01](\.0*)?)", text):
        x, y = map(float, text.split(","))
        return FaceWish(place=(x, y))
    raise InputError(
        f"--face {text!r} is neither a face's number nor a place; use a number from report.json, for example 2, "
        "or fractions of width and height, for example 0.7,0.4"
    )


class MouthMeter:
    """Measures how open each mouth is, and how much it moves from frame to frame."""

    def __init__(self) -> None:
        self._crops: dict[int, UInt8] = {}  # of the frame before, by track

    def measure(self, thumb: UInt8, boxes: Mapping[int, Box]) -> dict[int, tuple[float, float | None]]:
        """(opening, motion) per track in grey levels, from a small picture and the boxes in its pixels.

        Motion is None where the frame before had no such face.
        """
        largest = sorted(boxes, key=lambda track: _area(boxes[track]), reverse=True)[:MAX_FACES]
        crops = {track: _crop(thumb, boxes[track]) for track in largest}
        before, self._crops = self._crops, crops
        return {
            track: (-_beside(crop), _motion(before[track], crop) if track in before else None)
            for track, crop in crops.items()
        }


def _crop(thumb: UInt8, box: Box) -> UInt8:
    x1, y1, x2, y2 = box
    across, down = CROP / max(x2 - x1, 1.0), CROP / max(y2 - y1, 1.0)
    # Pixel centres lie at half-integers.
    matrix = np.array([[across, 0, (across - 1) / 2 - x1 * across], [0, down, (down - 1) / 2 - y1 * down]])
    return np.asarray(cv2.warpAffine(thumb, matrix, (CROP, CROP), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _motion(before: UInt8, after: UInt8) -> float:
    return max(0.0, _beside(np.asarray(cv2.absdiff(before, after), np.uint8)))


def _beside(crop: UInt8) -> float:
    """Mean of the mouth less that of the upper face."""
    mouth, upper = cv2.mean(crop[MOUTH_ROWS, MOUTH_COLUMNS]), cv2.mean(crop[UPPER_ROWS, UPPER_COLUMNS])
    return float(mouth[0] - upper[0])


@dataclass(frozen=True)
class Choice:
    """The face that one dub is given, as tracks in order of preference for each shot that its segment touches."""

    tracks: Mapping[int, tuple[int, ...]]
    face_id: int | None = None  # the one in most of the segment's frames
    reason: FaceChoice | None = None

    def face(self, slot: Slot) -> Face | None:
        """The chosen face in a frame; None where it is not to be seen."""
        found = {face.track_id: face for face in slot.faces}
        return next((found[track] for track in self.tracks.get(slot.shot, ()) if track in found), None)


@dataclass
class _Track:
    """One track within the frames of one segment and one shot."""

    id: int
    slots: list[Slot] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)

    @property
    def side_px(self) -> float:
        return float(np.median([face.side_px for face in self.faces]))

    @property
    def seen_frames(self) -> int:
        return sum(face.seen for face in self.faces)

    @property
    def presence(self) -> float:
        """How much a viewer sees of it: a large face for a moment is often no face at all."""
        return self.side_px * self.seen_frames

    def mouths(self) -> Float64:
        """float64 (frames, 3): time in ms, opening, and motion up to that time, where the face is really seen."""
        pairs = zip(self.slots, self.faces, strict=True)
        rows = [(s.time_ms, f.opening, f.motion) for s, f in pairs if f.seen and f.motion is not None]
        return np.array(rows, np.float64).reshape(-1, 3)

    def distance_to(self, x_px: float, y_px: float) -> float:
        """Pixels from the middle of the face to a place, in the median."""
        return float(np.median([np.hypot(x - x_px, y - y_px) for x, y in map(_middle, self.faces)]))

    def meets(self, other: _Track) -> bool:
        """Whether both are to be seen at once."""
        return not {slot.index for slot in self.slots}.isdisjoint(slot.index for slot in other.slots)

    def continues(self, other: _Track) -> bool:
        """Whether this is the face of `other`, lost and found again in its place."""
        first, last = (self, other) if self.slots[0].index < other.slots[0].index else (other, self)
        (x1, y1), (x2, y2) = _middle(first.faces[-1]), _middle(last.faces[0])
        return not self.meets(other) and float(np.hypot(x1 - x2, y1 - y2)) < SAME_PLACE * first.faces[-1].side_px


class SpeakerChooser:
    """Chooses a face for each segment, in order."""

    def __init__(self, width: int, height: int, wish: FaceWish | None = None) -> None:
        self._size = width, height
        self._wish = wish
        self._last: dict[int, FaceChoice] = {}  # tracks of the last choice, and why

    def choose(self, slots: Iterable[Slot], segment: Segment) -> Choice:
        """From the frames of a segment, all with their faces known."""
        shots: dict[int, list[Slot]] = {}
        for slot in slots:
            shots.setdefault(slot.shot, []).append(slot)
        chosen: dict[int, tuple[int, ...]] = {}
        parts: list[tuple[int, int, FaceChoice]] = []  # frames, track, reason
        for shot, frames in shots.items():
            tracks = _tracks(frames)
            if tracks:
                best, reason = self._best(tracks, segment)
                chosen[shot] = (best.id, *(t.id for t in tracks if t is not best and self._same(t, best, reason)))
                self._last = dict.fromkeys(chosen[shot], reason)
                parts.append((len(best.slots), best.id, reason))
        if not parts:
            return Choice({})
        _, face_id, reason = max(parts, key=lambda part: part[0])
        return Choice(chosen, face_id, reason)

    @property
    def speakers(self) -> dict[int, FaceChoice]:
        """Tracks of the last choice, and why."""
        return dict(self._last)

    def restore(self, speakers: Mapping[int, FaceChoice]) -> None:
        self._last = dict(speakers)

    def usual(self, slot: Slot) -> Face | None:
        """The face to show of a frame that no dub covers: the last speaker, or else the largest."""
        spoke = [face for face in slot.faces if face.track_id in self._last]
        return max(spoke or slot.faces, key=lambda face: face.side_px, default=None)

    def _same(self, track: _Track, best: _Track, reason: FaceChoice) -> bool:
        return reason is FaceChoice.ONLY or track.continues(best)

    def _best(self, tracks: list[_Track], segment: Segment) -> tuple[_Track, FaceChoice]:
        wish = self._wish
        if wish is not None and wish.place is not None:
            x, y = wish.place[0] * self._size[0], wish.place[1] * self._size[1]
            return min(tracks, key=lambda track: track.distance_to(x, y)), FaceChoice.CHOSEN
        if wish is not None and (named := next((t for t in tracks if t.id == wish.track_id), None)) is not None:
            return named, FaceChoice.CHOSEN
        large = [track for track in tracks if track.side_px >= MIN_BOX_PX] or tracks
        longest = max(large, key=lambda track: len(track.slots))
        if not any(a.meets(b) for a in large for b in large if a is not b):
            return longest, FaceChoice.ONLY
        return self._speaking(large, segment)

    def _speaking(self, tracks: list[_Track], segment: Segment) -> tuple[_Track, FaceChoice]:
        scores = {track.id: score for track, score in zip(tracks, speaking_scores(tracks, segment), strict=True)}
        best = max(tracks, key=lambda track: scores[track.id])
        spoke = [track for track in tracks if track.id in self._last]
        long = max(track.seen_frames for track in tracks) * SHORT_SHARE
        usual = max(spoke or [track for track in tracks if track.seen_frames >= long], key=lambda track: track.presence)
        if scores[best.id] < max(SPEAKING_CORRELATION, scores[usual.id] + SWITCH_MARGIN):
            best = usual
        if scores[best.id] >= SPEAKING_CORRELATION:
            return best, FaceChoice.SPEAKING
        return best, self._last.get(best.id, FaceChoice.LARGEST)


def _tracks(frames: Sequence[Slot]) -> list[_Track]:
    tracks: dict[int, _Track] = {}
    for slot in frames:
        for face in slot.faces:
            track = tracks.setdefault(face.track_id, _Track(face.track_id))
            track.slots.append(slot)
            track.faces.append(face)
    return list(tracks.values())


def speaking_scores(tracks: Sequence[_Track], segment: Segment) -> list[float]:
    """How well each mouth goes with the sound, -1 to 1; near 0 for one that hardly moves, or is hardly there."""
    sound = _Sound.of(segment)
    mouths = [track.mouths() for track in tracks]
    levels = [float(mouth[:, 2].mean()) if len(mouth) else 0.0 for mouth in mouths]
    lively = max(max(levels) * QUIET_SHARE, STILL_LEVELS)
    long = max(max(track.seen_frames for track in tracks) * SHORT_SHARE, 1.0)
    return [
        sound.likeness(mouth) * min(1.0, level / lively) * min(1.0, track.seen_frames / long)
        for track, mouth, level in zip(tracks, mouths, levels, strict=True)
    ]


@dataclass(frozen=True)
class _Sound:
    """Loudness of a segment's speech on a grid of STEP_MS."""

    times_ms: Float64
    loudness: Float64
    change: Float64  # summed up to each time, so that a difference is what lies between two frames

    @classmethod
    def of(cls, segment: Segment) -> _Sound:
        hop = SPEECH_RATE_HZ * STEP_MS // 1000
        pieces = segment.audio[: len(segment.audio) // hop * hop].reshape(-1, hop).astype(np.float64)
        loudness = _smooth(np.sqrt((pieces**2).mean(axis=1)), SMOOTH_MS // STEP_MS)
        change = np.cumsum(np.abs(np.diff(loudness, prepend=loudness[:1])))
        return cls(segment.audio_start_ms + (np.arange(len(loudness)) + 0.5) * STEP_MS, loudness, change)

    def likeness(self, mouth: Float64) -> float:
        """Of a mouth (frames, 3) as in `_Track.mouths`; each correlation is the best over small lags."""
        if len(mouth) < MIN_FRAMES:
            return 0.0
        times_ms, opening, motion = mouth.T
        frame_ms = float(np.median(np.diff(times_ms)))
        opened = moved = -1.0
        for lag_ms in range(-MAX_LAG_MS, MAX_LAG_MS + 1, LAG_STEP_MS):
            heard_ms = times_ms - lag_ms
            change = self._at(heard_ms, self.change) - self._at(heard_ms - frame_ms, self.change)
            opened = max(opened, _correlation(opening, self._at(heard_ms, self.loudness)))
            moved = max(moved, _correlation(_smooth(motion, SMOOTH_FRAMES), _smooth(change, SMOOTH_FRAMES)))
        return OPENING_WEIGHT * opened + (1 - OPENING_WEIGHT) * moved

    def _at(self, times_ms: Float64, values: Float64) -> Float64:
        return np.interp(times_ms, self.times_ms, values)


def _correlation(a: Float64, b: Float64) -> float:
    """Pearson's; 0 where one of them is constant."""
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _smooth(values: Float64, width: int) -> Float64:
    if len(values) < width:
        return values
    padded = np.pad(values, (width // 2, (width - 1) // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid")


def _middle(face: Face) -> tuple[float, float]:
    x1, y1, x2, y2 = face.box_px
    return (x1 + x2) / 2, (y1 + y2) / 2


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
