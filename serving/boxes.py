"""Face boxes of one picture: overlap, non-maximum suppression, and which detection belongs to which known face.

Corners are x1 y1 x2 y2 in pixels; a box of four numbers that is no corners is centre x, centre y, width, height.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

NMS_IOU = 0.3  # two boxes that overlap more are one face, as in upstream's s3fd; detectors answer at several scales
NMS_PIXEL = 1.0  # px that upstream's NMS adds to every width and height, as if corners were the outermost pixels
MATCH_SCORE = 0.3  # a known face may be seen less surely than a new one: turned, blurred, half covered
MATCH_IOU = 0.2  # with the box where the face should be by now, or where it was last seen: heads stop and turn back
# Where neither overlaps, the face may have gone this far from either, if at most two key frames have missed it. A
# head of 100 px that sways by 80 px to each side once per second reaches 5 sides/s.
REACH_PER_S = 6.0  # box sides
LONGEST_REACH = 2.0  # box sides
LONGEST_REACH_S = 0.65
REACH_SIZE = 1.5  # and its side may have changed by this factor
MAX_CANDIDATES = 256  # detections of one key frame that are looked at, best first
MIN_SIDE_PX = 1.0  # no prediction shrinks a box to nothing

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def detections(boxes: Float32, scores: Float32) -> tuple[Float64, Float64]:
    """Candidates of one key frame, corners (k, 4) -> centre and size (n, 4), scores (n,): best first, one per face."""
    real = (scores >= MATCH_SCORE) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    corners, found_scores = boxes[real].astype(np.float64), scores[real].astype(np.float64)
    left = np.argsort(-found_scores, kind="stable")[:MAX_CANDIDATES]
    kept: list[int] = []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][iou(corners[left[:1]], corners[left[1:]], NMS_PIXEL)[0] <= NMS_IOU]
    corners = corners[kept]
    sizes = corners[:, 2:] - corners[:, :2]
    return np.concatenate([corners[:, :2] + sizes / 2, sizes], axis=1), found_scores[kept]


def best_pairs(expected: Float64, seen: Float64, unseen_s: Float64, detected: Float64) -> Iterator[tuple[int, int]]:
    """Pairs (face, detection), best first, each face and each detection once.

    expected (n, 4): where the faces should be by now; seen (n, 4): where they were last detected, unseen_s (n,) ago;
    detected (m, 4).
    """
    if not len(expected) or not len(detected):
        return
    taken = np.zeros((len(expected), len(detected)), dtype=np.bool_)
    corners = to_corners(detected)
    for closeness, least in (
        (lambda: iou(to_corners(expected), corners), MATCH_IOU),
        (lambda: iou(to_corners(seen), corners), MATCH_IOU),
        (lambda: np.maximum(*(_within_reach(b, unseen_s, detected) for b in (expected, seen))), 0.0),
    ):
        if taken.any(axis=1).all() or taken.any(axis=0).all():
            return
        free = np.where(taken, -1.0, closeness())
        while free.max() >= least:
            i, j = divmod(int(free.argmax()), len(detected))
            free[i, :] = free[:, j] = -1.0
            taken[i, :] = taken[:, j] = True
            yield i, j


def _within_reach(boxes: Float64, unseen_s: Float64, detected: Float64) -> Float64:
    """How near (n, m) each detection is to each box: 1 in the same place, below 0 where the face cannot have got to."""
    distance = np.linalg.norm(boxes[:, None, :2] - detected[None, :, :2], axis=2)
    sides, others = np.sqrt(np.prod(boxes[:, 2:], axis=1)), np.sqrt(np.prod(detected[:, 2:], axis=1))
    reach = sides * np.minimum(REACH_PER_S * unseen_s, LONGEST_REACH)
    alike = np.abs(np.log(sides[:, None] / others[None, :])) <= np.log(REACH_SIZE)
    possible = alike & (unseen_s <= LONGEST_REACH_S)[:, None]
    return np.asarray(np.where(possible, 1.0 - distance / reach[:, None], -1.0))


def iou(a: Float64, b: Float64, pixel: float = 0.0) -> Float64:
    """Intersection over union (n, m) of corners (n, 4) and (m, 4); `pixel` is added to every width and height."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low + pixel, 0.0), axis=2)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2] + pixel, axis=1) for boxes in (a, b))
    return np.asarray(shared / (area_a[:, None] + area_b[None, :] - shared))


def to_corners(boxes: Float64) -> Float64:
    """Centre and size (n, 4) -> corners (n, 4)."""
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    corners: Float64 = np.concatenate([centres - halves, centres + halves], axis=1)
    return corners


def side(box: Float64) -> float:
    """Side of the square with the area of a box (4,) given as centre and size."""
    return float(np.sqrt(max(box[2], MIN_SIDE_PX) * max(box[3], MIN_SIDE_PX)))
