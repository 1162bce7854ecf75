"""A line to the server: a stream that opens itself again when the connection was lost and the server is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import ServerLostError

if TYPE_CHECKING:
    from polylip.client.pending import Outputs, Pending
    from polylip.client.triton import TritonStream
    from polylip.client.unary import UnaryCalls
    from polylip.client.wire import Inputs, SequencePosition

RECONNECT_S = 30.0  # a killed server of profile lite is back within 10 s on two cores
ASK_S = 2.0  # for an answer whether the server is ready
POLL_S = 0.25
DOOMED_S = 5.0  # a supervisor ends a server with a dead model within 3 s
ALONE_S = 60.0  # for which a server that nobody ended is not waited for again


class Presence:
    """Whether the server is there, for all lines of a client: they wait for it together, and give up together."""

    def __init__(self, is_ready: Callable[[float, bool], Awaitable[bool]], reconnect_s: float) -> None:
        """`is_ready` asks the server, takes at most so many seconds, and waits for a connection if it should."""
        self._is_ready = is_ready
        self.reconnect_s = reconnect_s
        self._away_since: float | None = None  # event-loop time
        self.given_up = False
        self._doomed_until: float | None = None  # the server is expected to be ended by then
        self._alone_until = 0.0  # it was not, and is not expected to be
        self._asking = asyncio.Lock()

    def lost(self) -> None:
        """A connection has just ended."""
        self._doomed_until, self._alone_until = None, 0.0
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()

    def doomed(self) -> bool:
        """A model of the server is dead; whether it is worth waiting for a supervisor to start the server again."""
        now = asyncio.get_running_loop().time()
        if now < self._alone_until:
            return False
        if self._doomed_until is None and self._away_since is None:
            self._doomed_until = now + DOOMED_S
        return True

    async def outlived(self, deadline: float) -> None:
        """Wait until a doomed server is gone, or nobody seems to end it. It says all the time that it is ready."""
        async with asyncio.timeout_at(deadline), self._asking:
            while self._doomed_until is not None:
                if not await self._is_ready(ASK_S, False):
                    self.lost()
                elif asyncio.get_running_loop().time() >= self._doomed_until:
                    self._doomed_until, self._alone_until = None, asyncio.get_running_loop().time() + ALONE_S
                else:
                    await asyncio.sleep(POLL_S)

    async def back(self, deadline: float) -> bool:
        """Wait for a server that is away; False when it was not back at `deadline` (event-loop time) or given up."""
        if self._away_since is None:
            return True
        try:
            async with asyncio.timeout_at(deadline), self._asking:
                while self._away_since is not None and not self.given_up:
                    await self._ask(self._away_since + self.reconnect_s)
        except TimeoutError:
            return False
        return not self.given_up

    async def _ask(self, give_up_at: float) -> None:
        """Once; the first time even when nobody has asked until it is late."""
        left_s = give_up_at - asyncio.get_running_loop().time()
        if await self._is_ready(min(ASK_S, left_s) if left_s > POLL_S else ASK_S, True):
            self._away_since = None
        elif left_s <= POLL_S:
            self.given_up = True
        else:
            await asyncio.sleep(POLL_S)


class Line:
    """Requests in order, as on a TritonStream. What was open when a stream is lost fails with ServerLostError."""

    def __init__(
        self, open_stream: Callable[[Callable[[ErrorCode], bool]], TritonStream | UnaryCalls], presence: Presence
    ) -> None:
        """`open_stream` gets what is to be told of each loss, and says whether somebody waits for the server."""
        self._open_stream = open_stream
        self._presence = presence
        self._doomed = False  # a model that this line needs is dead
        self._opening = asyncio.Lock()
        self.reopened = 0

    async def __aenter__(self) -> Self:
        self._stream = await self._open_stream(self._on_lost).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(kind, error, trace)

    @property
    def lost(self) -> ServerLostError | None:
        """Why the stream of now is gone; None while it is not."""
        return self._stream.lost

    async def submit(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Pending:
        """Send a request; its deadline runs from now, while the server is away too. Raises ServerError.

        A request in the middle of a sequence must know by itself that its sequence ended with the stream.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        if self._doomed:
            await self._outlive(deadline)
        if self._stream.lost is not None:
            await self._reopen(deadline, self._stream.lost)
        return await self._stream.submit(model, inputs, deadline - asyncio.get_running_loop().time(), sequence)

    async def call(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Outputs:
        """Send a request and wait for its single response."""
        return await (await self.submit(model, inputs, timeout_s, sequence)).result()

    async def _outlive(self, deadline: float) -> None:
        died = ServerLostError("a model of the server is dead", ErrorCode.PYTHON_MODEL_DIED)
        try:
            await self._presence.outlived(deadline)
        except TimeoutError:
            raise ServerLostError(f"{died}, and the server was not started again in time", died.code) from None
        self._doomed = False
        await self._reopen(deadline, died)

    async def _reopen(self, deadline: float, lost: ServerLostError) -> None:
        if not await self._presence.back(deadline):
            since = f"within {self._presence.reconnect_s:.0f} s" if self._presence.given_up else "in time"
            message = f"{lost}; the server has not come back {since}"
            raise ServerLostError(message, lost.code, for_good=self._presence.given_up)
        async with self._opening:
            if self._stream.lost is None:
                return  # another request has done it
            await self._stream.__aexit__(None, None, None)
            self._stream = await self._open_stream(self._on_lost).__aenter__()
            self.reopened += 1

    def _on_lost(self, code: ErrorCode) -> bool:
        if code is ErrorCode.PYTHON_MODEL_DIED:
            self._doomed = self._presence.doomed()
            return self._doomed
        self._presence.lost()
        return True
