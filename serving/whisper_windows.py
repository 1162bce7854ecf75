"""Cuts a long segment into windows that a recogniser can take, and puts the words of its windows in order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from polylip.serving.engines import Float32
from polylip.serving.mel import SAMPLE_RATE_HZ

CUT_SEARCH_S = 5.0  # a long segment is cut where the last seconds of a window are quietest
CUT_FRAME_S = 0.1
SOUND_FRAME_S = 0.02
SOUND_RANGE_DB = 50.0  # below the loudest frame: the quietest consonants are some 40 dB below the loudest vowels
MIN_WORD_MS = 20  # Whisper's step of time: the alignment can give two words the same one


def cuts(audio: Float32, window_s: float) -> list[tuple[int, int]]:
    """Start and end of the windows that cover float32 (samples,), cut at the quietest places near their ends."""
    longest = int(window_s * SAMPLE_RATE_HZ)
    frame = int(CUT_FRAME_S * SAMPLE_RATE_HZ)
    frames = int(min(CUT_SEARCH_S, window_s / 2) / CUT_FRAME_S)
    start, parts = 0, []
    while len(audio) - start > longest:
        last = start + longest - frames * frame
        power = np.square(audio[last : start + longest]).reshape(frames, frame).mean(axis=1)
        quietest = frames - 1 - int(np.argmin(power[::-1]))  # the last of equals: fewer windows
        end = last + quietest * frame + frame // 2
        parts.append((start, end))
        start = end
    return [*parts, (start, len(audio))]


def sound_end(audio: Float32) -> int:
    """The sample behind the last sound in float32 (samples,): words do not reach into the silence after it."""
    frame = int(SOUND_FRAME_S * SAMPLE_RATE_HZ)
    padded = np.pad(audio, (0, -len(audio) % frame))
    power = np.square(padded.reshape(-1, frame)).mean(axis=1)
    sounding = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (-SOUND_RANGE_DB / 10))
    return min(int(sounding[-1] + 1) * frame, len(audio)) if sounding.size else len(audio)


def in_order(spans_ms: Iterable[tuple[int, int]], limit_ms: int) -> tuple[tuple[int, int], ...]:
    """The spans within 0 and the limit, none before the end of the one before, and none empty where there is room."""
    ordered, last = [], 0
    for start, end in spans_ms:
        start_ms = min(max(start, last), limit_ms)
        last = min(max(end, start_ms + MIN_WORD_MS), limit_ms)
        ordered.append((start_ms, last))
    return tuple(ordered)
