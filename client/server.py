"""The server of a job: one that runs, or one of its own that ends with the job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from polylip.client.errors import InputError
from polylip.client.lines import RECONNECT_S
from polylip.client.tls import Tls
from polylip.client.triton import TritonClient


@dataclass(frozen=True)
class ServerChoice:
    """Which server is to do the work."""

    url: str | None = None  # host:port of one that runs; None starts one
    profile: str = "lite"  # of the one to start; with a url only a name in the report
    tls: Tls | None = None
    reconnect_s: float = RECONNECT_S  # for which a server that is lost is waited for


@contextlib.asynccontextmanager
async def running_client(choice: ServerChoice, on_stage: Callable[[str], None]) -> AsyncIterator[TritonClient]:
    """A client of it. Raises InputError where none can be had."""
    async with _server_url(choice, on_stage) as url:
        client = TritonClient(url, tls=choice.tls, reconnect_s=choice.reconnect_s)
        async with client:
            yield client


@contextlib.asynccontextmanager
async def _server_url(choice: ServerChoice, on_stage: Callable[[str], None]) -> AsyncIterator[str]:
    if choice.url is not None:
        yield choice.url
        return
    try:
        from polylip.serving.doctor import LINES  # noqa: PLC0415  needs the extra `serve`
        from polylip.serving.launcher import ServerOptions, start_server  # noqa: PLC0415
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'polylip[serve]', or name a --url") from None
    on_stage("starting the server")
    options = ServerOptions(profile=choice.profile, models=tuple(sorted(LINES)))
    server = await asyncio.to_thread(start_server, options)
    try:
        yield server.url
    finally:
        await asyncio.shield(asyncio.to_thread(server.stop))
