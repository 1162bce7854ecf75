"""One gRPC channel to a tritonserver and bidirectional streams over it: requests in order, each with a deadline.

Uses the generated stub directly: tritonclient's own asyncio wrapper loses the ids of errors (docs/models.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.client.errors import DeadlineError, InputError, ServerError, ServerLostError
from polylip.client.wire import (
    CHANNEL_OPTIONS,
    Inputs,
    SequencePosition,
    Tensor,
    infer_request,
    is_final,
    read_outputs,
)

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0  # for answers under way when a stream is closed; a frozen server is not waited for
_ENSEMBLE_PREFIX = re.compile(r"^in ensemble '\w+', ")  # the model that failed names itself behind it

Outputs = dict[str, Tensor]


class TritonClient:
    """A channel. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._channel = grpc.aio.insecure_channel(url, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        try:
            reply = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=CONNECT_TIMEOUT_S)
            metadata = await self._stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            await self._channel.close()
            code = error.code().name if hasattr(error, "code") else "UNKNOWN"
            raise InputError(f"no tritonserver answers at {self.url} ({code}); start one with: polylip serve") from None
        if not reply.ready:
            await self._channel.close()
            raise InputError(f"the tritonserver at {self.url} is not ready; look at its log")
        self.server_version = str(metadata.version)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def engine(self, model: str) -> str:
        """The `engine` parameter of the model's config; empty where it has none. Raises ServerError."""
        request = service_pb2.ModelConfigRequest(name=model)
        try:
            answer = await self._stub.ModelConfig(request, timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ServerError(f"{model}: {error.details()}") from None
        return str(answer.config.parameters["engine"].string_value)

    def stream(self) -> TritonStream:
        """A new bidirectional stream. Use as an async context manager."""
        return TritonStream(self._stub)


class TritonStream:
    """One ModelStreamInfer call: requests leave in the order of `submit`, answers find their request by its id.

    Never mix models with one response per request and decoupled ones on a stream: tritonserver 2.51 crashes of it.
    """

    def __init__(self, stub: Any) -> None:
        self._call = stub.ModelStreamInfer()
        self._ids = itertools.count(1)
        self._pending: dict[str, Pending] = {}
        self._writing = asyncio.Lock()
        self._lost: str | None = None

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())  # ended and awaited in __aexit__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Half-close and let the server end the stream; cancel only what it does not end in time.

        A stream cancelled while the server still writes, be it an empty last response, can crash tritonserver 2.51.
        """
        try:
            with contextlib.suppress(TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._call.done_writing()
                    await asyncio.shield(self._reader)
        finally:
            self._call.cancel()
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    async def submit(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Pending:
        """Send a request; its deadline runs from now. Raises ServerLostError."""
        request_id = str(next(self._ids))
        request = infer_request(model, inputs, request_id, sequence)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        pending = Pending(request_id, model, asyncio.get_running_loop().time() + timeout_s, self._pending)
        async with self._writing:
            if self._lost is not None:
                raise ServerLostError(self._lost)
            self._pending[request_id] = pending
            try:
                async with asyncio.timeout(timeout_s):
                    await self._call.write(request)
            except TimeoutError:
                pending.forget()
                raise DeadlineError(f"{model}: the server took no request within {timeout_s:.0f} s") from None
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                pending.forget()
                self._lose(error)
                raise ServerLostError(self._lost) from None
        return pending

    async def call(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Outputs:
        """Send a request and wait for its single response."""
        return await (await self.submit(model, inputs, timeout_s, sequence)).result()

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                pending = self._pending.get(reply.infer_response.id)
                if pending is not None:
                    pending.put(reply)
            self._lose(None)
        except grpc.RpcError as error:
            self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if self._lost is None:
            detail = "it closed the stream"
            if isinstance(error, grpc.RpcError):
                detail = f"{error.code().name}: {error.details()}"
            self._lost = f"the connection to the server is lost ({detail})"
        for pending in list(self._pending.values()):
            pending.fail(ServerLostError(self._lost))


class Pending:
    """A request on its way; read it with `result` or by iterating over it. It ends exactly once."""

    def __init__(self, request_id: str, model: str, deadline: float, registry: dict[str, Pending]) -> None:
        self._id = request_id
        self._model = model
        self._deadline = deadline  # event-loop time
        self._registry = registry
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, reply: Any) -> None:
        self._queue.put_nowait(reply)

    def fail(self, error: ServerError) -> None:
        self._queue.put_nowait(error)

    def forget(self) -> None:
        """Answers that still come are dropped."""
        self._registry.pop(self._id, None)

    async def result(self) -> Outputs:
        """The single response. Raises ServerError, DeadlineError, ServerLostError."""
        outputs: Outputs | None = None
        async for answer in self:
            outputs = answer
        if outputs is None:
            raise ServerError(f"{self._model}: the server ended the request without an answer")
        return outputs

    async def __aiter__(self) -> AsyncIterator[Outputs]:
        """The responses as they come."""
        try:
            while True:
                try:
                    async with asyncio.timeout_at(self._deadline):
                        reply = await self._queue.get()
                except TimeoutError:
                    raise DeadlineError(f"{self._model}: no answer within its deadline") from None
                if isinstance(reply, ServerError):
                    raise reply
                if reply.error_message:
                    raise ServerError(_ENSEMBLE_PREFIX.sub("", str(reply.error_message)))
                if reply.infer_response.outputs:
                    yield read_outputs(reply.infer_response)
                if is_final(reply.infer_response):
                    return
        finally:
            self.forget()
