"""The server's log names the stream of what failed, and never holds a word that was said, read, or asked for."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from material import chunk, face_at, face_crop, milliseconds, read_aloud

from polylip.client.errors import ServerError
from polylip.client.pending import Outputs
from polylip.client.triton import TritonClient
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id, rows
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving import logs, steps
from polylip.serving.engines import Passage, Status, Translation, Utterance
from polylip.serving.errors import EngineError
from polylip.serving.launcher import Server, ServerOptions, running_server
from polylip.serving.server_flags import LogLevel

TIMEOUT_S = 30.0
LOG_S = 10.0
STREAM = "stream-of-the-log-test"

# Engines that fail as libraries do: with what they were given in the message. What they fail at is the word "door".
CARELESS = {
    "transcribe": """

class Careless:
    def __init__(self, engine):
        self.engine = engine

    def transcribe(self, utterances):
        if any("door" in u.context for u in utterances):
            raise RuntimeError(f"cannot decode {utterances[0].context!r}")
        return self.engine.transcribe(utterances)

    def resolve_language(self, language):
        return self.engine.resolve_language(language)
""",
    "translate": """

class Careless:
    def __init__(self, engine):
        self.engine = engine

    def translate(self, passages):
        try:
            [int(p.text) for p in passages if "door" in p.text]
        except ValueError as error:
            raise KeyError(f"no such token: {passages[0].text} {passages[0].glossary}") from error
        return self.engine.translate(passages)
""",
    "lips": """

class Careless:
    def __init__(self, engine):
        self.engine = engine

    def render(self, mel, faces):
        if (faces == 7).all():
            raise RuntimeError(f"bad pixels {faces.reshape(-1)[:9]}")
        return self.engine.render(mel, faces)
""",
}
WRAPPED = """

_initialize = TritonPythonModel.initialize

def initialize(self, args):
    _initialize(self, args)
    self.engine = Careless(self.engine)

TritonPythonModel.initialize = initialize
"""
VOICE = """

def say(self, piece, *rest):
    raise UnicodeError(f"cannot say {piece}")
    yield

_initialize = TritonPythonModel.initialize

def initialize(self, args):
    _initialize(self, args)
    voice = self.speaking._voice
    sound = voice.say
    voice.say = lambda piece, *rest: (say(self, piece) if "puerta" in piece else sound(piece, *rest))

