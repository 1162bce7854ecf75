"""Metrics of our own: on a real server they count exactly what was done, and never anything that was said."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from echo import until_ready
from material import chunk, face_at, face_crop, milliseconds, read_aloud
from scrape import Scrape
from tritonclient.grpc import service_pb2_grpc

from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, infer_request, new_sequence_id, rows
from polylip.serving import launcher, metrics
from polylip.serving.launcher import Server, ServerOptions, running_server

TIMEOUT_S = 30.0
SETTLE_S = 15.0  # for what the server counts after its answer
STREAM = "stream-of-the-metrics-test"
SENTENCE = "The house is big."
BLACK = np.zeros((360, 640, 3), np.uint8)
MODELS = {
    "transcribe": "pocketsphinx",
    "translate": "apertium",
    "synthesize": "espeak-ng",
    "detect": "cascade",
    "track": "python",
    "mel": "python",
    "lips": "onnxruntime",
}


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


# What is counted


async def test_every_model_says_what_it_runs_and_begins_at_nought(server: Server):
    now = Scrape(server)
    for model, engine in MODELS.items():
        assert now("model_info", model=model, version="1", engine=engine) == 1
        assert now("stage_seconds_count", model=model) >= 0
    for model in ("transcribe", "translate", "synthesize"):
        for status in ("ok", "no_speech", "unsupported", "error", "cancelled"):
            assert now("segments_total", model=model, status=status) >= 0
    for name in ("live_sequences", "swept_sequences_total", "faces_lost_total", "faceless_key_frames_total"):
        assert now(name, model="track") >= 0
    assert 0 < now("shm_available_bytes") <= now("shm_size_bytes")


async def test_a_segment_is_counted_once_at_each_step_with_its_sound(server: Server):
    audio, before = read_aloud(SENTENCE), Scrape(server)
    async with TritonClient(server.url, stream_id=STREAM) as client, client.line(decoupled=True) as line:
        inputs = rows({"AUDIO": audio, "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"})
        chunks = [part async for part in await line.submit("speech", inputs, TIMEOUT_S)]
    said = {"model": "synthesize", "status": "ok"}
    await until(lambda: Scrape(server)("segments_total", **said) > before("segments_total", **said))
    now = Scrape(server)
    for model in ("transcribe", "translate", "synthesize"):
        for name, labels in (
            ("stage_seconds_count", {}),
            ("stage_items_total", {}),
            ("segments_total", {"status": "ok"}),
        ):
            assert now(name, model=model, **labels) - before(name, model=model, **labels) == 1, (model, name)
        assert now("stage_seconds_sum", model=model) > before("stage_seconds_sum", model=model)
    heard_s = now("audio_seconds_total", model="transcribe") - before("audio_seconds_total", model="transcribe")
    said_s = now("audio_seconds_total", model="synthesize") - before("audio_seconds_total", model="synthesize")
    assert heard_s == pytest.approx(len(audio) / 16_000)
    assert said_s == pytest.approx(sum(part["AUDIO_CHUNK"].size / part["SAMPLE_RATE_HZ"].item() for part in chunks))
    first, whole = "first_sound_seconds", "stage_seconds"
    assert now(f"{first}_count", model="synthesize") - before(f"{first}_count", model="synthesize") == 1
    assert now(f"{first}_sum", model="synthesize") > before(f"{first}_sum", model="synthesize")
    assert now(f"{whole}_sum", model="synthesize") > before(f"{whole}_sum", model="synthesize")


async def test_a_step_that_had_nothing_to_do_counts_its_status_and_no_work(server: Server):
    before = Scrape(server)
    async with TritonClient(server.url) as client, client.line(decoupled=True) as line:
        inputs = rows({"AUDIO": np.zeros(8000, np.float32), "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"})
        [only] = [part async for part in await line.submit("speech", inputs, TIMEOUT_S)]
    assert only["STATUS"].item() == "no_speech"
    no_speech = {"model": "synthesize", "status": "no_speech"}
    await until(lambda: Scrape(server)("segments_total", **no_speech) > before("segments_total", **no_speech))
    now = Scrape(server)
    for model, work in (("transcribe", 1), ("translate", 0), ("synthesize", 0)):
        assert now("stage_seconds_count", model=model) - before("stage_seconds_count", model=model) == work


async def test_frames_are_counted_where_they_are_worked_on(server: Server):
    before = Scrape(server)
    async with TritonClient(server.url) as client, client.line() as line:
        position = SequencePosition(new_sequence_id(), start=True, end=True)
        await line.call("faces", chunk([face_at(0), BLACK], [0, 200], list(range(0, 400, 40))), TIMEOUT_S, position)
        faces, offsets = np.stack([face_crop()] * 5), milliseconds(*range(0, 200, 40))
        await line.call(
            "lipsync", {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": offsets, "FACES": faces}, TIMEOUT_S
        )
    now = Scrape(server)

    def more(name: str, model: str) -> float:
        return now(name, model=model) - before(name, model=model)

    assert [more("stage_items_total", model) for model in ("detect", "track", "mel", "lips")] == [2, 10, 5, 5]
    assert more("video_seconds_total", "track") == pytest.approx(0.4)
    assert more("audio_seconds_total", "mel") == pytest.approx(0.5)
    assert more("key_frames_total", "track") == 2
    assert more("faceless_key_frames_total", "track") == 1


async def test_a_face_that_is_gone_is_lost_once(server: Server):
    before = Scrape(server)
    async with TritonClient(server.url) as client, client.line() as line:
        sequence = new_sequence_id()
        for index, frame in enumerate([face_at(0), face_at(0), BLACK, BLACK, BLACK, BLACK]):
            at_ms = 1000 * index
            inputs = chunk([frame] * 2, [at_ms, at_ms + 500], list(range(at_ms, at_ms + 1000, 100)))
            await line.call("faces", inputs, TIMEOUT_S, SequencePosition(sequence, start=index == 0, end=index == 5))
    assert Scrape(server)("faces_lost_total", model="track") - before("faces_lost_total", model="track") == 1


TRACKING = ("detect", "track", "faces")


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[Server]:
    """One of its own: what other tests have left open on the shared one is swept at any time."""
    with running_server(ServerOptions(models=TRACKING, log_path=tmp_path / "log")) as server:
        yield server


async def test_live_sequences_go_up_and_down(tracking_server: Server):
    server = tracking_server

    def live() -> float:
        return Scrape(server)("live_sequences", model="track")

    def started() -> float:
        return Scrape(server)("sequences_started_total", model="track")

    at_rest, at_first = live(), started()
    async with TritonClient(server.url) as client, client.line() as line:
        ids = [new_sequence_id() for _ in range(3)]
        for sequence in ids:
            await line.call("faces", chunk([BLACK], [0], [0]), TIMEOUT_S, SequencePosition(sequence, start=True))
        assert live() == at_rest + 3
        assert started() == at_first + 3
        for sequence in ids:
            await line.call("faces", chunk([BLACK], [200], [200]), TIMEOUT_S, SequencePosition(sequence, end=True))
        assert live() == at_rest


@pytest.fixture
def impatient_server(tmp_path: Path) -> Iterator[Server]:
    """Its tracks live for a second, and Triton's own sequences too, so that it stops at once."""
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository)
    config = repository / "track" / "config.pbtxt"
    text = config.read_text()
    for old, new in (("idle_microseconds: 60000000", "idle_microseconds: 1000000"), ('"90"', '"1"')):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    options = ServerOptions(model_repository=repository, models=TRACKING, log_path=tmp_path / "log")
    with running_server(options) as server:
        yield server


