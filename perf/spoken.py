"""English sentences read aloud by flite's `rms`, which pocketsphinx reads without error: what the benchmarks hear."""

from __future__ import annotations

import subprocess
import tempfile
import wave
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polylip.serving.errors import MissingError
from polylip.serving.mel import SAMPLE_RATE_HZ

VOICE = "rms"
TIMEOUT_S = 60.0

Float32 = npt.NDArray[np.float32]


@cache
def read_aloud(text: str) -> Float32:
    """The text spoken: float32 (samples,) at 16 kHz, not to be written to. Raises MissingError."""
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "speech.wav")
        command = ["flite", "-voice", VOICE, "-t", text, "-o", str(sound)]
        try:
            subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
        except FileNotFoundError:
            raise MissingError("flite is not installed; apt-get install flite") from None
        with wave.open(str(sound)) as reader:
            assert (reader.getframerate(), reader.getnchannels()) == (SAMPLE_RATE_HZ, 1)  # noqa: S101  rms is that
            pcm = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
    audio = pcm.astype(np.float32) / 32768
    audio.flags.writeable = False
    return audio
