"""The supervisor's end of its control socket (serving/control.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from polylip.serving.control import MAX_PATH_BYTES, STATE_DIR_VARIABLE, ControlError, Status, state_dir
from polylip.serving.errors import MissingError

REQUEST_BYTES = 4096
END_S = 0.5  # for answers under way at the end
REQUEST_TIMEOUT_S = 5.0  # for a line from somebody who has connected


@contextlib.asynccontextmanager
async def listening(
    status: Callable[[], Status], drain: Callable[[float], AsyncIterator[Status]]
) -> AsyncIterator[Path]:
    """The socket, open to this user alone, until the block ends. Raises MissingError."""
    path = _socket_path()
    answering: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio runs this in a task of its own
        answering.add(task)
        # Whoever asked may have gone, or asked nonsense; and this server ends when the supervisor does.
        with contextlib.suppress(ConnectionError, TimeoutError, ValueError, asyncio.CancelledError):
            await _answer(reader, writer, status, drain)
        writer.close()
        answering.discard(task)

    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(serve, path, limit=REQUEST_BYTES)
    except OSError as error:
        raise MissingError(f"cannot listen on {path} ({error.strerror}); set {STATE_DIR_VARIABLE}") from None
    finally:
        os.umask(before)
    try:
        yield path
    finally:
        server.close()
        path.unlink(missing_ok=True)
        if answering:
            await asyncio.wait(answering, timeout=END_S)
        for task in answering:
            task.cancel()


def _socket_path() -> Path:
    try:
        path = state_dir() / f"serve-{secrets.token_hex(4)}.sock"
    except ControlError as error:
        raise MissingError(str(error)) from None
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise MissingError(f"the path {path} is too long for a socket; set {STATE_DIR_VARIABLE} to a shorter folder")
    return path


async def _answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    status: Callable[[], Status],
    drain: Callable[[float], AsyncIterator[Status]],
) -> None:
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        request: Any = json.loads(await reader.readline() or b"null")
    match request:
        case {"do": "status"}:
            writer.write(status().line())
        case {"do": "drain", "timeout_s": int() | float() as timeout_s}:
            async for step in drain(float(timeout_s)):
                writer.write(step.line())
                await writer.drain()
    await writer.drain()
