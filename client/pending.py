"""A request on its way to the server, and its answers as they come."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from polylip.client.error_codes import error_code
from polylip.client.errors import DeadlineError, ServerError
from polylip.client.wire import Tensor, is_final, read_outputs

_ENSEMBLE_PREFIX = re.compile(r"^in ensemble '\w+', ")  # the model that failed names itself behind it

Outputs = dict[str, Tensor]


class Pending:
    """A request on its way; read it with `result` or by iterating over it. It ends exactly once."""

    def __init__(self, request_id: str, model: str, deadline: float, registry: dict[str, Pending]) -> None:
        self._id = request_id
        self._model = model
        self._deadline = deadline  # event-loop time
        self._registry = registry
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self.failed = False  # with its stream; known before the answers that did come are read
        self.first_at = self.last_at = 0.0  # time.monotonic() of the first and the newest answer; 0 until there is one

    def put(self, reply: Any) -> None:
        self.last_at = time.monotonic()
        self.first_at = self.first_at or self.last_at
        self._queue.put_nowait(reply)

    def fail(self, error: ServerError) -> None:
        self.failed = True
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
                    message = told(reply.error_message)
                    raise ServerError(message, error_code(None, message))
                if reply.infer_response.outputs:
                    yield read_outputs(reply.infer_response)
                if is_final(reply.infer_response):
                    return
        finally:
            self.forget()


def told(message: object) -> str:
    """An error of the server in one line: without the ensemble around the model, and without a traceback."""
    return _ENSEMBLE_PREFIX.sub("", str(message)).partition("\n")[0]
