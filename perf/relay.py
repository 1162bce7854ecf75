"""A TCP relay in front of a server that counts what goes through it: the bytes of gRPC, framing included."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class Relay:
    """Use as an async context manager; `url` is where clients go."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Task[None]] = []
        self.sent_bytes = 0  # to the server
        self.received_bytes = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._serving)

    async def passing(self, data: bytes, *, answers: bool) -> None:
        """Bytes are on their way, from the server or to it; they leave when this returns."""
        if answers:
            self.received_bytes += len(data)
        else:
            self.sent_bytes += len(data)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            self._writers.append(there_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there_writer, answers=False))
                group.create_task(self._pump(there_reader, writer, answers=True))
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self.passing(data, answers=answers)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
