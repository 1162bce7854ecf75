"""Face boxes on key frames in, steady boxes with lasting ids on every frame out. One `Tracker` per media stream.

Each face is a constant-velocity Kalman filter over centre and size. A call filters forward over its key frames, then
smooths backward (Rauch-Tung-Striebel), back to where the call before stopped, and reads the frames between off the
curve. Lengths in the noise model are in box sides (the square root of the area), so that near and far faces are
followed alike. Times are integer milliseconds of the media clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# Which detections count and whose they are.
NMS_IOU = 0.4  # two boxes that overlap more are one face; detectors answer at several scales
START_SCORE = 0.5  # a new face must be more likely than not
MATCH_SCORE = 0.3  # a known face may be seen less surely: turned, blurred, half covered
MATCH_IOU = 0.2  # with the predicted box; a face that starts to move by 2/3 of its width per key frame still matches
CONFIRM_HITS = 2  # cascades throw single false positives, rarely two in the same place
UNCONFIRMED_MISSES = 1  # key frames in a row that a face with one hit may be missed in before it is dropped
COAST_MS = 1500  # a face turned away or covered for this long is still the same; longer, and it may be another

# Noise model. Tuned on synthetic faces that stand still, sway and are missed, as in tests/test_tracking.py.
MEASUREMENT_SD = 0.03  # box sides: a Haar cascade scans in scale steps of 1.1 and merges its neighbours
# White acceleration of the centre, sides^2/s^3. Surprise is the running mean of the squared innovation over what was
# expected of it, 1 when the model fits. A face that stands still lowers its own noise and is held steady; one that
# sways raises it and is followed. A fixed 0.7 took away 50 % of a still face's jitter where this takes 66 %, and lagged
# 10 px behind a sway of 40 px at 1 Hz where this lags 4.
CENTRE_ACCELERATION = 0.3
CENTRE_ACCELERATION_RANGE = (0.1, 4.0)
SURPRISE_POWER = 3
SURPRISE_SHARE = 0.3  # of the newest key frame in the running mean
SIZE_ACCELERATION = 0.15  # for width and height, fixed: heads approach slowly
START_VELOCITY_SD = 1.0  # sides/s: a face may be moving when it is first seen
DAMPING_S = 0.4  # without a detection the velocity fades with this time constant: heads stop and turn back
SETTLE_MS = 150  # a correction to what the last call predicted comes in with this time constant, so nothing jumps

MIN_SIDE_PX = 1.0  # no prediction shrinks a box to nothing
MAX_KNOTS = 512  # per face, where a caller sends key frames and asks for no frames: 100 s at 5 key frames/s
MAX_FACES = 64  # held at once, unconfirmed ones included
MAX_CANDIDATES = 256  # detections of one key frame that are compared with each other
MAX_STREAMS = 1024  # trackers in a pool; the server holds far fewer live sequences, so the idlest one is long gone

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Tensor = npt.NDArray[Any]  # from a caller, not yet checked


class UnknownSequence(ValueError):  # noqa: N818  reads as the server's own refusal does
    """A request for a stream that was never started, has ended, or has been idle for too long."""


@dataclass(frozen=True)
class Tracks:
    """The faces of one call, ordered by id. A face that is not there at a query has score 0 and a box of zeros."""

    boxes: Float32  # (queries, tracks, 4) x1 y1 x2 y2 in pixels of the analysis frame
    ids: npt.NDArray[np.int32]  # (tracks,), from 1, never used twice in a stream
    scores: Float32  # (queries, tracks), 0 to 1, fading while the face is not detected


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
            self._take(*_detections(boxes[i], scores[i]), time_ms, is_last=i == len(keyframe_ms) - 1)
        tracks = self._answer(query_ms)
        self._forget(query_ms)
        return tracks

    def _take(self, boxes: Float64, scores: Float64, time_ms: int, is_last: bool) -> None:
        """One key frame: boxes (n, 4) centre and size, scores (n,), best first."""
        is_first = self._last_keyframe_ms is None
        self._last_keyframe_ms = time_ms
        faces = [face for face in self._faces if time_ms < face.end_ms]
        for face in faces:
            face.predict(time_ms)
        pairs = dict(_best_pairs(faces, boxes))
        for i, face in enumerate(faces):
            if i in pairs:
                face.correct(boxes[pairs[i]], float(scores[pairs[i]]))
            else:
                face.miss()
        self._faces = [face for face in self._faces if not face.dropped]
        new = [j for j in range(len(boxes)) if j not in pairs.values() and scores[j] >= START_SCORE]
        for j in new[: max(0, MAX_FACES - len(faces))]:
            self._faces.append(_Face(boxes[j], float(scores[j]), time_ms))
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
            boxes[alive, i] = _to_corners(face.show(query_ms[alive]))
            scores[alive, i] = face.score_at(query_ms[alive])
        return Tracks(boxes, np.array([face.id for face, _ in shown], dtype=np.int32), scores)

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
class _Knot:
    """A face at one key frame. A state (4, 2) is centre x, centre y, width and height, each with its velocity per s."""

    time_ms: int
    state: Float64  # filtered
    covariance: Float64  # (4, 2, 2)
    motion: Float64  # (2, 2) from the knot before
    predicted: Float64  # state before the detection
    predicted_covariance: Float64


@dataclass
class _Face:
    """One face, from its first hit on."""

    first_box: Float64  # (4,) centre and size, px
    first_score: float
    start_ms: int
    id: int = 0  # 0 until confirmed
    hits: int = 1
    misses: int = 0  # in a row
    dropped: bool = False
    surprise: float = 1.0
    knots: list[_Knot] = field(default_factory=list)
    seen_ms: list[int] = field(default_factory=list)  # key frames with a hit
    seen_scores: list[float] = field(default_factory=list)
    seen_box: Float64 = field(init=False)  # the filtered box at the last hit
    shown: tuple[int, Float64] | None = None  # the last answer: time and box

    def __post_init__(self) -> None:
        self.seen_box = self.first_box
        state = np.stack([self.first_box, np.zeros(4)], axis=1)
        start = np.diag(np.array([MEASUREMENT_SD, START_VELOCITY_SD]) * _side(self.first_box)) ** 2
        covariance = np.repeat(start[None], 4, axis=0)
        self.knots.append(_Knot(self.start_ms, state, covariance, np.eye(2), state, covariance))
        self.seen_ms.append(self.start_ms)
        self.seen_scores.append(self.first_score)

    @property
    def box(self) -> Float64:
        return np.asarray(self.knots[-1].state[:, 0])

    @property
    def end_ms(self) -> int:
        return self.seen_ms[-1] + COAST_MS

    def alive(self, times_ms: Int64) -> Bool:
        return (times_ms >= self.start_ms) & (times_ms < self.end_ms)

    def predict(self, time_ms: int) -> None:
        """A knot at a new key frame, without knowing what was detected there."""
        last = self.knots[-1]
        seconds = (time_ms - last.time_ms) / 1000.0
        motion = _motion(seconds, damped=self.misses > 0)
        state = last.state @ motion.T
        state[2:, 0] = np.maximum(state[2:, 0], MIN_SIDE_PX)
        centre = float(np.clip(CENTRE_ACCELERATION * self.surprise**SURPRISE_POWER, *CENTRE_ACCELERATION_RANGE))
        covariance = motion @ last.covariance @ motion.T + _drift(seconds, _side(last.state[:, 0]), centre)
        self.knots.append(_Knot(time_ms, state, covariance, motion, state, covariance))

    def correct(self, box: Float64, score: float) -> None:
        """The newest knot has a detection."""
        knot = self.knots[-1]
        noise = (MEASUREMENT_SD * _side(box)) ** 2
        expected = knot.covariance[:, :1, 0] + noise
        innovation = (box - knot.state[:, 0])[:, None]
        self.surprise += SURPRISE_SHARE * (float(np.mean(innovation[:2] ** 2 / expected[:2])) - self.surprise)
        gain = knot.covariance[:, :, 0] / expected
        knot.state = knot.state + gain * innovation
        knot.covariance = knot.covariance - gain[:, :, None] * knot.covariance[:, :1, :]
        self.seen_box = knot.state[:, 0]
        self.hits += 1
        self.misses = 0
        self.seen_ms.append(knot.time_ms)
        self.seen_scores.append(score)

    def miss(self) -> None:
        """The newest knot has no detection."""
        self.misses += 1
        self.dropped = self.hits < CONFIRM_HITS and self.misses > UNCONFIRMED_MISSES

    def show(self, times_ms: Int64) -> Float64:
        """Boxes (times, 4) at ascending times; they go on from the last answer and move over to the newer knowledge."""
        knots = self._smoothed()
        boxes = _curve(*knots, times_ms)
        if self.shown is not None:
            shown_ms, shown_box = self.shown
            correction = shown_box - _curve(*knots, np.array([shown_ms]))[0]
            boxes += np.exp((shown_ms - times_ms) / SETTLE_MS)[:, None] * correction
        self.shown = int(times_ms[-1]), boxes[-1]
        return boxes

    def score_at(self, times_ms: Int64) -> Float64:
        unseen_ms = np.maximum(times_ms - self.seen_ms[-1], 0)
        return np.interp(times_ms, self.seen_ms, self.seen_scores) * (1.0 - unseen_ms / COAST_MS)

    def forget_before(self, time_ms: int | None) -> None:
        """Keep what the curve after `time_ms` rests on; None keeps all that fits."""
        first = 0 if time_ms is None else max(0, sum(knot.time_ms <= time_ms for knot in self.knots) - 1)
        self.knots = self.knots[max(first, len(self.knots) - MAX_KNOTS) :]
        old = sum(seen <= self.knots[0].time_ms for seen in self.seen_ms) - 1
        self.seen_ms, self.seen_scores = self.seen_ms[max(0, old) :], self.seen_scores[max(0, old) :]

    def _smoothed(self) -> tuple[Int64, Float64]:
        """Knot times (k,) and states (k, 4, 2) given everything seen so far."""
        states = [self.knots[-1].state]
        for knot, after in zip(self.knots[-2::-1], self.knots[:0:-1], strict=True):
            gain = knot.covariance @ after.motion.T @ np.linalg.inv(after.predicted_covariance)
            states.append(knot.state + (gain @ (states[-1] - after.predicted)[:, :, None])[:, :, 0])
        return np.array([knot.time_ms for knot in self.knots]), np.array(states[::-1])


def _motion(seconds: float, damped: bool) -> Float64:
    """State transition (2, 2) over a time: the velocity stays, or fades while nothing is detected."""
    if not damped:
        return np.array([[1.0, seconds], [0.0, 1.0]])
    fade = np.exp(-seconds / DAMPING_S)
    return np.array([[1.0, DAMPING_S * (1.0 - fade)], [0.0, fade]])


def _drift(seconds: float, side: float, centre: float) -> Float64:
    """Uncertainty (4, 2, 2) that white acceleration adds over a time; `centre` in sides^2/s^3, the side in pixels."""
    shape = np.array([[seconds**3 / 3.0, seconds**2 / 2.0], [seconds**2 / 2.0, seconds]])
    density = np.array([centre, centre, SIZE_ACCELERATION, SIZE_ACCELERATION]) * side**2
    return np.asarray(density[:, None, None] * shape)


def _curve(knot_ms: Int64, states: Float64, times_ms: Int64) -> Float64:
    """Boxes (times, 4) on the cubic through the knots (which is what the motion model expects between them).

    Before the first knot the box stands still, after the last it runs out with a fading velocity.
    """
    before = np.clip(np.searchsorted(knot_ms, times_ms, side="right") - 1, 0, len(knot_ms) - 1)
    after = np.minimum(before + 1, len(knot_ms) - 1)
    elapsed = np.maximum(times_ms - knot_ms[before], 0)[:, None] / 1000.0
    span = np.maximum(knot_ms[after] - knot_ms[before], 1)[:, None] / 1000.0
    u = np.minimum(elapsed / span, 1.0)
    (p0, v0), (p1, v1) = (np.moveaxis(states[index], 2, 0) for index in (before, after))
    between = p0 + u * u * (3.0 - 2.0 * u) * (p1 - p0) + span * u * (1.0 - u) * ((1.0 - u) * v0 - u * v1)
    beyond = p0 + DAMPING_S * (1.0 - np.exp(-elapsed / DAMPING_S)) * v0
    boxes: Float64 = np.where((after == before)[:, None], beyond, between)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], MIN_SIDE_PX)
    return boxes


def _detections(boxes: Float32, scores: Float32) -> tuple[Float64, Float64]:
    """Candidates of one key frame -> centre and size (n, 4) and scores (n,), best first, one per face."""
    real = (scores >= MATCH_SCORE) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    corners, kept_scores = boxes[real].astype(np.float64), scores[real].astype(np.float64)
    best = np.argsort(-kept_scores, kind="stable")[:MAX_CANDIDATES]
    corners, kept_scores = corners[best], kept_scores[best]
    overlap = _iou(corners, corners)
    kept: list[int] = []
    for i in range(len(best)):
        if not kept or overlap[i, kept].max() <= NMS_IOU:
            kept.append(i)
    corners = corners[kept]
    sizes = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners[:, :2] + sizes / 2, sizes], axis=1), kept_scores[kept]


def _best_pairs(faces: list[_Face], detected: Float64) -> Iterator[tuple[int, int]]:
    """Pairs (face, detection) by overlap, best first, each face and each detection once.

    First by where each face should be by now, then by where it was last seen: heads stop and turn back.
    """
    if not faces or not len(detected):
        return
    corners = _to_corners(detected)
    taken = np.zeros((len(faces), len(detected)), dtype=np.bool_)
    for boxes in ([face.box for face in faces], [face.seen_box for face in faces]):
        overlap = np.where(taken, -1.0, _iou(_to_corners(np.array(boxes)), corners))
        while overlap.max() >= MATCH_IOU:
            i, j = divmod(int(overlap.argmax()), len(detected))
            overlap[i, :] = overlap[:, j] = -1.0
            taken[i, :] = taken[:, j] = True
            yield i, j


def _iou(a: Float64, b: Float64) -> Float64:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4) x1 y1 x2 y2."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b))
    return np.asarray(shared / (area_a[:, None] + area_b[None, :] - shared))


def _to_corners(boxes: Float64) -> Float64:
    """Centre and size (n, 4) -> x1 y1 x2 y2 (n, 4)."""
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    corners: Float64 = np.concatenate([centres - halves, centres + halves], axis=1)
    return corners


def _side(box: Float64) -> float:
    """Side of the square with the area of a box (4,) given as centre and size."""
    return float(np.sqrt(max(box[2], MIN_SIDE_PX) * max(box[3], MIN_SIDE_PX)))


class TrackerPool:
    """Trackers by sequence id, for a server that is told when a sequence starts and ends but not when one expires."""

    def __init__(self, ttl_s: float) -> None:
        """`ttl_s`: a tracker unused for longer is gone; must exceed the server's own idle limit."""
        self._ttl_s = ttl_s
        self._trackers: dict[int, tuple[Tracker, float]] = {}  # with the time of the last use, idlest first

    def __len__(self) -> int:
        return len(self._trackers)

    def get(self, sequence_id: int, start: bool, now_s: float) -> Tracker:
        """The stream's tracker; a fresh one when `start`. Raises UnknownSequence. `now_s` is any monotonic clock."""
        tracker, used_s = self._trackers.pop(sequence_id, (None, now_s))
        if start:
            tracker = Tracker()
        elif tracker is None or now_s - used_s > self._ttl_s:
            raise UnknownSequence(
                f"sequence {sequence_id} is not running here (never started, ended, or idle for over "
                f"{self._ttl_s:g} s); start it again"
            )
        while len(self._trackers) >= MAX_STREAMS:
            del self._trackers[next(iter(self._trackers))]
        self._trackers[sequence_id] = tracker, now_s
        return tracker

    def end(self, sequence_id: int) -> None:
        """Forget a stream; it need not exist."""
        self._trackers.pop(sequence_id, None)

    def sweep(self, now_s: float) -> int:
        """Forget the streams that have expired; how many there were."""
        expired = [key for key, (_, used_s) in self._trackers.items() if now_s - used_s > self._ttl_s]
        for key in expired:
            del self._trackers[key]
        return len(expired)
