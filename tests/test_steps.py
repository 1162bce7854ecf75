"""The steps of the speech line around their engines: each segment a result or a status, whatever an engine does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from polylip.serving import steps
from polylip.serving.engines import Passage, Speaker, Status, Transcript, Translation, Utterance
from polylip.serving.errors import EngineError, UnsupportedError
from polylip.serving.speaking import Line, Speaking

AUDIO = np.zeros(1600, np.float32)


class Touchy:
    """Hears and translates, except what it cannot; one bad job fails the whole call, as libraries do."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def transcribe(self, utterances: Sequence[Utterance]) -> list[Transcript]:
        self.calls.append(len(utterances))
        return [Transcript(self.fate(u.context), "en") for u in utterances]

    def translate(self, passages: Sequence[Passage]) -> list[Translation]:
        self.calls.append(len(passages))
        return [Translation(self.fate(p.text)) for p in passages]

    def resolve_language(self, language: str) -> str:
        if language == "eo":
            raise UnsupportedError("no eo")
        return language

    def fate(self, text: str) -> str:
        if text == "unsupported":
            raise UnsupportedError("cannot do it; can do: en")
        if text == "broken":
            raise EngineError("it broke\nbadly")
        return "" if text == "silent" else text.upper()


FATES = ["fine", "unsupported", "broken", "silent"]
STATUSES = [Status.OK, Status.UNSUPPORTED, Status.ERROR, Status.NO_SPEECH]


def test_a_failing_utterance_is_a_status_and_touches_no_other():
    engine = Touchy()
    heard = steps.transcribe(engine, [Utterance(AUDIO, "en", fate) for fate in FATES])
    assert [t.status for t in heard] == STATUSES
    assert [t.text for t in heard] == ["FINE", "", "", ""]
    assert [t.message for t in heard] == ["", "cannot do it; can do: en", "it broke badly", steps.NO_WORDS]
    assert engine.calls == [4, 1, 1, 1, 1], "together first, then each by itself"


def test_a_failing_passage_is_a_status_and_touches_no_other():
    done = steps.translate(Touchy(), [Passage(fate, "en", "es") for fate in FATES])
    assert [t.status for t in done] == STATUSES
    assert [t.message for t in done] == ["", "cannot do it; can do: en", "it broke badly", steps.NO_TRANSLATION]


def test_jobs_that_go_well_go_in_one_call():
    engine = Touchy()
    steps.translate(engine, [Passage(text, "en", "es") for text in ("a", "b", "c")])
    assert engine.calls == [3]
    assert steps.translate(engine, []) == []


def test_an_empty_passage_is_translated_to_nothing_without_complaint():
    assert steps.translate(Touchy(), [Passage("", "en", "es")]) == [Translation("")]


def test_a_known_text_in_a_language_that_nobody_knows_is_a_status():
    assert steps.known(Touchy(), "yes", "en").status is Status.OK
    assert steps.known(Touchy(), "yes", "eo").status is Status.UNSUPPORTED


class Breaking:
    """A voice that breaks in its second piece."""

    sample_rate_hz, speeds = 16_000, (1.0, 1.0)

    def pieces(self, text, language):
        if language == "eo":
            raise UnsupportedError("no eo; speaks: es")
        return text.split()

    def estimate_ms(self, piece, language):
        return 100.0

    def speaker(self, reference, stream):
        return Speaker(cloned=False)

    def say(self, piece, language, speaker, speed, cancelled) -> Iterator[np.ndarray]:
        if piece == "broken":
            raise EngineError("out of breath")
        yield np.ones(1600, np.float32)


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        (Line("one", "es"), (Status.OK, "")),
        (Line("", "es"), (Status.NO_SPEECH, steps.NOTHING_TO_SAY)),
        (Line("one", "eo"), (Status.UNSUPPORTED, "no eo; speaks: es")),
        (Line("one broken", "es"), (Status.ERROR, "out of breath")),
        (Line("one", "es", cancelled=lambda: True), (Status.CANCELLED, steps.CALLED_OFF)),
    ],
)
def test_speech_always_ends_with_how_it_stands(line, ends):
    spoken = list(steps.speak(Speaking(Breaking()), line))
    assert (spoken[-1].status, spoken[-1].message) == ends
    assert all(item.status is Status.OK for item in spoken[:-1])
    assert (spoken[-1].chunk.audio.size == 0) == (ends[0] is not Status.OK)


def test_the_status_of_an_earlier_step_is_passed_on_without_a_sound():
    [only] = steps.speak(Speaking(Breaking()), Line("one", "es"), Status.UNSUPPORTED, "no such pair")
    assert (only.status, only.message, only.chunk.audio.size) == (Status.UNSUPPORTED, "no such pair", 0)
