"""Questions to a real recogniser: what it says is what the segment gets, and a server that is gone holds nothing up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from material import RATE_HZ, read_aloud

from polylip.client.closing import Asked, Closing, Policy, Question
from polylip.client.listening import Listener
from polylip.client.media_in import AudioReader, probe_media
from polylip.client.mix import AudioBed
from polylip.client.pulse import Pulse
from polylip.client.segmentation import Segment, Segmenter
from polylip.client.speculation import BEHIND_MS, REST_S, Speculation
from polylip.client.speech import SpeechBranch, SpeechWishes
from polylip.client.timeline import Dub, Timeline
from polylip.client.triton import TritonClient
from polylip.client.vad import EnergyVad
from polylip.client.wire import row, rows
from polylip.perf.demo_clip import SENTENCES
from polylip.serving.launcher import Server

TIMEOUT_S = 60.0  # a loaded machine takes its time
SOUND_HZ = 48_000
KNOWN = {sentence.strip(".").lower() for sentence in SENTENCES}


class DemoSentences:
    """A scorer that knows the demo's sentences and nothing else."""

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        return 0.95 if " ".join(words).lower() in KNOWN else 0.1


def segmenter(policy: Policy = Policy.SEMANTIC) -> Segmenter:
    return Segmenter(EnergyVad(), policy, scorer=lambda language: DemoSentences())


