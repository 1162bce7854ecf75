"""Requests to the `lipsync` ensemble: the faces of some frames and just the speech that their mel windows need."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.client.errors import ServerError
from polylip.client.segmentation import SPEECH_RATE_HZ
from polylip.client.timeline import LOOK_AHEAD_MS, Dub
from polylip.client.triton import Pending, TritonStream
from polylip.client.wire import Inputs

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

HOP = 200  # samples per mel column at 16 kHz
HOP_MS = 12.5
CONTEXT_COLUMNS = 3  # columns cut off before the first: their windows reach into the padding at the edge of the audio
TIMEOUT_S = 30.0  # 16 frames take 0.02 s in profile lite and 0.4 s with Wav2Lip on a slow CPU


@dataclass
class LipsRequest:
    """A batch of consecutive frames of one dub on its way."""

    dub: Dub
    pending: Pending | None  # None: the request could not be sent
    sent_at: float

    async def mouths(self) -> UInt8 | None:
        """uint8 (frames, 96, 96, 3) BGR; None when the server failed: the frames then pass as they came."""
        if self.pending is None:
            return None
        try:
            return np.asarray((await self.pending.result())["MOUTHS"])
        except ServerError:
            return None
        finally:
            self.dub.result.latency_ms.lipsync += (time.monotonic() - self.sent_at) * 1000


async def request_lips(stream: TritonStream, dub: Dub, times_ms: list[float], faces: list[UInt8]) -> LipsRequest:
    """Ask for the mouths of frames at `times_ms` on the video's timeline, with faces uint8 (96, 96, 3) BGR."""
    audio, offsets = speech_window(dub.speech, [t - (dub.start_ms or 0) for t in times_ms])
    inputs: Inputs = {"AUDIO": audio, "FRAME_OFFSETS_MS": offsets, "FACES": np.stack(faces)}
    sent_at = time.monotonic()
    try:
        pending = await stream.submit("lipsync", inputs, TIMEOUT_S)
    except ServerError:
        return LipsRequest(dub, None, sent_at)
    return LipsRequest(dub, pending, sent_at)


def speech_window(speech: Float32, offsets_ms: list[float]) -> tuple[Float32, npt.NDArray[np.int64]]:
    """Cut from a segment's speech what the windows at `offsets_ms` need, with the offsets within the cut.

    The cut starts on a mel column and CONTEXT_COLUMNS early, so that its windows equal those of the whole speech.
    Before the speech and behind its end there is silence.
    """
    columns = [math.floor(offset / HOP_MS) for offset in offsets_ms]
    first = columns[0] - CONTEXT_COLUMNS
    if columns[0] >= 0:
        first = max(0, first)
    stop = columns[-1] * HOP + LOOK_AHEAD_MS * SPEECH_RATE_HZ // 1000
    audio = np.zeros(stop - first * HOP, np.float32)
    part = speech[max(0, first * HOP) : max(0, stop)]
    begin = max(0, -first * HOP)
    audio[begin : begin + len(part)] = part
    # Rounded up, so that the server's division gives the same column again.
    offsets = np.ceil([(column - first) * HOP_MS for column in columns]).astype(np.int64)
    return audio, offsets
