"""What the tests feed to the models: a read sentence, a picture with a face at a chosen place, tensors by name."""

from __future__ import annotations

import functools
import io
import subprocess
import tempfile
import wave

import cv2
import numpy as np
import skimage.data

from polylip.client.wire import Inputs

RATE_HZ = 16_000
WIDTH, HEIGHT = 640, 360  # of an analysis frame
FACE_LEFT = 130  # px from the left edge of the pasted picture to the astronaut's face, and to its right end
FACE_RIGHT = 187


@functools.cache
def read_aloud(text: str) -> np.ndarray:
    """float32 (samples,) at 16 kHz: flite's `rms`, the voice that the lite recogniser reads without error."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", "rms", "-t", text, "-o", file.name], check=True)
        with wave.open(io.BytesIO(file.read())) as sound:
            assert (sound.getframerate(), sound.getnchannels()) == (RATE_HZ, 1)
            return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768


@functools.cache
def _astronaut() -> np.ndarray:
    return cv2.resize(skimage.data.astronaut()[:, :, ::-1], (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA)


def face_at(left: int) -> np.ndarray:
    """uint8 (360, 640, 3) BGR: the astronaut's square picture `left` px from the left edge, black beside it."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:, left : left + HEIGHT] = _astronaut()[:, : WIDTH - left]
    return frame


def face_crop() -> np.ndarray:
    """uint8 (96, 96, 3) BGR: the astronaut's face."""
    return cv2.resize(_astronaut()[45:130, 115:200], (96, 96), interpolation=cv2.INTER_CUBIC)


def milliseconds(*times_ms: int) -> np.ndarray:
    return np.array(times_ms, np.int64)


def chunk(frames: list[np.ndarray], key_ms: list[int], query_ms: list[int]) -> Inputs:
    """A request to `faces`."""
    return {"FRAMES": np.stack(frames), "KEYFRAME_MS": milliseconds(*key_ms), "QUERY_MS": milliseconds(*query_ms)}