class Sound:
    """A sound in memory, read as a file is."""

    def __init__(self, mono: np.ndarray) -> None:
        self._mono, self._at = mono, 0

    def read(self, seconds: float) -> tuple[np.ndarray, np.ndarray] | None:
        piece = self._mono[self._at : self._at + round(seconds * RATE_HZ)]
        self._at += len(piece)
        return (np.repeat(piece, SOUND_HZ // RATE_HZ)[None], piece) if len(piece) else None


async def listen(sound: AudioReader | Sound, cutter: Segmenter, speculation: Speculation | None) -> list[Segment]:
    pulse, waiting = Pulse(), asyncio.Queue[Dub | None]()
    timeline, bed = Timeline(None, pulse), AudioBed(SOUND_HZ, 1)
    listener = Listener(
        timeline=timeline,
        bed=bed,
        pulse=pulse,
        output_ms=lambda: 1e9,
        segmenter=cutter,
        speculation=speculation,
    )
    await listener.run(sound, waiting)
    dubs = [waiting.get_nowait() for _ in range(waiting.qsize())]
    assert dubs.pop() is None
    return [dub.segment for dub in dubs]


def demo_sound(path: Path) -> AudioReader:
    return AudioReader(probe_media(path), SOUND_HZ, 1)


def pair(pause_s: float) -> np.ndarray:
    """Two of the demo's sentences without flite's own padding."""
    first, second = (read_aloud(SENTENCES[i]) for i in (0, 6))
    loud = [np.flatnonzero(np.abs(x) > 0.01)[[0, -1]] for x in (first, second)]
    parts = [x[a - 500 : b + 500] for x, (a, b) in zip((first, second), loud, strict=True)]
    sound = [np.zeros(RATE_HZ), parts[0], np.zeros(round(pause_s * RATE_HZ)), parts[1], np.zeros(2 * RATE_HZ)]
    noise = np.random.default_rng(0).standard_normal(sum(map(len, sound))) * 0.0003
    return (np.concatenate(sound) + noise).astype(np.float32)


async def test_the_demo_is_cut_at_its_sentences_and_each_brings_what_the_server_would_hear(server: Server, demo_clip):
    async with TritonClient(server.url) as client, client.stream() as stream, client.stream() as other:
        speculation = Speculation(stream, "auto", timeout_s=TIMEOUT_S)
        segments = await listen(demo_sound(demo_clip), segmenter(), speculation)
        assert [s.known_text.lower() for s in segments] == [text.strip(".").lower() for text in SENTENCES[:4]]
        assert all(s.closed_by is Closing.SENTENCE and s.decided_ms - s.end_ms == 300 for s in segments)
        for segment in segments:
            assert segment.known_language == "en"
            inputs = rows({"AUDIO": segment.audio, "SOURCE_LANGUAGE": "en"})
            heard = row(await other.call("transcribe", inputs, TIMEOUT_S))
            assert segment.known_text == heard["SOURCE_TEXT"][0]
    counts = speculation.counts
    assert counts.asked >= 4
    assert counts.failed == counts.skipped == 0
    assert counts.wall_ms > 0
    assert counts.audio_ms >= sum(len(s.audio) * 1000 // RATE_HZ for s in segments)


async def test_words_come_back_on_the_stream_s_clock(server: Server):
    audio = read_aloud("My house has a big red door.")
    question = Question(1, Asked.PAUSE, audio, 7000, 9000)
    async with TritonClient(server.url) as client, client.stream() as stream:
        answer = await Speculation(stream, "auto", timeout_s=TIMEOUT_S).ask(question)
    assert answer is not None
    assert [w.text for w in answer.words] == ["my", "house", "has", "a", "big", "red", "door"]
    assert answer.text.lower() == "my house has a big red door" and answer.language == "en"
    assert 7000 <= answer.words[0].start_ms < answer.words[-1].end_ms <= 7000 + len(audio) / 16


async def test_two_sentences_with_hardly_a_pause_are_told_apart_by_the_words_that_follow(server: Server):
    async with TritonClient(server.url) as client, client.stream() as stream:
        segments = await listen(Sound(pair(0.12)), segmenter(), Speculation(stream, "en", timeout_s=TIMEOUT_S))
    assert len(segments) == 2
    assert segments[0].closed_by is Closing.SECOND_LOOK
    by_silence = await listen(Sound(pair(0.12)), segmenter(Policy.SILENCE), None)
    assert len(by_silence) == 1
    assert segments[0].start_ms == by_silence[0].start_ms and segments[1].end_ms == by_silence[0].end_ms


async def test_silence_is_an_answer_and_an_unknown_language_is_none(server: Server):
    silence = Question(1, Asked.PAUSE, np.zeros(RATE_HZ, np.float32), 0, 800)
    async with TritonClient(server.url) as client, client.stream() as stream:
        quiet, foreign = Speculation(stream, "en", timeout_s=TIMEOUT_S), Speculation(stream, "fr")
        nothing = await quiet.ask(silence)
        assert nothing is not None and nothing.words == () and nothing.text == ""
        assert await foreign.ask(silence) is None
    assert (quiet.counts.failed, foreign.counts.failed) == (0, 1)


async def test_when_the_server_dies_silence_decides_and_nothing_waits(own_server, demo_clip):
    running: Server = own_server()
    expected = await listen(demo_sound(demo_clip), segmenter(Policy.SILENCE), None)
    async with TritonClient(running.url) as client, client.stream() as stream, client.line() as line:
        await asyncio.to_thread(running.stop)
        for recogniser in (stream, line):  # a line waits for the server to come back
            speculation = Speculation(recogniser, "en", timeout_s=2.0)
            begun = time.monotonic()
            segments = await listen(demo_sound(demo_clip), segmenter(), speculation)
            assert time.monotonic() - begun < REST_S
            assert [(s.start_ms, s.end_ms) for s in segments] == [(s.start_ms, s.end_ms) for s in expected]
            assert all(not s.known_text and s.closed_by in (Closing.SILENCE, Closing.END) for s in segments)
            assert speculation.counts.failed == 1, "one failure is enough for a while"
            assert speculation.counts.skipped == len(segments) - 1


async def test_an_answer_that_takes_too_long_is_none(server: Server):
    question = Question(1, Asked.PAUSE, np.tile(read_aloud(SENTENCES[0]), 6), 0, 9000)
    async with TritonClient(server.url) as client, client.stream() as stream:
        speculation = Speculation(stream, "en", timeout_s=0.05)
        assert await speculation.ask(question) is None
    assert speculation.counts.failed == 1


async def test_a_live_stream_that_is_behind_does_not_ask(server: Server):
    question = Question(1, Asked.PAUSE, read_aloud(SENTENCES[0]), 0, 2000)
    heard_ms = len(question.audio) / 16
    async with TritonClient(server.url) as client, client.stream() as stream:
        near = Speculation(stream, "en", timeout_s=TIMEOUT_S, newest_ms=lambda: heard_ms + BEHIND_MS)
        far = Speculation(stream, "en", timeout_s=TIMEOUT_S, newest_ms=lambda: heard_ms + BEHIND_MS + 100)
        assert await near.ask(question) is not None
        assert await far.ask(question) is None
    assert (near.counts.asked, near.counts.skipped) == (1, 0)
    assert (far.counts.asked, far.counts.skipped) == (0, 1)


@pytest.mark.parametrize("known", [True, False])
async def test_a_known_text_goes_to_the_speech_line_as_it_is(server: Server, known):
    sound = np.concatenate([read_aloud(SENTENCES[4]), np.zeros(2 * RATE_HZ, np.float32)])
    pulse = Pulse()
    timeline, bed = Timeline(None, pulse), AudioBed(SOUND_HZ, 1)
    async with TritonClient(server.url) as client, client.stream() as stream, client.stream() as asking:
        speculation = Speculation(asking, "auto", timeout_s=TIMEOUT_S) if known else None
        branch = SpeechBranch(
            timeline=timeline,
            bed=bed,
            stream=stream,
            pulse=pulse,
            wishes=SpeechWishes("auto", "es"),
            output_ms=lambda: 1e9,
            segmenter=segmenter(),
            speculation=speculation,
        )
        await branch.run(Sound(sound))
    [result] = timeline.results
    assert (result.source_text, result.target_text) == ("My brother has two children", "Mi hermano tiene dos niños")
    assert timeline.active[0].segment.known_text == ("My brother has two children" if known else "")
