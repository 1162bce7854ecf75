"""Streams and sequences on a real server: order, no cross-talk, refusals, expiry, clients that vanish, deadlines."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import REPOSITORY
from material import FACE_LEFT, HEIGHT, WIDTH, chunk, face_at, milliseconds, read_aloud
from tritonclient.grpc import service_pb2_grpc

from polylip.client.errors import DeadlineError, ServerError
from polylip.client.pending import Outputs
from polylip.client.triton import TritonClient, TritonStream
from polylip.client.wire import SequencePosition, infer_request, new_sequence_id, rows
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.probe import probe_models

TIMEOUT_S = 30.0
IDLE_S = 5.0  # of the impatient server, instead of a minute; no test leaves its own sequence alone for so long
CHUNK_MS = 400  # key frames 200 ms apart
BLANK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[TritonClient]:
    async with TritonClient(server.url) as connected:
        yield connected


@pytest.fixture(scope="module")
def impatient_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Gives a sequence up after IDLE_S, so that tests can wait for it, and its own stop need not."""
    repository = tmp_path_factory.mktemp("impatient") / "repository"
    shutil.copytree(REPOSITORY, repository)
    config = repository / "track" / "config.pbtxt"
    minute, short = "max_sequence_idle_microseconds: 60000000", f"max_sequence_idle_microseconds: {int(IDLE_S * 1e6)}"
    assert minute in config.read_text()
    config.write_text(config.read_text().replace(minute, short))
    running = start_server(ServerOptions(model_repository=repository, log_path=repository.with_name("server.log")))
    yield running
    running.stop()


@pytest.fixture
async def impatient_client(impatient_server: Server) -> AsyncIterator[TritonClient]:
    async with TritonClient(impatient_server.url) as connected:
        yield connected


