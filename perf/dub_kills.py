"""Streams of `dub` while the processes of the server's Python models are killed, one model after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from polylip.perf.dub_load import DubLedger, DubLoad, play_during
from polylip.perf.supervised import Supervised, is_red, supervised
from polylip.serving.runtime import MODEL_REPOSITORY_VARIABLE

RED_S = 3.0  # from the death of a model to a red probe: what is promised
BEFORE_S, BETWEEN_S = 8.0, 6.0  # of load before the first death, and from a restart to the next death
# The supervisor waits longer before each restart in a row, up to half a minute; a segment has to outlive that.
ANSWER_S = 90.0


@dataclass(frozen=True)
class Death:
    """Of one model's process."""

    red_s: float  # until the probe said so
    ready_s: float  # from then until the server was ready again


def killed(repository: Path, streams: int, models: Collection[str] = ()) -> tuple[DubLedger, dict[str, Death]]:
    """What became of the streams, and each death: all Python models once, or those named. Raises EngineError."""
    with supervised("--restart", "100", **{MODEL_REPOSITORY_VARIABLE: str(repository)}) as server:
        load = DubLoad(server.wait_until_ready(), streams, 3600.0, answer_s=ANSWER_S, name="killed")
        return asyncio.run(_killed(load, server, models or sorted(server.stubs())))


async def _killed(load: DubLoad, server: Supervised, models: Collection[str]) -> tuple[DubLedger, dict[str, Death]]:
    deaths: dict[str, Death] = {}

    async def kill_all() -> None:
        await asyncio.sleep(BEFORE_S)
        for model in models:
            deaths[model] = await asyncio.to_thread(_kill, server, model)
            await asyncio.sleep(BETWEEN_S)

    return await play_during(load, kill_all()), deaths


def _kill(server: Supervised, model: str) -> Death:
    server.stubs()[model].kill()
    red_s = server.until(is_red, RED_S)
    started = time.monotonic()
    server.wait_until_ready()
    return Death(red_s, time.monotonic() - started)