async def test_a_sequence_that_nobody_ends_is_swept_though_nobody_asks_again(impatient_server: Server):
    server = impatient_server
    before = Scrape(server)("sequences_started_total", model="track")
    async with TritonClient(server.url) as client, client.line() as line:
        position = SequencePosition(new_sequence_id(), start=True)
        await line.call("faces", chunk([BLACK], [0], [0]), TIMEOUT_S, position)
    assert Scrape(server)("sequences_started_total", model="track") == before + 1
    await until(lambda: not Scrape(server)("live_sequences", model="track"))
    await until(lambda: Scrape(server)("swept_sequences_total", model="track") == 1)


async def test_the_level_that_a_client_sends_is_counted(server: Server):
    before = Scrape(server)
    request = infer_request(
        "transcribe", rows({"AUDIO": np.zeros(0, np.float32), "SOURCE_LANGUAGE": "en", "KNOWN_TEXT": "a"})
    )
    async with TritonClient(server.url) as client:
        stub: service_pb2_grpc.GRPCInferenceServiceStub = client._stub
        for level in (2, 9):  # there is no level 9
            request.parameters[metrics.DEGRADE_PARAMETER].int64_param = level
            await stub.ModelInfer(request, timeout=TIMEOUT_S)
    now = Scrape(server)

    def more(name: str, **labels: str) -> float:
        return now(f"degrade_level_{name}", **labels) - before(f"degrade_level_{name}", **labels)

    assert more("count", model="transcribe") == 1
    assert more("sum", model="transcribe") == 2
    assert [more("bucket", model="transcribe", le=le) for le in ("0", "1", "2")] == [0, 0, 1]


