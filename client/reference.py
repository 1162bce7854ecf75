"""Reference speech for cloning the speaker's voice, gathered from the segments themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polylip.client.segmentation import SPEECH_RATE_HZ

Float32 = npt.NDArray[np.float32]

LEAST_S = 1.0  # a voice cannot be known from less
ENOUGH_S = 10.0  # XTTS-v2 hears about this much of a voice; more changes nothing but the cost


class VoiceReference:
    """Grows with each segment until it is long enough, then stays as it is, so that a voice is prepared only once."""

    def __init__(self) -> None:
        self._audio = np.zeros(0, np.float32)

    def add(self, speech: Float32) -> None:
        """Speech float32 (samples,) at 16 kHz of the person to be dubbed."""
        room = round(ENOUGH_S * SPEECH_RATE_HZ) - len(self._audio)
        if room > 0:
            self._audio = np.concatenate([self._audio, speech[:room]])

    @property
    def gathered(self) -> Float32:
        """So far, however little."""
        return self._audio

    def restore(self, gathered: Float32) -> None:
        self._audio = gathered

    @property
    def audio(self) -> Float32 | None:
        """float32 (samples,) at 16 kHz, or None while there is too little."""
        return self._audio if len(self._audio) >= LEAST_S * SPEECH_RATE_HZ else None
