"""Voice of the lite profile: espeak-ng, read from a pipe so that chunks leave while it speaks."""

from __future__ import annotations

import math
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import IO

import numpy as np

from polylip.serving.engines import Float32, Parameters, SpeechChunk
from polylip.serving.errors import EngineError, UnsupportedError
from polylip.serving.isochrony import HARD_MAX_RATE, MIN_RATE, Slot, fit_rate

NORMAL_WORDS_PER_MINUTE = 165  # espeak-ng's default is 175; a little slower is easier to follow
# espeak-ng counts whole words per minute; rounding must not leave the range of rates.
SLOWEST = math.ceil(NORMAL_WORDS_PER_MINUTE * MIN_RATE)
FASTEST = math.floor(NORMAL_WORDS_PER_MINUTE * HARD_MAX_RATE)
CHUNK_S = 0.25  # small enough for an early first chunk, large enough to keep gRPC messages few
WAV_HEADER_BYTES = 44
TIMEOUT_S = 20.0  # a sentence takes 0.05 s; a hung process must not hold the stream
SILENCE = 10 ** (-50 / 20)  # below this the tail of an utterance is silence, not speech
KEEP_TAIL_S = 0.08  # of the trailing silence: a hard stop clicks


class Espeak:
    """Speaks at the rate that fills the slot; the duration is measured by a first, silent pass."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        self._languages = installed_languages()

    def speak(self, text: str, language: str, voice: Float32 | None, slot: Slot) -> Iterator[SpeechChunk]:
        if language not in self._languages:
            raise UnsupportedError(
                f"target language {language!r} has no espeak-ng voice; supported: {', '.join(sorted(self._languages))}"
            )
        if not text.strip():
            return
        rate = 1.0
        if slot.given:
            natural = sum(len(c.audio) / c.sample_rate_hz for c in self._stream(text, language, 1.0))
            rate = fit_rate(natural * 1000, slot)
        yield from self._stream(text, language, rate)

    def _stream(self, text: str, language: str, rate: float) -> Iterator[SpeechChunk]:
        """Chunks of about CHUNK_S; trailing silence is held back and dropped when nothing follows it."""
        words_per_minute = min(max(round(NORMAL_WORDS_PER_MINUTE * rate), SLOWEST), FASTEST)
        with _espeak(["-v", language, "-s", str(words_per_minute), "--stdin", "--stdout"], text) as stdout:
            header = stdout.read(WAV_HEADER_BYTES)
            if len(header) < WAV_HEADER_BYTES:
                raise EngineError("espeak-ng made no sound")
            sample_rate_hz = struct.unpack_from("<I", header, 24)[0]
            held = np.zeros(0, dtype=np.float32)
            while data := stdout.read(int(CHUNK_S * sample_rate_hz) * 2):
                audio = np.concatenate([held, np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768.0])
                keep = min(_last_sound(audio) + int(KEEP_TAIL_S * sample_rate_hz), len(audio))
                audio, held = audio[:keep], audio[keep:]
                if len(audio):
                    yield SpeechChunk(audio, sample_rate_hz, words_per_minute / NORMAL_WORDS_PER_MINUTE)


def installed_languages() -> frozenset[str]:
    """ISO 639-1 codes that espeak-ng has a voice for."""
    with _espeak(["--voices"], "") as stdout:
        lines = stdout.read().decode("utf-8", "replace").splitlines()[1:]
    codes = {line.split()[1].split("-")[0] for line in lines if line.split()}
    return frozenset(code for code in codes if len(code) == 2)


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
