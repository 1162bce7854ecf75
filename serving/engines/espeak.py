"""Voice of the lite profile: espeak-ng, read from a pipe so that chunks leave while it speaks."""

from __future__ import annotations

import math
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import IO

import numpy as np

from polylip.serving.engines import Cancelled, Float32, Parameters, Speaker
from polylip.serving.errors import EngineError, UnsupportedError
from polylip.serving.isochrony import HARD_MAX_RATE, MIN_RATE
from polylip.serving.languages import best_variant, shared_codes, unsupported_target

NORMAL_WORDS_PER_MINUTE = 165  # espeak-ng's default is 175; a little slower is easier to follow
# espeak-ng counts whole words per minute; rounding must not leave the range of rates.
SLOWEST = math.ceil(NORMAL_WORDS_PER_MINUTE * MIN_RATE)
FASTEST = math.floor(NORMAL_WORDS_PER_MINUTE * HARD_MAX_RATE)
CHUNK_S = 0.25  # small enough for an early first chunk, large enough to keep gRPC messages few
WAV_HEADER_BYTES = 44
TIMEOUT_S = 20.0  # a sentence takes 0.05 s; a hung process must not hold the stream
SILENCE = 10 ** (-50 / 20)  # below this the tail of an utterance is silence, not speech
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u3002\uff01\uff1f])\s+(?=\S)"
)  # each sentence is spoken while the one before is heard
KEEP_TAIL_S = 0.08  # of the trailing silence: a hard stop clicks


class Espeak:
    """A stock voice for each of its languages; it cannot clone. Durations are measured by a first, silent pass."""

    sample_rate_hz = 22_050  # of its formant voices
    speeds = (MIN_RATE, HARD_MAX_RATE)

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        self._voices = installed_voices()

    def pieces(self, text: str, language: str) -> list[str]:
        self._voice(language)
        return _SENTENCE_END.split(text.strip()) if text.strip() else []

    def estimate_ms(self, piece: str, language: str) -> float:
        return sum(len(audio) for audio in self._stream(piece, language, 1.0)) * 1000 / self.sample_rate_hz

    def speaker(self, reference: Float32 | None, stream: str) -> Speaker:
        return Speaker(cloned=False)

    def say(self, piece: str, language: str, speaker: Speaker, speed: float, cancelled: Cancelled) -> Iterator[Float32]:
        for audio in self._stream(piece, language, speed):
            if cancelled():
                return
            yield audio

    def _voice(self, language: str) -> str:
        voice = best_variant(language, self._voices)
        if voice is None:
            raise UnsupportedError(unsupported_target("espeak-ng", language, shared_codes(self._voices)))
        return voice

    def _stream(self, text: str, language: str, rate: float) -> Iterator[Float32]:
        """Chunks of about CHUNK_S; trailing silence is held back and dropped when nothing follows it."""
        words_per_minute = min(max(round(NORMAL_WORDS_PER_MINUTE * rate), SLOWEST), FASTEST)
        with _espeak(["-v", self._voice(language), "-s", str(words_per_minute), "--stdin", "--stdout"], text) as stdout:
            header = stdout.read(WAV_HEADER_BYTES)
            if len(header) < WAV_HEADER_BYTES:
                raise EngineError("espeak-ng made no sound")
            sample_rate_hz = struct.unpack_from("<I", header, 24)[0]
            if sample_rate_hz != self.sample_rate_hz:
                raise EngineError(
                    f"this espeak-ng speaks at {sample_rate_hz} Hz; install Debian's, with its own voices"
                )
            held = np.zeros(0, dtype=np.float32)
            while data := stdout.read(int(CHUNK_S * sample_rate_hz) * 2):
                audio = np.concatenate([held, np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768.0])
                keep = min(_last_sound(audio) + int(KEEP_TAIL_S * sample_rate_hz), len(audio))
                audio, held = audio[:keep], audio[keep:]
                if len(audio):
                    yield audio


def installed_languages() -> frozenset[str]:
    """ISO 639-1 codes that espeak-ng has a voice for."""
    return shared_codes(installed_voices())


def installed_voices() -> frozenset[str]:
    """espeak-ng's own names of its voices: en-us, es-419, cmn."""
    with _espeak(["--voices"], "") as stdout:
        lines = stdout.read().decode("utf-8", "replace").splitlines()[1:]
    return frozenset(line.split()[1] for line in lines if line.split())


def _last_sound(audio: Float32) -> int:
    """Index behind the last sample louder than SILENCE, 0 when there is none."""
    loud = np.flatnonzero(np.abs(audio) > SILENCE)
    return int(loud[-1]) + 1 if loud.size else 0


@contextmanager
def _espeak(arguments: list[str], text: str) -> Iterator[IO[bytes]]:
    """The standard output of an espeak-ng process, which is gone when the block ends, however it ends."""
    try:
        process = subprocess.Popen(["espeak-ng", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise EngineError("espeak-ng is not installed; apt-get install espeak-ng") from None
    assert process.stdin is not None and process.stdout is not None  # noqa: S101  both were asked for
    watchdog = Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    hung = False
    try:
        # A segment's text (10 s of speech) is far below the pipe's 64 KiB, so this cannot block on a full pipe.
        process.stdin.write(text.encode("utf-8"))
        process.stdin.close()
        yield process.stdout
        hung = not watchdog.is_alive()  # it has fired: what was read is cut short
    finally:
        watchdog.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
    if hung:
        raise EngineError(f"espeak-ng did not finish within {TIMEOUT_S:.0f} s")
