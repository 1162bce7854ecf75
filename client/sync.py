"""How far the picture trails the sound: speech against a mouth, like with like, over windows of 5 s and more.

The change of the speech's loudness is correlated with the change of how far the mouth is open, for shifts up to half a
second either way. A positive offset means that the picture is late. Sums of products are additive, so that a window may
be put together from short segments of one speaker, with the gaps between them left out. docs/sync.md has the figures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from polylip.client.drift import SyncCorrector
from polylip.client.envelopes import SMOOTH_MS, STEP_MS, Curve, Float32, Float64, frames_in_window, loudness
from polylip.client.ring import Slot
from polylip.client.segmentation import Segment
from polylip.client.speaker import Choice
from polylip.client.timeline import Dub
from polylip.serving.lips_audio import HOP_MS

MAX_OFFSET_MS = 500
WINDOW_MS = 5000  # the least that tells an offset to 10 ms even where mouths do much of their own
LONGEST_WINDOW_MS = 10_000
SHORTEST_MS = 1500  # of all there is: with less, chance alone correlates
PIECE_MS = 1000  # windows are put together from pieces of up to this length

# What counts as clear: unrelated speech and mouths pass these in less than 1 of 100 windows (docs/sync.md).
PEAK_ROOT_S = 0.95  # least correlation times the root of the window's seconds: chance falls so
LEAST_PEAK = 0.3
LEAST_MARGIN = 0.08  # over the second peak, ...
APART_MS = 100  # ... which is at least so far away
LEAST_OVERLAP = 0.6  # of the window's frames must meet sound at a shift for that to count

_LAGS = 2 * MAX_OFFSET_MS // STEP_MS + 1


@dataclass(frozen=True)
class Estimate:
    """The best shift of one window, clear or not."""

    offset_ms: float  # positive: the picture is late
    start_ms: float
    end_ms: float
    length_ms: int  # of what both curves know, without gaps
    peak: float  # correlation at the best shift
    margin: float  # by which it is above the second-best peak

    @property
    def clear(self) -> bool:
        """Whether to believe it."""
        least = max(LEAST_PEAK, PEAK_ROOT_S / (self.length_ms / 1000) ** 0.5) if self.length_ms else 1.0
        inside = abs(self.offset_ms) < MAX_OFFSET_MS
        return inside and self.length_ms >= SHORTEST_MS and self.peak >= least and self.margin >= LEAST_MARGIN


@dataclass(frozen=True)
class Piece:
    """What a stretch of sound and mouth adds to a window."""

    start_ms: float
    end_ms: float
    length_ms: int
    # float64 (6, lags): count, sound, mouth, their squares, and their product, summed over the grid at each shift from
    # -MAX_OFFSET_MS (picture early) to MAX_OFFSET_MS (picture late).
    sums: Float64


def pieces(sound: Curve, mouth: Curve, longest_ms: int = PIECE_MS) -> list[Piece]:
    """The mouth's whole time cut into equal pieces. Curves of what is compared, as they are: slopes with slopes."""
    if len(mouth.times_ms) < 2 or len(sound.times_ms) < 2:
        return []
    first, last = int(-(-mouth.times_ms[0] // STEP_MS)), int(mouth.times_ms[-1] // STEP_MS)
    reach = MAX_OFFSET_MS // STEP_MS
    heard, is_heard = sound.sampled(np.arange(first - reach, last + 1 + reach) * float(STEP_MS))
    seen, is_seen = mouth.sampled(np.arange(first, last + 1) * float(STEP_MS))
    if not is_heard.any() or not is_seen.any():
        return []
    heard = np.where(is_heard, heard - heard[is_heard].mean(), 0.0)
    seen = np.where(is_seen, seen - seen[is_seen].mean(), 0.0)
    count = -(-len(seen) * STEP_MS // longest_ms)
    edges = np.linspace(0, len(seen), count + 1).round().astype(int)
    found = []
    for a, b in pairwise(edges):
        around = slice(a, b + 2 * reach)
        sums = _sums(heard[around], is_heard[around].astype(np.float64), seen[a:b], is_seen[a:b].astype(np.float64))
        length_ms = int(is_seen[a:b].sum()) * STEP_MS
        found.append(Piece(float((first + a) * STEP_MS), float((first + b) * STEP_MS), length_ms, sums))
    return found


def _sums(heard: Float64, is_heard: Float64, seen: Float64, is_seen: Float64) -> Float64:
    """Of one piece; `heard` reaches beyond `seen` by MAX_OFFSET_MS on both sides, both are 0 where not known."""
    if not len(seen):
        return np.zeros((6, _LAGS))
    rows = (
        (is_heard, is_seen),
        (heard, is_seen),
        (is_heard, seen),
        (heard**2, is_seen),
        (is_heard, seen**2),
        (heard, seen),
    )
    # The first shift of `correlate` is sound before the mouth's time, that is a picture late by the most: turn it.
    return np.stack([np.correlate(a, b, "valid")[::-1] for a, b in rows])


def correlogram(window: Iterable[Piece]) -> Float64:
    """Pearson's correlation at each shift, float64 (lags,); 0 where too little overlaps or a curve is flat."""
    count, heard, seen, heard2, seen2, both = np.sum([piece.sums for piece in window], axis=0)
    total = np.maximum(count, 1.0)
    spread = np.maximum(heard2 - heard**2 / total, 0.0) * np.maximum(seen2 - seen**2 / total, 0.0)
    enough = (count >= LEAST_OVERLAP * count.max()) & (count > 0) & (spread > 1e-12 * heard2 * seen2) & (spread > 0)
    covariance = np.where(enough, both - heard * seen / total, 0.0)
    return np.asarray(covariance / np.sqrt(np.where(enough, spread, 1.0)))


def best_shift(window: Sequence[Piece]) -> Estimate | None:
    """The highest peak, refined by a parabola through its neighbours; None without anything to compare."""
    length_ms = _length_ms(window)
    if not length_ms:
        return None
    scores = correlogram(window)
    best = int(np.argmax(scores))
    place = float(best)
    if 0 < best < _LAGS - 1:
        left, middle, right = scores[best - 1 : best + 2]
        curve = left - 2 * middle + right
        place += 0.5 * (left - right) / curve if curve else 0.0
    return Estimate(
        offset_ms=place * STEP_MS - MAX_OFFSET_MS,
        start_ms=window[0].start_ms,
        end_ms=window[-1].end_ms,
        length_ms=length_ms,
        peak=float(scores[best]),
        margin=float(scores[best] - _second_peak(scores, best)),
    )


def measure(window: Sequence[Piece]) -> Estimate | None:
    """As `best_shift`; None where that is not clear."""
    found = best_shift(window)
    return found if found is not None and found.clear else None


def _second_peak(scores: Float64, best: int) -> float:
    """The highest local maximum well away from the best one; an end that rises outward counts."""
    padded = np.pad(scores, 1, constant_values=-1.0)
    tops = (scores >= padded[:-2]) & (scores >= padded[2:])
    tops[max(0, best - APART_MS // STEP_MS) : best + APART_MS // STEP_MS + 1] = False
    return float(scores[tops].max()) if tops.any() else -1.0


def last_of(window: Iterable[Piece], length_ms: int) -> list[Piece]:
    """The newest pieces that make up at least so much, or all."""
    taken: list[Piece] = []
    for piece in reversed(list(window)):
        if _length_ms(taken) >= length_ms:
            break
        taken.insert(0, piece)
    return taken


def mouth_offset_ms(speech: Float32, points: Sequence[tuple[float, float]]) -> float | None:
    """Milliseconds by which openings (time_ms, value) trail speech float32 (samples,) at 16 kHz; None if unclear."""
    found = measure(_dubbed_pieces(speech, 0.0, points))
    return None if found is None else found.offset_ms


def built_offset_ms(dub_start_ms: float, time_ms: float, sample_rate_hz: int) -> float:
    """By construction, without any measuring: how much later a frame comes than the sound that its mouth is made for.

    The mouth is that of a mel column at or before the frame, the sound begins on a sample of the output. What a model
    makes of its column is not in it: profile lite's warp opens 12.5 ms early.
    """
    column = math.floor((time_ms - dub_start_ms) / HOP_MS)
    first_sample = round(dub_start_ms * sample_rate_hz / 1000)
    return time_ms - (first_sample * 1000 / sample_rate_hz + column * HOP_MS)


def _dubbed_pieces(speech: Float32, start_ms: float, points: Sequence[tuple[float, float]]) -> list[Piece]:
    """Around a dub there is silence, so that every shift meets known sound."""
    sound = loudness(speech, start_ms, silent_around_ms=MAX_OFFSET_MS)
    return pieces(sound.slope(), Curve.of(points).slope(SMOOTH_MS))


@dataclass(frozen=True)
class Spread:
    """Offsets of many windows or segments."""

    count: int
    measured: int  # that were clear
    p50_ms: float | None  # median, with its sign
    p99_ms: float | None  # of the sizes: 99 % are nearer to 0

    @classmethod
    def of(cls, offsets_ms: Sequence[float | None]) -> Spread:
        known = [offset for offset in offsets_ms if offset is not None]
        if not known:
            return cls(len(offsets_ms), 0, None, None)
        p99_ms = float(np.percentile(np.abs(known), 99))
        return cls(len(offsets_ms), len(known), float(np.median(known)), p99_ms)


@dataclass(frozen=True)
class OffsetState:
    """What an `OffsetMeter` has measured. Windows begin anew behind it."""

    segments_ms: dict[str, float | None]
    windows_ms: list[float | None]


class OffsetMeter:
    """The dubbed pair: new speech against the opening of the new mouth, one window per WINDOW_MS and per segment.

    A segment that is shorter than a window is measured together with the ones before it of the same face, or, when
    there are not enough of them, with the ones behind; where that is unclear, over LONGEST_WINDOW_MS.
    """

    def __init__(self) -> None:
        self._openings: dict[str, list[tuple[float, float]]] = {}
        self._recent: dict[int | None, deque[Piece]] = {}  # by face, newest last
        self._short: dict[int | None, list[str]] = {}  # segments of a face for which there was not yet a whole window
        self._segments_ms: dict[str, float | None] = {}
        self._windows_ms: list[float | None] = []
        self._unmeasured_ms: dict[int | None, int] = {}  # of a face since its last window

    def add(self, dub: Dub, time_ms: float, opening: float) -> None:
        """How far the mouth is open in the frame at `time_ms`, in any unit."""
        self._openings.setdefault(dub.segment.id, []).append((time_ms, opening))

    def close(self, dub: Dub) -> None:
        """The segment is complete: measure it and forget its frames."""
        points = self._openings.pop(dub.segment.id, [])
        own = _dubbed_pieces(dub.speech, dub.start_ms or 0, points)
        if not own:
            return
        face = dub.result.face_id
        recent = self._recent.setdefault(face, deque())
        for piece in own:
            recent.append(piece)
            self._measure_window(face, piece, recent)
        window = max(own, last_of(recent, WINDOW_MS), key=len)
        offset_ms = _offset_ms(window)
        if offset_ms is None:
            offset_ms = _offset_ms(last_of(recent, LONGEST_WINDOW_MS))
        self._segments_ms[dub.segment.id] = offset_ms
        short = self._short.setdefault(face, [])
        short.append(dub.segment.id)
        if _length_ms(window) >= WINDOW_MS:
            if offset_ms is not None:
                self._segments_ms.update(dict.fromkeys(short, offset_ms))
            short.clear()
        while len(recent) > len(last_of(recent, LONGEST_WINDOW_MS)):
            recent.popleft()

    def _measure_window(self, face: int | None, piece: Piece, recent: deque[Piece]) -> None:
        self._unmeasured_ms[face] = self._unmeasured_ms.get(face, 0) + piece.length_ms
        if self._unmeasured_ms[face] >= WINDOW_MS:
            self._unmeasured_ms[face] = 0
            self._windows_ms.append(_offset_ms(last_of(recent, WINDOW_MS)))

    def state(self) -> OffsetState:
        return OffsetState(dict(self._segments_ms), list(self._windows_ms))

    def restore(self, state: OffsetState) -> None:
        self._segments_ms, self._windows_ms = dict(state.segments_ms), list(state.windows_ms)

    def segment_ms(self, segment_id: str) -> float | None:
        """Of one segment, once it is closed; ask again at the end for one that was too short by itself."""
        return self._segments_ms.get(segment_id)

    @property
    def offset_ms(self) -> float | None:
        """The median over the segments; None when no segment could be measured."""
        return self.segments.p50_ms

    @property
    def segments(self) -> Spread:
        """Over the segments that had lips."""
        return Spread.of(list(self._segments_ms.values()))

    @property
    def windows(self) -> Spread:
        """Over windows of WINDOW_MS that do not overlap."""
        return Spread.of(self._windows_ms)


def _length_ms(window: Iterable[Piece]) -> int:
    return sum(piece.length_ms for piece in window)


def _offset_ms(window: Sequence[Piece]) -> float | None:
    found = measure(window)
    return None if found is None else found.offset_ms


class SourceMeter:
    """The source pair: the original speech against the speaker's own mouth, over the last of what was spoken."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()

    def take(self, piece: Piece) -> None:
        """A further piece is known."""
        self._pieces.append(piece)
        while len(self._pieces) > len(last_of(self._pieces, LONGEST_WINDOW_MS)):
            self._pieces.popleft()

    @property
    def known_ms(self) -> int:
        """How much there is to measure, up to LONGEST_WINDOW_MS."""
        return _length_ms(self._pieces)

    def forget(self) -> None:
        """The source has started anew."""
        self._pieces.clear()

    def measure(self, window_ms: int = LONGEST_WINDOW_MS) -> Estimate | None:
        """Over the last `window_ms`, or what there is; None when that is unclear."""
        return measure(last_of(self._pieces, window_ms))


class SourceSync:
    """Measures a source's own sound against its picture, segment by segment, and drives the corrector.

    `applied`: the corrector's correction is in the segments' times already, and is taken out before measuring.
    """

    def __init__(self, corrector: SyncCorrector | None = None, *, applied: bool = False) -> None:
        self.corrector = corrector or SyncCorrector()
        self._meter = SourceMeter()
        self._applied = applied
        self._since_ms = float("-inf")  # what was spoken before does not count any more
        self._offsets_ms: list[float | None] = []

    def hear(self, segment: Segment, slots: Sequence[Slot], choice: Choice) -> None:
        """A closed segment, in order, with the frames around it and the face that speaks."""
        inside = frames_in_window([slot.time_ms for slot in slots], segment.start_ms, segment.end_ms)
        mouth = _openings_slope([slots[i] for i in inside], choice)
        sound = loudness(segment.audio, segment.audio_start_ms)
        if self._applied:
            sound = sound.moved(-np.array([self.corrector.correction_ms(time_ms) for time_ms in sound.times_ms]))
        for piece in pieces(sound.slope(), mouth):
            if piece.start_ms < self._since_ms:
                continue
            self._meter.take(piece)
            window_ms = self.corrector.due(piece.end_ms, self._meter.known_ms)
            if window_ms is not None:
                found = self._meter.measure(window_ms)
                self._offsets_ms.append(None if found is None else found.offset_ms)
                self.corrector.observe(piece.end_ms, self._offsets_ms[-1])

    def restart(self, at_ms: float) -> None:
        """The source's timestamps start anew, as after a lost connection."""
        self._since_ms = at_ms
        self._meter.forget()
        self.corrector.restart(at_ms)

    @property
    def windows(self) -> Spread:
        """Over all estimates so far; they overlap."""
        return Spread.of(self._offsets_ms)


def _openings_slope(slots: Sequence[Slot], choice: Choice) -> Curve:
    """How fast the speaker's mouth opens; none from one track or shot to the next, which have levels of their own."""
    faces = [(slot, face) for slot in slots if (face := choice.face(slot)) is not None and face.seen]
    parts = [
        Curve.of((slot.time_ms, face.opening) for slot, face in group).slope(SMOOTH_MS)
        for _, group in groupby(faces, key=lambda pair: (pair[0].shot, pair[1].track_id))
    ]
    times = [part.times_ms for part in parts]
    return Curve(np.concatenate([np.zeros(0), *times]), np.concatenate([np.zeros(0), *(p.values for p in parts)]))
