"""A line to the server: a stream that opens itself again when the connection was lost and the server is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from polylip.client.errors import ServerLostError

if TYPE_CHECKING:
    from polylip.client.pending import Outputs, Pending
    from polylip.client.triton import TritonStream
    from polylip.client.unary import UnaryCalls
    from polylip.client.wire import Inputs, SequencePosition

RECONNECT_S = 30.0  # a killed server of profile lite is back within 10 s on two cores
ASK_S = 2.0  # for an answer whether the server is ready
POLL_S = 0.25


class Presence:
    """Whether the server is there, for all lines of a client: they wait for it together, and give up together."""

    def __init__(self, is_ready: Callable[[float], Awaitable[bool]], reconnect_s: float) -> None:
        """`is_ready` asks the server and takes at most so many seconds."""
        self._is_ready = is_ready
        self.reconnect_s = reconnect_s
        self._away_since: float | None = None  # event-loop time
        self.given_up = False
        self._asking = asyncio.Lock()

    def lost(self) -> None:
        """A connection has just ended."""
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()

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
        if await self._is_ready(min(ASK_S, left_s) if left_s > POLL_S else ASK_S):
            self._away_since = None
        elif left_s <= POLL_S:
            self.given_up = True
        else:
            await asyncio.sleep(POLL_S)


class Line:
    """Requests in order, as on a TritonStream. What was open when a stream is lost fails with ServerLostError."""

    def __init__(self, open_stream: Callable[[], TritonStream | UnaryCalls], presence: Presence) -> None:
        self._open_stream = open_stream
        self._presence = presence
        self._opening = asyncio.Lock()
        self.reopened = 0

    async def __aenter__(self) -> Self:
        self._stream = await self._open_stream().__aenter__()
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
        if self._stream.lost is not None:
            await self._reopen(deadline, self._stream.lost)
        return await self._stream.submit(model, inputs, deadline - asyncio.get_running_loop().time(), sequence)

    async def call(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Outputs:
        """Send a request and wait for its single response."""
        return await (await self.submit(model, inputs, timeout_s, sequence)).result()

    async def _reopen(self, deadline: float, lost: ServerLostError) -> None:
        if not await self._presence.back(deadline):
            since = f"within {self._presence.reconnect_s:.0f} s" if self._presence.given_up else "in time"
            message = f"{lost}; the server has not come back {since}"
            raise ServerLostError(message, lost.code, for_good=self._presence.given_up)
        async with self._opening:
            if self._stream.lost is None:
                return  # another request has done it
            await self._stream.__aexit__(None, None, None)
            self._stream = await self._open_stream().__aenter__()
            self.reopened += 1
