"""Has the recogniser hear a segment before it has closed: the segmenter asks, `transcribe` answers, or nobody does.

Nothing here may hold a stream up for long or end it: a question that fails is unanswered, and silence decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from polylip.client.closing import Answer, Question, Word
from polylip.client.errors import ServerError
from polylip.client.pending import Outputs
from polylip.client.vad import SPEECH_RATE_HZ
from polylip.client.wire import Inputs, row, rows
from polylip.serving.engines import Status

TIMEOUT_S = 20.0  # of a question about a file, which waits: 10 s of speech take pocketsphinx 1.5 s on one core
LIVE_TIMEOUT_S = 2.0  # of one in a live stream, whose delay is fixed
BEHIND_MS = 3000  # sound that waits to be cut: a live stream this far behind stops asking until it has caught up
SPARE_S = 0.5  # beyond the deadline: a line that is lost waits for its server much longer
REST_S = 10.0  # after a failed question nothing is asked for so long: the server is busy with better things, or gone

HEARD = (Status.OK, Status.NO_SPEECH)


class Recogniser(Protocol):
    """A stream of its own: `transcribe` must not share one with a model that answers in parts."""

    async def call(self, model: str, inputs: Inputs, timeout_s: float) -> Outputs:
        """Send a request and wait for its single response. Raises ServerError."""
        ...


@dataclass
class SpeculationCounts:
    """What became of the questions."""

    asked: int = 0  # sent to the server
    failed: int = 0  # of these: refused, too late, or lost with the connection
    skipped: int = 0  # not sent: too far behind, or shortly after a failure
    audio_ms: int = 0  # sent
    wall_ms: float = 0.0  # waited for answers
    ahead: int = 0  # pieces of segments that went on, sent so that the recogniser could begin


class Speculation:
    """Asks `transcribe` for one stream of sound."""

    def __init__(
        self,
        recogniser: Recogniser,
        source_language: str,
        *,
        timeout_s: float = TIMEOUT_S,
        newest_ms: Callable[[], float] | None = None,
        incremental: bool = False,
    ) -> None:
        """`newest_ms` says how much sound has come, where it comes by itself (live); a file waits.

        `incremental`: the recogniser goes on where the sound of a request begins with that of the one before.
        """
        self._recogniser = recogniser
        self._source_language = source_language
        self._timeout_s = timeout_s
        self._newest_ms = newest_ms
        self._incremental = incremental
        self._resting_until = 0.0  # monotonic time
        self._ahead: asyncio.Task[None] | None = None  # ended and awaited in `close`
        self._ahead_resting_until = 0.0
        self.counts = SpeculationCounts()

    async def ask(self, question: Question) -> Answer | None:
        """What is heard; None when it cannot be known in time."""
        asked_at = time.monotonic()
        if asked_at < self._resting_until or self._behind(question):
            self.counts.skipped += 1
            return None
        self.counts.asked += 1
        self.counts.audio_ms += _length_ms(question)
        try:
            async with asyncio.timeout(self._timeout_s + SPARE_S):
                heard = row(await self._recogniser.call("transcribe", self._inputs(question), self._timeout_s))
        except (ServerError, TimeoutError):
            heard = {}
        answered_at = time.monotonic()
        self.counts.wall_ms += (answered_at - asked_at) * 1000
        if not heard or heard["STATUS"][0] not in HEARD:
            self.counts.failed += 1
            self._resting_until = answered_at + REST_S
            return None
        return _answer(heard, question.audio_start_ms)

    @property
    def is_free(self) -> bool:
        """Whether `go_ahead` is of use now: one piece at a time, and none shortly after a failure."""
        rested = time.monotonic() >= max(self._resting_until, self._ahead_resting_until)
        return self._incremental and rested and (self._ahead is None or self._ahead.done())

    def go_ahead(self, question: Question) -> None:
        """Have the recogniser begin with a segment that goes on; nobody waits for what it says."""
        if self.is_free and not self._behind(question):
            self.counts.ahead += 1
            self._ahead = asyncio.create_task(self._begin(question))

    async def close(self) -> None:
        """Leave what is under way."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)

    async def _begin(self, question: Question) -> None:
        inputs = {**self._inputs(question), **rows({"MORE": np.array([True])})}
        try:
            async with asyncio.timeout(self._timeout_s + SPARE_S):
                await self._recogniser.call("transcribe", inputs, self._timeout_s)
        except (ServerError, TimeoutError):
            self._ahead_resting_until = time.monotonic() + REST_S

    def _inputs(self, question: Question) -> Inputs:
        return rows({"AUDIO": question.audio, "SOURCE_LANGUAGE": self._source_language})

    def _behind(self, question: Question) -> bool:
        heard_ms = question.audio_start_ms + _length_ms(question)
        return self._newest_ms is not None and self._newest_ms() - heard_ms > BEHIND_MS


def _length_ms(question: Question) -> int:
    return len(question.audio) * 1000 // SPEECH_RATE_HZ


def _answer(heard: Outputs, start_ms: int) -> Answer:
    spans = zip(heard["WORDS"].tolist(), heard["WORD_SPANS_MS"].tolist(), strict=True)
    words = tuple(Word(str(text), start_ms + start, start_ms + end) for text, (start, end) in spans)
    return Answer(words, str(heard["SOURCE_TEXT"][0]), str(heard["DETECTED_LANGUAGE"][0]))
