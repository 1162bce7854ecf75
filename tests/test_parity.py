"""The measures that tell an exported graph from its network: SSIM, suppression, and when faces count as the same."""

from __future__ import annotations

import numpy as np
import pytest

from polylip.export.gate_inputs import gate_faces
from polylip.export.parity import (
    Detections,
    compare_faces,
    natural_threshold,
    recentre,
    ssim,
    suppress,
)


def test_ssim_of_plain_pictures_is_its_formula():
    dark, light = np.full((96, 96, 3), 100, np.uint8), np.full((96, 96, 3), 110, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, light) == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1))
    face = gate_faces(1)[0]
    noise = np.random.default_rng(0).normal(0, 1, face.shape)
    grades = [ssim(face, np.clip(face + sd * noise, 0, 255).astype(np.uint8)) for sd in (0, 2, 10, 40)]
    assert grades[0] == 1.0 and grades == sorted(grades, reverse=True) and grades[3] < 0.6


def test_suppression_keeps_the_best_of_overlapping_boxes():
    """Overlaps with the best one: 0.82, 0.333 and 0.299; the last row is padding."""
    boxes = np.array([[0, 0, 99, 99], [10, 0, 109, 99], [60, 0, 159, 99], [64, 0, 163, 99], [0, 0, 0, 0]], np.float32)
    assert suppress(boxes, np.array([0.8, 0.9, 0.7, 0.6, 0.0])).tolist() == [1, 3]


def faces(*rows: tuple[float, float]) -> Detections:
    """Squares of 100 px by their left edge and score, best first, padded to 6."""
    boxes, scores = np.zeros((1, 6, 4), np.float32), np.zeros((1, 6), np.float32)
    for i, (x, score) in enumerate(rows):
        boxes[0, i], scores[0, i] = (x, 0, x + 99, 99), score
    return Detections(boxes, scores)


@pytest.mark.parametrize(
    ("got", "fails"),
    [
        (faces((0, 0.9), (300, 0.8)), None),
        (faces((2, 0.91), (300, 0.79)), None),
        (faces((0, 0.9)), "faces more or fewer"),
        (faces((0, 0.9), (300, 0.8), (600, 0.7)), "faces more or fewer"),
        (faces((6, 0.9), (300, 0.8)), "lowest IoU"),
        (faces((0, 0.9), (300, 0.75)), "score difference"),
        (faces(), "faces more or fewer"),
        (faces((0, 0.9), (300, 0.8), (600, 0.2)), "lowest IoU of a box"),
    ],
)
def test_the_same_faces_are_told_from_others(got: Detections, fails: str | None):
    expected = faces((0, 0.9), (300, 0.8))
    failed = [figure.measure for figure in compare_faces(expected, got, "") if not figure.passed]
    assert failed == [] if fails is None else fails in " ".join(failed)


def test_a_face_on_the_threshold_may_be_missing_and_of_two_equal_boxes_either_may_win():
    assert passes(faces((0, 0.9), (300, 0.51), (600, 0.2)), faces((0, 0.9), (300, 0.495), (600, 0.2)))
    assert passes(faces((0, 0.9), (30, 0.89), (600, 0.2)), faces((30, 0.9), (0, 0.89), (600, 0.2)))
    assert not passes(faces((0, 0.9), (30, 0.8), (600, 0.2)), faces((30, 0.9), (0, 0.8), (600, 0.2)))


def passes(expected: Detections, got: Detections) -> bool:
    return all(figure.passed for figure in compare_faces(expected, got, ""))


def test_scores_without_faces_are_compared_around_their_widest_gap():
    scores = np.array([9e-4, 8.5e-4, 8e-4, 7.6e-4, 4e-4, 3.9e-4, 3.8e-4])
    threshold = natural_threshold(scores)
    assert 4e-4 < threshold < 7.6e-4
    moved = recentre(scores, threshold)
    assert (np.diff(moved) < 0).all() and moved[3] > 0.5 > moved[4] and moved[0] - moved[-1] > 0.2
    assert recentre(np.array([0.0, 0.3, 1.0]), 0.5).tolist() == pytest.approx([0.0, 0.3, 1.0])
