"""Checks on what a client sent, with messages that name the cause and the remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.serving.mel import SAMPLE_RATE_HZ

MAX_AUDIO_S = 60  # a segment is at most 10 s and a voice reference at most 30 s: more is a mistake or an attack


def require_audio(audio: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """Float32 (samples,) that is not empty, finite and at most MAX_AUDIO_S long at 16 kHz. Raises ValueError."""
    if audio.ndim != 1 or audio.size == 0:
        raise ValueError(f"{name} must be a non-empty row of samples, it has shape {list(audio.shape)}")
    if audio.size > MAX_AUDIO_S * SAMPLE_RATE_HZ:
        raise ValueError(f"{name} lasts {audio.size / SAMPLE_RATE_HZ:.0f} s; send at most {MAX_AUDIO_S} s per request")
    if not np.isfinite(audio).all():
        raise ValueError(f"{name} holds NaN or infinite samples; send samples between -1 and 1")
    return audio.astype(np.float32, copy=False)
