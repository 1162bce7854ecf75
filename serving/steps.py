"""The steps of the speech line around their engines: whatever an engine does, each segment gets a result or a status.

A status other than OK passes through the steps behind it, so the caller learns why a segment keeps its own sound and
the stream lives on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from polylip.serving import logs
from polylip.serving.engines import Passage, Status, Transcriber, Transcript, Translation, Translator, Utterance
from polylip.serving.errors import UnsupportedError
from polylip.serving.languages import normalise
from polylip.serving.speaking import Line, Speaking, SpeechChunk

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

AUTO = "auto"  # the engine finds the language out
NO_WORDS = "no words were recognised"
NO_TRANSLATION = "the translation is empty"
NOTHING_TO_SAY = "there is nothing to say"
CALLED_OFF = "the request was cancelled"
NO_SOUND = SpeechChunk(np.zeros(0, np.float32), 16_000, rate=1.0, engine_rate=1.0, estimate_ms=0.0, cloned=False)


@dataclass(frozen=True)
class Spoken:
    """A chunk of a segment's speech and how the segment stands; one that is not OK has no sound and is the last."""

    chunk: SpeechChunk
    status: Status = Status.OK
    message: str = ""

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any] | str]:
        """The outputs of `synthesize` that it makes itself."""
        chunk = self.chunk
        return {
            "AUDIO_CHUNK": chunk.audio,
            "SAMPLE_RATE_HZ": np.array([chunk.sample_rate_hz], dtype=np.int32),
            "SPEECH_RATE": np.array([chunk.rate], dtype=np.float32),
            "ENGINE_RATE": np.array([chunk.engine_rate], dtype=np.float32),
            "ESTIMATE_MS": np.array([round(chunk.estimate_ms)], dtype=np.int32),
            "VOICE_CLONED": np.array([chunk.cloned]),
            "STATUS": self.status,
            "STATUS_MESSAGE": self.message,
        }


def transcribe(engine: Transcriber, utterances: Sequence[Utterance], streams: Sequence[str] = ()) -> list[Transcript]:
    """One transcript per utterance; never raises for an engine's failure. `streams`: their ids, for the log."""

    def failed(utterance: Utterance, status: Status, message: str) -> Transcript:
        return Transcript("", utterance.language, status=status, message=message)

    def hear(some: Sequence[Utterance]) -> list[Transcript]:
        heard = engine.transcribe([replace(u, language=_known(u.language)) for u in some])
        return [replace(t, language=_known(t.language)) for t in heard]

    heard = _each(hear, utterances, failed, streams)
    return [
        Transcript("", t.language, confidence=t.confidence, status=Status.NO_SPEECH, message=NO_WORDS)
        if t.status is Status.OK and not t.text.strip()
        else t
        for t in heard
    ]


def known(engine: Transcriber, text: str, language: str) -> Transcript:
    """The transcript of a segment whose text the caller knows already."""
    try:
        return Transcript(text, normalise(engine.resolve_language(_known(language))), confidence=1.0)
    except UnsupportedError as error:
        return Transcript("", language, status=Status.UNSUPPORTED, message=str(error))


def translate(engine: Translator, passages: Sequence[Passage], streams: Sequence[str] = ()) -> list[Translation]:
    """One translation per passage; never raises for an engine's failure. `streams`: their ids, for the log."""

    def failed(passage: Passage, status: Status, message: str) -> Translation:
        return Translation("", status, message)

    def work(some: Sequence[Passage]) -> list[Translation]:
        return engine.translate([replace(p, source=normalise(p.source), target=normalise(p.target)) for p in some])

    done = _each(work, passages, failed, streams)
    return [
        Translation("", Status.NO_SPEECH, NO_TRANSLATION)
        if translation.status is Status.OK and passage.text.strip() and not translation.text.strip()
        else translation
        for passage, translation in zip(passages, done, strict=True)
    ]


def speak(speaking: Speaking, line: Line, status: Status = Status.OK, message: str = "") -> Iterator[Spoken]:
    """The speech of one segment, at least one item; `status` and `message` are those of the steps before."""
    if status is not Status.OK:
        yield Spoken(NO_SOUND, status, message)
        return
    said = False
    try:
        for chunk in speaking.speak(line):
            said = True
            yield Spoken(chunk)
    except Exception as error:
        yield Spoken(NO_SOUND, *describe(error, line.stream))
        return
    if line.cancelled():
        yield Spoken(NO_SOUND, Status.CANCELLED, CALLED_OFF)
    elif not said:
        yield Spoken(NO_SOUND, Status.NO_SPEECH, NOTHING_TO_SAY)


def joined(spoken: Sequence[Spoken]) -> Spoken:
    """All chunks of a segment as one; a segment that did not end well has no sound, as half a sentence helps nobody."""
    first, last = spoken[0], spoken[-1]
    if last.status is not Status.OK:
        return last
    return Spoken(replace(first.chunk, audio=np.concatenate([item.chunk.audio for item in spoken])))


def _known(language: str) -> str:
    """The ISO 639-1 code of a language tag; `auto` and nothing stay. Raises UnsupportedError."""
    return language if language in ("", AUTO) else normalise(language)


def _each(
    work: Callable[[Sequence[Job]], list[Result]],
    jobs: Sequence[Job],
    failed: Callable[[Job, Status, str], Result],
    streams: Sequence[str],
) -> list[Result]:
    """All jobs in one call; where that raises, each by itself, so that only the one at fault fails."""
    if not jobs:
        return []
    try:
        return work(jobs)
    except Exception as error:
        if len(jobs) > 1:
            return [result for i, job in enumerate(jobs) for result in _each(work, [job], failed, streams[i : i + 1])]
        return [failed(jobs[0], *describe(error, "".join(streams[:1])))]


def describe(error: Exception, stream: str = "") -> tuple[Status, str]:
    """The status and the one line that tell a caller of an exception; what is our own fault is logged, without it."""
    if isinstance(error, UnsupportedError):
        return Status.UNSUPPORTED, str(error)
    cause = " ".join(str(error).split())
    log.error("%s: %s", logs.named(stream), logs.cause(error))
    return Status.ERROR, cause or type(error).__name__
