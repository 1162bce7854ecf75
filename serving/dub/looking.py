"""Which frames of a segment are looked at, and the chunks in which a network takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

KEY_FRAME_MS = 190  # from one key frame to the next: every fifth of 25 frames/s, with room for rounded times
DETECT_BATCH = 16  # max_batch_size of `detect`
LIPS_BATCH = 16  # half of max_batch_size of `lips`, so that two streams fit into one pass


def key_frames(frame_ms: Int64) -> list[int]:
    """Indices of the first frame, then of each that is KEY_FRAME_MS later, and of the last: nothing is extrapolated."""
    keys: list[int] = []
    for index, time_ms in enumerate(frame_ms.tolist()):
        if not keys or time_ms - int(frame_ms[keys[-1]]) >= KEY_FRAME_MS or index == len(frame_ms) - 1:
            keys.append(index)
    return keys


def chunks(count: int, size: int) -> Iterator[slice]:
    """Of so many items, at most `size` each."""
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def detect(frames: list[UInt8], call: Callable[[UInt8], tuple[Float32, Float32]]) -> tuple[Float32, Float32]:
    """Boxes float32 (frames, candidates, 4) and scores (frames, candidates) of key frames uint8 (h, w, 3).

    `call` takes at most DETECT_BATCH frames; where it has found fewer candidates the rest is padded with score 0.
    """
    parts = [call(np.stack(frames[part])) for part in chunks(len(frames), DETECT_BATCH)]
    if not parts:
        return np.zeros((0, 0, 4), np.float32), np.zeros((0, 0), np.float32)
    widest = max(scores.shape[1] for _, scores in parts)
    boxes = [np.pad(b, ((0, 0), (0, widest - b.shape[1]), (0, 0))) for b, _ in parts]
    scores = [np.pad(s, ((0, 0), (0, widest - s.shape[1]))) for _, s in parts]
    return np.concatenate(boxes), np.concatenate(scores)
