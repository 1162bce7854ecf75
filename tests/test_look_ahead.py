"""The tracker with key frames ahead of the questions, with misses, leaps, outliers and too many candidates."""

import numpy as np
import pytest
from test_tracking import FRAME_MS, Path, centres, face_box, one_call, still, sway, times

from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, new_sequence_id
from polylip.serving.boxes import NMS_IOU, detections
from polylip.serving.tracking import LOOK_AHEAD_MS, Tracker, Tracks


def ask_behind(tracker: Tracker, seen: np.ndarray, lag_ms: int) -> list[Tracks]:
    """One key frame per call, seen (keys, 4) every 200 ms; frames are asked for `lag_ms` behind, at the end all."""
    answers, asked_ms = [], 0
    for i, box in enumerate(seen):
        until_ms = i * 200 - lag_ms if i < len(seen) - 1 else i * 200
        query_ms = np.arange(asked_ms, until_ms + 1, FRAME_MS)
        asked_ms += FRAME_MS * len(query_ms)
        answers.append(one_call(tracker, [[box]], times(i * 200), query_ms))
    return answers


def centres_of(answers: list[Tracks]) -> np.ndarray:
    return centres(np.concatenate([tracks.boxes[:, 0] for tracks in answers if len(tracks.boxes)]))[:, 0]


def test_knowing_what_comes_takes_the_lag_away():
    """A head that starts to move between two key frames, and one that sways fast."""
    ms = np.arange(0, 6001, FRAME_MS)
    for path in (np.where(ms < 3000, 200.0, 200 + 0.1 * (ms - 3000.0)), 320 + 80 * np.sin(2 * np.pi * ms / 1000)):
        seen = np.array([face_box(x, 180) for x in path[::5]])
        error = [
            np.sqrt(np.mean((centres_of(ask_behind(Tracker(), seen, lag_ms)) - path) ** 2))
            for lag_ms in (0, LOOK_AHEAD_MS)
        ]
        assert error[1] < 2.0
        assert error[1] < 0.5 * error[0]


def test_the_look_ahead_leaves_no_jump_between_calls():
    random = np.random.default_rng(5)
    seen = np.array([face_box(*sway(0.2 * i)) for i in range(60)]) + random.normal(0, 3, (60, 4)).astype(np.float32)
    moved = np.diff(centres_of(ask_behind(Tracker(), seen, LOOK_AHEAD_MS)), n=2)
    assert np.abs(moved).max() < 2.5, "the head itself makes 0.95 px, one detection after the other 10 px and more"


def test_chunks_with_more_to_come_answer_what_single_key_frames_answer():
    """How key frames are split into calls changes how far ahead the tracker sees, not where the face is."""
    random = np.random.default_rng(6)
    seen = np.array([face_box(*sway(0.2 * i)) for i in range(50)]) + random.normal(0, 2, (50, 4)).astype(np.float32)
    single = centres_of(ask_behind(Tracker(), seen, LOOK_AHEAD_MS))
    tracker, chunks, asked = Tracker(), [], 0
    for start in range(0, 50, 5):
        last_ms = (start + 4) * 200
        query_ms = np.arange(asked, last_ms + 1 - (LOOK_AHEAD_MS if start < 45 else 0), FRAME_MS)
        asked += FRAME_MS * len(query_ms)
        chunks.append(one_call(tracker, seen[start : start + 5, None], np.arange(start, start + 5) * 200, query_ms))
    assert np.abs(centres_of(chunks) - single).max() < 3.0


def test_a_sequence_of_one_key_frame_may_ask_for_nothing_and_flush_later():
    tracker, face = Tracker(), face_box(320, 180)
    assert one_call(tracker, [[face]], times(0), times()).boxes.shape[0] == 0
    flushed = one_call(tracker, [], times(), times(0, 40, 80))
    np.testing.assert_allclose(flushed.boxes[:, 0], [face] * 3)
    assert flushed.surprise.shape == (1,)


def test_a_caller_that_asks_again_after_a_long_time_gets_the_face_where_it_is_now():
    tracker = Tracker()
    for ms in range(0, 120_000, 200):
        one_call(tracker, [[face_box(100 + ms / 500, 180)]], times(ms), times(ms) if ms < 400 else times())
    tracks = one_call(tracker, [], times(), times(119_700, 119_800))
    np.testing.assert_allclose(centres(tracks.boxes[:, 0])[:, 0], [339.4, 339.6], atol=0.5)


def test_one_wild_detection_hardly_moves_a_calm_face():
    seen = np.array([face_box(320, 180)] * 30)
    seen += np.random.default_rng(7).normal(0, 1.5, seen.shape).astype(np.float32)
    seen[15] += 40
    assert np.abs(centres_of(ask_behind(Tracker(), seen, LOOK_AHEAD_MS)) - 320).max() < 4


