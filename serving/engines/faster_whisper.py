"""Transcriber of the cpu, onnx and gpu profiles: Whisper on CTranslate2, several segments in one pass.

A segment is cut into windows of at most 30 s, and the windows of all segments run together: one pass of the encoder,
then one of the decoder for all that have as long a context. A window that the guards doubt gets a second pass without
context and with a wide beam; nothing is sampled, so the same audio always gives the same words.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polylip.serving.engines import Float32, Parameters, Status, Transcript, Utterance
from polylip.serving.errors import EngineError, MissingError, UnsupportedError
from polylip.serving.languages import best_variant, unsupported_source
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.weights import find_weights
from polylip.serving.whisper_guards import Doubt, Pass, doubt, is_silent, loudest_dbfs, token_limit
from polylip.serving.whisper_languages import LANGUAGES, LONGER_CODES, UNSPACED, code_of, whisper_code
from polylip.serving.whisper_windows import cuts, in_order, sound_end

try:
    import ctranslate2
    from faster_whisper import WhisperModel
    from faster_whisper.feature_extractor import FeatureExtractor
    from faster_whisper.tokenizer import Tokenizer
    from faster_whisper.transcribe import get_suppressed_tokens, merge_punctuations
except ModuleNotFoundError as error:
    raise MissingError(f"{error.name} is not installed; run: pip install 'polylip[speech]'") from None

LOG = logging.getLogger("transcribe")

MODEL = "faster-whisper-small"
FILES = ("config.json", "model.bin", "tokenizer.json")
VOCABULARIES = ("vocabulary.txt", "vocabulary.json")  # older and newer conversions
COMPUTE_TYPES = {"cpu": "int8", "cuda": "float16"}  # default per device
BEAM_SIZE = 5  # OpenAI's own; beside the encoder it costs little: a fifth more than 1 in the decoder of `small`
SECOND_BEAM_SIZE = 5  # for a doubtful window where the first was narrower
MAX_BATCH = 8  # windows per pass: the encoder of `small` takes about 100 MB for each
WINDOW_S = 30.0  # what every Whisper was trained with
MIN_WINDOW_S = 5.0

MIN_AUDIO_S = 0.1  # no word is shorter
CONTEXT_TOKENS = 64  # some three sentences; more makes it likelier that they are repeated instead of heard
SPREAD = 2.0  # the features end 8 decades, which is 2 in their unit, under their loudest
FLOOR = -1.5  # of the features: 1e-10
PREPENDED = "\"'“¿([{-"  # punctuation that belongs to the word after it
APPENDED = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  and to the word before it


@dataclass(eq=False)
class Window:
    """A part of one utterance on its way through the passes."""

    utterance: Utterance
    start: int  # sample in the utterance
    audio: Float32
    code: str = ""  # Whisper's, once it is known
    siblings: Sequence[Window] = ()  # all windows of the utterance
    context: list[int] = field(default_factory=list)  # tokens
    heard: Pass | None = None
    tokens: list[int] = field(default_factory=list)
    doubt: Doubt | None = None
    spans_ms: list[tuple[int, int]] = field(default_factory=list)  # of its words, in the utterance
    error: str = ""

    @property
    def duration_s(self) -> float:
        return len(self.audio) / SAMPLE_RATE_HZ


class FasterWhisper:
    """Any Whisper in CTranslate2's format. It never asks the network: weights are fetched beforehand.

    Parameters: `model` (a folder of weights), `device` (cpu or cuda), `compute_type`, `threads` (0: one per core),
    `beam_size`, `max_batch`, `window_s` (only models that were trained for it bear less than 30).
    """

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        device = parameters.get("device", "cpu")
        if device not in COMPUTE_TYPES:
            raise ValueError(f"device is {device!r}; it can be {' or '.join(COMPUTE_TYPES)}")
        self._beam_size = _whole(parameters, "beam_size", BEAM_SIZE, 1)
        self._max_batch = _whole(parameters, "max_batch", MAX_BATCH, 1)
        self._window_s = float(parameters.get("window_s", WINDOW_S))
        if not MIN_WINDOW_S <= self._window_s <= WINDOW_S:
            raise ValueError(f"window_s is {self._window_s:g}; it can be {MIN_WINDOW_S:g} to {WINDOW_S:g}")
        threads = _whole(parameters, "threads", 0, 0) or len(os.sched_getaffinity(0))
        name = parameters.get("model", MODEL)
        remedy = f"polylip fetch {name}"
        folder = find_weights(name, version_dir, FILES, remedy)
        if not any((folder / vocabulary).is_file() for vocabulary in VOCABULARIES):
            raise MissingError(f"{folder} lacks {' or '.join(VOCABULARIES)}; run: {remedy}")
        self._model = _load(folder, device, parameters.get("compute_type", COMPUTE_TYPES[device]), threads, remedy)
        self._name = name
        self._multilingual = bool(self._model.model.is_multilingual)
        self._codes = self._known_codes()
        self._tokenizers: dict[str, Any] = {}
        self._features = FeatureExtractor(feature_size=self._model.model.n_mels)
        self._suppressed = get_suppressed_tokens(self._tokenizer("en"), [-1])

    def resolve_language(self, language: str) -> str:
        if language == "auto" and self._multilingual:
            raise UnsupportedError(
                f"{self._name} tells the language from speech, not from text; name it instead of auto"
            )
        return code_of(self._code(language))

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcript]:
        results = [self._refusal(utterance) for utterance in utterances]
        windows = [self._windows(u) if result is None else [] for u, result in zip(utterances, results, strict=True)]
        self._recognise([window for own in windows for window in own])
        return [result or self._transcript(own) for result, own in zip(results, windows, strict=True)]

    def _known_codes(self) -> frozenset[str]:
        """The languages of LANGUAGES and LONGER_CODES that this model has a token for."""
        if not self._multilingual:
            return frozenset({"en"})
        known = self._model.hf_tokenizer.token_to_id
        return frozenset(c for c in LANGUAGES | LONGER_CODES if known(f"<|{whisper_code(c)}|>") is not None)

    def _code(self, language: str) -> str:
        """Whisper's code for a language; an English model takes `auto` for English."""
        if language == "auto" and not self._multilingual:
            return "en"
        known = language if language in self._codes else best_variant(language, self._codes)
        if known is None:
            raise UnsupportedError(unsupported_source(self._name, language, self._codes))
        return whisper_code(known)

    def _refusal(self, utterance: Utterance) -> Transcript | None:
        """What can be said before any pass."""
        if utterance.cancelled():
            return _cancelled(utterance)
        if utterance.language != "auto" or not self._multilingual:
            try:
                self._code(utterance.language)
            except UnsupportedError as error:
                return Transcript("", utterance.language, status=Status.UNSUPPORTED, message=str(error))
        if not np.isfinite(utterance.audio).all():
            return _failed(utterance.language, "the audio holds NaN or infinite samples")
        if is_silent(utterance.audio):
            level = loudest_dbfs(utterance.audio)
            return _nothing(utterance.language, f"silence: the loudest 20 ms have {level:.0f} dBFS")
        if _seconds(utterance.audio) < MIN_AUDIO_S:
            return _nothing(utterance.language, f"too short for a word: {_ms(_seconds(utterance.audio))} ms")
        return None

    def _windows(self, utterance: Utterance) -> list[Window]:
        code = "" if utterance.language == "auto" and self._multilingual else self._code(utterance.language)
        windows = [
            Window(utterance, start, utterance.audio[start:end], code)
            for start, end in cuts(utterance.audio, self._window_s)
        ]
        windows[0].context = self._context(utterance.context)
        for window in windows:
            window.siblings = windows
        return windows

    def _context(self, text: str) -> list[int]:
        """The last tokens of the words before. Text that spells a special token is left out: it is no such token."""
        end = self._tokenizer("en").eot
        words = " " + text.strip() if text.strip() else ""
        tokens = self._model.hf_tokenizer.encode(words, add_special_tokens=False).ids
        return [token for token in tokens if token < end][-CONTEXT_TOKENS:]

    def _recognise(self, windows: Sequence[Window]) -> None:
        """Fill the windows, together where it can be, one by one where a pass with several fails."""
        audible = [window for window in windows if window.duration_s >= MIN_AUDIO_S and not is_silent(window.audio)]
        for first in range(0, len(audible), self._max_batch):
            batch = audible[first : first + self._max_batch]
            try:
                self._run(batch)
            except Exception as error:  # of one of them, or of their number
                if len(batch) > 1:
                    LOG.warning("a pass over %d windows failed (%s); they are repeated one by one", len(batch), error)
                for window in batch:
                    self._run_alone(window)

    def _run_alone(self, window: Window) -> None:
        try:
            self._run([window])
        except Exception as error:  # the process must outlive any utterance
            window.error = f"{self._name} failed: {_line(error)}"

    def _run(self, batch: Sequence[Window]) -> None:
        """Encode, tell the language, decode, decode the doubtful ones again, align."""
        windows = _wanted(batch)
        if not windows:
            return
        mel = np.stack([self._mel(window.audio) for window in windows])
        encoded = _Encoded(self._model.encode(mel), windows)
        if not _wanted(windows):
            return
        self._tell_languages(encoded)
        for group in _groups(windows, lambda window: len(window.context)):
            self._decode(encoded, group, self._beam_size)
        narrow = self._beam_size < SECOND_BEAM_SIZE
        doubtful = [w for w in windows if w.doubt and not w.doubt.final and (w.context or narrow)]
        for window in doubtful:
            window.context = []
        self._decode(encoded, doubtful, SECOND_BEAM_SIZE)
        spoken = [window for window in windows if window.doubt is None and window.tokens]
        for group in _groups(spoken, lambda window: window.code):
            self._align(encoded, group)

    def _mel(self, audio: Float32) -> Float32:
        """Log-mel features float32 (mels, frames) of the window, and of silence up to its full length."""
        extractor = self._features
        heard = extractor(audio, padding=extractor.n_fft)[:, : _frames(self._window_s)]
        floor = max(float(heard.max()) - SPREAD, FLOOR)
        missing = _frames(self._window_s) - heard.shape[1]
        return np.pad(heard, ((0, 0), (0, missing)), constant_values=floor).astype(np.float32)

    def _tell_languages(self, encoded: _Encoded) -> None:
        """The language of an utterance is that of its first window with a sound."""
        unknown = [window for window in encoded.windows if not window.code]
        firsts = [own[0] for own in _groups(unknown, lambda window: id(window.utterance))]
        if not firsts:
            return
        for first, told in zip(firsts, self._model.model.detect_language(encoded.rows(firsts)), strict=True):
            for window in first.siblings:
                window.code = told[0][0][2:-2]  # of <|en|>

    def _decode(self, encoded: _Encoded, windows: Sequence[Window], beam_size: int) -> None:
        """One pass of the decoder over windows with equally many tokens of context."""
        windows = _wanted(windows)
        if not windows:
            return
        prompts = [self._prompt(window) for window in windows]
        most = max(token_limit(window.duration_s) for window in windows)
        results = self._model.model.generate(
            encoded.rows(windows),
            prompts,
            beam_size=beam_size,
            max_length=max(2 * most, len(prompts[0]) + most),  # of which half, at most, is for what is said
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=list(self._suppressed),
        )
        for window, result in zip(windows, results, strict=True):
            self._take(window, result)

    def _prompt(self, window: Window) -> list[int]:
        tokenizer = self._tokenizer(window.code)
        before = [tokenizer.sot_prev, *window.context] if window.context else []
        return [*before, *tokenizer.sot_sequence, tokenizer.no_timestamps]

    def _take(self, window: Window, result: Any) -> None:
        """What a pass gave for the window, and whether it is trusted."""
        tokenizer = self._tokenizer(window.code)
        said = result.sequences_ids[0]
        window.tokens = [token for token in said if token < tokenizer.eot]
        text = tokenizer.decode(window.tokens).strip()
        words = tuple(word.strip() for word in tokenizer.split_to_word_tokens(window.tokens)[0] if word.strip())
        mean = result.scores[0] * len(said) / (len(said) + 1)  # of all tokens and the end
        spaced = window.code not in UNSPACED
        window.heard = Pass(text, words, len(said), mean, result.no_speech_prob, window.duration_s, spaced)
        window.doubt = doubt(window.heard, window.utterance.context if window.context else "")

    def _align(self, encoded: _Encoded, windows: Sequence[Window]) -> None:
        """When the words of windows in one language were said."""
        windows = _wanted(windows)
        if not windows:
            return
        alignments = self._model.find_alignment(
            self._tokenizer(windows[0].code),
            [window.tokens for window in windows],
            encoded.rows(windows),
            [max(_frames(sound_end(window.audio) / SAMPLE_RATE_HZ), _frames(MIN_AUDIO_S)) for window in windows],
        )
        for window, alignment in zip(windows, alignments, strict=True):
            merge_punctuations(alignment, PREPENDED, APPENDED)
            words = [timing for timing in alignment if timing["word"].strip()]
            assert window.heard is not None  # noqa: S101  a window without a pass has no tokens
            window.heard = replace(window.heard, words=tuple(timing["word"].strip() for timing in words))
            offset = window.start / SAMPLE_RATE_HZ
            window.spans_ms = [(_ms(offset + timing["start"]), _ms(offset + timing["end"])) for timing in words]

    def _transcript(self, windows: Sequence[Window]) -> Transcript:
        """The windows of one utterance as one."""
        utterance = windows[0].utterance
        language = next((code_of(window.code) for window in windows if window.code), utterance.language)
        if utterance.cancelled():
            return _cancelled(utterance)
        failed = next((window.error for window in windows if window.error), "")
        if failed:
            return _failed(language, failed)
        trusted = [w for w in windows if w.heard and w.heard.words and w.spans_ms and not w.doubt]
        doubts = [window.doubt.message for window in windows if window.doubt]
        if not trusted:
            return _nothing(language, f"not trusted: {doubts[0]}" if doubts else "no words were recognised")
        for message in doubts:
            LOG.info("left out a part of a segment: %s", message)
        heard = [window.heard for window in trusted if window.heard]
        tokens = [one.tokens + 1 for one in heard]
        mean = float(np.average([one.log_probability for one in heard], weights=tokens))
        joint = " " if heard[0].spaced else ""
        return Transcript(
            joint.join(one.text for one in heard),
            language,
            tuple(word for one in heard for word in one.words),
            in_order([span for window in trusted for span in window.spans_ms], _ms(_seconds(utterance.audio))),
            min(1.0, math.exp(mean)),
        )

    def _tokenizer(self, code: str) -> Any:
        if code not in self._tokenizers:
            self._tokenizers[code] = Tokenizer(self._model.hf_tokenizer, self._multilingual, "transcribe", code)
        return self._tokenizers[code]


