"""Connections that break, servers that die and come back or stand still, in the middle of work: nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from live_run import stub
from material import RATE_HZ, chunk, face_at, face_crop, milliseconds, read_aloud
from proxy import Proxy

from polylip.client.error_codes import ErrorCode
from polylip.client.face_book import FaceBook
from polylip.client.job import DubOptions, DubResult, Progress, dub
from polylip.client.mix import AudioBed
from polylip.client.pulse import Pulse
from polylip.client.results import Status
from polylip.client.speech import SpeechBranch, SpeechWishes
from polylip.client.timeline import Timeline
from polylip.client.triton import TritonClient
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id, rows
from polylip.perf.demo_clip import FPS, make_demo_clip
from polylip.perf.supervised import program_of
from polylip.serving.launcher import Server, start_server
from polylip.serving.supervisor_watch import SERVER

SECONDS = 9
TIMEOUT_S = 60.0
STOPPED_S = 10.0  # a pause of the whole server that must be waited out: less than the keepalive allows
LIPS: Inputs = {
    "AUDIO": np.zeros(8000, np.float32),
    "FRAME_OFFSETS_MS": milliseconds(0),
    "FACES": face_crop()[None],
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", seconds=SECONDS, size=(640, 360))


def tritonserver(server: Server) -> psutil.Process:
    children = psutil.Process(server.guard_pid).children()  # what a killed stub has left may be among them for a moment
    [process] = [child for child in children if program_of(child) == SERVER]
    return process


# Whole jobs


def assert_whole(result: DubResult) -> None:
    """Every segment dubbed, no frame without its answer, the face the same from the first frame to the last."""
    report = result.report
    assert result.complete and {segment.status for segment in report.segments} == {Status.DUBBED}
    assert all(segment.error_code is None for segment in report.segments)
    assert report.counters["failed_faces_chunks"] == report.counters["failed_lipsync_calls"] == 0
    assert report.frames_without_face == 0
    assert (report.faces[0].start_ms, report.faces[0].end_ms) == (0, round((report.frames - 1) * 1000 / FPS))


async def test_a_dub_over_a_connection_that_is_reset_lacks_nothing_and_says_nothing_twice(
    server: Server, clip: Path, tmp_path: Path
):
    """Once in the middle of an answer, once later: every request has three tries."""
    calm = await dub(DubOptions(clip, tmp_path / "calm" / "o.mp4", "es", url=server.url))
    assert_whole(calm)
    is_reset = False

    def reset(progress: Progress) -> None:
        nonlocal is_reset
        if not is_reset and progress.frames >= 40:
            proxy.reset()
            is_reset = True

    async with Proxy(server.url) as proxy:
        proxy.cut_after = 100_000  # in the middle of the first answers
        rough = await dub(DubOptions(clip, tmp_path / "rough" / "o.mp4", "es", url=proxy.url), reset)
        assert is_reset and proxy.cut_after is None
    assert_whole(rough)
    for one, other in zip(calm.report.segments, rough.report.segments, strict=True):
        assert (one.start_ms, one.source_text, one.target_text) == (
            other.start_ms,
            other.source_text,
            other.target_text,
        )
        assert one.fit is not None and other.fit is not None
        assert other.fit.natural_ms == pytest.approx(one.fit.natural_ms, rel=0.05), "all of it was said, once"
    assert calm.report.frames == rough.report.frames
    assert rough.report.frames_lipsynced == pytest.approx(calm.report.frames_lipsynced, rel=0.1)


async def test_a_server_killed_and_started_again_in_the_middle_of_a_dub_costs_nothing_but_time(
    own_server: Callable[..., Server], clip: Path, tmp_path: Path
):
    first = own_server()
    options = replace(first.options, grpc_port=first.ports.grpc)
    killed = False

    def kill(progress: Progress) -> None:
        nonlocal killed
        if progress.frames >= 40 and not killed:
            tritonserver(first).send_signal(signal.SIGKILL)
            killed = True

    async def start_again() -> Server:
        await asyncio.to_thread(first.wait)
        return await asyncio.to_thread(start_server, options)

    restarting = asyncio.ensure_future(start_again())
    try:
        result = await dub(DubOptions(clip, tmp_path / "out" / "o.mp4", "es", url=first.url), kill)
        assert killed
        assert_whole(result)
        second = await restarting
        await assert_a_stopped_server_is_waited_for(second)
        await assert_a_dead_model_is_an_error(second)
        tritonserver(second).kill()  # with a dead model it would not stop by itself
    finally:
        (await restarting).stop()


async def assert_a_stopped_server_is_waited_for(server: Server) -> None:
    """With requests under way on three lines."""
    async with (
        TritonClient(server.url) as client,
        client.line(decoupled=True) as one,
        client.line() as two,
        client.line() as three,
    ):
        process = tritonserver(server)
        frames = chunk([face_at(0), face_at(0)], [0, 40], [0, 40])
        spoken = {
            "AUDIO": read_aloud("My brother has two children."),
            "SOURCE_LANGUAGE": "en",
            "TARGET_LANGUAGE": "es",
        }
        process.send_signal(signal.SIGSTOP)
        try:
            speech = await one.submit("speech", rows(spoken), TIMEOUT_S)
            faces = await two.submit(
                "faces", frames, TIMEOUT_S, SequencePosition(new_sequence_id(), start=True, end=True)
            )
            lips = await three.submit("lipsync", LIPS, TIMEOUT_S)
            await asyncio.sleep(STOPPED_S)
        finally:
            process.send_signal(signal.SIGCONT)
        assert len([answer async for answer in speech]) >= 1
        assert (await faces.result())["TRACK_IDS"].tolist() == [1]
        assert (await lips.result())["MOUTHS"].shape == (1, 96, 96, 3)
        assert one.reopened == two.reopened == three.reopened == 0


async def assert_a_dead_model_is_an_error(server: Server) -> None:
    """An explicit one, once, when nobody has started the server again in time."""
    stub(server, "translate").kill()
    quiet = np.zeros(RATE_HZ, np.float32)
    timeline, retries = await spoken(server.url, np.concatenate([quiet, read_aloud("It is very cold."), quiet]))
    [result] = timeline.results
    assert (result.status, result.error_code, retries) == (Status.ERROR, ErrorCode.PYTHON_MODEL_DIED, 1)


# Speech


class Sound:
    """What a reader gives, from memory."""

    damaged = 0

    def __init__(self, samples: np.ndarray) -> None:
        self._left = samples

    def read(self, seconds: float) -> tuple[np.ndarray, np.ndarray] | None:
        count = round(seconds * RATE_HZ)
        piece, self._left = self._left[:count], self._left[count:]
        return (piece[None], piece) if piece.size else None


async def spoken(url: str, sound: np.ndarray) -> tuple[Timeline, int]:
    """The sound's dub, and how often something was asked again."""
    pulse = Pulse()
    timeline, bed = Timeline(None, pulse), AudioBed(RATE_HZ, 1)
    async with TritonClient(url) as client, client.line(decoupled=True) as line:
        branch = SpeechBranch(
            timeline=timeline,
            bed=bed,
            stream=line,
            pulse=pulse,
            wishes=SpeechWishes("en", "es"),
            output_ms=lambda: 0.0,
        )
        await branch.run(Sound(sound))
        return timeline, branch.retries


