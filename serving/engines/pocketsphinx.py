"""Transcriber of the lite profile: pocketsphinx with the US English model that its wheel carries."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from pocketsphinx import Decoder

from polylip.serving.engines import Parameters, Transcript, Utterance
from polylip.serving.errors import UnsupportedError
from polylip.serving.languages import unsupported_source
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.whisper_guards import is_silent

MS_PER_FRAME = 10  # the decoder counts time in frames of 10 ms
LANGUAGE = "en"
PAD_S = 0.25  # silence around a segment: the model wants some before the first word and after the last


class Pocketsphinx:
    """Reads flite's voices almost without error and real speech roughly."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        self._decoder = Decoder(samprate=SAMPLE_RATE_HZ, loglevel="FATAL")

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
        pad = np.zeros(int(PAD_S * SAMPLE_RATE_HZ), dtype=np.int16)
        pcm = np.clip(np.rint(audio * 32767.0), -32768, 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(np.concatenate([pad, pcm, pad]).tobytes(), full_utt=True)
        self._decoder.end_utt()
        words, spans, log_posteriors = [], [], []
        for segment in self._decoder.seg() or ():
            word = segment.word.split("(")[0]
            if not word or word[0] in "<[":
                continue
            start = segment.start_frame * MS_PER_FRAME - round(PAD_S * 1000)
            end = (segment.end_frame + 1) * MS_PER_FRAME - round(PAD_S * 1000)
            limit = round(len(audio) * 1000 / SAMPLE_RATE_HZ)
            words.append(word)
            spans.append((min(max(start, 0), limit), min(max(end, 0), limit)))
            log_posteriors.append(self._decoder.get_logmath().log_to_ln(segment.prob))
        confidence = math.exp(min(0.0, sum(log_posteriors) / len(words))) if words else 0.0
        return Transcript(_sentence(words), language, tuple(words), tuple(spans), confidence)


def _sentence(words: list[str]) -> str:
    """The words with a capital in front and the pronoun "I" as it is written: a lone "i" is no word to translators."""
    text = re.sub(r"\bi\b", "I", " ".join(words))
    return text[:1].upper() + text[1:]
