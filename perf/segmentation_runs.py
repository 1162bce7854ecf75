"""Streams through the client's segmenter, with a recogniser whose time counts as it would in a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from polylip.client.boundary import BoundaryScorer, boundary_scorer
from polylip.client.closing import Answer, Policy, Question, Word
from polylip.client.listening import LIVE_READ_S
from polylip.client.segmentation import Segment, Segmenter
from polylip.client.speculation import BEHIND_MS
from polylip.client.vad import VadChoice, make_vad
from polylip.perf.segmentation_metrics import Hearing, Run, Sent
from polylip.perf.segmentation_streams import Stream
from polylip.perf.segmentation_voices import Float32
from polylip.serving.engines import Transcript, Utterance
from polylip.serving.engines.pocketsphinx import Pocketsphinx
from polylip.serving.mel import SAMPLE_RATE_HZ

HALF_A_WORD = 0.5  # of a word's length must be in the sound for the told words to hold it
TOLD_MS = 150.0  # assumed for a recogniser that is only simulated


class Recogniser(Protocol):
    """Knows the words of a sound."""

    def begin(self, audio: Float32) -> float:
        """Go as far as a sound goes that is not at its end; the milliseconds of work."""

    def hear(self, audio: Float32, start_ms: int) -> tuple[Answer, float]:
        """The words of a sound that begins at `start_ms`, and the milliseconds of work that were left."""


class Sphinx:
    """The engine of the lite profile, timed in CPU time: it has one thread, and others may use the machine."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives the stream's time in seconds."""
        self._engine = Pocketsphinx({"incremental": "true"}, "", clock=clock)

    def begin(self, audio: Float32) -> float:
        return self._timed(Utterance(audio, "en", more=True))[1]

    def hear(self, audio: Float32, start_ms: int) -> tuple[Answer, float]:
        transcript, taken_ms = self._timed(Utterance(audio, "en"))
        spans = zip(transcript.words, transcript.spans_ms, strict=True)
        words = tuple(Word(text, start_ms + start, start_ms + end) for text, (start, end) in spans)
        return Answer(words, transcript.text, transcript.language), taken_ms

    def _timed(self, utterance: Utterance) -> tuple[Transcript, float]:
        started = time.thread_time()
        transcript = self._engine.transcribe([utterance])[0]
        return transcript, (time.thread_time() - started) * 1000


class Told:
    """A simulated recogniser: the stream's own words with their marks, and a full stop behind whatever comes last."""

    def __init__(self, stream: Stream, language: str) -> None:
        self._stream = stream
        self._language = language

    def hear(self, audio: Float32, start_ms: int) -> tuple[Answer, float]:
        end_ms = start_ms + len(audio) * 1000 / SAMPLE_RATE_HZ
        heard = [
            Word(word.written, round(word.start_ms), round(word.end_ms))
            for word in self._stream.words
            for overlap_ms in [min(word.end_ms, end_ms) - max(word.start_ms, start_ms)]
            if overlap_ms > HALF_A_WORD * (word.end_ms - word.start_ms)
        ]
        if heard:
            heard[-1] = replace(heard[-1], text=heard[-1].text.rstrip(",;:.?!") + ".")
        return Answer(tuple(heard), " ".join(word.text for word in heard), self._language), TOLD_MS

    def begin(self, audio: Float32) -> float:
        return 0.0


class Watched:
    """A scorer that remembers what it said and how long that took."""

    def __init__(self, scorer: BoundaryScorer) -> None:
        self._scorer = scorer
        self._taken_ms = 0.0
        self._first: float | None = None

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        started = time.thread_time()
        found = self._scorer.probability(words, following)
        self._taken_ms += (time.thread_time() - started) * 1000
        if not following and self._first is None:
            self._first = found
        return found

    def take(self) -> tuple[float, float | None]:
        """Since the last call: the milliseconds, and the first probability without following words."""
        taken = self._taken_ms, self._first
        self._taken_ms, self._first = 0.0, None
        return taken


