"""The connection: codes for real failures, TLS, metadata, limits, cancellation, and what is and is not sent again."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from echo import echo_servers, kill, wait
from live_run import stub
from material import chunk, face_crop, milliseconds
from proxy import Proxy

from polylip.client.error_codes import ErrorCode, error_code, markdown
from polylip.client.errors import DeadlineError, InputError, ServerError, ServerLostError
from polylip.client.lines import DOOMED_S, Line
from polylip.client.pending import Outputs, Pending
from polylip.client.retry import TRIES, retrying
from polylip.client.triton import STREAM_ID_KEY, TritonClient, TritonStream
from polylip.client.wire import MAX_MESSAGE_BYTES, Inputs, Keepalive, SequencePosition, new_sequence_id
from polylip.serving.launcher import Server

TIMEOUT_S = 30.0
START_S = 60.0
SOUND = np.zeros(8000, np.float32)
KINDS = pytest.mark.parametrize("decoupled", [False, True], ids=["calls", "stream"])  # of lines
LIPS: Inputs = {"AUDIO": SOUND, "FRAME_OFFSETS_MS": milliseconds(0), "FACES": face_crop()[None]}


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    with echo_servers(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def echo(echo_server: Callable[..., Server]) -> Server:
    return echo_server(f"--grpc-header-forward-pattern={STREAM_ID_KEY}")


# Codes


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (None, "Request for unknown model: 'nope' is not found", ErrorCode.UNKNOWN_MODEL),
        (None, "Request for unknown model: 'mel' version 7 is not found", ErrorCode.UNKNOWN_MODEL),
        (None, "Request for unknown model: 'mel' has no available versions", ErrorCode.MODEL_NOT_READY),
        (
            None,
            "[request id: 1] unexpected shape for input 'FACES' for model 'lipsync'. Expected",
            ErrorCode.BAD_REQUEST,
        ),
        (None, "[request id: 1] inference request batch-size must be <= 1 for 'translate'", ErrorCode.BAD_REQUEST),
        (None, "[request id: 1] input byte size mismatch for input 'AUDIO' for model 'mel'.", ErrorCode.BAD_REQUEST),
        (None, "[request id: 1] input 'MEL' batch size does not match other inputs for 'lips'", ErrorCode.BAD_REQUEST),
        (None, "Stub process 'mel_0_0' is not healthy.", ErrorCode.PYTHON_MODEL_DIED),
        (None, "Server is stopping, scheduler for model has stopped accepting new inference requests", "unavailable"),
        (None, "transcribe: AUDIO holds NaN or infinite samples; send samples", ErrorCode.ENGINE_FAILED),
        (None, "[request id: 3] Exceeds maximum queue size", ErrorCode.QUEUE_FULL),
        (None, "Failed to process the request(s) for model 'echo_0_0', message: RuntimeError", ErrorCode.ENGINE_FAILED),
        (None, "something new", ErrorCode.INTERNAL),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ErrorCode.SERVER_LOST),
        (grpc.StatusCode.UNAVAILABLE, "Stream removed (ping timeout)", ErrorCode.FROZEN),
        (grpc.StatusCode.UNAVAILABLE, "Too many pings", ErrorCode.SERVER_LOST),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", ErrorCode.SERVER_LOST),
        (
            grpc.StatusCode.UNAVAILABLE,
            "last error: UNKNOWN: Ssl handshake failed (TSI_PROTOCOL_FAILURE)",
            ErrorCode.TLS,
        ),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; Connection refused (111)", "server_lost"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 8)", ErrorCode.TOO_LARGE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ErrorCode.DEADLINE),
        (grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ErrorCode.CANCELLED),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'nope' is not found", ErrorCode.UNKNOWN_MODEL),
        (grpc.StatusCode.UNIMPLEMENTED, "unknown service inference.GRPCInferenceService", ErrorCode.BAD_REQUEST),
        (grpc.StatusCode.UNKNOWN, "something new", ErrorCode.INTERNAL),
        (grpc.StatusCode.INVALID_ARGUMENT, "mel: AUDIO is empty; send samples", ErrorCode.ENGINE_FAILED),
    ],
)
def test_what_gRPC_and_the_server_say_has_a_code(status: grpc.StatusCode | None, message: str, code: str):  # noqa: N802
    assert error_code(status, message) == code


def test_the_page_shows_the_table_of_codes():
    assert markdown() in (Path(__file__).parents[1] / "docs" / "transport.md").read_text()


@pytest.mark.parametrize(
    ("model", "inputs", "sequence", "code"),
    [
        ("nope", LIPS, None, ErrorCode.UNKNOWN_MODEL),
        ("lipsync", {**LIPS, "FACES": np.zeros((1, 95, 96, 3), np.uint8)}, None, ErrorCode.BAD_REQUEST),
        ("lipsync", {**LIPS, "FRAME_OFFSETS_MS": milliseconds(0, 40)}, None, ErrorCode.BAD_REQUEST),
        ("lipsync", {**LIPS, "AUDIO": SOUND.astype(np.float64)}, None, ErrorCode.BAD_REQUEST),
        ("lipsync", {"AUDIO": SOUND}, None, ErrorCode.BAD_REQUEST),
        ("lipsync", {**LIPS, "MORE": SOUND}, None, ErrorCode.BAD_REQUEST),
        ("lipsync", {**LIPS, "AUDIO": SOUND[:0]}, None, ErrorCode.ENGINE_FAILED),
        ("faces", chunk([np.zeros((36, 64, 3), np.uint8)], [0], [0]), None, ErrorCode.SEQUENCE_LOST),
        ("faces", chunk([np.zeros((36, 64, 3), np.uint8)], [0], [0]), "unknown", ErrorCode.SEQUENCE_LOST),
        ("mel", {**LIPS, "AUDIO": np.zeros(MAX_MESSAGE_BYTES // 4, np.float32)}, None, ErrorCode.TOO_LARGE),
    ],
)
@KINDS
async def test_a_wrong_request_gets_its_code_is_not_sent_again_and_hurts_nobody(
    server: Server, model: str, inputs: Inputs, sequence: str | None, code: ErrorCode, decoupled: bool
):
    position = SequencePosition(new_sequence_id()) if sequence else None
    tries = 0
    async with TritonClient(server.url) as client, client.line(decoupled=decoupled) as line:
        other = await line.submit("lipsync", LIPS, TIMEOUT_S)

        async def attempt() -> None:
            nonlocal tries
            tries += 1
            await line.call(model, inputs, TIMEOUT_S, position)

        with pytest.raises(ServerError) as caught:
            await retrying(attempt, deadline=asyncio.get_running_loop().time() + TIMEOUT_S)
        assert (caught.value.code, tries) == (code, 1)
        assert len(str(caught.value).splitlines()) == 1
        assert (await other.result())["MOUTHS"].shape == (1, 96, 96, 3)
        assert (await line.call("lipsync", LIPS, TIMEOUT_S))["MOUTHS"].shape == (1, 96, 96, 3)
        assert line.reopened == 0


async def test_a_unary_call_has_a_code_too(echo: Server):
    async with TritonClient(echo.url) as client:
        with pytest.raises(ServerError) as caught:
            await client.engine("nope")
    assert caught.value.code is ErrorCode.UNKNOWN_MODEL


async def test_a_full_queue_and_a_broken_engine_have_their_codes(echo: Server):
    async with TritonClient(echo.url) as client, client.line() as line:
        sent = [await line.submit("echo", wait(0.5), TIMEOUT_S) for _ in range(12)]
        ended = await asyncio.gather(*(pending.result() for pending in sent), return_exceptions=True)
        refused = [error for error in ended if isinstance(error, ServerError)]
        assert 0 < len(refused) < len(sent) and {error.code for error in refused} == {ErrorCode.QUEUE_FULL}
        with pytest.raises(ServerError) as caught:
            await line.call("echo", wait(-1), TIMEOUT_S)
        assert caught.value.code is ErrorCode.ENGINE_FAILED
        assert str(caught.value).endswith("message: RuntimeError: the engine is broken")


async def test_a_killed_python_model_is_waited_for_once_and_named(echo_server: Callable[..., Server]):
    """Nobody starts the server again here: after the time in which a supervisor would, the error stays."""
    server = await asyncio.to_thread(echo_server)
    tries = 0
    async with TritonClient(server.url) as client, client.line() as line:
        await line.call("echo", wait(0), TIMEOUT_S)
        stub(server, "echo").kill()

        async def attempt() -> None:
            nonlocal tries
            tries += 1
            await line.call("echo", wait(0), TIMEOUT_S)

        for tries_needed in (2, 1):
            tries, started = 0, time.monotonic()
            with pytest.raises(ServerError) as caught:
                await retrying(attempt, deadline=asyncio.get_running_loop().time() + TIMEOUT_S)
            assert (caught.value.code, tries) == (ErrorCode.PYTHON_MODEL_DIED, tries_needed)
            assert (time.monotonic() - started >= DOOMED_S) == (tries_needed == 2)
    kill(server)  # it would not stop by itself


# Limits, metadata, cancellation


async def past_the_queue(line: Line | TritonStream) -> Outputs:
    """An answer, once the requests that were given up have left room in the model's queue."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return await line.call("echo", wait(0), TIMEOUT_S)
        except ServerError as error:
            if error.code is not ErrorCode.QUEUE_FULL or time.monotonic() > until:
                raise
        await asyncio.sleep(0.1)


