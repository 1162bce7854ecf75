"""Profile cpu's speech on a real tritonserver: faster-whisper, Opus-MT and XTTS with tiny generated checkpoints.

Only the weights are made up: files, loading and inference are those of the public models. The recogniser was taught to
hear tones as a few phrases and the translator to translate these, so that the right text must come out; the voice
babbles.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from polylip.client.pending import Outputs
from polylip.client.triton import TritonClient, TritonStream
from polylip.client.wire import Inputs, row, rows
from polylip.export.generated_whisper import sounds
from polylip.perf.generated_repository import SPOKEN_PAIRS, make_generated_speech
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.weights import WEIGHTS_VARIABLE

TIMEOUT_S = 120.0
SPEECH = ("transcribe", "translate", "synthesize", "speech")
ENGLISH, SPANISH = SPOKEN_PAIRS[1]
LONG_SPANISH = "hola amigo. el agua. hola. agua verde."
LOOP = "thank you thank you thank you thank you"  # what real recognisers make of music; the tiny one was taught to
HEAVY = ("torch", "ctranslate2", "faster_whisper", "TTS", "transformers")


@pytest.fixture(scope="module")
def speech_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("speech")
    repository, weights = folder / "repository", folder / "weights"
    shutil.copytree(REPOSITORY, repository)
    make_generated_speech(repository, weights, pairs=("en-es", "es-en"))
    before = os.environ.get(WEIGHTS_VARIABLE)
    os.environ[WEIGHTS_VARIABLE] = str(weights)
    models = (*SPEECH, "mel")
    options = ServerOptions("cpu", repository, models=models, log_path=folder / "server.log")
    try:
        running = start_server(options)
        yield running
        running.stop()
    finally:
        if before is None:
            del os.environ[WEIGHTS_VARIABLE]
        else:
            os.environ[WEIGHTS_VARIABLE] = before


@pytest.fixture
async def client(speech_server: Server) -> AsyncIterator[TritonClient]:
    async with TritonClient(speech_server.url) as opened:
        yield opened


@pytest.fixture
async def stream(client: TritonClient) -> AsyncIterator[TritonStream]:
    async with client.stream() as opened:
        yield opened


async def answers(stream: TritonStream, model: str, inputs: Inputs) -> list[Outputs]:
    return [row(answer) async for answer in await stream.submit(model, rows(inputs), TIMEOUT_S)]


def text(outputs: Outputs, name: str) -> str:
    return str(outputs[name][0])


def hear(audio: np.ndarray, language: str = "en", **more: str) -> Inputs:
    return {"AUDIO": audio, "SOURCE_LANGUAGE": language, **more}


def say(words: str, language: str = "es", **more: np.ndarray | str) -> Inputs:
    return {"TARGET_TEXT": words, "TARGET_LANGUAGE": language, **more}


def voice(seed: int, pitch_hz: float) -> dict[str, np.ndarray | str]:
    """Consented reference speech of a made-up speaker, 3 s, on a stream of its own."""
    time_s = np.arange(48_000) / 16_000
    noise = np.random.default_rng(seed).normal(0, 0.05, 48_000)
    audio = (0.3 * np.sign(np.sin(2 * np.pi * pitch_hz * time_s)) + noise).astype(np.float32)
    return {"VOICE": audio, "VOICE_CONSENT": np.array([True]), "STREAM_ID": f"stream-{seed}"}


def sound_of(chunks: list[Outputs]) -> np.ndarray:
    return np.concatenate([chunk["AUDIO_CHUNK"] for chunk in chunks])


# Each engine alone


@pytest.mark.parametrize("phrase", [english for english, _ in SPOKEN_PAIRS])
async def test_whisper_writes_down_what_it_hears_and_when(stream, phrase):
    audio = sounds(phrase)
    [heard] = await answers(stream, "transcribe", hear(audio))
    assert text(heard, "STATUS") == "ok" and text(heard, "SOURCE_TEXT").strip(" .").lower() == phrase
    assert [word.strip(" .").lower() for word in heard["WORDS"]] == phrase.split()
    spans = heard["WORD_SPANS_MS"]
    assert (np.diff(spans.reshape(-1)) >= 0).all() and spans.min() >= 0 and spans.max() <= len(audio) / 16
    assert 0 < heard["CONFIDENCE"][0] <= 1


async def test_whisper_finds_the_language_out(stream):
    [heard] = await answers(stream, "transcribe", hear(sounds(ENGLISH), "auto"))
    assert text(heard, "DETECTED_LANGUAGE") == "en"
    [heard] = await answers(stream, "transcribe", hear(sounds(ENGLISH, hum=True), "auto"))
    assert text(heard, "DETECTED_LANGUAGE") == "es"


async def test_opus_mt_translates_both_ways_and_keeps_to_the_glossary(stream):
    inputs = {"SOURCE_TEXT": ENGLISH, "DETECTED_LANGUAGE": "en", "TARGET_LANGUAGE": "es"}
    [there] = await answers(stream, "translate", inputs)
    assert text(there, "TARGET_TEXT") == SPANISH
    [forced] = await answers(stream, "translate", {**inputs, "GLOSSARY": "green = turquesa"})
    assert "turquesa" in text(forced, "TARGET_TEXT")
    back = {"SOURCE_TEXT": SPANISH, "DETECTED_LANGUAGE": "es-MX", "TARGET_LANGUAGE": "en-GB"}
    [again] = await answers(stream, "translate", back)
    assert text(again, "TARGET_TEXT") == ENGLISH


async def test_xtts_streams_sound_before_the_last_sentence_is_made(stream):
    """The first chunk comes before half of the time is over, though it holds far less than half of the sound."""
    sent_at, arrivals, chunks = time.monotonic(), [], []
    async for answer in await stream.submit("synthesize", rows(say(LONG_SPANISH)), TIMEOUT_S):
        arrivals.append(time.monotonic() - sent_at)
        chunks.append(row(answer))
    assert len(chunks) > 4 and {text(chunk, "STATUS") for chunk in chunks} == {"ok"}
    assert arrivals[0] < arrivals[-1] / 2
    assert chunks[0]["AUDIO_CHUNK"].size < sound_of(chunks).size / 4
    assert chunks[0]["SAMPLE_RATE_HZ"][0] == 24_000
    assert 0.01 < np.abs(sound_of(chunks)).max() <= 1


# Together


async def test_a_segment_goes_through_all_three(stream):
    chunks = await answers(stream, "speech", {**hear(sounds(ENGLISH)), "TARGET_LANGUAGE": "es"})
    assert {(text(c, "SOURCE_TEXT").strip(" .").lower(), text(c, "TARGET_TEXT")) for c in chunks} == {
        (ENGLISH, SPANISH)
    }
    assert sound_of(chunks).size > 12_000


async def test_segments_of_several_streams_are_answered_as_each_alone(client):
    """Triton batches what waits; the texts and the sound must be the same."""
    cases = [{**hear(sounds(english)), "TARGET_LANGUAGE": "es"} for english, _ in SPOKEN_PAIRS[1:]]

    async def run(case: Inputs) -> list[Outputs]:
        async with client.stream() as own:
            return await answers(own, "speech", case)

    alone = [await run(case) for case in cases]
    together = await asyncio.gather(*(run(case) for case in cases * 2))
    for chunks, expected in zip(together, alone * 2, strict=True):
        assert text(chunks[0], "TARGET_TEXT") == text(expected[0], "TARGET_TEXT")
        np.testing.assert_allclose(sound_of(chunks), sound_of(expected), atol=1e-4)


async def test_two_streams_with_the_same_text_keep_their_own_voices(client):
    async def run(**more) -> np.ndarray:
        async with client.stream() as own:
            chunks = await answers(own, "synthesize", say("hola", **more))
            assert {bool(chunk["VOICE_CLONED"][0]) for chunk in chunks} == {"VOICE_CONSENT" in more}
            return sound_of(chunks)

    low, high, stock = voice(1, 90), voice(2, 260), {}
    alone = [await run(**v) for v in (low, high, stock)]
    assert not any(
        np.allclose(a[:4800], b[:4800], atol=1e-3) for a, b in zip(alone, [*alone[1:], alone[0]], strict=True)
    )
    together = await asyncio.gather(*(run(**v) for v in (low, high, stock)))
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


async def test_a_voice_without_consent_is_not_cloned(stream):
    reference = {key: value for key, value in voice(1, 90).items() if key != "VOICE_CONSENT"}
    chunks = await answers(stream, "synthesize", say("hola", **reference))
    assert not any(chunk["VOICE_CLONED"][0] for chunk in chunks)
    stock = await answers(stream, "synthesize", say("hola"))
    np.testing.assert_allclose(sound_of(chunks), sound_of(stock), atol=1e-4)


async def test_a_newcomer_is_heard_before_a_long_text_is_over(client):
    ends: dict[str, list[float]] = {}

    async def run(name: str, words: str) -> None:
        async with client.stream() as own:
            async for _ in await own.submit("synthesize", rows(say(words, STREAM_ID=name)), TIMEOUT_S):
                ends.setdefault(name, []).append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        group.create_task(run("long", f"{LONG_SPANISH} " * 2))
        while not ends:  # noqa: ASYNC110  until the long one is under way
            await asyncio.sleep(0.01)
        group.create_task(run("short", "hola amigo"))
    assert ends["short"][-1] < ends["long"][-1]


UNDONE = {
    "silence": (hear(np.zeros(32_000, np.float32)), "es", "no_speech", ""),
    "a loop": (hear(sounds(LOOP)), "es", "no_speech", "not trusted"),
    "a language nobody hears": (hear(sounds(ENGLISH), "vo"), "es", "unsupported", "faster-whisper"),
    "a pair that is not there": (hear(sounds(ENGLISH)), "fr", "unsupported", "polylip fetch opus-mt-en-fr"),
}


@pytest.mark.parametrize("case", UNDONE)
async def test_what_cannot_be_done_is_a_status(stream, case):
    inputs, target, status, told = UNDONE[case]
    [only] = await answers(stream, "speech", {**inputs, "TARGET_LANGUAGE": target})
    assert text(only, "STATUS") == status and told in text(only, "STATUS_MESSAGE")
    assert only["AUDIO_CHUNK"].size == 0 and "\n" not in text(only, "STATUS_MESSAGE")


async def test_a_stream_lives_on_after_what_could_not_be_done(stream):
    for inputs, target, *_ in UNDONE.values():
        await answers(stream, "speech", {**inputs, "TARGET_LANGUAGE": target})
    chunks = await answers(stream, "speech", {**hear(sounds("water")), "TARGET_LANGUAGE": "es"})
    assert text(chunks[0], "TARGET_TEXT") == "agua"


async def test_nobody_pays_for_work_that_was_cancelled(speech_server):
    """A caller that goes away frees the voice: what comes after it does not wait for its long text."""
    async with TritonClient(speech_server.url) as client, client.stream() as own:
        started = time.monotonic()
        await answers(own, "synthesize", say(LONG_SPANISH))
        whole_s = time.monotonic() - started
    script = (
        "import asyncio, os, sys\n"
        "from polylip.client.triton import TritonClient\n"
        "from polylip.client.wire import rows\n"
        "async def main():\n"
        "    async with TritonClient(sys.argv[1]) as client, client.stream() as own:\n"
        "        inputs = rows({'TARGET_TEXT': sys.argv[2], 'TARGET_LANGUAGE': 'es'})\n"
        "        async for _ in await own.submit('synthesize', inputs, 60):\n"
        "            os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, speech_server.url, f"{LONG_SPANISH} " * 20]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    async with TritonClient(speech_server.url) as client, client.stream() as own:
        started = time.monotonic()
        await answers(own, "synthesize", say(LONG_SPANISH))
        assert time.monotonic() - started < 5 * whole_s + 2, "not the 20 times that were called off"


# Isolation


def test_only_the_speech_models_load_the_heavy_packages(speech_server: Server):
    def loaded(model: str) -> set[str]:
        [maps] = [
            (process / "maps").read_text()
            for process in Path("/proc").iterdir()
            if process.name.isdigit()
            and b"python_backend_stub" in _command(process)
            and f"/{model}/1/model.py".encode() in _command(process)
            and speech_server.shm_prefix.encode() in _command(process)
        ]
        return {name for name in HEAVY if f"/site-packages/{name}/" in maps}

    assert loaded("mel") == set()
    assert "torch" not in loaded("transcribe") | loaded("translate")
    assert "torch" in loaded("synthesize")


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
