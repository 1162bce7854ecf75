"""The speech that the mel windows of some frames need: brought to 16 kHz, and cut to what they see."""

from __future__ import annotations

import math

import av
import numpy as np
import numpy.typing as npt

from polylip.serving.mel import HOP, SAMPLE_RATE_HZ

Float32 = npt.NDArray[np.float32]

HOP_MS = 12.5
CONTEXT_COLUMNS = 3  # columns cut off before the first: their windows reach into the padding at the edge of the audio
LOOK_AHEAD_MS = 225  # a frame's mel window reaches 212.5 ms past the frame; rounded up to whole hops


def at_16k(audio: Float32, rate_hz: int) -> Float32:
    """Float32 (samples,) at any rate, all of it -> float32 (samples,) at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ or not audio.size:
        return audio
    resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE_HZ)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None]), format="fltp", layout="mono")
    frame.sample_rate = rate_hz
    pieces = [piece.to_ndarray()[0] for part in (frame, None) for piece in resampler.resample(part)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def speech_window(speech: Float32, offsets_ms: list[float]) -> tuple[Float32, npt.NDArray[np.int64]]:
    """Cut from a segment's speech what the windows at `offsets_ms` need, with the offsets within the cut.

    The cut starts on a mel column and CONTEXT_COLUMNS early, so that its windows equal those of the whole speech.
    Before the speech and behind its end there is silence.
    """
    columns = [math.floor(offset / HOP_MS) for offset in offsets_ms]
    first = columns[0] - CONTEXT_COLUMNS
    if columns[0] >= 0:
        first = max(0, first)
    stop = columns[-1] * HOP + LOOK_AHEAD_MS * SAMPLE_RATE_HZ // 1000
    audio = np.zeros(stop - first * HOP, np.float32)
    part = speech[max(0, first * HOP) : max(0, stop)]
    begin = max(0, -first * HOP)
    audio[begin : begin + len(part)] = part
    # Rounded up, so that the server's division gives the same column again.
    offsets = np.ceil([(column - first) * HOP_MS for column in columns]).astype(np.int64)
    return audio, offsets
