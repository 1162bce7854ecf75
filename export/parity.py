"""How far an exported graph is from its torch network, as figures with limits; a graph that breaks one is not written.

Pictures are compared by grey levels (FP32) and by structural similarity (FP16); detections by what a viewer would
notice: the same faces, in the same places, about as sure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.errors import PolylipError
from polylip.export.sidecar import Figure, Precision

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

LIPS_GREY_LEVELS = 1.0  # FP32: two sums in another order may fall on both sides of a rounding
LIPS_MIN_SSIM = 0.995  # FP16, of the worst picture
LIPS_MEAN_LEVELS = 2.0  # FP16; SSIM forgives low contrast, this does not
MIN_CONTRAST = 2.0  # grey levels (standard deviation); flatter pictures would pass whatever the graph did

BOX_PX = 0.1
SCORE = 1e-4
MOVED_SCORE = 1e-3  # where scores are so low that 1e-4 is much: see `_pictures`; logits agree within 4e-3
HALF_SCORE = 0.02
# A face of 100 px moved by 5 px along one axis; the blending hides that much. A box of that size that was read from the
# neighbouring cell of the finest head, 4 px away along both axes, has 0.86.
HALF_IOU = 0.9
NMS_IOU = 0.3  # upstream's s3fd
FACE_SCORE = 0.5  # upstream's s3fd: what is called a face
COMPARED_FACES = (3, 20)  # where a network knows no faces: how many of its best boxes are taken for faces
LEAST_SCORE = 1e-12  # where logits are cut off
MIN_SPREAD = 0.1  # logits between the best and the last listed box; 0.02 in score is 0.08 where a face begins

# SSIM of Wang et al. 2004: 11 x 11 Gaussian window of sigma 1.5, constants for 8-bit pictures.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class ParityError(PolylipError):
    """A graph does not do what its torch network does."""

    exit_code = 2


@dataclass(frozen=True)
class Detections:
    """The answer of `detect` for some pictures of one size."""

    boxes: Float32  # (frames, K, 4) x1 y1 x2 y2 in pixels
    scores: Float32  # (frames, K), best first, 0 marks padding

    def first(self, frames: int) -> Detections:
        return Detections(self.boxes[:frames], self.scores[:frames])


class Candidates(NamedTuple):
    """The boxes of one picture, best first, scores such that a face has more than 0.5."""

    boxes: Float32  # (K, 4)
    scores: Float64  # (K,)


def require(figures: Iterable[Figure], graph: str) -> None:
    """Raise ParityError for the first figure that breaks its limit."""
    for figure in figures:
        if not figure.passed:
            raise ParityError(f"{graph} differs from its torch network: {figure}; nothing was written")


def require_contrast(mouths: UInt8) -> None:
    """Raise ParityError for a network whose pictures could not show a fault."""
    contrast = float(mouths.std(axis=(1, 2)).mean())
    if not contrast >= MIN_CONTRAST:
        raise ParityError(
            f"the network's pictures are flat (contrast {contrast:.3g} of at least {MIN_CONTRAST:g} grey levels), "
            "so nothing can be compared; check the checkpoint; nothing was written"
        )


def compare_mouths(expected: UInt8, got: UInt8, precision: Precision, case: str) -> list[Figure]:
    """Pictures uint8 (frames, 96, 96, 3) of the torch network and of the graph."""
    if got.shape != expected.shape or got.dtype != np.uint8:
        raise ParityError(f"MOUTHS is {got.dtype} {list(got.shape)}, not uint8 {list(expected.shape)} ({case})")
    levels = np.abs(expected.astype(np.int16) - got.astype(np.int16))
    if precision == "fp32":
        return [Figure(case, "largest difference in grey levels", float(levels.max()), LIPS_GREY_LEVELS)]
    similarity = min(ssim(a, b) for a, b in zip(expected, got, strict=True))
    worst_mean = float(levels.mean(axis=(1, 2, 3)).max())
    return [
        Figure(case, "SSIM of the worst picture", similarity, LIPS_MIN_SSIM, at_least=True),
        Figure(case, "mean difference in grey levels", worst_mean, LIPS_MEAN_LEVELS),
    ]


def ssim(a: UInt8, b: UInt8) -> float:
    """Mean structural similarity of two pictures uint8 (rows, columns, 3), over the windows that lie inside."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x = _windowed(x * x) - mean_x**2
    var_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return float((luminance * structure).mean())


