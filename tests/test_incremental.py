"""Recognition that works ahead: a segment's beginning is sent while it is spoken, and its end takes little time."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from material import RATE_HZ, read_aloud
from test_segmentation import SILENCE, SPEECH, LateVad, sound
from test_speculation import TIMEOUT_S, Sound, listen, segmenter

from polylip.client.closing import FIRST_PROGRESS_MS, PROGRESS_MS, Asked, Policy, Question
from polylip.client.segmentation import Segmenter
from polylip.client.speculation import REST_S, Speculation
from polylip.client.triton import TritonClient
from polylip.client.vad import EnergyVad, Vad
from polylip.perf.demo_clip import SENTENCES
from polylip.serving.engines import Transcript, Utterance, pocketsphinx
from polylip.serving.engines.pocketsphinx import Pocketsphinx
from polylip.serving.launcher import Server

PIECE = RATE_HZ // 2
FIRST, SECOND = SENTENCES[0], SENTENCES[3]


@pytest.fixture(scope="module")
def engine() -> Pocketsphinx:
    return Pocketsphinx({"incremental": "true"}, "")


def words(text: str) -> str:
    return text.strip(".").lower()


def hear(engine: Pocketsphinx, audio: np.ndarray, *, more: bool = False) -> Transcript:
    [heard] = engine.transcribe([Utterance(audio, "en", more=more)])
    return heard


def hear_growing(engine: Pocketsphinx, audio: np.ndarray, behind: int = PIECE) -> list[Transcript]:
    """Pieces of what is there so far, but for the last `behind` samples."""
    return [hear(engine, audio[:end], more=True) for end in range(RATE_HZ, len(audio) - behind, PIECE)]


@pytest.mark.parametrize("sentence", SENTENCES[:2])
def test_a_sound_that_grew_is_heard_as_a_whole_one(engine, sentence):
    audio = read_aloud(sentence)
    parts = hear_growing(engine, audio)
    grown, whole = hear(engine, audio), hear(engine, audio)
    assert words(grown.text) == words(whole.text) == words(sentence)
    assert 0 < grown.confidence <= 1
    assert np.abs(np.array(grown.spans_ms) - np.array(whole.spans_ms)).max() <= 100
    assert words(sentence).startswith(" ".join(parts[0].words[:1]))
    assert {part.confidence for part in parts} == {0.0}, "not known before the end"


def test_the_last_piece_takes_a_fraction_of_the_whole(engine):
    audio = read_aloud(SENTENCES[1])
    hear_growing(engine, audio)
    began = time.thread_time()
    hear(engine, audio)
    grown_s, began = time.thread_time() - began, time.thread_time()
    hear(engine, audio)
    assert grown_s < 0.7 * (time.thread_time() - began)


def test_the_same_piece_may_come_again(engine):
    audio = read_aloud(FIRST)
    assert hear(engine, audio[: 2 * PIECE], more=True) == hear(engine, audio[: 2 * PIECE], more=True)
    assert words(hear(engine, audio).text) == words(FIRST)


def test_another_sound_under_way_goes_without_and_disturbs_nobody(engine, monkeypatch):
    monkeypatch.setattr(pocketsphinx, "LEASE_S", 60.0)
    mine, other = read_aloud(FIRST), read_aloud(SECOND)
    for end in range(RATE_HZ, len(mine) - PIECE, PIECE):
        assert hear(engine, mine[:end], more=True).text
        assert not hear(engine, other[:end], more=True).text
    assert words(hear(engine, other).text) == words(SECOND), "a question is answered, only later"
    assert engine._growing.is_begin_of(np.rint(mine * 32767).astype(np.int16))
    assert words(hear(engine, mine).text) == words(FIRST)
    monkeypatch.setattr(pocketsphinx, "LEASE_S", 0.0)
    hear(engine, mine[:RATE_HZ], more=True)
    assert hear(engine, other[: 2 * RATE_HZ], more=True).text, "the decoder was left"
    assert words(hear(engine, other).text) == words(SECOND)


def test_a_sound_that_begins_differently_is_heard_as_a_whole(engine):
    audio = read_aloud(FIRST)
    hear_growing(engine, audio)
    changed = audio + np.float32(1e-3)
    assert words(hear(engine, changed).text) == words(FIRST)
    assert words(hear(engine, audio).text) == words(FIRST)


def test_without_the_parameter_nothing_is_kept():
    plain = Pocketsphinx({}, "")
    audio = read_aloud(FIRST)
    assert hear(plain, audio, more=True) == hear(plain, audio)


@pytest.mark.parametrize("vad", [EnergyVad(), LateVad()], ids=["energy", "late"])
def test_each_piece_is_what_the_question_begins_with(vad: Vad):
    audio = sound((1, SILENCE), (4, SPEECH), (1, SILENCE), (0.5, SPEECH), (2, SILENCE))
    cutter, pieces, questions = Segmenter(vad), list[Question](), list[Question]()
    for at in range(0, len(audio), RATE_HZ // 10):
        questions += [item for item in cutter.push(audio[at : at + RATE_HZ // 10]) if isinstance(item, Question)]
        if (piece := cutter.progress()) is not None:
            assert piece.asked is Asked.PROGRESS
            pieces.append(piece)
    whole = questions[0].audio
    assert {piece.audio_start_ms for piece in pieces} == {questions[0].audio_start_ms}, "none of a mere half second"
    assert all(np.array_equal(piece.audio, whole[: len(piece.audio)]) for piece in pieces)
    lengths_ms = [len(piece.audio) // 16 for piece in pieces]
    assert FIRST_PROGRESS_MS <= lengths_ms[0] <= FIRST_PROGRESS_MS + 100 + vad.late_hops * 20
    assert max(np.diff(lengths_ms)) <= PROGRESS_MS + 100
    assert len(whole) // 16 - lengths_ms[-1] < PROGRESS_MS, "little is left for the question"


def test_nothing_goes_ahead_in_a_pause_that_was_asked_about():
    audio = sound((0.5, SILENCE), (2, SPEECH), (1.5, SILENCE))
    cutter = Segmenter(EnergyVad(), Policy.SEMANTIC)
    list(cutter.push(audio[: round(2.75 * RATE_HZ)]))
    assert cutter.progress() is None


async def test_a_listener_has_its_segments_heard_ahead(server: Server):
    gap = np.random.default_rng(0).standard_normal(round(0.8 * RATE_HZ)).astype(np.float32) * 1e-4
    mono = np.concatenate([gap, read_aloud(FIRST), gap, gap, read_aloud(SECOND), gap, gap])
    async with TritonClient(server.url) as client, client.stream() as stream:
        ahead = Speculation(stream, "en", timeout_s=TIMEOUT_S, incremental=True)
        segments = await listen(PacedSound(mono, ahead), segmenter(), ahead)
        plain = Speculation(stream, "en", timeout_s=TIMEOUT_S)
        assert [s.end_ms for s in await listen(Sound(mono), segmenter(), plain)] == [s.end_ms for s in segments]
    assert [words(segment.known_text) for segment in segments] == [words(FIRST), words(SECOND)]
    assert ahead.counts.ahead >= 6 and ahead.counts.failed == 0
    assert plain.counts.ahead == 0, "an engine that gains nothing is left alone"


class PacedSound(Sound):
    """Comes in pieces of 0.1 s, and waits for the recogniser as a slow stream would."""

    def __init__(self, mono: np.ndarray, speculation: Speculation) -> None:
        super().__init__(mono)
        self._speculation = speculation

    def read(self, seconds: float) -> tuple[np.ndarray, np.ndarray] | None:
        until = time.monotonic() + TIMEOUT_S
        while not self._speculation.is_free and time.monotonic() < until:
            time.sleep(0.005)
        return super().read(0.1)


async def test_a_piece_that_fails_stops_the_next_ones_and_no_question(server: Server):
    piece = Question(0, Asked.PROGRESS, read_aloud(FIRST), 0, 0)
    async with TritonClient(server.url) as client, client.stream() as stream:
        late = Speculation(stream, "en", timeout_s=0.01, incremental=True)
        late.go_ahead(piece)
        assert not late.is_free, "one at a time"
        late.go_ahead(piece)
        await asyncio.sleep(1.0)
        assert late.counts.ahead == 1
        assert not late.is_free, f"nothing for {REST_S} s"
        late._timeout_s = TIMEOUT_S
        answer = await late.ask(Question(1, Asked.PAUSE, read_aloud(FIRST), 0, 0))
        assert answer is not None and words(answer.text) == words(FIRST)
        await late.close()
