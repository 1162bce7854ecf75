"""Wakes the tasks of one job that wait for a condition over its shared state: ring, timeline, output position."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pulse:
    """Owners of state call `beat` after a change; others wait until their condition holds."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._event.wait()