def run(stream: Stream, policy: Policy, language: str, vad: VadChoice) -> Run:
    """The stream, in pieces as long as a live client reads them."""
    driver = _Driver(stream, policy, language, vad)
    piece = round(LIVE_READ_S * SAMPLE_RATE_HZ)
    for start in range(0, len(stream.audio), piece):
        driver.take(driver.segmenter.push(stream.audio[start : start + piece]))
        driver.go_ahead()
    driver.take(driver.segmenter.flush())
    return Run(replace(stream, audio=np.zeros(0, np.float32)), tuple(driver.sent), tuple(driver.heard))


class _Driver:
    """Answers questions one after the other, so that a slow answer delays those behind it and what waits for them.

    As in the client: the segmenter stands still until its question is answered, and one that comes too late is not
    asked; the recogniser begins with a segment while it goes on, a piece at a time. Segments whose words are not known
    yet keep the same engine busy.
    """

    def __init__(self, stream: Stream, policy: Policy, language: str, vad: VadChoice) -> None:
        self._watched = Watched(boundary_scorer(language))
        self.segmenter = Segmenter(make_vad(vad), policy, scorer=lambda _: self._watched)
        self._recogniser: Recogniser = Told(stream, language)
        if language == "en":
            self._recogniser = Sphinx(lambda: self.segmenter.heard_ms / 1000)
        self._ahead = policy is not Policy.SILENCE
        self._ready_ms = 0.0  # when all that was asked so far has been heard and scored
        self._engine_ms = 0.0  # when the recogniser has done all its work
        self._unscored = False  # whether the newest question's score is still to come
        self.sent: list[Sent] = []
        self.heard: list[Hearing] = []

    def take(self, items: Iterator[Segment | Question]) -> None:
        for item in items:
            self._count_scorer()
            if isinstance(item, Question):
                self._answer(item)
            else:
                self._send(item)
        self._count_scorer()

    def go_ahead(self) -> None:
        """Have the recogniser begin with a segment that goes on, if it has nothing else to do."""
        now_ms = self.segmenter.heard_ms
        if self._ahead and self._engine_ms <= now_ms and (question := self.segmenter.progress()) is not None:
            self._work(now_ms, self._recogniser.begin(question.audio))

    def _answer(self, question: Question) -> None:
        if self._ready_ms - self.segmenter.heard_ms > BEHIND_MS:
            return
        answer, taken_ms = self._recogniser.hear(question.audio, question.audio_start_ms)
        self._ready_ms = self._work(max(self._ready_ms, self.segmenter.heard_ms), taken_ms)
        self.segmenter.answer(question, answer)
        sound_ms = len(question.audio) * 1000 / SAMPLE_RATE_HZ
        words = " ".join(word.text for word in answer.words)
        self.heard.append(Hearing(question.asked, question.pause_start_ms, sound_ms, taken_ms, words))
        self._unscored = True

    def _send(self, segment: Segment) -> None:
        sent_ms = words_ms = max(segment.decided_ms, self._ready_ms)
        if not segment.known_text:
            words_ms = self._work(sent_ms, self._recogniser.hear(segment.audio, segment.audio_start_ms)[1])
        self.sent.append(Sent(segment.start_ms, segment.end_ms, sent_ms, words_ms, segment.closed_by, segment.forced))

    def _work(self, now_ms: float, taken_ms: float) -> float:
        """When the recogniser has done what it is given now."""
        self._engine_ms = max(self._engine_ms, now_ms) + taken_ms
        return self._engine_ms

    def _count_scorer(self) -> None:
        taken_ms, first = self._watched.take()
        self._ready_ms += taken_ms
        if self._unscored and taken_ms:
            self.heard[-1] = replace(self.heard[-1], scorer_ms=taken_ms, probability=first)
            self._unscored = False
