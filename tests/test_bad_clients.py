"""`dub` and clients that break its rules or vanish: an error within a second, the server alive, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from live_run import stub
from scrape import Scrape
from tritonclient.grpc import service_pb2

from polylip.client.dub_stream import DubSegment, DubStream
from polylip.client.errors import ServerError
from polylip.client.pending import Pending
from polylip.client.protocol_golden import FOLDER
from polylip.client.segment_folder import read_segment
from polylip.client.triton import TritonClient, TritonStream
from polylip.client.wire import SequencePosition, infer_request, new_sequence_id
from polylip.serving.dub.codes import DubStatus, read_refusal
from polylip.serving.launcher import Server
from polylip.serving.probe import probe_model, stub_of
from polylip.serving.supervisor_probe import TRIES, DeepProbe

IDLE_S = 2.0  # of the server for these tests, instead of a minute
SLOTS = 2
PROMPT_S = 1.0  # a client that breaks the rules knows within this
CALL_S = 30.0
FRAMES = 3
PENDING = "nv_inference_pending_request_count"
LATER_S = 10.0  # for what has been given up to be swept, on a busy machine

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def impatient(own_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """Two slots, and streams that are idle for IDLE_S are given up, by the gate and by Triton."""
    monkeypatch.setenv("POLYLIP_SLOTS", str(SLOTS))
    short_us = f"max_sequence_idle_microseconds: {int(IDLE_S * 1e6)}"
    return own_server(
        {
            "gate": [("max_sequence_idle_microseconds: 60000000", short_us), ('"60"', f'"{IDLE_S}"')],
            "join": [("max_sequence_idle_microseconds: 150000000", short_us), ('"180"', f'"{IDLE_S + 1}"')],
        }
    )


def segment(text: str = "the weather is nice today") -> DubSegment:
    """A short one, whose text is known."""
    golden, _ = read_segment(FOLDER)
    frames, times = golden.frames[:FRAMES], golden.frame_ms[:FRAMES]
    return DubSegment(golden.audio[:0], frames, times, options={"KNOWN_TEXT": text})


def inputs(one: DubSegment | None = None) -> dict:
    return dict((one or segment()).inputs("en", "es"))


def starting(sequence: int, **more: float) -> SequencePosition:
    return SequencePosition(sequence, start=True, timeout_s=CALL_S, **more)


async def submit(stream: TritonStream, position: SequencePosition) -> Pending:
    return await stream.submit("dub", inputs(), CALL_S, position)


async def refused(stream: TritonStream, position: SequencePosition) -> str:
    """The code of the error, which must come promptly."""
    pending, began = await submit(stream, position), time.monotonic()
    with pytest.raises(ServerError) as error:
        await pending.result()
    assert time.monotonic() - began < PROMPT_S
    return read_refusal(str(error.value))[0] or str(error.value.code)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[TritonStream]:
    async with TritonClient(server.url) as client, client.stream() as stream:
        yield stream


async def until_nothing_is_left(server: Server) -> None:
    """No live stream, no request in any model, and everybody is served again.

    A START that the gate refused stays with Triton until it is idle too.
    """
    await asyncio.sleep(IDLE_S)
    deadline = time.monotonic() + LATER_S
    while time.monotonic() < deadline:
        scrape = Scrape(server)
        live = scrape("live_sequences", model="gate") + scrape("live_sequences", model="join")
        waiting = sum(
            value for (name, _), value in scrape.values.items() if name == "nv_inference_pending_request_count"
        )
        if live == waiting == 0:
            break
        await asyncio.sleep(0.2)
    else:
        pytest.fail(f"{live:g} live streams and {waiting:g} waiting requests after {LATER_S:g} s")
    async with DubStream(server.url, "en", "es") as stream:
        await stream.send(segment())
        assert (await stream.answer()).status is DubStatus.OK


def assert_stops_in_order(server: Server) -> None:
    """tritonserver ends by itself, with nothing under way; the guard has nothing to kill."""
    began = time.monotonic()
    server.stop()
    log = server.read_log()
    assert time.monotonic() - began < 8.0, "the guard had to kill it"
    in_flight = re.findall(r"has (\d+) in-flight inferences", log)
    assert not in_flight, f"{in_flight} were still in flight"
    assert "Signal (11)" not in log and "terminate called" not in log


async def test_requests_that_belong_to_no_stream_are_refused_at_once(impatient: Server):
    async with connected(impatient) as stream:
        assert await refused(stream, SequencePosition(new_sequence_id())) == "sequence_lost"
        assert await refused(stream, SequencePosition(new_sequence_id(), end=True)) == "sequence_lost"
        assert await refused(stream, SequencePosition(0, start=True, timeout_s=CALL_S)) in (
            "sequence_lost",
            "bad_request",
        )
        assert await refused(stream, SequencePosition(new_sequence_id(), start=True)) == "bad_request"
        expired = new_sequence_id()
        await (await submit(stream, starting(expired))).result()
        await asyncio.sleep(2 * IDLE_S)
        assert await refused(stream, SequencePosition(expired)) == "sequence_lost"
        ended = new_sequence_id()
        await (await submit(stream, SequencePosition(ended, start=True, end=True, timeout_s=CALL_S))).result()
        assert await refused(stream, SequencePosition(ended)) == "sequence_lost"
    await until_nothing_is_left(impatient)
    assert Scrape(impatient)("swept_sequences_total", model="gate") >= 1
    assert_stops_in_order(impatient)


async def test_a_start_without_a_slot_or_with_anothers_id_is_refused_while_the_others_work(impatient: Server):
    async with connected(impatient) as stream, connected(impatient) as elsewhere:
        ids = [new_sequence_id() for _ in range(SLOTS)]
        for sequence in ids:  # answered, or the START from elsewhere might overtake one of them
            assert (await (await submit(stream, starting(sequence))).result())["STATUS"][0] == "ok"
        working = [await submit(stream, SequencePosition(sequence)) for sequence in ids]
        code = await refused(elsewhere, starting(new_sequence_id()))
        assert code == "full"
        assert await refused(elsewhere, starting(ids[0])) == "taken"
        for pending in working:
            assert (await pending.result())["STATUS"][0] == "ok"
        for sequence in ids:
            ending = await submit(stream, SequencePosition(sequence, end=True))
            assert (await ending.result())["STATUS"][0] == "ok"
    scrape = Scrape(impatient)
    assert scrape("refused_total", model="gate", code="full") == 1
    assert scrape("refused_total", model="gate", code="taken") == 1
    assert scrape("slots", model="gate") == SLOTS
    await until_nothing_is_left(impatient)
    assert_stops_in_order(impatient)


async def test_a_refused_client_gets_in_by_itself_when_a_slot_is_free(impatient: Server):
    async with DubStream(impatient.url, "en", "es") as first, DubStream(impatient.url, "en", "es") as second:
        for stream in (first, second):
            await stream.send(segment())
            await stream.answer()
        async with DubStream(impatient.url, "en", "es") as third:
            await third.send(segment())
            assert (await third.answer()).status is DubStatus.OK  # the idle ones are given up
            assert third.links > 1


GONE = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from test_bad_clients import connected, starting, submit
from polylip.client.wire import SequencePosition, new_sequence_id

class Server:
    url = {url!r}

async def main():
    async with connected(Server) as stream:
        sequence = new_sequence_id()
        await submit(stream, starting(sequence))
        for _ in range(5):
            await submit(stream, SequencePosition(sequence))
        print("sent", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_clients_that_vanish_leave_nothing_behind(impatient: Server):
    for _ in range(SLOTS):
        code = GONE.format(tests=str(Path(__file__).parent), url=impatient.url)
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
        try:
            assert client.stdout is not None
            assert await client.stdout.readline() == b"sent\n"
        finally:
            client.kill()
            await client.wait()
    await until_nothing_is_left(impatient)
    assert_stops_in_order(impatient)


async def test_a_picture_branch_that_fails_costs_the_mouths_and_nothing_else(impatient: Server):
    os.kill(stub(impatient, "detect").pid, signal.SIGKILL)
    async with DubStream(impatient.url, "en", "es") as stream:
        for _ in range(2):
            await stream.send(segment())
            answer = await stream.answer()
            assert answer.status is DubStatus.PICTURE_FAILED and answer.audio.size
        assert stream.links == 1


async def test_a_speech_branch_that_dies_is_an_error_and_the_server_lives(impatient: Server):
    os.kill(stub(impatient, "translate").pid, signal.SIGKILL)
    async with connected(impatient) as stream:
        sequence = new_sequence_id()
        for position in (starting(sequence), SequencePosition(sequence), SequencePosition(sequence, end=True)):
            with pytest.raises(ServerError, match="not healthy"):
                await (await submit(stream, position)).result()
    async with TritonClient(impatient.url) as client:
        request = service_pb2.ModelStatisticsRequest(name="gate")
        statistics = await client._unary("ModelStatistics", request)
        assert statistics.model_stats[0].inference_stats.success.count >= 3
        detect = infer_request("detect", {"FRAMES": np.zeros((1, 360, 640, 3), np.uint8)})
        assert (await client._unary("ModelInfer", detect, timeout_s=CALL_S)).outputs


async def test_a_gate_that_is_full_is_well_for_the_supervisors_probe(impatient: Server):
    async with connected(impatient) as stream:
        for sequence in (new_sequence_id() for _ in range(SLOTS)):
            assert (await (await submit(stream, starting(sequence))).result())["STATUS"][0] == "ok"
        probe = DeepProbe(impatient.endpoint)
        assert "code=full" in str(await asyncio.to_thread(_ask_dub, impatient))
        assert [await asyncio.to_thread(probe.look) for _ in range(TRIES)] == [None] * TRIES


def _ask_dub(server: Server) -> str | None:
    with server.endpoint.channel() as channel:
        return probe_model(stub_of(channel), "dub", CALL_S)
