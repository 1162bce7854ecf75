"""A TCP proxy in front of a server, for tests: it forwards, cuts all connections with a reset, or holds all bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType

from polylip.perf.relay import Relay

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Proxy(Relay):
    """A relay that can be made to fail. Use as an async context manager; `url` is where clients go."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.cut_after: int | None = None  # so many more bytes from the server it resets everything, once

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thaw()
        self.reset()
        await super().__aexit__(kind, error, trace)

    def reset(self) -> None:
        """Every connection of now ends with a TCP reset, on both sides."""
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()

    def freeze(self) -> None:
        """Bytes are taken no more, in either direction; connections stay open."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def passing(self, data: bytes, *, answers: bool) -> None:
        await super().passing(data, answers=answers)
        await self._flowing.wait()
        if answers and self.cut_after is not None:
            self.cut_after -= len(data)
            if self.cut_after < 0:
                self.cut_after = None
                self.reset()
