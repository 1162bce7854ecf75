"""Two copies of one face side by side, each with a mouth that follows a sound of its own, or none."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import onnxruntime as ort
from material import RATE_HZ, _astronaut

from polylip.export.lips_lite import build_graph
from polylip.serving.mel import mel_windows

WIDTH, HEIGHT, FPS = 640, 360, 25
COLUMNS = slice(0, 320)  # of the 360 px wide astronaut
FACE = (115, 45, 200, 130)  # x1, y1, x2, y2 of the face in it; the right copy is 320 px further right
BOXES = (FACE, (FACE[0] + 320, FACE[1], FACE[2] + 320, FACE[3]))


@functools.cache
def _mouth_graph() -> ort.InferenceSession:
    return ort.InferenceSession(build_graph().SerializeToString(), providers=["CPUExecutionProvider"])


def mouths(sound: np.ndarray | None, frames: int) -> np.ndarray:
    """uint8 (frames, 85, 85, 3) BGR: the face speaking `sound` float32 (samples,) at 16 kHz, or keeping still."""
    x1, y1, x2, y2 = FACE
    face = _astronaut()[y1:y2, x1:x2]
    if sound is None:
        return np.repeat(face[None], frames, axis=0)
    padded = np.concatenate([sound, np.zeros(max(0, frames * RATE_HZ // FPS + RATE_HZ - len(sound)), np.float32)])
    mel = mel_windows(padded, (np.arange(frames) * 1000 // FPS).astype(np.int64))
    crops = np.repeat(cv2.resize(face, (96, 96), interpolation=cv2.INTER_CUBIC)[None], frames, axis=0)
    spoken = _mouth_graph().run(["MOUTHS"], {"MEL": mel, "FACES": crops})[0]
    return np.array([cv2.resize(crop, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA) for crop in spoken])


def film(left: np.ndarray | None, right: np.ndarray | None, frames: int) -> np.ndarray:
    """uint8 (frames, 360, 640, 3) BGR: each half speaks its sound, or keeps still."""
    film = np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)
    for sound, (x1, y1, x2, y2) in zip((left, right), BOXES, strict=True):
        first = 0 if x1 < 320 else 320
        film[:, :, first : first + 320] = _astronaut()[:, COLUMNS]
        film[:, y1:y2, x1:x2] = mouths(sound, frames)
    return film