async def test_every_call_names_its_stream(echo: Server):
    async with TritonClient(echo.url, stream_id="talk-7") as client, client.line() as line:
        said = await line.call("echo", wait(0), TIMEOUT_S)
        assert json.loads(said["PARAMETERS"][0])[STREAM_ID_KEY] == "talk-7"
    async with TritonClient(echo.url) as client, client.stream() as stream:
        said = await stream.call("echo", wait(0), TIMEOUT_S)
        assert json.loads(said["PARAMETERS"][0])[STREAM_ID_KEY] == client.stream_id != ""
    with pytest.raises(InputError, match="is no stream id"):
        TritonClient(echo.url, stream_id="two words")


async def test_who_gives_up_on_a_request_disturbs_no_other(echo: Server):
    """Neither while it waits for its answer, nor while the connection takes no bytes."""
    async with Proxy(echo.url) as proxy, TritonClient(proxy.url) as client, client.stream() as stream:
        other = await stream.submit("echo", wait(0.3), TIMEOUT_S)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stream.call("echo", wait(0.2), TIMEOUT_S)
        assert (await other.result())["PARAMETERS"].size == 1
        proxy.freeze()
        big = wait(0, samples=4_000_000)  # more than the sockets in between hold
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await stream.submit("echo", big, TIMEOUT_S)
        with pytest.raises(DeadlineError):
            await stream.call("echo", wait(0), 0.2)
        proxy.thaw()
        assert (await past_the_queue(stream))["PARAMETERS"].size == 1
        assert stream.lost is None