def _windowed(picture: Float64) -> Float64:
    blurred: Float64 = cv2.GaussianBlur(picture, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)
    edge = SSIM_WINDOW // 2
    return blurred[edge:-edge, edge:-edge]


def require_spread(found: Iterable[Detections]) -> None:
    """Raise ParityError for a network that scores all its best boxes alike, whatever the picture."""
    logits = np.concatenate([_logits(detections.scores) for detections in found])
    spread = float((logits[:, 0] - logits[:, -1]).max())
    if not spread >= MIN_SPREAD:
        raise ParityError(
            f"the network scores all boxes alike (logits within {spread:.3g}, at least {MIN_SPREAD:g} is needed), so "
            "nothing can be compared; check the checkpoint; nothing was written"
        )


def compare_exact(expected: Detections, got: Detections, case: str) -> list[Figure]:
    """FP32: every box and score of the torch network, in whatever order equal scores come."""
    _check_detections(expected, got, case)
    score = float(np.abs(expected.scores - got.scores).max())
    worst_score, worst_box = 0.0, 0.0
    for ours, theirs in _pictures(expected, got):
        worst_score = max(worst_score, float(np.abs(ours.scores - theirs.scores).max()))
        worst_box = max(worst_box, _box_error(ours, theirs), _box_error(theirs, ours))
    return [
        Figure(case, "largest score difference", score, SCORE),
        Figure(case, "largest score difference, best boxes moved to 0.5", worst_score, MOVED_SCORE),
        Figure(case, "largest box difference in px", worst_box, BOX_PX),
    ]


def _box_error(a: Candidates, b: Candidates) -> float:
    """Largest distance of a box from the nearest of the others with its score; infinite where there is none.

    Boxes whose score is the lowest listed may be missing on the other side.
    """
    certain = a.scores > max(a.scores[-1], b.scores[-1]) + MOVED_SCORE
    distances = np.abs(a.boxes[certain, None] - b.boxes[None]).max(axis=2)
    distances[np.abs(a.scores[certain, None] - b.scores[None]) > MOVED_SCORE] = np.inf
    return float(distances.min(axis=1).max(initial=0.0))


def compare_faces(expected: Detections, got: Detections, case: str) -> list[Figure]:
    """FP16: the same faces.

    A face is compared with the nearest box before suppression: of two boxes on one face with nearly equal scores,
    either may win. The number of faces after suppression must be the same, but for those within 0.02 of the threshold.
    Boxes that are no faces must be there as well, but for those whose score is near the lowest listed.
    """
    _check_detections(expected, got, case)
    worst_iou, worst_score, worst_count, worst_listed = 1.0, 0.0, 0, 1.0
    for ours, theirs in _pictures(expected, got):
        fewest, most = (_count(ours, FACE_SCORE + margin) for margin in (HALF_SCORE, -HALF_SCORE))
        count = _count(theirs, FACE_SCORE)
        worst_count = max(worst_count, fewest - count, count - most)
        for a, b in ((ours, theirs), (theirs, ours)):
            overlap, difference = _worst_match(a, _faces(a), b)
            worst_iou, worst_score = min(worst_iou, overlap), max(worst_score, difference)
            worst_listed = min(worst_listed, _worst_match(a, _surely_listed(a, b), b)[0])
    return [
        Figure(case, "faces more or fewer", worst_count, 0),
        Figure(case, "lowest IoU of a face", worst_iou, HALF_IOU, at_least=True),
        Figure(case, "largest score difference of a face", worst_score, HALF_SCORE),
        Figure(case, "lowest IoU of a box", worst_listed, HALF_IOU, at_least=True),
    ]


def _pictures(expected: Detections, got: Detections) -> Iterator[tuple[Candidates, Candidates]]:
    """Each picture's boxes on both sides. Where the network knows no face, its best boxes are made faces."""
    for i, scores in enumerate(expected.scores.astype(np.float64)):
        threshold = FACE_SCORE
        if not scores[0] > FACE_SCORE or scores[-1] > FACE_SCORE:
            threshold = natural_threshold(scores[suppress(expected.boxes[i], scores)])
        yield (
            Candidates(expected.boxes[i], recentre(scores, threshold)),
            Candidates(got.boxes[i], recentre(got.scores[i].astype(np.float64), threshold)),
        )


