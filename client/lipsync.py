"""Requests to the `lipsync` ensemble: the faces of some frames and just the speech that their mel windows need."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.client.errors import ServerError
from polylip.client.pending import Outputs, Pending
from polylip.client.retry import retrying
from polylip.client.timeline import Dub
from polylip.client.triton import Stream
from polylip.client.wire import Inputs
from polylip.serving.lips_audio import speech_window

UInt8 = npt.NDArray[np.uint8]

TIMEOUT_S = 30.0  # 16 frames take 0.02 s in profile lite and 0.4 s with Wav2Lip on a slow CPU


@dataclass
class LipsRequest:
    """A batch of consecutive frames of one dub on its way."""

    dub: Dub
    stream: Stream
    inputs: Inputs
    deadline: float  # event-loop time, of all tries together
    first: Pending | ServerError  # the error of a request that could not be sent
    sent_at: float  # time.monotonic()
    answered_at: float = 0.0  # when the answer was taken in, or its lack known
    retries: int = 0

    async def mouths(self) -> UInt8 | None:
        """uint8 (frames, 96, 96, 3) BGR; None when the server failed: the frames then pass as they came."""
        try:
            outputs = await retrying(self._try, deadline=self.deadline, on_retry=self._count)
            return np.asarray(outputs["MOUTHS"])
        except ServerError:
            return None
        finally:
            self.answered_at = time.monotonic()
            self.dub.result.latency_ms.lipsync += (self.answered_at - self.sent_at) * 1000

    async def _try(self) -> Outputs:
        if self.retries:
            left_s = self.deadline - asyncio.get_running_loop().time()
            return await self.stream.call("lipsync", self.inputs, left_s)
        if isinstance(self.first, ServerError):
            raise self.first
        return await self.first.result()

    def _count(self) -> None:
        self.retries += 1


async def request_lips(
    stream: Stream, dub: Dub, times_ms: list[float], faces: list[UInt8], timeout_s: float = TIMEOUT_S
) -> LipsRequest:
    """Ask for the mouths of frames at `times_ms` on the video's timeline, with faces uint8 (96, 96, 3) BGR.

    A batch that is lost with its connection is sent again while the answer is waited for.
    """
    audio, offsets = speech_window(dub.speech, [t - (dub.start_ms or 0) for t in times_ms])
    inputs: Inputs = {"AUDIO": audio, "FRAME_OFFSETS_MS": offsets, "FACES": np.stack(faces)}
    sent_at, deadline = time.monotonic(), asyncio.get_running_loop().time() + timeout_s
    first: Pending | ServerError
    try:
        first = await stream.submit("lipsync", inputs, timeout_s)
    except ServerError as error:
        first = error
    return LipsRequest(dub, stream, inputs, deadline, first, sent_at)
