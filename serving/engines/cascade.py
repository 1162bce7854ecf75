"""Detector of the lite profile: OpenCV's bundled frontal-face cascades."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from polylip.serving.engines import Float32, Parameters, UInt8

MAX_FACES = 8  # K of the padded output; more faces than this are too small for lip-sync at 640x360
PASS_SCALE = 0.75  # frames are searched at this size: 70 instead of 120 ms for 640x360 where both cascades must look
MIN_SIDE_PX = 24  # at that size, 32 of 360: a smaller face has a mouth of under 10 pixels
SCALE_STEP = 1.1
MIN_NEIGHBOURS = 3
HALF_SCORE_NEIGHBOURS = 3.0  # overlapping hits at which the score is 0.5: at the minimum a hit is a guess
# The cascade's square is centred on nose and eyes. What follows expects S3FD's box, from the middle of the forehead to
# the chin and from ear to ear: the parts of the square's side to cut (+) or add (-) at left, top, right, bottom.
TO_FACE_BOX = (0.09, 0.06, 0.09, -0.10)


class Cascade:
    """alt2 first, it is the steadier one; the default cascade where alt2 finds nothing (glasses, beard, tilt)."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        cv2.setNumThreads(1)
        folder = Path(cv2.__file__).parent / "data"
        self._cascades = [
            cv2.CascadeClassifier(str(folder / f"haarcascade_frontalface_{name}.xml")) for name in ("alt2", "default")
        ]

    def detect(self, frames: UInt8) -> tuple[Float32, Float32]:
        boxes = np.zeros((len(frames), MAX_FACES, 4), dtype=np.float32)
        scores = np.zeros((len(frames), MAX_FACES), dtype=np.float32)
        for i, frame in enumerate(frames):
            found, neighbours = self._detect_one(frame)
            boxes[i, : len(found)] = found
            scores[i, : len(found)] = neighbours / (neighbours + HALF_SCORE_NEIGHBOURS)
        return boxes, scores

    def _detect_one(self, frame: UInt8) -> tuple[Float32, Float32]:
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        grey = cv2.resize(grey, None, fx=PASS_SCALE, fy=PASS_SCALE, interpolation=cv2.INTER_AREA)
        for cascade in self._cascades:
            squares, neighbours = cascade.detectMultiScale2(
                grey, SCALE_STEP, MIN_NEIGHBOURS, minSize=(MIN_SIDE_PX, MIN_SIDE_PX)
            )
            if len(squares):
                best = np.argsort(-np.asarray(neighbours), kind="stable")[:MAX_FACES]
                boxes = _face_boxes(np.asarray(squares, np.float32)[best] / np.float32(PASS_SCALE))
                return boxes, np.asarray(neighbours, np.float32)[best]
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)


def _face_boxes(squares: Float32) -> Float32:
    """Cascade squares (n, 4) x y w h -> face boxes (n, 4) x1 y1 x2 y2."""
    x, y, side = squares[:, 0], squares[:, 1], squares[:, 2]
    left, top, right, bottom = TO_FACE_BOX
    corners = [x + left * side, y + top * side, x + side - right * side, y + side - bottom * side]
    return np.stack(corners, axis=1)
