"""Transcriber of the lite profile: pocketsphinx with the US English model that its wheel carries.

A whole sound is decoded in two passes. One that is still coming (`Utterance.more`) is decoded as it grows, so that
little is left to be done when its last piece is there.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pocketsphinx import Decoder

from polylip.serving.engines import Parameters, Transcript, Utterance
from polylip.serving.errors import UnsupportedError
from polylip.serving.languages import unsupported_source
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.whisper_guards import is_silent

Int16 = npt.NDArray[np.int16]

MS_PER_FRAME = 10  # the decoder counts time in frames of 10 ms
LANGUAGE = "en"
PAD_S = 0.25  # silence around a segment: the model wants some before the first word and after the last
LEASE_S = 2.0  # an unfinished sound keeps its decoder so long between two pieces; that of another stream goes without


class Pocketsphinx:
    """Reads flite's voices almost without error and real speech roughly."""

    def __init__(
        self, parameters: Parameters, version_dir: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._decoder = Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL")
        self._growing = _Growing(self._decoder, clock) if parameters.get("incremental") == "true" else None

    def resolve_language(self, language: str) -> str:
        if language not in ("auto", LANGUAGE):
            raise UnsupportedError(unsupported_source("pocketsphinx", language, [LANGUAGE]))
        return LANGUAGE

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcript]:
        return [self._transcribe(utterance) for utterance in utterances]

    def _transcribe(self, utterance: Utterance) -> Transcript:
        audio, language = utterance.audio, self.resolve_language(utterance.language)
        if is_silent(audio):  # it hears "And" and "I'm" in digital silence, and is sure of it
            return Transcript("", language)
        pcm = np.clip(np.rint(audio * 32767.0), -32768, 32767).astype(np.int16)
        if self._growing is not None and utterance.more:
            heard = self._growing.go_on(pcm)
        elif self._growing is not None and self._growing.is_begin_of(pcm):
            heard = self._growing.finish(pcm)
        else:
            heard = self._whole(pcm)
        limit = round(len(audio) * 1000 / SAMPLE_RATE_HZ)
        spans = tuple((min(max(w.start_ms, 0), limit), min(max(w.end_ms, 0), limit)) for w in heard)
        confidence = math.exp(min(0.0, sum(w.log_posterior for w in heard) / len(heard))) if heard else 0.0
        words = tuple(w.text for w in heard)
        return Transcript(_sentence(words), language, words, spans, confidence)

    def _whole(self, pcm: Int16) -> list[_Word]:
        pad = np.zeros(int(PAD_S * SAMPLE_RATE_HZ), dtype=np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(np.concatenate([pad, pcm, pad]).tobytes(), full_utt=True)
        self._decoder.end_utt()
        return _words(self._decoder, -round(PAD_S * 1000))


@dataclass(frozen=True)
class _Word:
    """A word that was heard, by the time in its sound."""

    text: str
    start_ms: int
    end_ms: int
    log_posterior: float


class _Growing:
    """One sound that is decoded while it grows; only the second pass is left to its end.

    A whole sound is normalised with its mean cepstrum, this one with that of its first piece: a few more errors.
    """

    def __init__(self, whole: Decoder, clock: Callable[[], float]) -> None:
        """`whole` makes the cepstra of a first piece; `clock` gives seconds."""
        self._whole = whole
        self._clock = clock
        self._decoder = Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL")
        self._heard: Int16 | None = None  # what it has decoded so far
        self._until = 0.0  # on the clock: then another sound may begin

    def go_on(self, pcm: Int16) -> list[_Word]:
        """The words so far; none while another sound is under way."""
        if not self.is_begin_of(pcm):
            if self._heard is not None and self._clock() < self._until:
                return []
            self._begin(pcm)
        self._add(pcm)
        self._until = self._clock() + LEASE_S
        return [replace(word, log_posterior=-math.inf) for word in _words(self._decoder)]  # not known before the end

    def is_begin_of(self, pcm: Int16) -> bool:
        """Whether the sound under way is what `pcm` begins with."""
        return self._heard is not None and np.array_equal(pcm[: len(self._heard)], self._heard)

    def finish(self, pcm: Int16) -> list[_Word]:
        """The words of all of it."""
        self._add(pcm)
        self._end()
        return _words(self._decoder)

    def _begin(self, pcm: Int16) -> None:
        if self._heard is not None:
            self._end()
        self._decoder.set_cmn(self._mean_cepstrum(pcm))
        self._decoder.start_utt()
        self._heard = pcm[:0]

    def _add(self, pcm: Int16) -> None:
        assert self._heard is not None  # noqa: S101  only called with a sound under way
        if len(pcm) > len(self._heard):  # the decoder refuses nothing
            self._decoder.process_raw(pcm[len(self._heard) :].tobytes())
        self._heard = pcm

    def _end(self) -> None:
        self._heard = None
        self._decoder.end_utt()

    def _mean_cepstrum(self, pcm: Int16) -> str:
        """In the decoder's own notation, within 1 ms."""
        self._whole.start_utt()
        self._whole.process_raw(pcm.tobytes(), no_search=True, full_utt=True)
        mean = str(self._whole.get_cmn())
        self._whole.end_utt()
        return mean


def _words(decoder: Decoder, offset_ms: int = 0) -> list[_Word]:
    """Those of the utterance under way, or of the last one; `offset_ms` moves their times."""
    heard, to_ln = [], decoder.get_logmath().log_to_ln
    for segment in decoder.seg() or ():
        text = segment.word.split("(")[0]
        if not text or text[0] in "<[":
            continue
        start_ms = segment.start_frame * MS_PER_FRAME + offset_ms
        end_ms = (segment.end_frame + 1) * MS_PER_FRAME + offset_ms
        heard.append(_Word(text, start_ms, end_ms, to_ln(segment.prob)))
    return heard


def _sentence(words: Sequence[str]) -> str:
    """The words with a capital in front and the pronoun "I" as it is written: a lone "i" is no word to translators."""
    text = re.sub(r"\bi\b", "I", " ".join(words))
    return text[:1].upper() + text[1:]