class _Encoded:
    """What the encoder made of some windows, to be had for any of them."""

    def __init__(self, output: Any, windows: Sequence[Window]) -> None:
        self.windows = windows
        self._output = output
        self._array: Any = None

    def rows(self, windows: Sequence[Window]) -> Any:
        if list(windows) == list(self.windows):
            return self._output
        if self._array is None:
            self._array = np.array(self._output.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32))
        places = {id(window): place for place, window in enumerate(self.windows)}
        return ctranslate2.StorageView.from_array(
            np.ascontiguousarray(self._array[[places[id(window)] for window in windows]])
        )


def _load(folder: Path, device: str, compute_type: str, threads: int, remedy: str) -> Any:
    """The model in a folder that is there: the library asks no hub then. Raises EngineError for a damaged one."""
    if device == "cuda" and not ctranslate2.get_cuda_device_count():
        raise MissingError("no CUDA device is to be seen; give this machine a GPU, or set the parameter device to cpu")
    try:
        return WhisperModel(
            str(folder), device=device, compute_type=compute_type, cpu_threads=threads, local_files_only=True
        )
    except ValueError as error:
        raise ValueError(f"{folder} cannot be run on {device}: {_line(error)}") from None
    except Exception as error:
        raise EngineError(f"{folder} cannot be loaded: {_line(error)}; run again: {remedy}") from None


def _wanted(windows: Iterable[Window]) -> list[Window]:
    return [window for window in windows if not window.utterance.cancelled()]


def _groups(windows: Iterable[Window], key: Callable[[Window], Any]) -> list[list[Window]]:
    """The windows by what the library wants to be the same in one pass."""
    groups: dict[Any, list[Window]] = {}
    for window in windows:
        groups.setdefault(key(window), []).append(window)
    return list(groups.values())


def _cancelled(utterance: Utterance) -> Transcript:
    return Transcript("", utterance.language, status=Status.CANCELLED, message="nobody waits for it any more")


def _failed(language: str, message: str) -> Transcript:
    return Transcript("", language, status=Status.ERROR, message=message)


def _nothing(language: str, message: str) -> Transcript:
    return Transcript("", language, status=Status.NO_SPEECH, message=message)


def _whole(parameters: Parameters, name: str, default: int, least: int) -> int:
    text = parameters.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is {text!r}; it must be a whole number from {least}")
    return int(text)


def _frames(seconds: float) -> int:
    return round(seconds * 100)  # every 10 ms one


def _seconds(audio: Float32) -> float:
    return len(audio) / SAMPLE_RATE_HZ


def _ms(seconds: float) -> int:
    return round(float(seconds) * 1000)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
