"""Requests to models that answer once, each a ModelInfer call of its own.

Where a decoupled model and others answer on ModelStreamInfer calls at the same time, even on calls of their own,
tritonserver 2.51 crashes after some thousand answers. So streams are left to the decoupled ones.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2

from polylip.client.error_codes import ErrorCode, error_code
from polylip.client.errors import DeadlineError, ServerError, ServerLostError
from polylip.client.pending import Outputs, Pending, told
from polylip.client.wire import Inputs, SequencePosition, infer_request
from polylip.serving.metrics import DEGRADE_PARAMETER

GRACE_S = 5.0  # beyond a request's deadline: a call that its caller has given up is not cut off at once
CLOSE_TIMEOUT_S = 2.0  # for answers under way when the calls are closed; a frozen server is not waited for
GONE = (ErrorCode.SERVER_LOST, ErrorCode.FROZEN, ErrorCode.UNAVAILABLE)


class UnaryCalls:
    """The interface of a TritonStream. Requests of a sequence wait for the answer before them: calls have no order."""

    def __init__(
        self,
        stub: Any,
        metadata: tuple[tuple[str, str], ...] = (),
        on_lost: Callable[[ErrorCode], bool] | None = None,
        level: Callable[[], int] = lambda: 0,
    ) -> None:
        """`on_lost` is told that the server is gone, or a model, and says whether somebody waits for the server."""
        self._stub = stub
        self._metadata = metadata
        self._on_lost = on_lost
        self._level = level
        self._ids = itertools.count(1)
        self._pending: dict[str, Pending] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._last: asyncio.Task[None] | None = None  # of a sequence
        self._cause: tuple[str, ErrorCode] | None = None  # of the loss

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the answers that are due, but not for a server that is gone."""
        if self._calls and self._cause is None:
            await asyncio.wait(self._calls, timeout=CLOSE_TIMEOUT_S)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    @property
    def lost(self) -> ServerLostError | None:
        """Why it takes no more requests; None while it does."""
        return None if self._cause is None else ServerLostError(*self._cause, for_good=self._on_lost is None)

    async def submit(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Pending:
        """Send a request; its deadline runs from now. Raises ServerError: lost, too large."""
        if self.lost is not None:
            raise self.lost
        request_id = str(next(self._ids))
        request = infer_request(model, inputs, request_id, sequence)
        request.parameters[DEGRADE_PARAMETER].int64_param = self._level()
        pending = Pending(request_id, model, asyncio.get_running_loop().time() + timeout_s, self._pending)
        self._pending[request_id] = pending
        before = None if sequence is None else self._last
        call = asyncio.create_task(self._infer(request, pending, timeout_s, before))
        self._last = self._last if sequence is None else call
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return pending

    async def call(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Outputs:
        """Send a request and wait for its response."""
        return await (await self.submit(model, inputs, timeout_s, sequence)).result()

    async def _infer(self, request: Any, pending: Pending, timeout_s: float, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        if self._cause is not None:
            return
        try:
            answer = await self._stub.ModelInfer(request, timeout=timeout_s + GRACE_S, metadata=self._metadata)
        except grpc.RpcError as error:
            self._fail(pending, request.model_name, error)
            return
        answer.parameters["triton_final_response"].bool_param = True
        pending.put(service_pb2.ModelStreamInferResponse(infer_response=answer))

    def _fail(self, pending: Pending, model: str, error: grpc.RpcError) -> None:
        status, message = error.code(), told(error.details())
        code = error_code(status, message)
        if code in GONE:
            self._lose(f"the connection to the server is lost ({status.name}: {message})", code)
        elif code is ErrorCode.PYTHON_MODEL_DIED:
            waits = self._on_lost is not None and self._on_lost(code)
            pending.fail(ServerLostError(message, code, for_good=not waits))
        elif code is ErrorCode.DEADLINE:
            pending.fail(DeadlineError(f"{model}: no answer within its deadline"))
        else:
            pending.fail(ServerError(message, code))

    def _lose(self, message: str, code: ErrorCode) -> None:
        if self._cause is None:
            self._cause = message, code
            if self._on_lost is not None:
                self._on_lost(code)
        for pending in list(self._pending.values()):
            pending.fail(ServerLostError(message, code, for_good=self._on_lost is None))
