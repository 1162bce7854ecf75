"""Face boxes on key frames in, steady boxes with lasting ids on every frame out. One `Tracker` per media stream.

Key frames may run ahead of the frames that are asked for: what is already known of the future corrects the past, so a
head is followed without lag. A box that was once answered is never revised. Times are integer milliseconds of the media
clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from polylip.serving.boxes import MIN_SIDE_PX, Float32, Float64, best_pairs, detections, to_corners
from polylip.serving.kalman import BoxFilter, Int64

LOOK_AHEAD_MS = 400  # of the newest key frame before the newest frame that is asked for, at best; see docs/tracking.md

START_SCORE = 0.5  # a new face must be more likely than not; a known one needs MATCH_SCORE
CONFIRM_HITS = 2  # cascades throw single false positives, rarely two in the same place
UNCONFIRMED_MISSES = 1  # key frames in a row that a face with one hit may be missed in before it is dropped
COAST_MS = 1500  # a face turned away or covered for this long is still the same; longer, and it may be another
MISSED_SCORE = 0.1  # of the last hit's score, at a key frame that misses the face: low, but the face is still known
SETTLE_MS = 150  # a correction to what the last call answered comes in with this time constant, so nothing jumps

MAX_FACES = 64  # held at once, unconfirmed ones included
MAX_STREAMS = 1024  # trackers in a pool; the server holds far fewer live sequences, so the idlest one is long gone

Bool = npt.NDArray[np.bool_]
Tensor = npt.NDArray[Any]  # from a caller, not yet checked


class UnknownSequence(ValueError):  # noqa: N818  reads as the server's own refusal does
    """A request for a stream that was never started, has ended, or has been idle for too long."""


@dataclass(frozen=True)
class Tracks:
    """The faces of one call, ordered by id. A face that is not there at a query has score 0 and a box of zeros."""

    boxes: Float32  # (queries, tracks, 4) x1 y1 x2 y2 in pixels of the analysis frame
    ids: npt.NDArray[np.int32]  # (tracks,), from 1, never used twice in a stream
    scores: Float32  # (queries, tracks), 0 to 1, low where key frames miss the face
    surprise: Float32  # (tracks,) after the last key frame: up to 1 for a head at ease, over 4 for one too fast


class Tracker:
    """State of one stream."""

    def __init__(self) -> None:
        self._faces: list[_Face] = []
        self._next_id = 1
        self._last_keyframe_ms: int | None = None
        self._last_query_ms: int | None = None

    def update(self, boxes: Float32, scores: Float32, keyframe_ms: Int64, query_ms: Int64) -> Tracks:
        """Take in the next key frames and answer for the next frames.

        boxes float32 (keyframes, candidates, 4) x1 y1 x2 y2, scores float32 (keyframes, candidates) with 0 for padding,
        keyframe_ms int64 (keyframes,) ascending, query_ms int64 (queries,) not descending; both go on from the call
        before. Either may be empty. Raises ValueError, and changes nothing, for anything else.
        """
        self._check(boxes, scores, keyframe_ms, query_ms)
        for i, time_ms in enumerate(keyframe_ms.tolist()):
            self._take(*detections(boxes[i], scores[i]), time_ms, is_last=i == len(keyframe_ms) - 1)
        tracks = self._answer(query_ms)
        self._forget(query_ms)
        return tracks

    def _take(self, boxes: Float64, scores: Float64, time_ms: int, is_last: bool) -> None:
        """One key frame: boxes (n, 4) centre and size, scores (n,), best first."""
        is_first = self._last_keyframe_ms is None
        self._last_keyframe_ms = time_ms
        faces = [face for face in self._faces if time_ms < face.end_ms]
        pairs = dict(
            best_pairs(
                np.array([face.filter.expected(time_ms) for face in faces]),
                np.array([face.seen_box for face in faces]),
                np.array([time_ms - face.seen_ms for face in faces]) / 1000.0,
                boxes,
            )
        )
        for i, face in enumerate(faces):
            if i in pairs:
                face.hit(time_ms, boxes[pairs[i]], float(scores[pairs[i]]))
            else:
                face.miss(time_ms)
        self._faces = [face for face in self._faces if not face.dropped]
        new = [j for j in range(len(boxes)) if j not in pairs.values() and scores[j] >= START_SCORE]
        for j in new[: max(0, MAX_FACES - len(faces))]:
            self._faces.append(_Face(time_ms, boxes[j], float(scores[j])))
        # One hit must do where the stream has shown nothing but this key frame.
        needed = 1 if is_first and is_last else CONFIRM_HITS
        for face in self._faces:
            if face.id == 0 and face.hits >= needed:
                face.id = self._next_id
                self._next_id += 1

    def _answer(self, query_ms: Int64) -> Tracks:
        shown = [(face, face.alive(query_ms)) for face in self._faces if face.id]
        shown = sorted(((face, alive) for face, alive in shown if alive.any()), key=lambda pair: pair[0].id)
        boxes = np.zeros((len(query_ms), len(shown), 4), dtype=np.float32)
        scores = np.zeros((len(query_ms), len(shown)), dtype=np.float32)
        for i, (face, alive) in enumerate(shown):
            boxes[alive, i] = to_corners(face.show(query_ms[alive]))
            scores[alive, i] = face.score_at(query_ms[alive])
        ids = np.array([face.id for face, _ in shown], dtype=np.int32)
        surprise = np.array([face.filter.surprise for face, _ in shown], dtype=np.float32)
        return Tracks(boxes, ids, scores, surprise)

    def _forget(self, query_ms: Int64) -> None:
        """Drop what no later call can ask for; where a caller asks for nothing, what does not fit."""
        if len(query_ms):
            self._last_query_ms = int(query_ms[-1])
        if self._last_query_ms is not None and self._last_keyframe_ms is not None:
            over_ms = min(self._last_query_ms, self._last_keyframe_ms)
            self._faces = [face for face in self._faces if over_ms < face.end_ms]
        self._faces = sorted(self._faces, key=lambda face: face.end_ms)[-MAX_FACES:]
        for face in self._faces:
            face.forget_before(self._last_query_ms)

    def _check(self, boxes: Tensor, scores: Tensor, keyframe_ms: Tensor, query_ms: Tensor) -> None:
        if scores.ndim != 2 or keyframe_ms.shape != scores.shape[:1] or boxes.shape != (*scores.shape, 4):
            raise ValueError(
                f"boxes {list(boxes.shape)}, scores {list(scores.shape)} and key frame times {list(keyframe_ms.shape)} "
                "do not fit together; send [n, k, 4], [n, k] and [n]"
            )
        if query_ms.ndim != 1:
            raise ValueError(f"query times have shape {list(query_ms.shape)}; send one row of milliseconds")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("boxes or scores hold NaN or infinite values; pad missing detections with score 0")
        _check_order("key frame", keyframe_ms, self._last_keyframe_ms, step_ms=1)
        _check_order("query", query_ms, self._last_query_ms, step_ms=0)


def _check_order(what: str, times_ms: Tensor, last_ms: int | None, step_ms: int) -> None:
    if not np.issubdtype(times_ms.dtype, np.integer):
        raise ValueError(f"{what} times are {times_ms.dtype}; send int64 milliseconds")
    if (times_ms[1:] < times_ms[:-1] + step_ms).any():
        raise ValueError(f"{what} times are not in ascending order; send frames in the order of the video")
    if len(times_ms) and last_ms is not None and times_ms[0] < last_ms + step_ms:
        raise ValueError(
            f"{what} time {times_ms[0]} ms does not follow {last_ms} ms of the call before; "
            "start a new sequence to go back"
        )


@dataclass
class _Face:
    """One face, from its first hit on."""

    start_ms: int
    first_box: Float64  # (4,) centre and size, px
    first_score: float
    id: int = 0  # 0 until confirmed
    hits: int = 1
    misses: int = 0  # in a row
    filter: BoxFilter = field(init=False)
    seen_ms: int = field(init=False)  # the last hit
    seen_box: Float64 = field(init=False)  # the last hit itself, not yet filtered
    seen_score: float = field(init=False)
    scores: list[tuple[int, float]] = field(init=False)  # at each key frame
    shown: list[tuple[int, Float64]] = field(default_factory=list)  # the last two answers: time and box

    def __post_init__(self) -> None:
        self.filter = BoxFilter(self.first_box, self.start_ms)
        self.seen_ms, self.seen_box, self.seen_score = self.start_ms, self.first_box, self.first_score
        self.scores = [(self.start_ms, self.first_score)]

    @property
    def dropped(self) -> bool:
        return self.hits < CONFIRM_HITS and self.misses > UNCONFIRMED_MISSES

    @property
    def end_ms(self) -> int:
        return self.seen_ms + COAST_MS

    def alive(self, times_ms: Int64) -> Bool:
        return (times_ms >= self.start_ms) & (times_ms < self.end_ms)

    def hit(self, time_ms: int, box: Float64, score: float) -> None:
        """The newest key frame has a detection of this face."""
        self.filter.correct(time_ms, box)
        self.hits += 1
        self.misses = 0
        self.seen_ms, self.seen_box, self.seen_score = time_ms, box, score
        self.scores.append((time_ms, score))

    def miss(self, time_ms: int) -> None:
        """The newest key frame has none."""
        self.misses += 1
        self.scores.append((time_ms, self.seen_score * MISSED_SCORE))

    def show(self, times_ms: Int64) -> Float64:
        """Boxes (times, 4) at ascending times; they go on from the last answers and move over to newer knowledge."""
        last_ms = np.array([time_ms for time_ms, _ in self.shown], dtype=np.int64)
        curve = self.filter.boxes_at(np.concatenate([last_ms, times_ms]))
        boxes = curve[len(last_ms) :]
        if self.shown:
            off = np.array([box for _, box in self.shown]) - curve[: len(last_ms)]
            drift = off[-1] / SETTLE_MS
            if 0 < last_ms[-1] - last_ms[0] < SETTLE_MS:  # in step with the last answers, so that it goes on moving
                drift = drift + (off[-1] - off[0]) / (last_ms[-1] - last_ms[0])
            since = (times_ms - last_ms[-1])[:, None]
            boxes += np.exp(-since / SETTLE_MS) * (off[-1] + since * drift)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], MIN_SIDE_PX)
        self.shown = [*self.shown, *zip(times_ms.tolist(), boxes, strict=True)][-2:]
        return boxes

    def score_at(self, times_ms: Int64) -> Float64:
        key_ms, scores = zip(*self.scores, strict=True)
        unseen_ms = np.maximum(times_ms - self.seen_ms, 0)
        return np.asarray(np.interp(times_ms, key_ms, scores) * (1.0 - unseen_ms / COAST_MS))

    def forget_before(self, time_ms: int | None) -> None:
        """Keep what boxes and scores after `time_ms` rest on; None keeps all that fits."""
        self.filter.forget_before(self.shown[0][0] if self.shown and time_ms is not None else time_ms)
        self.scores = [score for score in self.scores if score[0] >= self.filter.first_ms]
        self.shown = [answer for answer in self.shown if answer[0] >= self.filter.first_ms]


T = TypeVar("T")  # what follows the faces of one stream


@dataclass
class _Stream(Generic[T]):
    """One stream of a pool."""

    tracker: T
    used_s: float
    shown: frozenset[int] = frozenset()  # ids of the faces at the last instant that was asked for


class TrackerPool(Generic[T]):
    """Trackers by sequence id, for a server that is told when a sequence starts and ends but not when one expires.

    May be swept by another thread than the one that asks.
    """

    def __init__(self, make: Callable[[], T], ttl_s: float) -> None:
        """`ttl_s`: a tracker unused for longer is gone; must exceed the server's own idle limit."""
        self._make = make
        self.started = 0  # streams, since ever
        self.swept = 0  # streams that were given up without an end, since ever
        self._ttl_s = ttl_s
        self._streams: dict[int, _Stream[T]] = {}  # idlest first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, sequence_id: int, start: bool, now_s: float) -> T:
        """The stream's tracker; a fresh one when `start`. Raises UnknownSequence. `now_s` is any monotonic clock."""
        with self._lock:
            stream = self._streams.pop(sequence_id, None)
            if start:
                stream = _Stream(self._make(), now_s)
                self.started += 1
            elif stream is None or now_s - stream.used_s > self._ttl_s:
                self.swept += stream is not None
                raise UnknownSequence(
                    f"sequence {sequence_id} is not running here (never started, ended, or idle for over "
                    f"{self._ttl_s:g} s); start it again"
                )
            while len(self._streams) >= MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
                self.swept += 1
            stream.used_s = now_s
            self._streams[sequence_id] = stream
            return stream.tracker

    def lost(self, sequence_id: int, tracks: Tracks) -> int:
        """How many faces the stream has shown that are gone at the last instant of its new answer."""
        stream = self._streams.get(sequence_id)
        if stream is None or not len(tracks.scores):
            return 0
        shown = tracks.scores > 0
        gone = (stream.shown | set(tracks.ids[shown.any(axis=0)].tolist())) - set(tracks.ids[shown[-1]].tolist())
        stream.shown = frozenset(tracks.ids[shown[-1]].tolist())
        return len(gone)

    def end(self, sequence_id: int) -> None:
        """Forget a stream; it need not exist."""
        with self._lock:
            self._streams.pop(sequence_id, None)

    def sweep(self, now_s: float) -> int:
        """Forget the streams that have expired; how many there were."""
        with self._lock:
            expired = [key for key, stream in self._streams.items() if now_s - stream.used_s > self._ttl_s]
            for key in expired:
                del self._streams[key]
            self.swept += len(expired)
            return len(expired)


def faceless(scores: Float32) -> int:
    """On how many key frames nobody is likely: scores float32 (keyframes, candidates)."""
    return len(scores) - int((scores >= START_SCORE).any(axis=1).sum())
