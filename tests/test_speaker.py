"""The face that speaks, out of what the picture and the sound show; drawn faces whose mouths follow real speech."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from material import RATE_HZ, read_aloud
from two_faces import BOXES, FPS, HEIGHT, WIDTH, film

from polylip.client.errors import InputError
from polylip.client.face_book import FaceBook
from polylip.client.results import FaceChoice
from polylip.client.ring import Face, Slot
from polylip.client.segmentation import POST_ROLL_MS, PRE_ROLL_MS, Segment
from polylip.client.speaker import FaceWish, SpeakerChooser, _tracks, parse_wish, speaking_scores
from polylip.perf.demo_clip import SENTENCES

LEFT, RIGHT = 1, 2  # tracks
LARGER = (BOXES[0][0] - 4, BOXES[0][1] - 4, BOXES[0][2] + 4, BOXES[0][3] + 4)


def speech(number: int) -> np.ndarray:
    """A sentence of the demo, about 3 s."""
    return read_aloud(SENTENCES[number])


def segment(sound: np.ndarray, start_ms: int = 0) -> Segment:
    """All of a sound from the film's start on, as one that closed by silence."""
    audio = np.concatenate([sound, np.zeros(POST_ROLL_MS * RATE_HZ // 1000, np.float32)])
    return Segment(0, start_ms, len(sound) * 1000 // RATE_HZ, audio)


def with_rolls(sound: np.ndarray, pre_roll_ms: int, post_roll_ms: int) -> Segment:
    """All of a sound, begun at PRE_ROLL_MS, with so much silence about it."""
    before, behind = (np.zeros(roll * RATE_HZ // 1000, np.float32) for roll in (pre_roll_ms, post_roll_ms))
    end_ms = PRE_ROLL_MS + len(sound) * 1000 // RATE_HZ
    return Segment(0, PRE_ROLL_MS, end_ms, np.concatenate([before, sound, behind]), pre_roll_ms=pre_roll_ms)


def slots(frames: np.ndarray, boxes=BOXES, shot: int = 0, sway_px: float = 0.0, jitter_px: float = 0.0) -> list[Slot]:
    """The frames as the picture branch leaves them in the ring; boxes tremble as a tracker's do."""
    book = FaceBook(WIDTH, HEIGHT)
    rng = np.random.default_rng(0)
    result = []
    for index, frame in enumerate(frames):
        shift = sway_px * np.sin(index / 6)
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        grey = cv2.warpAffine(grey, np.array([[1, 0, shift], [0, 1, 0]]), (WIDTH, HEIGHT))
        thumb = cv2.resize(grey, (320, 180), interpolation=cv2.INTER_AREA)
        thumb = np.clip(thumb + rng.standard_normal(thumb.shape, np.float32), 0, 255).astype(np.uint8)
        found = {}
        for track, box in enumerate(boxes, 1):
            moved = np.add(box, (shift, 0, shift, 0)) + rng.normal(0, jitter_px, 4)
            found[track] = (tuple(moved.tolist()), 0.9)
        result.append(Slot(index, index * 1000 / FPS, shot, book.enter(index * 1000 / FPS, thumb, found)))
    return result


def frames_of(sound: np.ndarray) -> int:
    return len(sound) * FPS // RATE_HZ


@pytest.mark.parametrize("number", range(4))
def test_the_mouth_that_moves_with_the_sound_is_chosen(number: int):
    sound = speech(number)
    for left, right, track in ((sound, None, LEFT), (None, sound, RIGHT)):
        choice = SpeakerChooser(WIDTH, HEIGHT).choose(slots(film(left, right, frames_of(sound))), segment(sound))
        assert (choice.face_id, choice.reason) == (track, FaceChoice.SPEAKING)
        assert choice.tracks == {0: (track,)}


@pytest.mark.parametrize("number", range(3))
def test_how_much_sound_lies_around_a_segment_does_not_matter(number: int):
    """The sound of a video may end with the last word, or begin with the first."""
    sound = speech(number)
    silence = np.zeros(PRE_ROLL_MS * RATE_HZ // 1000, np.float32)
    padded = np.concatenate([silence, sound])
    tracks = _tracks(slots(film(None, padded, frames_of(padded))))
    whole = speaking_scores(tracks, with_rolls(sound, PRE_ROLL_MS, POST_ROLL_MS))
    for pre_roll_ms, post_roll_ms in ((PRE_ROLL_MS, 0), (PRE_ROLL_MS, 100), (0, POST_ROLL_MS), (100, 0)):
        scores = speaking_scores(tracks, with_rolls(sound, pre_roll_ms, post_roll_ms))
        assert scores == pytest.approx(whole, abs=0.02)


def test_a_moving_camera_and_trembling_boxes_hide_the_speaker_rarely():
    """The right one of two in at least 5 of 6 sentences, though the other is larger."""
    right = 0
    for number in range(6):
        sound = speech(number)
        moving = slots(film(None, sound, frames_of(sound)), (LARGER, BOXES[1]), sway_px=12.0, jitter_px=0.7)
        right += SpeakerChooser(WIDTH, HEIGHT).choose(moving, segment(sound)).face_id == RIGHT
    assert right >= 5


def test_a_mouth_that_moves_to_other_words_is_rarely_taken_for_the_speaker():
    """One chews, laughs or speaks elsewhere, and is the larger face: in at most one of 6 sentences it is taken."""
    right = 0
    for number in range(6):
        sound, other = speech(number), speech(number + 4)
        frames = min(frames_of(sound), frames_of(other))
        both = slots(film(other, sound, frames), (LARGER, BOXES[1]))
        right += SpeakerChooser(WIDTH, HEIGHT).choose(both, segment(sound[: frames * RATE_HZ // FPS])).face_id == RIGHT
    assert right >= 5


def test_without_a_moving_mouth_the_largest_face_is_taken_and_kept():
    sound = speech(0)
    still = slots(film(None, None, frames_of(sound)), boxes=(BOXES[0], (420, 30, 540, 150)))
    chooser = SpeakerChooser(WIDTH, HEIGHT)
    assert chooser.choose(still, segment(sound)).face_id == RIGHT
    grown = slots(film(None, None, frames_of(sound)), boxes=((80, 10, 230, 160), (420, 30, 540, 150)))
    choice = chooser.choose(grown, segment(sound))
    assert (choice.face_id, choice.reason) == (RIGHT, FaceChoice.LARGEST)


def test_the_choice_follows_a_dialogue_and_does_not_flip_on_a_doubtful_segment():
    first, second = speech(0), speech(1)
    chooser = SpeakerChooser(WIDTH, HEIGHT)
    turns = []
    for left, right, sound in ((first, None, first), (None, second, second), (None, None, first), (first, None, first)):
        turns.append(chooser.choose(slots(film(left, right, frames_of(sound))), segment(sound)).face_id)
    assert turns == [LEFT, RIGHT, RIGHT, LEFT]


def test_a_single_face_needs_no_evidence_and_keeps_the_lips_under_a_new_track():
    one = [Slot(i, i * 40.0, 0, (Face((100, 50, 200, 150), 1 if i < 30 else 7),)) for i in range(60)]
    choice = SpeakerChooser(WIDTH, HEIGHT).choose(one, segment(speech(0)))
    assert choice.reason is FaceChoice.ONLY
    assert [choice.face(slot).track_id for slot in (one[0], one[40])] == [1, 7]


def test_no_face_is_no_choice():
    choice = SpeakerChooser(WIDTH, HEIGHT).choose([Slot(0, 0.0, 0)], segment(speech(0)))
    assert (choice.face_id, choice.reason, choice.face(Slot(0, 0.0, 0))) == (None, None, None)


def test_what_the_detector_saw_twice_and_the_tracker_carried_on_is_no_rival():
    sound = speech(0)
    both = slots(film(None, sound, frames_of(sound)), boxes=(BOXES[1], BOXES[0]))
    short = [Slot(s.index, s.time_ms, s.shot, s.faces if 20 <= s.index < 30 else s.faces[:1]) for s in both]
    choice = SpeakerChooser(WIDTH, HEIGHT).choose(short, segment(sound))
    assert choice.face_id == 1


def test_a_large_thing_taken_for_a_face_for_a_while_gets_no_lips():
    sound = speech(0)
    both = slots(film(None, None, frames_of(sound)), boxes=(BOXES[0], (380, 40, 560, 220)))
    short = [Slot(s.index, s.time_ms, s.shot, s.faces if 20 <= s.index < 40 else s.faces[:1]) for s in both]
    choice = SpeakerChooser(WIDTH, HEIGHT).choose(short, segment(sound))
    assert (choice.face_id, choice.reason) == (LEFT, FaceChoice.LARGEST)


def test_each_shot_has_its_own_choice():
    sound = speech(0)
    half = frames_of(sound) // 2
    frames = slots(film(sound, None, frames_of(sound)))
    cut = [*frames[:half]]
    for slot in frames[half:]:
        faces = tuple(Face(f.box_px, f.track_id + 10, f.score, f.opening, f.motion) for f in slot.faces)
        cut.append(Slot(slot.index, slot.time_ms, 1, faces))
    choice = SpeakerChooser(WIDTH, HEIGHT).choose(cut, segment(sound))
    assert choice.tracks == {0: (LEFT,), 1: (LEFT + 10,)}


def test_the_user_chooses_by_number_or_by_place():
    sound = speech(0)
    both = slots(film(sound, None, frames_of(sound)))
    for wish, track in ((FaceWish(track_id=RIGHT), RIGHT), (FaceWish(place=(0.7, 0.3)), RIGHT)):
        choice = SpeakerChooser(WIDTH, HEIGHT, wish).choose(both, segment(sound))
        assert (choice.face_id, choice.reason) == (track, FaceChoice.CHOSEN)
    unknown = SpeakerChooser(WIDTH, HEIGHT, FaceWish(track_id=9)).choose(both, segment(sound))
    assert (unknown.face_id, unknown.reason) == (LEFT, FaceChoice.SPEAKING)


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("2", FaceWish(track_id=2)),
        ("0.7,0.4", FaceWish(place=(0.7, 0.4))),
        ("0,1", FaceWish(place=(0.0, 1.0))),
        (".5,1.0", FaceWish(place=(0.5, 1.0))),
        (None, None),
    ],
)
def test_a_wish_is_read(text: str | None, wish: FaceWish | None):
    assert parse_wish(text) == wish


@pytest.mark.parametrize("text", ["", "0", "-1", "left", "1.5,0.5", "0.5", "0.5;0.5", "0.5,nan", "640,200", "1,2,3"])
def test_a_bad_wish_is_refused_with_an_example(text: str):
    with pytest.raises(InputError, match=r"neither a face's number nor a place.*for example 2"):
        parse_wish(text)


def test_ids_are_unique_over_sequences_and_faces_are_listed_with_their_place():
    book, thumb = FaceBook(200, 100), np.zeros((100, 200), np.uint8)
    assert book.job_ids([1, 2], starts=True) == [1, 2]
    assert book.job_ids([2, 4], starts=False) == [2, 4]
    assert book.job_ids([1, 3], starts=True) == [5, 7]
    assert book.job_ids([2], starts=False) == [6]
    book.enter(0.0, thumb, {1: ((10.0, 20.0, 30.0, 40.0), 0.8)})
    (face,) = book.enter(40.0, thumb, {1: ((30.0, 20.0, 50.0, 40.0), 0.2)})
    assert face.score == pytest.approx(0.25, rel=0.01) and not face.seen
    (track,) = book.tracks
    assert (track.id, track.start_ms, track.end_ms, track.place) == (1, 0, 40, (0.15, 0.3))
