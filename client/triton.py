"""One gRPC channel to a tritonserver and bidirectional streams over it: requests in order, each with a deadline.

Uses the generated stub directly: tritonclient's own asyncio wrapper loses the ids of errors (docs/models.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.error_codes import ErrorCode, error_code
from polylip.client.errors import DeadlineError, InputError, ServerError, ServerLostError
from polylip.client.lines import RECONNECT_S, Line, Presence
from polylip.client.pending import Outputs, Pending, told
from polylip.client.tls import Tls, refusal
from polylip.client.trace_context import TRACEPARENT_KEY, traceparent
from polylip.client.unary import UnaryCalls
from polylip.client.wire import (
    CHANNEL_OPTIONS,
    KEEPALIVE,
    Inputs,
    Keepalive,
    SequencePosition,
    infer_request,
)
from polylip.serving.metrics import DEGRADE_PARAMETER

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0  # for answers under way when a stream is closed; a frozen server is not waited for
STREAM_ID_KEY = "x-stream-id"  # metadata of every call: a proxy can keep the calls of one client on one server by it
_STREAM_ID = re.compile(r"[!-~]{1,128}")  # what metadata may hold, without spaces

Metadata = tuple[tuple[str, str], ...]


class TritonClient:
    """A channel. Use as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        tls: Tls | None = None,
        stream_id: str = "",
        reconnect_s: float = RECONNECT_S,
        keepalive: Keepalive = KEEPALIVE,
    ) -> None:
        """`reconnect_s`: how long all lines together wait for a server that was lost. Raises InputError."""
        self.url = url
        self.stream_id = stream_id or uuid.uuid4().hex
        if not _STREAM_ID.fullmatch(self.stream_id):
            raise InputError(f"{stream_id!r} is no stream id; use 1 to 128 letters, digits and signs without spaces")
        self._metadata: Metadata = ((STREAM_ID_KEY, self.stream_id), (TRACEPARENT_KEY, traceparent(self.stream_id)))
        self._secure = tls is not None
        options = [*CHANNEL_OPTIONS, *keepalive.options()]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(url, options)
        else:
            self._channel = grpc.aio.secure_channel(url, tls.credentials(), [*options, *tls.options])
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.level: Callable[[], int] = lambda: 0  # how much the caller leaves out now, 0 to 4; told with each request
        self._presence = Presence(self._is_ready, reconnect_s)
        self._heartbeat_s = keepalive.heartbeat_s

    async def __aenter__(self) -> Self:
        try:
            reply = await self._unary("ServerReady", service_pb2.ServerReadyRequest())
            metadata = await self._unary("ServerMetadata", service_pb2.ServerMetadataRequest())
        except grpc.RpcError as error:
            await self._channel.close()
            raise refusal(self.url, error.code(), str(error.details()), secure=self._secure) from None
        if not reply.ready:
            await self._channel.close()
            raise InputError(f"the tritonserver at {self.url} is not ready; look at its log")
        self.server_version = str(metadata.version)
        self._heart = asyncio.create_task(self._beat())  # ended and awaited in __aexit__
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._heart.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._heart
        await self._channel.close()

    async def engine(self, model: str) -> str:
        """The engine that a model runs. Raises ServerError."""
        return await self.parameter(model, "engine")

    async def parameter(self, model: str, name: str) -> str:
        """A parameter of the model's config; empty where it has none. Raises ServerError."""
        try:
            answer = await self._unary("ModelConfig", service_pb2.ModelConfigRequest(name=model))
        except grpc.RpcError as error:
            raise ServerError(f"{model}: {error.details()}", error_code(error.code(), error.details())) from None
        return str(answer.config.parameters[name].string_value)

    def stream(self) -> TritonStream:
        """A new bidirectional stream. Use as an async context manager."""
        return TritonStream(self._stub, self._metadata, level=self._level_now)

    def _level_now(self) -> int:
        return self.level()

    def line(self, *, decoupled: bool = False) -> Line:
        """Requests that outlive a loss; `decoupled`: to models that answer in parts. An async context manager."""
        kind = TritonStream if decoupled else UnaryCalls
        return Line(lambda on_lost: kind(self._stub, self._metadata, on_lost, self._level_now), self._presence)

    async def _unary(self, method: str, request: Any, timeout_s: float = CONNECT_TIMEOUT_S, **options: Any) -> Any:
        return await getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._metadata, **options)

    async def _is_ready(self, timeout_s: float, wait: bool) -> bool:
        try:
            reply = await self._unary(
                "ServerReady", service_pb2.ServerReadyRequest(), timeout_s=timeout_s, wait_for_ready=wait
            )
        except grpc.RpcError:
            return False
        return bool(reply.ready)

    async def _beat(self) -> None:
        """Have the server say something now and then; what it does not say is noticed by the channel itself."""
        while True:
            with contextlib.suppress(grpc.RpcError):
                await self._unary("ServerLive", service_pb2.ServerLiveRequest(), timeout_s=self._heartbeat_s)
            await asyncio.sleep(self._heartbeat_s)