class Film:
    """One sequence of `faces`: the astronaut's face `left` px from the edge, `step_px` further each chunk."""

    def __init__(self, stream: TritonStream, left: int | None, step_px: int = 0) -> None:
        self._stream = stream
        self._left = left
        self._step_px = step_px
        self._chunks = 0
        self.id = new_sequence_id()

    async def submit(self, queries: int = 1, *, start: bool | None = None, end: bool = False):
        """The next chunk; by default the first one starts the sequence. Answers for `queries` instants."""
        index = self._chunks
        self._chunks += 1
        frame = BLANK if self._left is None else face_at(self._left + index * self._step_px)
        first_ms = index * CHUNK_MS
        times_ms = np.linspace(first_ms, first_ms + CHUNK_MS - 1, queries).astype(int).tolist()
        inputs = chunk([frame, frame], [first_ms, first_ms + CHUNK_MS // 2], times_ms)
        position = SequencePosition(self.id, start=index == 0 if start is None else start, end=end)
        return await self._stream.submit("faces", inputs, TIMEOUT_S, position)

    async def send(self, queries: int = 1, *, start: bool | None = None, end: bool = False) -> Outputs:
        return await (await self.submit(queries, start=start, end=end)).result()


def lefts(tracks: Outputs) -> np.ndarray:
    """Left edge of the only track at each query, minus the face's place in its picture."""
    assert tracks["TRACK_IDS"].tolist() == [1]
    return tracks["TRACK_BOXES"][:, 0, 0] - FACE_LEFT


async def assert_answers_the_probe(server: Server) -> None:
    assert await asyncio.to_thread(probe_models, server.url, REPOSITORY) is None


# Order


async def test_chunks_sent_without_waiting_are_answered_in_order_each_with_its_own_frames(client):
    count, step_px, submitted, answered = 12, 16, 0, []
    async with client.stream() as stream:
        film = Film(stream, 20, step_px)

        async def read(index: int, pending) -> Outputs:
            tracks = await pending.result()
            answered.append((index, submitted))
            return tracks

        async with asyncio.TaskGroup() as readers:
            tasks = []
            for index in range(count):
                pending = await film.submit(queries=index + 1, end=index == count - 1)
                submitted += 1
                tasks.append(readers.create_task(read(index, pending)))
    assert [index for index, _ in answered] == list(range(count))
    in_flight = [sent - index for index, sent in answered]
    assert max(in_flight) > count // 2, "requests wait for no answer"
    for index, task in enumerate(tasks):
        places = lefts(task.result())
        assert len(places) == index + 1, "an answer has as many frames as its own request"
        assert places.mean() == pytest.approx(20 + index * step_px, abs=12)


async def test_two_sequences_on_two_streams_see_only_their_own_face(client):
    async with client.stream() as one, client.stream() as two, client.stream() as three:
        left, right, nobody = Film(one, 0), Film(two, 280), Film(three, None)
        for last in (False, False, False, True):
            seen = await asyncio.gather(*(film.send(queries=3, end=last) for film in (left, right, nobody)))
            assert lefts(seen[0]) == pytest.approx(0, abs=12)
            assert lefts(seen[1]) == pytest.approx(280, abs=12)
            assert seen[2]["TRACK_IDS"].size == 0


async def test_two_sequences_interleaved_on_one_stream_see_only_their_own_face(client):
    async with client.stream() as stream:
        left, right = Film(stream, 0), Film(stream, 280)
        on_their_way = [await film.submit(end=last) for last in (False, False, True) for film in (left, right)]
        seen = [float(lefts(await pending.result())[0]) for pending in on_their_way]
    assert seen == pytest.approx([0, 280] * 3, abs=12)


# Refusals


async def test_a_sequence_without_a_start_is_refused_and_the_server_lives(client, server):
    async with client.stream() as stream:
        film = Film(stream, 0)
        with pytest.raises(ServerError, match="START"):
            await film.send(start=False)
        with pytest.raises(ServerError, match="correlation ID"):
            await stream.call("faces", chunk([BLANK], [0], [0]), TIMEOUT_S)
        assert (await film.send(start=True, end=True))["TRACK_IDS"].tolist() == [1], "the same stream and id go on"
    await assert_answers_the_probe(server)


async def test_a_sequence_that_has_ended_is_refused(client, server):
    async with client.stream() as stream:
        film = Film(stream, 0)
        await film.send()
        await film.send(end=True)
        with pytest.raises(ServerError, match="START"):
            await film.send()
    await assert_answers_the_probe(server)


async def test_a_bad_chunk_is_refused_and_the_sequence_goes_on(client):
    async with client.stream() as stream:
        film = Film(stream, 0)
        await film.send()
        bad = chunk([BLANK], [100], [100])  # before what was sent
        with pytest.raises(ServerError, match="start a new sequence to go back"):
            await stream.call("faces", bad, TIMEOUT_S, SequencePosition(film.id))
        assert lefts(await film.send(end=True)) == pytest.approx(0, abs=12)


async def test_an_expired_sequence_is_refused_and_the_server_lives(impatient_client, impatient_server):
    async with impatient_client.stream() as stream:
        film = Film(stream, 0)
        await film.send()
        await film.send()
        await asyncio.sleep(2 * IDLE_S)  # the server's own clock
        with pytest.raises(ServerError, match="START"):
            await film.send()
        assert lefts(await Film(stream, 280).send(end=True)) == pytest.approx(280, abs=12)
    await assert_answers_the_probe(impatient_server)


# Clients that vanish

VANISHING_CLIENT = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sequences import Film, TritonClient

async def main():
    async with TritonClient(sys.argv[1]) as client, client.stream() as stream:
        film = Film(stream, 280)
        await film.send()
        print("streaming", flush=True)
        while True:
            await film.send()

asyncio.run(main())
"""


async def test_a_client_killed_in_the_middle_of_a_sequence_hurts_nobody_else(impatient_client, impatient_server):
    async with impatient_client.stream() as stream:
        bystander = Film(stream, 0)
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VANISHING_CLIENT, impatient_server.url, stdout=asyncio.subprocess.PIPE
        )
        assert await other.stdout.readline() == b"streaming\n"
        await bystander.send()
        other.kill()
        await other.wait()
        assert lefts(await bystander.send(end=True)) == pytest.approx(0, abs=12)
    await assert_answers_the_probe(impatient_server)


async def test_a_channel_closed_in_the_middle_of_a_sequence_hurts_nobody_else(impatient_client, impatient_server):
    async with impatient_client.stream() as stream:
        bystander = Film(stream, 0)
        await bystander.send()
        sequence = new_sequence_id()
        async with grpc.aio.insecure_channel(impatient_server.url) as channel:
            call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
            for index in range(3):
                inputs = chunk([face_at(280)] * 2, [index * 100, index * 100 + 50], [index * 100])
                await call.write(infer_request("faces", inputs, str(index), SequencePosition(sequence, index == 0)))
            assert not (await call.read()).error_message
        assert lefts(await bystander.send(end=True)) == pytest.approx(0, abs=12)
    await assert_answers_the_probe(impatient_server)


# Deadlines


async def test_a_missed_deadline_is_an_error_and_the_stream_serves_the_next_call(client):
    """A late answer is dropped: it is not taken for the answer to a later request."""
    long = np.tile(read_aloud("My house has a big red door."), 5)  # 12 s, which take the recogniser about 1 s
    async with client.stream() as stream:
        with pytest.raises(DeadlineError, match="transcribe"):
            await stream.call("transcribe", rows({"AUDIO": long, "SOURCE_LANGUAGE": "en"}), 0.1)
        mel = await stream.call("mel", {"AUDIO": long, "FRAME_OFFSETS_MS": milliseconds(0)}, TIMEOUT_S)
        assert mel["MEL"].shape == (1, 80, 16)
        known = {"AUDIO": long, "SOURCE_LANGUAGE": "en", "KNOWN_TEXT": "the next one"}
        heard = await stream.call("transcribe", rows(known), TIMEOUT_S)
        assert heard["SOURCE_TEXT"].tolist() == [["the next one"]]


async def test_a_stream_is_ended_by_the_server_not_cancelled(client: TritonClient):
    """A cancel that meets an answer on its way can crash tritonserver 2.51."""
    async with client.stream() as stream:
        inputs = rows({"TARGET_TEXT": "Hola. " * 20, "TARGET_LANGUAGE": "es"})
        await stream.submit("synthesize", inputs, TIMEOUT_S)
    assert await stream._call.code() is grpc.StatusCode.OK