def natural_threshold(scores: Float64) -> float:
    """A score that parts the best boxes from the rest: in the middle of the widest gap between ranks 3 and 20.

    `scores` are those after suppression, best first. Random weights know no faces; this makes the best ones faces.
    """
    low, high = COMPARED_FACES
    logits = _logits(scores[: high + 1])
    if len(logits) <= low:
        return FACE_SCORE
    gaps = logits[low - 1 : -1] - logits[low:]
    after = int(gaps.argmax()) + low - 1
    return float(1 / (1 + np.exp(-(logits[after] + logits[after + 1]) / 2)))


def recentre(scores: Float64, threshold: float) -> Float64:
    """The scores there would be if the logit of `threshold` were 0, so that it becomes 0.5; 0 and 1 stay."""
    up, down = scores * (1 - threshold), (1 - scores) * threshold
    recentred: Float64 = up / (up + down)
    return recentred


def _logits(scores: npt.NDArray[Any]) -> Float64:
    clipped = np.clip(scores.astype(np.float64), LEAST_SCORE, 1 - LEAST_SCORE)
    logits: Float64 = np.log(clipped / (1 - clipped))
    return logits


def suppress(boxes: Float32, scores: Float64) -> Int64:
    """Greedy non-maximum suppression; the indices that stay, best first, padding left out."""
    left = np.flatnonzero(scores > 0)
    left = left[np.argsort(-scores[left], kind="stable")]
    kept: list[int] = []
    while left.size:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[iou(boxes[best : best + 1], boxes[left])[0] <= NMS_IOU]
    return np.array(kept, np.int64)


def iou(a: Float32, b: Float32) -> Float64:
    """Overlap of every box of `a` (n, 4) with every one of `b` (m, 4), with the inclusive pixels of upstream's s3fd."""
    wide_a, wide_b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    low = np.maximum(wide_a[..., :2], wide_b[..., :2])
    high = np.minimum(wide_a[..., 2:], wide_b[..., 2:])
    common: Float64 = np.maximum(high - low + 1, 0).prod(axis=2)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(axis=2) for boxes in (wide_a, wide_b)]
    overlap: Float64 = common / (areas[0] + areas[1] - common)
    return overlap


def _count(candidates: Candidates, threshold: float) -> int:
    return int((candidates.scores[suppress(candidates.boxes, candidates.scores)] > threshold).sum())


def _faces(a: Candidates) -> Int64:
    kept = suppress(a.boxes, a.scores)
    return kept[a.scores[kept] > FACE_SCORE]


def _surely_listed(a: Candidates, b: Candidates) -> Int64:
    """The boxes of one side that score so high that the other side must list them too."""
    return np.flatnonzero(a.scores > max(a.scores[-1], b.scores[-1]) + HALF_SCORE)


def _worst_match(a: Candidates, kept: Int64, b: Candidates) -> tuple[float, float]:
    """The lowest IoU and the largest score difference between some boxes of one side and all of the other."""
    there = b.scores > 0
    if not kept.size:
        return 1.0, 0.0
    if not there.any():
        return 0.0, 1.0
    overlaps = iou(a.boxes[kept], b.boxes[there])
    differences = np.abs(a.scores[kept, None] - b.scores[None, there])
    near = overlaps >= np.minimum(overlaps.max(axis=1, keepdims=True), HALF_IOU)
    return float(overlaps.max(axis=1).min()), float(np.where(near, differences, np.inf).min(axis=1).max())


def _check_detections(expected: Detections, got: Detections, case: str) -> None:
    if got.boxes.shape != expected.boxes.shape or got.scores.shape != expected.scores.shape:
        raise ParityError(f"BOXES is {list(got.boxes.shape)}, not {list(expected.boxes.shape)} ({case})")
    if not (np.isfinite(got.boxes).all() and (np.diff(got.scores, axis=1) <= 0).all()):
        raise ParityError(f"boxes are not finite, or scores are not in descending order ({case}); nothing was written")