def test_a_missed_key_frame_between_two_hits_dips_the_score_and_keeps_the_box():
    face = face_box(320, 180)
    seen = [[face], [face], [], [face], [face]]
    tracks = one_call(Tracker(), seen, times(0, 200, 400, 600, 800), times(*range(0, 801, 40)))
    scores = tracks.scores[:, 0]
    assert scores[5] == pytest.approx(0.8)
    assert 0 < scores[10] < 0.1
    assert scores[15] == pytest.approx(0.8)
    assert (np.diff(scores[5:11]) < 0).all()
    np.testing.assert_allclose(tracks.boxes[:, 0], [face] * 21, atol=0.01)


def test_surprise_tells_a_head_too_fast_for_its_key_frames():
    def fast(t: float) -> tuple[float, float]:
        return 320.0 + 80.0 * np.sin(2 * np.pi * t), 180.0

    def surprise(path: Path, step_ms: int) -> float:
        tracker, seen = Tracker(), []
        for ms in range(0, 8000, step_ms):
            seen.append(one_call(tracker, [[face_box(*path(ms / 1000))]], times(ms), times(ms)).surprise.max())
        assert seen[0] == 0
        return float(np.median(seen))

    assert surprise(still, 200) < 1
    assert surprise(sway, 200) < 1
    assert surprise(fast, 200) > 4
    assert surprise(fast, 40) < 2, "with every frame a key frame the same head is followed easily"


def test_a_head_that_leaps_by_its_width_keeps_its_id_and_a_distant_face_is_another():
    near = [[face_box(200, 180)]] * 3 + [[face_box(290, 180)]] * 2
    assert one_call(Tracker(), near, times(0, 200, 400, 600, 800), times(400, 800)).ids.tolist() == [1]
    far = [[face_box(200, 180)]] * 3 + [[face_box(500, 180)]] * 2
    assert one_call(Tracker(), far, times(0, 200, 400, 600, 800), times(400, 800)).ids.tolist() == [1, 2]


def test_of_many_overlapping_candidates_the_best_one_of_each_face_stays():
    """As S3FD answers: 256 boxes about three faces, at several scales, padded with score 0."""
    random = np.random.default_rng(8)
    faces = np.array([face_box(120, 100, 60), face_box(320, 180), face_box(520, 220, 80)])
    boxes = np.repeat(faces, 80, axis=0) + random.normal(0, 3, (240, 4))
    scores = random.uniform(0.05, 0.9, 240)
    boxes[::80], scores[::80] = faces, (0.97, 0.99, 0.98)
    padding = np.zeros((16, 4))
    found, kept = detections(
        np.concatenate([boxes, padding]).astype(np.float32), np.append(scores, np.zeros(16)).astype(np.float32)
    )
    np.testing.assert_allclose(found, [(320, 180, 100, 100), (520, 220, 80, 80), (120, 100, 60, 60)])
    np.testing.assert_allclose(kept, [0.99, 0.98, 0.97], rtol=1e-6)


def test_overlap_is_counted_with_outermost_pixels_as_upstream_does():
    """Two boxes of 9 px, 5 px apart: 0.29 by their corners, 0.33 with one pixel more on each side."""
    boxes = np.array([[0, 0, 9, 9], [5, 0, 14, 9]], np.float32)
    assert 4 / 14 < NMS_IOU < 5 / 15
    assert len(detections(boxes, np.array([0.9, 0.8], np.float32))[1]) == 1


async def test_the_server_answers_behind_the_key_frames_and_tells_the_surprise(server):
    sequence, answers = new_sequence_id(), []
    questions = [times(), times(*range(0, 401, 40)), times(*range(440, 1001, 40))]
    async with TritonClient(server.url) as client, client.stream() as stream:
        for index, query_ms in enumerate(questions):
            inputs = {
                "BOXES": np.array([[face_box(320, 180)]] * 2),
                "SCORES": np.full((2, 1), 0.9, np.float32),
                "KEYFRAME_MS": times(400 * index, 400 * index + 200),
                "QUERY_MS": query_ms,
            }
            position = SequencePosition(sequence, start=index == 0, end=index == 2)
            answers.append(await stream.call("track", inputs, 30.0, position))
    assert [len(tracks["TRACK_BOXES"]) for tracks in answers] == [len(query_ms) for query_ms in questions]
    assert [tracks["TRACK_IDS"].tolist() for tracks in answers[1:]] == [[1], [1]]
    for tracks in answers[1:]:
        assert tracks["TRACK_SURPRISE"].shape == (1,)
        assert tracks["TRACK_SURPRISE"].dtype == np.float32
        assert tracks["TRACK_SURPRISE"][0] < 1
        np.testing.assert_allclose(tracks["TRACK_BOXES"][:, 0], [face_box(320, 180)] * len(tracks["TRACK_BOXES"]))
