"""Tracks are steady, follow the head, keep their ids through misses and crossings, and ignore a false positive."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest

from polylip.serving import tracking
from polylip.serving.tracking import COAST_MS, Tracker, TrackerPool, Tracks, UnknownSequence

FRAME_MS = 40  # 25 fps
KEY_EVERY = 5  # frames: 5 key frames/s
CHUNK = 25  # frames per call
SIDE = 100.0  # px, of 640 x 360
NOISE_PX = 3.0  # of a cascade on a face of this side

Path = Callable[[float], tuple[float, float]]  # seconds -> centre x, y


def still(t: float) -> tuple[float, float]:
    return 320.0, 180.0


def sway(t: float) -> tuple[float, float]:
    return 320.0 + 60.0 * np.sin(np.pi * t), 180.0


def face_box(x: float, y: float, side: float = SIDE) -> np.ndarray:
    return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2], dtype=np.float32)


def times(*ms: int) -> np.ndarray:
    return np.array(ms, dtype=np.int64)


def one_call(
    tracker: Tracker, seen: Iterable[Iterable[np.ndarray]], key_ms: np.ndarray, query_ms: np.ndarray
) -> Tracks:
    """`seen`: the boxes of each key frame, padded here to the same number with score 0."""
    rows = [list(row) for row in seen]
    boxes = np.zeros((len(rows), max(map(len, rows), default=0) + 1, 4), dtype=np.float32)
    scores = np.zeros(boxes.shape[:2], dtype=np.float32)
    for i, row in enumerate(rows):
        for j, box in enumerate(row):
            boxes[i, j], scores[i, j] = box, 0.8
    return tracker.update(boxes, scores, key_ms, query_ms)


@dataclass
class Run:
    """One face over many calls: centres and sides, frame by frame."""

    truth: np.ndarray  # (frames, 4) corners
    tracked: np.ndarray  # (frames, 4)
    raw: np.ndarray  # (frames, 4), the last detection held
    keys: np.ndarray  # frame numbers

    def rms(self, boxes: np.ndarray) -> float:
        return float(np.sqrt(np.mean(centres(boxes - self.truth) ** 2)))

    def jitter(self, boxes: np.ndarray) -> float:
        """RMS of the error's change from key frame to key frame."""
        return float(np.sqrt(np.mean(np.diff(centres(boxes - self.truth)[self.keys], axis=0) ** 2)))

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Movement per frame in px: at the borders of calls, and within calls."""
        moved = np.linalg.norm(np.diff(centres(self.tracked), axis=0), axis=1)
        border = np.arange(CHUNK - 1, len(moved), CHUNK)
        return moved[border], np.delete(moved, border)


def centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def follow(
    path: Path, seed: int = 0, seconds: int = 20, key_phase: int = KEY_EVERY - 1, noise: float = NOISE_PX
) -> Run:
    """A noisy face through a tracker, a second at a time. Key frames: the first, and each fifth with this phase."""
    random = np.random.default_rng(seed)
    frames = np.arange(seconds * 1000 // FRAME_MS)
    truth = np.array([face_box(*path(i * FRAME_MS / 1000)) for i in frames])
    keys = frames[(frames % KEY_EVERY == key_phase) | (frames == 0)]
    seen = truth[keys] + random.normal(0, noise, (len(keys), 4)).astype(np.float32)
    tracker, tracked = Tracker(), []
    for start in range(0, len(frames), CHUNK):
        mine = (keys >= start) & (keys < start + CHUNK)
        tracks = one_call(tracker, seen[mine][:, None], keys[mine] * FRAME_MS, frames[start : start + CHUNK] * FRAME_MS)
        assert tracks.ids.tolist() == [1]
        assert (tracks.scores > 0).all()
        tracked.append(tracks.boxes[:, 0])
    held = seen[np.searchsorted(keys, frames, side="right") - 1]
    return Run(truth, np.concatenate(tracked), held, keys)


@pytest.mark.parametrize("key_phase", [0, KEY_EVERY - 1])
def test_a_still_face_stops_jittering_and_is_nearer_to_the_truth(key_phase):
    for seed in range(3):
        run = follow(still, seed, key_phase=key_phase)
        assert run.jitter(run.tracked) <= 0.5 * run.jitter(run.raw)
        assert run.rms(run.tracked) <= run.rms(run.raw)


def test_a_swaying_face_is_followed_within_four_pixels():
    for seed in range(3):
        run = follow(sway, seed)
        assert run.rms(run.tracked) < 4.0
        assert run.rms(run.tracked) < 0.4 * run.rms(run.raw)


def test_with_key_frames_first_the_predicted_end_of_a_call_is_still_better_than_holding_the_box():
    run = follow(sway, key_phase=0)
    assert run.rms(run.tracked) < 0.7 * run.rms(run.raw)


@pytest.mark.parametrize("path", [still, sway])
def test_no_jump_where_one_call_ends_and_the_next_begins(path):
    for seed in range(3):
        border, within = follow(path, seed).steps()
        assert border.mean() <= 2.0 * within.mean()
        assert border.max() <= 1.5 * within.max()


def test_without_noise_the_box_is_the_detection():
    run = follow(still, noise=0.0)
    np.testing.assert_allclose(run.tracked, run.truth, atol=0.01)


def test_one_key_frame_at_the_start_of_a_stream_is_enough():
    tracks = one_call(Tracker(), [[face_box(100, 100)]], times(0), times(0, 40, 80))
    assert tracks.ids.tolist() == [1]
    assert tracks.boxes.shape == (3, 1, 4)
    assert tracks.boxes.dtype == np.float32
    assert tracks.ids.dtype == np.int32
    assert tracks.scores.dtype == np.float32
    np.testing.assert_allclose(tracks.boxes[:, 0], [face_box(100, 100)] * 3)


def test_a_false_positive_at_one_key_frame_gets_no_track_and_no_id():
    tracker, face, ghost = Tracker(), face_box(320, 180), face_box(80, 80, 50)
    first = one_call(tracker, [[face], [face, ghost], [face]], times(0, 200, 400), times(*range(0, 500, 40)))
    later = one_call(tracker, [[face], [face]], times(600, 800), times(*range(520, 900, 40)))
    assert first.ids.tolist() == later.ids.tolist() == [1]


def test_a_false_positive_on_the_very_first_key_frame_gets_no_track_once_others_deny_it():
    seen = [[face_box(320, 180), face_box(80, 80, 50)], [face_box(320, 180)], [face_box(320, 180)]]
    tracks = one_call(Tracker(), seen, times(0, 200, 400), times(*range(0, 500, 40)))
    assert tracks.ids.tolist() == [1]
    assert tracks.boxes[0, 0, 0] == pytest.approx(270, abs=1)


def test_a_new_face_is_shown_from_its_first_hit_once_a_second_confirms_it():
    tracker, face = Tracker(), face_box(320, 180)
    tracks = one_call(tracker, [[], [face], [face]], times(0, 200, 400), times(160, 200, 240, 400))
    assert (tracks.scores[:, 0] > 0).tolist() == [False, True, True, True]
    assert (tracks.boxes[0] == 0).all()


def test_an_unsure_detection_starts_no_track_but_keeps_one():
    tracker, box = Tracker(), face_box(320, 180)[None, None]
    low, high = np.full((1, 1), 0.4, np.float32), np.full((1, 1), 0.9, np.float32)
    assert len(tracker.update(box, low, times(0), times(0)).ids) == 0
    tracker.update(box, high, times(200), times(200))
    assert tracker.update(box, high, times(400), times(400)).ids.tolist() == [1]
    for ms in range(600, 4000, 200):
        assert tracker.update(box, low, times(ms), times(ms)).ids.tolist() == [1]


def test_missed_key_frames_keep_the_id_and_the_score_shows_them():
    tracker, face = Tracker(), face_box(320, 180)
    seen = [[face], [face], [], [], [face]]
    tracks = one_call(tracker, seen, times(0, 200, 400, 600, 800), times(*range(0, 840, 40)))
    assert tracks.ids.tolist() == [1]
    assert (tracks.scores > 0).all()
    coasting = one_call(tracker, [[], []], times(1000, 1200), times(840, 1000, 1200))
    assert coasting.ids.tolist() == [1]
    assert (np.diff(coasting.scores[:, 0]) < 0).all()
    np.testing.assert_allclose(coasting.boxes[:, 0], [face] * 3, atol=1)


def test_a_face_without_detection_stops_soon_and_is_gone_after_the_coasting_time():
    tracker = Tracker()
    seen = [[face_box(100 + 40 * i, 180)] for i in range(5)]  # 200 px/s
    one_call(tracker, seen, times(0, 200, 400, 600, 800), times(800))
    after = 800 + np.array([100, 1000, COAST_MS - 1, COAST_MS, COAST_MS + 500])
    tracks = one_call(tracker, [], times(), after)
    assert (tracks.scores[:, 0] > 0).tolist() == [True, True, True, False, False]
    places = centres(tracks.boxes[:3, 0])[:, 0]
    assert (np.diff(places) >= 0).all()
    assert places[-1] < 260 + 200 * 0.5


def test_a_face_gone_for_three_seconds_gets_a_new_id():
    tracker, face = Tracker(), face_box(320, 180)
    one_call(tracker, [[face], [face]], times(0, 200), times(0, 200))
    gone = one_call(tracker, [[]] * 3, times(1200, 2200, 3000), times(1200, 2200, 3000))
    assert (gone.scores > 0).any(axis=1).tolist() == [True, False, False]
    back = one_call(tracker, [[face], [face]], times(3200, 3400), times(3200, 3400))
    assert back.ids.tolist() == [2]


def test_a_gap_within_one_call_ends_one_track_and_starts_another():
    face = face_box(320, 180)
    key_ms = times(0, 200, 4000, 4200)
    tracks = one_call(Tracker(), [[face]] * 4, key_ms, times(0, 1000, 2500, 4000, 4200))
    assert tracks.ids.tolist() == [1, 2]
    assert (tracks.scores > 0).tolist() == [[True, False], [True, False], [False, False], [False, True], [False, True]]


def test_two_faces_that_pass_each_other_keep_their_ids():
    tracker = Tracker()
    for start in range(0, 4000, 1000):
        key_ms = np.arange(start, start + 1000, 200)
        right = [100 + 0.1 * ms for ms in key_ms]  # 100 px/s, apart in height by more than half a face
        left = [500 - 0.1 * ms for ms in key_ms]
        seen = [[face_box(a, 150), face_box(b, 220)] for a, b in zip(right, left, strict=True)]
        tracks = one_call(tracker, seen, key_ms, key_ms)
        assert sorted(tracks.ids.tolist()) == [1, 2]
        by_id = dict(zip(tracks.ids.tolist(), np.swapaxes(tracks.boxes, 0, 1), strict=True))
        np.testing.assert_allclose(centres(by_id[1])[:, 1], 150, atol=10)
        np.testing.assert_allclose(centres(by_id[2])[:, 1], 220, atol=10)


def test_a_head_that_turns_back_fast_is_not_lost():
    def fast(t: float) -> tuple[float, float]:
        return 320.0 + 40.0 * np.sin(2 * np.pi * t), 180.0

    follow(fast)  # checks the id in each call


def test_overlapping_candidates_are_one_face_and_ids_are_in_order():
    near = [face_box(320, 180), face_box(325, 182), face_box(318, 178, 110)]
    tracks = one_call(Tracker(), [[*near, face_box(100, 100, 60)]], times(0), times(0))
    assert tracks.ids.tolist() == [1, 2]


def test_no_key_frames_no_candidates_and_no_queries_all_work():
    tracker = Tracker()
    nothing = tracker.update(np.zeros((0, 4, 4), np.float32), np.zeros((0, 4), np.float32), times(), times(0, 40))
    assert nothing.boxes.shape == (2, 0, 4)
    assert nothing.scores.shape == (2, 0)
    no_candidates = tracker.update(
        np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.float32), times(40, 80), times(80)
    )
    assert no_candidates.boxes.shape == (1, 0, 4)
    no_queries = one_call(tracker, [[face_box(9, 9, 8)]] * 2, times(120, 160), times())
    assert no_queries.boxes.shape == (0, 0, 4)
    assert one_call(tracker, [], times(), times(160)).ids.tolist() == [1]


def test_degenerate_boxes_are_ignored():
    flat = np.array([10, 10, 10, 50], np.float32)
    assert len(one_call(Tracker(), [[flat]], times(0), times(0)).ids) == 0


def test_state_stays_small_in_a_long_stream_with_or_without_queries():
    for ask in (True, False):
        tracker = Tracker()
        for ms in range(0, 200_000, 200):
            moving = face_box(100 + 400 * (ms // 2000 % 2), 180)
            one_call(tracker, [[moving]], times(ms), times(ms) if ask else times())
        assert len(tracker._faces) <= tracking.MAX_FACES
        assert sum(len(face.filter) for face in tracker._faces) <= (4 if ask else tracking.MAX_FACES * 20)


@pytest.mark.parametrize(
    ("boxes", "scores", "key_ms", "query_ms", "message"),
    [
        ((2, 3, 4), (2, 2), (0, 200), (0,), "do not fit together"),
        ((2, 3, 4), (2, 3), (0,), (0,), "do not fit together"),
        ((2, 3, 5), (2, 3), (0, 200), (0,), "do not fit together"),
        ((2, 3, 4), (2, 3), (200, 0), (0,), "key frame times are not in ascending order"),
        ((2, 3, 4), (2, 3), (200, 200), (0,), "key frame times are not in ascending order"),
        ((1, 3, 4), (1, 3), (200,), (40, 0), "query times are not in ascending order"),
        ((1, 3, 4), (1, 3), (100,), (200,), "key frame time 100 ms does not follow 100 ms.*new sequence"),
        ((1, 3, 4), (1, 3), (200,), (50,), "query time 50 ms does not follow 100 ms.*new sequence"),
    ],
)
def test_wrong_input_is_refused_and_the_stream_goes_on(boxes, scores, key_ms, query_ms, message):
    tracker = Tracker()
    one_call(tracker, [[face_box(320, 180)]], times(100), times(100))
    with pytest.raises(ValueError, match=message) as refusal:
        tracker.update(np.ones(boxes, np.float32), np.ones(scores, np.float32), times(*key_ms), times(*query_ms))
    assert "\n" not in str(refusal.value)
    assert one_call(tracker, [[face_box(320, 180)]], times(200), times(200)).ids.tolist() == [1]


def test_nan_and_fractional_times_are_refused():
    boxes, scores = np.full((1, 1, 4), np.nan, np.float32), np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="NaN"):
        Tracker().update(boxes, scores, times(0), times(0))
    with pytest.raises(ValueError, match="float64; send int64"):
        Tracker().update(np.ones((1, 1, 4), np.float32), scores, np.array([0.5]), times(0))
    with pytest.raises(ValueError, match="one row"):
        Tracker().update(np.ones((1, 1, 4), np.float32), scores, times(0), times(0)[None])


def test_a_pool_gives_each_stream_its_own_tracker_until_it_ends():
    pool = TrackerPool(Tracker, ttl_s=90)
    first, second = pool.get(1, True, 0.0), pool.get(2, True, 0.0)
    assert first is not second
    assert pool.get(1, False, 1.0) is first
    pool.end(1)
    pool.end(1)
    with pytest.raises(UnknownSequence, match=r"sequence 1 is not running here.*start it again"):
        pool.get(1, False, 2.0)
    assert pool.get(2, False, 2.0) is second


def test_start_resets_a_stream():
    pool = TrackerPool(Tracker, ttl_s=90)
    old = pool.get(1, True, 0.0)
    assert pool.get(1, True, 1.0) is not old
    assert len(pool) == 1


def test_an_idle_stream_expires_and_a_busy_one_does_not():
    pool = TrackerPool(Tracker, ttl_s=90)
    pool.get(1, True, 0.0)
    pool.get(2, True, 0.0)
    pool.get(2, False, 80.0)
    assert pool.sweep(90.0) == 0
    assert pool.sweep(100.0) == 1
    assert len(pool) == 1
    with pytest.raises(UnknownSequence, match="idle for over 90 s"):
        pool.get(1, False, 100.0)
    with pytest.raises(ValueError, match="start it again"):
        pool.get(2, False, 200.0)


def test_a_pool_is_bounded_and_drops_the_idlest(monkeypatch):
    monkeypatch.setattr(tracking, "MAX_STREAMS", 3)
    pool = TrackerPool(Tracker, ttl_s=90)
    for sequence in (1, 2, 3):
        pool.get(sequence, True, float(sequence))
    kept = pool.get(1, False, 4.0)
    pool.get(4, True, 5.0)
    assert len(pool) == 3
    assert pool.get(1, False, 6.0) is kept
    with pytest.raises(UnknownSequence):
        pool.get(2, False, 6.0)
