"""New mouths for the frames under a segment's voice, batch by batch, by a call to the lips line."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from polylip.serving.crops import FACE_SIZE
from polylip.serving.dub.looking import LIPS_BATCH, chunks
from polylip.serving.errors import EngineError
from polylip.serving.lips_audio import speech_window

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

JPEG_QUALITY = 95  # of mouths: 3 KB each; a blended mouth shows blocks of a coarser one

Lips = Callable[[Float32, Int64, UInt8], UInt8]  # AUDIO at 16 kHz, FRAME_OFFSETS_MS, FACES -> MOUTHS


def render(speech: Float32, offsets_ms: Int64, faces: UInt8, lips: Lips) -> UInt8:
    """Mouths uint8 (frames, 96, 96, 3) for faces of that shape at offsets into speech float32 (samples,) at 16 kHz."""
    mouths = np.zeros((len(faces), FACE_SIZE, FACE_SIZE, 3), np.uint8)
    for part in chunks(len(faces), LIPS_BATCH):
        audio, offsets = speech_window(speech, offsets_ms[part].tolist())
        mouths[part] = lips(audio, offsets, faces[part])
    return mouths


def as_jpeg(mouths: UInt8) -> list[bytes]:
    """One JPEG per mouth. Raises EngineError."""
    pictures = []
    for mouth in mouths:
        done, data = cv2.imencode(".jpg", mouth, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not done:
            raise EngineError("a mouth could not be written as JPEG")
        pictures.append(data.tobytes())
    return pictures