async def test_speech_cut_off_in_the_middle_goes_on_without_a_seam(server: Server):
    """Chunks that were on the timeline when the connection broke stay; the rest follows exactly."""
    quiet = np.zeros(RATE_HZ, np.float32)
    text = "The old man walked slowly along the beach and the sun is very strong today."
    sound = np.concatenate([quiet, read_aloud(text), quiet])
    [calm] = (await spoken(server.url, sound))[0].active
    async with Proxy(server.url) as proxy:
        for after in (60_000, 150_000):
            proxy.cut_after = after
            timeline, retries = await spoken(proxy.url, sound)
            [rough] = timeline.active
            assert retries == 1 and rough.ended and rough.result.status is Status.DUBBED
            np.testing.assert_array_equal(rough.speech, calm.speech)
            np.testing.assert_array_equal(rough.pcm, calm.pcm)


# Faces


def test_a_face_keeps_its_number_when_its_sequence_starts_anew_in_the_same_place():
    book = FaceBook(640, 360)
    thumb = np.zeros((90, 160), np.uint8)
    here, there = (100.0, 100.0, 200.0, 200.0), (400.0, 100.0, 500.0, 200.0)
    assert book.job_ids([1, 2], starts=True) == [1, 2]
    book.enter(0.0, thumb, {1: (here, 1.0), 2: (there, 1.0)})
    nearly = (405.0, 98.0, 505.0, 199.0)
    assert book.job_ids([1, 2, 3], starts=True, first={1: nearly, 2: (100.0, 250.0, 180.0, 330.0)}) == [2, 4, 5]
    assert book.job_ids([1, 3], starts=False) == [2, 5]
    assert book.job_ids([1], starts=True) == [6], "a new shot: nothing goes on"