class TritonStream:
    """One ModelStreamInfer call: requests leave in the order of `submit`, answers find their request by its id.

    Never mix models with one response per request and decoupled ones on a stream: tritonserver 2.51 crashes of it.
    """

    def __init__(
        self,
        stub: Any,
        metadata: Metadata = (),
        on_lost: Callable[[ErrorCode], bool] | None = None,
        level: Callable[[], int] = lambda: 0,
    ) -> None:
        """`on_lost` is told that the stream, or a model, has ended by itself, and says whether somebody waits for
        the server; without it nobody opens another."""
        self._call = stub.ModelStreamInfer(metadata=metadata) if metadata else stub.ModelStreamInfer()
        self._on_lost = on_lost
        self._level = level
        self._ids = itertools.count(1)
        self._pending: dict[str, Pending] = {}
        self._writing = asyncio.Lock()
        self._write: asyncio.Future[None] | None = None  # the last one; a caller that gives up leaves it to itself
        self._closing = False
        self._cause: tuple[str, ErrorCode] | None = None  # of the loss

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())  # ended and awaited in __aexit__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Half-close and let the server end the stream; cancel only what it does not end in time.

        A stream cancelled while the server still writes, be it an empty last response, can crash tritonserver 2.51.
        """
        self._closing = True
        try:
            with contextlib.suppress(TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._written()
                    await self._call.done_writing()
                    await asyncio.shield(self._reader)
        finally:
            self._call.cancel()
            self._reader.cancel()
            await asyncio.gather(self._reader, *filter(None, [self._write]), return_exceptions=True)

    @property
    def lost(self) -> ServerLostError | None:
        """Why it takes no more requests; None while it does."""
        return None if self._cause is None else self._lost_error(*self._cause)

    async def submit(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Pending:
        """Send a request; its deadline runs from now. Raises ServerError: lost, deadline, too large."""
        request_id = str(next(self._ids))
        request = infer_request(model, inputs, request_id, sequence)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        request.parameters[DEGRADE_PARAMETER].int64_param = self._level()
        pending = Pending(request_id, model, asyncio.get_running_loop().time() + timeout_s, self._pending)
        try:
            async with asyncio.timeout(timeout_s), self._writing:
                await self._written()
                if self.lost is not None:
                    raise self.lost
                self._pending[request_id] = pending
                self._write = asyncio.ensure_future(self._call.write(request))
                await self._written()
        except TimeoutError:
            pending.forget()
            raise DeadlineError(f"{model}: the server took no request within {timeout_s:.0f} s") from None
        except (grpc.RpcError, asyncio.InvalidStateError):
            pending.forget()
            await asyncio.wait([self._reader], timeout=CLOSE_TIMEOUT_S)  # it gets to know the cause
            raise self._lose(None) from None
        except asyncio.CancelledError:
            pending.forget()
            raise
        return pending

    async def _written(self) -> None:
        """Wait for the last write. It is never cancelled: that would cancel the whole call."""
        if self._write is not None:
            await asyncio.shield(self._write)

    async def call(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Outputs:
        """Send a request and wait for its single response."""
        return await (await self.submit(model, inputs, timeout_s, sequence)).result()

    async def _read(self) -> None:
        error: grpc.RpcError | None = None
        try:
            async for reply in self._call:
                pending = self._pending.get(reply.infer_response.id)
                if pending is not None:
                    self._hand_over(reply, pending)
        except grpc.RpcError as end:
            error = end
        finally:
            self._lose(error)

    def _hand_over(self, reply: Any, pending: Pending) -> None:
        """The answers of a model that is dead are as a loss: the server has to be started again."""
        message = told(reply.error_message)
        if not message or error_code(None, message) is not ErrorCode.PYTHON_MODEL_DIED:
            pending.put(reply)
            return
        waits = self._on_lost is not None and self._on_lost(ErrorCode.PYTHON_MODEL_DIED)
        pending.fail(ServerLostError(message, ErrorCode.PYTHON_MODEL_DIED, for_good=not waits))

    def _lose(self, error: grpc.RpcError | None) -> ServerLostError:
        if self._cause is None:
            detail, code = "it closed the stream", ErrorCode.SERVER_LOST
            if error is not None:
                status, details = error.code(), str(error.details())
                detail, code = f"{status.name}: {details}", error_code(status, details)
            self._cause = f"the connection to the server is lost ({detail})", code
            if self._on_lost is not None and not self._closing:
                self._on_lost(code)
        for pending in list(self._pending.values()):
            pending.fail(self._lost_error(*self._cause))
        return self._lost_error(*self._cause)

    def _lost_error(self, message: str, code: ErrorCode) -> ServerLostError:
        return ServerLostError(message, code, for_good=self._on_lost is None)


Stream = TritonStream | UnaryCalls | Line  # what sends requests: one connection, or as many as it takes