async def test_a_frozen_connection_is_noticed_in_the_documented_time_and_the_request_sent_again(echo: Server):
    keepalive = Keepalive(time_s=1.0, timeout_s=1.5)
    async with Proxy(echo.url) as proxy, TritonClient(proxy.url, keepalive=keepalive) as client, client.line() as line:
        await line.call("echo", wait(0), TIMEOUT_S)
        proxy.freeze()
        started = time.monotonic()
        pending = await line.submit("echo", wait(0), TIMEOUT_S)
        with pytest.raises(ServerLostError) as caught:
            await pending.result()
        noticed_s = time.monotonic() - started
        assert caught.value.code is ErrorCode.FROZEN
        assert keepalive.timeout_s <= noticed_s < keepalive.time_s + keepalive.timeout_s + 2
        proxy.thaw()
        said = await line.call("echo", wait(0), TIMEOUT_S)
        assert said["PARAMETERS"].size == 1 and line.reopened == 1


async def test_a_connection_at_rest_stays(echo: Server):
    """Pings alone would make tritonserver hang up, here after 3 s; the heartbeats keep it."""
    async with TritonClient(echo.url, keepalive=Keepalive(1.0, 5.0)) as client, client.line() as line:
        await line.call("echo", wait(0), TIMEOUT_S)
        await asyncio.sleep(6)
        await line.call("echo", wait(0), TIMEOUT_S)
        assert line.lost is None and line.reopened == 0


