"""Lips fade out before a face is lost and in after it is back; never across a cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from polylip.client.results import HideReason
from polylip.client.ring import Box, Face, Slot
from polylip.client.visibility import MISS_MS, RAMP_MS, HiddenSpans, View, Visibility, frames_around

WIDTH, HEIGHT, FPS = 640, 360, 25
STEP_MS = 1000 / FPS
WHOLE: Box = (200.0, 100.0, 300.0, 200.0)
RAMP = int(RAMP_MS / STEP_MS)  # frames


def film(faces: list[Face | None], cut_at: int | None = None) -> list[Slot]:
    return [
        Slot(i, i * STEP_MS, int(cut_at is not None and i >= cut_at), () if face is None else (face,))
        for i, face in enumerate(faces)
    ]


def views(slots: list[Slot]) -> list[View]:
    found = Visibility(WIDTH, HEIGHT, FPS).views(slots, lambda slot: slot.faces[0] if slot.faces else None)
    return [found[slot.index] for slot in slots]


def strengths(slots: list[Slot]) -> list[float]:
    return [view.strength for view in views(slots)]


def seen(score: float = 1.0, box: Box = WHOLE) -> Face:
    return Face(box, 1, score)


def test_a_face_in_full_view_has_its_lips_whole():
    assert strengths(film([seen()] * 20)) == [1.0] * 20


@pytest.mark.parametrize("lost", [None, seen(0.1)], ids=["no track", "low score"])
def test_lips_are_gone_when_the_face_goes_and_come_back_after_it(lost: Face | None):
    gone = slice(20, 32)
    strong = strengths(film([seen()] * 20 + [lost] * 12 + [seen()] * 20))
    assert strong[gone] == [0.0] * 12
    assert strong[: 20 - RAMP] == [1.0] * (20 - RAMP) and strong[32 + RAMP :] == [1.0] * (20 - RAMP)
    before, after = strong[20 - RAMP : 20], strong[32 : 32 + RAMP]
    assert before == sorted(before, reverse=True) and after == sorted(after)
    assert max(abs(a - b) for a, b in pairwise(strong)) < 0.4


def test_lips_are_gone_from_the_last_key_frame_with_the_face_to_the_first_with_it_again():
    """The score falls and rises in between, as the tracker interpolates it; when the face went, nobody knows."""
    fall = np.linspace(1.0, 0.1, 6)[1:].tolist()
    scores = [1.0] * 20 + fall + [0.1] * 10 + fall[::-1][1:] + [1.0] * 20
    strong = strengths(film([seen(score) for score in scores]))
    assert [index for index, strength in enumerate(strong) if strength == 0.0] == list(range(20, 39))
    assert strong[19] > 0 and strong[39] > 0


def test_a_single_missed_key_frame_hides_nothing():
    short = int(MISS_MS / STEP_MS) - 1
    assert strengths(film([seen()] * 20 + [seen(0.1)] * short + [seen()] * 20)) == [1.0] * (40 + short)
    assert 0.0 in strengths(film([seen()] * 20 + [seen(0.1)] * (short + 2) + [seen()] * 20))


def test_nothing_is_faded_across_a_cut():
    strong = strengths(film([seen()] * 20 + [None] * 20, cut_at=20))
    assert strong == [1.0] * 20 + [0.0] * 20


def test_a_face_that_leaves_the_picture_fades_with_what_is_left_of_it():
    walk = [seen(box=(540.0 + 5 * i, 100.0, 640.0 + 5 * i, 200.0)) for i in range(-10, 12)]
    found = views(film(walk))
    strong = [view.strength for view in found]
    assert strong[0] == 1.0 and strong[-1] == 0.0
    assert strong == sorted(strong, reverse=True)
    assert {view.hidden for view in found if view.strength == 0} == {HideReason.LEAVES}


def test_a_face_that_is_too_small_keeps_its_own_lips():
    sizes = [(200.0, 100.0, 200.0 + side, 100.0 + side) for side in range(40, 18, -1)]
    found = views(film([seen(box=box) for box in sizes]))
    assert found[0].strength == 1.0
    assert [view.hidden for view in found[-4:]] == [HideReason.SMALL] * 4


@pytest.mark.parametrize(
    ("faces", "reason"),
    [
        ([None] * 30, HideReason.NOT_FOUND),
        ([seen()] * 15 + [None] * 15, HideReason.COVERED),
        ([seen()] * 15 + [seen(0.1)] * 15, HideReason.COVERED),
        ([seen(box=(-10.0, 100.0, 90.0, 200.0))] * 15 + [None] * 15, HideReason.LEAVES),
    ],
)
def test_the_reason_is_told(faces: list[Face | None], reason: HideReason):
    assert views(film(faces))[-1].hidden is reason


def test_a_window_of_frames_is_enough():
    """What the output knows of the future and keeps of the past gives the same as the whole film."""
    fall = [seen(score) for score in (0.8, 0.6, 0.4, 0.2)]
    faces = [seen()] * 30 + fall + [seen(0.1)] * 12 + [None] * 9 + [seen()] * 40 + [seen(0.2)] * 4 + [seen()] * 40
    slots, reach = film(faces), frames_around(FPS)
    whole, judge = strengths(slots), Visibility(WIDTH, HEIGHT, FPS)
    for at in range(len(slots)):
        window = slots[max(0, at - reach) : at + reach + 1]
        view = judge.views(window, lambda slot: slot.faces[0] if slot.faces else None)[at]
        assert view.strength == whole[at]


def test_hidden_frames_become_spans():
    spans = HiddenSpans(STEP_MS)
    for index in (3, 4, 5, 7, 20):
        spans.add(index * STEP_MS, HideReason.SMALL if index == 7 else HideReason.COVERED)
    assert [(span.start_ms, span.end_ms, span.reason) for span in spans.spans] == [
        (120, 320, HideReason.COVERED),
        (800, 840, HideReason.COVERED),
    ]