async def test_no_stream_and_no_word_is_in_a_metric(server: Server):
    """After all the requests of this file."""
    said = Scrape(server).text.lower()
    assert "polylip_stage_seconds" in said
    for word in (STREAM, "house", "casa"):
        assert word not in said


# Where it runs


HAMMER_CONFIG = """
name: "hammer"
backend: "python"
max_batch_size: 0
input [ { name: "UPDATES" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "MICROSECONDS" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 2 } ]
"""
HAMMER_MODEL = """
import threading, time
import numpy as np
import triton_python_backend_utils as pb_utils
from polylip.serving.metrics import ModelMetrics, Repeat

class TritonPythonModel:
    metrics = ModelMetrics("hammer")

    def initialize(self, args):
        self.metrics.sequences(2, 5, 1)
        self.repeat = Repeat(0.001, lambda: self.metrics.refused("again"))

    def finalize(self):
        self.repeat.stop()

    def execute(self, requests):
        answers = []
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "UPDATES").as_numpy()[0])
            def work():
                for _ in range(count):
                    self.metrics.refused("full")
                    self.metrics.worked(0.01, 1)
            threads = [threading.Thread(target=work) for _ in range(4)]
            started = time.perf_counter()
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            each_us = (time.perf_counter() - started) * 1e6 / (4 * count * 3)
            tensor = pb_utils.Tensor("MICROSECONDS", np.array([each_us], np.float32))
            answers.append(pb_utils.InferenceResponse([tensor]))
        return answers
"""


@contextmanager
def hammer(folder: Path, metrics_port: int | None) -> Iterator[Server]:
    model = folder / "repository" / "hammer"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(HAMMER_CONFIG)
    (model / "1" / "model.py").write_text(HAMMER_MODEL)
    options = ServerOptions(model_repository=folder / "repository", log_path=folder / "log", metrics_port=metrics_port)
    server = launcher._spawn(options)  # the launcher's own wait knows no such model
    try:
        asyncio.run(until_ready(server, None))
        yield server
    finally:
        server.stop()


async def blows(server: Server, count: int) -> float:
    """Microseconds for each update."""
    async with TritonClient(server.url) as client, client.line() as line:
        calls = [line.call("hammer", {"UPDATES": np.array([count], np.int32)}, TIMEOUT_S) for _ in range(2)]
        return float(np.mean([answer["MICROSECONDS"] for answer in await asyncio.gather(*calls)]))


def test_threads_and_instances_add_up_and_the_server_lives(tmp_path: Path):
    """Without a lock of ours tritonserver 2.51 crashes in a fraction of this."""
    with hammer(tmp_path, 0) as server:
        assert asyncio.run(blows(server, 500)) < 5000, "a third of a millisecond each would be bad on an idle machine"
        now = Scrape(server)
        assert now("refused_total", model="hammer", code="full") == 2 * 4 * 500
        assert now("stage_seconds_count", model="hammer") == 2 * 4 * 500
        assert now("stage_seconds_sum", model="hammer") == pytest.approx(2 * 4 * 500 * 0.01)
        assert now("live_sequences", model="hammer") == 4, "two of each instance"
        assert server.alive
    assert "no longer kept" not in server.read_log()


def test_a_server_without_metrics_works_as_well(tmp_path: Path):
    with hammer(tmp_path, None) as server:
        assert asyncio.run(blows(server, 10)) >= 0
        assert server.alive