TritonPythonModel.initialize = initialize
"""


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("careless")
    shutil.copytree(REPOSITORY, folder / "repository")
    for model, code in {**{name: text + WRAPPED for name, text in CARELESS.items()}, "synthesize": VOICE}.items():
        adapter = folder / "repository" / model / "1" / "model.py"
        adapter.write_text(adapter.read_text() + code)
    models = "transcribe,translate,synthesize,speech,detect,track,faces,mel,lips,lipsync"
    options = ServerOptions(
        model_repository=folder / "repository",
        models=tuple(models.split(",")),
        log_path=folder / "log",
        log_level=LogLevel.VERBOSE,
    )
    with running_server(options) as server:
        yield server


async def speak(server: Server, **inputs: str | np.ndarray) -> list[Outputs]:
    asked = {"SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es", "STREAM_ID": STREAM, **inputs}
    async with TritonClient(server.url, stream_id=STREAM) as client, client.line(decoupled=True) as line:
        return [part async for part in await line.submit("speech", rows(asked), TIMEOUT_S)]


async def call(server: Server, model: str, inputs: Inputs, sequence: SequencePosition | None = None) -> Outputs:
    async with TritonClient(server.url, stream_id=STREAM) as client, client.line() as line:
        return await line.call(model, inputs, TIMEOUT_S, sequence)


def written(server: Server, part: str) -> str:
    """The line of the log about the stream with this part; it may come a little after the answer."""
    deadline = time.monotonic() + LOG_S
    while True:
        whole = server.read_log().rpartition("\n")[0].splitlines()
        lines = [line for line in whole if f"stream {STREAM}: " in line and part in line]
        if lines:
            [line] = lines
            return line
        assert time.monotonic() < deadline, f"{part} is not in {server.log_path}"
        time.sleep(0.05)


async def test_a_step_that_fails_names_the_stream_and_the_place_and_tells_the_caller_more(careless: Server):
    audio = read_aloud("My house has a big red door.")
    [only] = await speak(careless, AUDIO=audio, KNOWN_TEXT="The door is red.", GLOSSARY="door = portal")
    assert only["STATUS"].item() == "error"
    assert "no such token: The door is red." in only["STATUS_MESSAGE"].item()
    line = written(careless, "KeyError")
    assert re.search(r"KeyError at .*1/model\.py:\d+, caused by ValueError at .*1/model\.py:\d+$", line)
    [only] = await speak(careless, AUDIO=audio, CONTEXT="a door")
    assert "cannot decode 'a door'" in only["STATUS_MESSAGE"].item()
    line = written(careless, "RuntimeError")
    assert re.search(r"^polylip\.serving\.steps: stream .*: RuntimeError at .*1/model\.py:\d+$", line)


async def test_a_voice_that_fails_names_the_stream(careless: Server):
    parts = await call_synthesize(careless, "La puerta es roja.")
    assert "cannot say La puerta es roja." in parts[-1]["STATUS_MESSAGE"].item()
    assert re.search(r"UnicodeError at .*1/model\.py:\d+$", written(careless, "UnicodeError"))


async def call_synthesize(server: Server, text: str) -> list[Outputs]:
    inputs = rows({"TARGET_TEXT": text, "TARGET_LANGUAGE": "es", "STREAM_ID": STREAM})
    async with TritonClient(server.url, stream_id=STREAM) as client, client.line(decoupled=True) as line:
        return [part async for part in await line.submit("synthesize", inputs, TIMEOUT_S)]


async def test_an_ensemble_without_a_stream_id_input_names_the_stream_by_its_header(careless: Server):
    faces = np.full((1, 96, 96, 3), 7, np.uint8)
    inputs = {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": milliseconds(0), "FACES": faces}
    with pytest.raises(ServerError, match="bad pixels"):
        await call(careless, "lipsync", inputs)
    line = written(careless, "lips: ")
    assert re.search(r"RuntimeError at .*1/model\.py:\d+", line)


def words_in(log: str, text: str) -> list[str]:
    log = log.lower()
    return [word for word in dict.fromkeys(re.findall(r"\w{3,}", text.lower())) if re.search(rf"\b{word}\b", log)]


def test_no_word_of_a_whole_dub_is_in_the_log(careless: Server, tmp_path: Path):
    clip, before = make_demo_clip(tmp_path / "talk.mp4", seconds=5, size=(640, 360)), careless.read_log()
    command = ["dub", str(clip), "--to", "es", "--url", careless.url, "-o", str(tmp_path / "out.mp4"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "polylip.client.cli", *command], capture_output=True, text=True, check=True, timeout=120
    )
    segments = json.loads(done.stdout)["segments"]
    said = " ".join(segment[side] for segment in segments for side in ("source_text", "target_text"))
    assert len(set(re.findall(r"\w{3,}", said.lower()))) > 5
    after = careless.read_log()
    assert len(after) > len(before)
    assert words_in(after, said) == words_in(before, said), "but for those of tritonserver, such as `the`"


async def test_after_known_words_and_all_these_failures_no_word_is_in_the_log(careless: Server):
    """Last: what was said above counts too."""
    parts = await speak(careless, AUDIO=read_aloud("The house is big."), CONTEXT="Yesterday it rained.")
    assert parts[0]["TARGET_TEXT"].item().strip() == "La casa es grande"
    inputs = chunk([face_at(0)] * 2, [0, 200], [0, 100])
    await call(careless, "faces", inputs, SequencePosition(new_sequence_id(), start=True, end=True))
    mouths = {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": milliseconds(0), "FACES": face_crop()[None]}
    await call(careless, "lipsync", mouths)
    for bad in (
        {"AUDIO": np.full(8000, np.nan, np.float32), "CONTEXT": "umbrella"},
        {"AUDIO": np.zeros(8000, np.float32), "SOURCE_LANGUAGE": "umbrella"},
        {"AUDIO": np.zeros(8000, np.float32), "FIT": "umbrella", "KNOWN_TEXT": "umbrella"},
        {"AUDIO": np.zeros(8000, np.float32), "KNOWN_TEXT": "umbrella", "TARGET_LANGUAGE": "fi"},
    ):
        with contextlib.suppress(ServerError):
            assert (await speak(careless, **bad))[0]["STATUS"].item() != "ok"
    words = "house big red door gates portal token casa puerta grande rained yesterday umbrella pixels decode"
    assert words_in(careless.read_log(), words) == []


# On paper


def test_a_cause_is_a_chain_of_classes_and_places():
    def fail() -> None:
        try:
            Path("/no/such/place of Anna").read_text()
        except OSError as error:
            raise EngineError("Anna said hello") from error

    with pytest.raises(EngineError) as caught:
        fail()
    said = logs.cause(caught.value)
    assert said.startswith("EngineError at tests/test_logs.py:")
    assert ", caused by FileNotFoundError (No such file or directory) at tests/test_logs.py:" in said
    assert "Anna" not in said and "\n" not in said
    assert logs.cause(ValueError("Anna")) == "ValueError"


@pytest.mark.parametrize("stream", ["", "a b", "a\nINFO: all is well", "x" * 129, "é"])
def test_a_strange_stream_id_does_not_reach_the_log(stream: str):
    assert logs.named(stream) == "stream -"


def test_each_of_several_failures_in_a_batch_names_its_own_stream(caplog: pytest.LogCaptureFixture):
    class Failing:
        def translate(self, passages: list[Passage]) -> list[Translation]:
            raise EngineError(passages[-1].text)

        def transcribe(self, utterances: list[Utterance]) -> list[object]:
            raise EngineError(utterances[-1].context)

        def resolve_language(self, language: str) -> str:
            return language

    passages = [Passage(text, "en", "es") for text in ("Anna", "Bertha")]
    done = steps.translate(Failing(), passages, ("one", "two"))
    assert [(t.status, t.message) for t in done] == [(Status.ERROR, "Anna"), (Status.ERROR, "Bertha")]
    steps.transcribe(Failing(), [Utterance(np.zeros(1, np.float32), "en", "Clara")])
    starts = [message.split(": ")[0] for message in caplog.messages]
    assert starts == ["stream one", "stream two", "stream -"]
    assert not any(name in caplog.text for name in ("Anna", "Bertha", "Clara"))