async def test_what_a_request_was_made_of_is_let_go_at_once():
    """Not when the collector of cycles comes: pictures would wait for that by the megabyte."""

    class Request:
        async def attempt(self) -> None:
            pass

        def count(self) -> None:
            pass

    request = Request()
    held = weakref.ref(request)
    gc.disable()
    try:
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        await retrying(request.attempt, deadline=deadline, on_retry=request.count)
        del request
        assert held() is None
    finally:
        gc.enable()


@KINDS
async def test_tries_are_bounded(echo: Server, decoupled: bool):
    """Every connection is reset once the request is on its way."""
    tries = 0
    async with (
        Proxy(echo.url) as proxy,
        TritonClient(proxy.url) as client,
        client.line(decoupled=decoupled) as line,
    ):

        async def attempt() -> None:
            nonlocal tries
            tries += 1
            pending = await line.submit("echo", wait(2), TIMEOUT_S)
            await asyncio.sleep(0.3)
            proxy.reset()
            await pending.result()

        with pytest.raises(ServerLostError):
            await retrying(attempt, deadline=asyncio.get_running_loop().time() + TIMEOUT_S)
        assert tries == TRIES
        assert (await past_the_queue(line))["PARAMETERS"].size == 1  # the server works on for streams that are gone
        assert line.reopened == TRIES


async def test_a_server_that_is_gone_fails_everything_together_and_then_at_once(echo_server: Callable[..., Server]):
    server = await asyncio.to_thread(echo_server)
    loop = asyncio.get_running_loop()
    async with TritonClient(server.url, reconnect_s=1.5) as client, client.line() as one, client.line() as two:
        under_way = [await line.submit("echo", wait(5), TIMEOUT_S) for line in (one, two)]
        kill(server)

        async def end(line: Line, pending: Pending) -> float:
            with pytest.raises(ServerLostError, match="has not come back within 2 s"):
                with pytest.raises(ServerLostError):
                    await pending.result()
                await retrying(lambda: line.call("echo", wait(0), TIMEOUT_S), deadline=loop.time() + TIMEOUT_S)
            return time.monotonic()

        started = time.monotonic()
        ended = await asyncio.gather(*(end(*pair) for pair in zip((one, two), under_way, strict=True)))
        assert min(ended) - started >= 1.4 and max(ended) - min(ended) < 1 and max(ended) - started < 6
        for line in (one, two):
            with pytest.raises(ServerLostError):
                async with asyncio.timeout(0):  # it waits for nothing at all
                    await retrying(lambda: line.call("echo", wait(0), TIMEOUT_S), deadline=loop.time() + TIMEOUT_S)  # noqa: B023


async def test_a_line_that_rested_while_the_server_was_away_for_long_asks_before_it_gives_up(echo: Server):
    async with (
        Proxy(echo.url) as proxy,
        TritonClient(proxy.url, reconnect_s=0.2) as client,
        client.line(decoupled=True) as line,
    ):
        await line.call("echo", wait(0), TIMEOUT_S)
        proxy.reset()
        async with asyncio.timeout(TIMEOUT_S):
            while line.lost is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.6)
        assert (await line.call("echo", wait(0), TIMEOUT_S))["PARAMETERS"].size == 1
        assert line.reopened == 1
