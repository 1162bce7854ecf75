"""Keeps a tritonserver that can be left alone: starts it, watches it, drains it, and ends it when a model is dead.

A Python model whose process died stays dead until tritonserver is started again, and tritonserver says that it is ready
meanwhile. So the processes are looked at several times a second, and idle models are asked now and then. Runs as a
container's first process: takes its signals and reaps orphans. docs/server.md has the exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from polylip.serving.control import Status
from polylip.serving.control_server import listening
from polylip.serving.drain import POLL_S, Load, read_load
from polylip.serving.errors import EngineError
from polylip.serving.guard import become_subreaper, reap_orphans
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.supervisor_probe import SERVER, DeepProbe
from polylip.serving.supervisor_watch import StubWatch, watch_stubs

WATCH_S = 0.2  # between two looks at the processes
PROBE_EVERY_S = 30.0  # between two rounds of the deep probe
RETRY_S = 5.0  # the same at most while something has not answered
DRAIN_S = 30.0  # for streams to end after SIGTERM
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before the second start in a row; each later one twice as long
SETTLED_S = 600.0  # a server that was up for so long has not failed in a row


class State(StrEnum):
    """Of a supervisor, as a probe sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"
    RESTARTING = "restarting"
    STOPPING = "stopping"


class Exit:
    """Exit codes, beside 2 for a machine that lacks something."""

    STOPPED = 0
    SERVER_FAILED = 3
    MODEL_DIED = 4
    CUT_OFF = 5


@dataclass(frozen=True)
class Plan:
    """What to supervise, and how."""

    server: ServerOptions
    restarts: int = 0  # in a row; 0 leaves that to an orchestrator
    drain_s: float = DRAIN_S  # on SIGTERM; Ctrl-C waits for nobody
    probe_every_s: float = PROBE_EVERY_S


@dataclass(frozen=True)
class Ending:
    """How a supervisor, or one of its servers, ended."""

    code: int
    message: str  # one line


STOPPED = Ending(Exit.STOPPED, "the server is stopped")


class Supervisor:
    """Runs once. `on_ready` gets each server when it answers, `say` one line for each thing that happened to it."""

    def __init__(self, plan: Plan, on_ready: Callable[[Server], None], say: Callable[[str], None]) -> None:
        self._plan = plan
        self._on_ready = on_ready
        self._say = say
        self._server: Server | None = None
        self._state, self._detail = State.STARTING, "the models are being loaded"
        self._streams: int | None = None

    async def run(self) -> Ending:
        """Until it is asked to end, or its server cannot be kept. Raises MissingError, EngineError at the start."""
        self._wish: asyncio.Future[float] = asyncio.get_running_loop().create_future()  # to end: seconds for streams
        self._hurry, self._ended = asyncio.Event(), asyncio.Event()
        become_subreaper()
        with self._signals():
            async with listening(self.status, self.drain):
                try:
                    return await self._keep()
                finally:
                    if self._server is not None:
                        await asyncio.shield(asyncio.to_thread(self._server.stop))
                    self._ended.set()

    def status(self) -> Status:
        """What a probe is told."""
        port = 0 if self._server is None else self._server.ports.grpc
        live, ready = self._state is not State.DEAD, self._state is State.READY
        return Status(self._state, live, ready, self._detail, port, self._streams)

    async def drain(self, timeout_s: float) -> AsyncIterator[Status]:
        """End once no stream is left, or after `timeout_s`; each change until then."""
        if not self._wish.done():
            self._wish.set_result(timeout_s)
        told = None
        while told is None or told.state not in (State.STOPPING, State.DEAD):
            if (now := self.status()) != told:
                told = now
                yield told
            await asyncio.sleep(WATCH_S)
        await self._ended.wait()  # whoever asked is told by the end of the answer

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def end(drain_s: float) -> None:
            if self._wish.done():
                self._hurry.set()
            else:
                self._wish.set_result(drain_s)

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, end, self._plan.drain_s)
        loop.add_signal_handler(signal.SIGINT, end, 0.0)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    def _enter(self, state: State, detail: str = "") -> None:
        self._state, self._detail = state, detail

    async def _keep(self) -> Ending:
        options, failures = self._plan.server, 0
        while True:
            started_at = time.monotonic()
            try:
                server = await self._start(options)
            except EngineError as error:
                if options is self._plan.server:  # it has never been up
                    raise
                ending = Ending(Exit.SERVER_FAILED, str(error))
            else:
                if server is None:
                    return STOPPED
                options = _same_ports(options, server)
                found = await self._watch(server)
                if isinstance(found, float):
                    return await self._end(server, found)
                ending = found
            failures = 0 if time.monotonic() - started_at > SETTLED_S else failures
            if failures == self._plan.restarts:
                self._enter(State.DEAD, ending.message)
            else:
                failures += 1
                self._enter(State.RESTARTING, ending.message)
                self._say(f"{ending.message}; starting again ({failures} of {self._plan.restarts})")
            if self._server is not None:
                await asyncio.to_thread(self._server.kill)
            if self._state is State.DEAD:
                return ending
            await asyncio.wait([self._wish], timeout=_wait_s(failures))
            if self._wish.done():
                return STOPPED

    async def _start(self, options: ServerOptions) -> Server | None:
        """None when it was asked to end meanwhile."""

        def spawned(server: Server) -> None:
            self._server = server
            if self._wish.done():
                raise EngineError("stopped while starting")

        starting = asyncio.ensure_future(asyncio.to_thread(start_server, options, spawned))
        either: list[asyncio.Future[Any]] = [starting, self._wish]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._wish.done():
            return await starting
        self._enter(State.STOPPING)
        if self._server is not None:
            await asyncio.to_thread(self._server.kill)
        with contextlib.suppress(EngineError):
            await asyncio.to_thread((await starting).kill)
        return None

    async def _watch(self, server: Server) -> Ending | float:
        """How it ended, or the seconds that streams have when it is asked to end."""
        stubs = watch_stubs(server.guard_pid)
        self._enter(State.READY)
        self._on_ready(server)
        probing = asyncio.create_task(self._probe(server))
        either: list[asyncio.Future[Any]] = [self._wish, probing]
        try:
            while not self._wish.done():
                if (ending := self._look(server, stubs)) is not None:
                    return ending
                if probing.done():
                    what = probing.result()
                    return Ending(Exit.SERVER_FAILED if what.startswith(SERVER) else Exit.MODEL_DIED, what)
                await asyncio.wait(either, timeout=WATCH_S, return_when=asyncio.FIRST_COMPLETED)
            return self._wish.result()
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)

    def _look(self, server: Server, stubs: StubWatch) -> Ending | None:
        """What can be seen without asking the server."""
        reap_orphans(server.guard_pid)
        if (status := server.poll()) is not None:
            log = f"log: {server.log_path}"
            return Ending(Exit.SERVER_FAILED, f"tritonserver ended by itself (status {status}); {log}")
        if (model := stubs.first_dead()) is not None:
            return Ending(Exit.MODEL_DIED, f"model {model} died: its process is gone; log: {server.log_path}")
        return None

    async def _probe(self, server: Server) -> str:
        """What is dead, in one line, once something is."""
        probe, every_s = DeepProbe(server.endpoint), self._plan.probe_every_s
        while True:
            await asyncio.sleep(min(every_s, RETRY_S) if probe.suspicious else every_s)
            if (dead := await asyncio.to_thread(probe.look)) is not None:
                return f"{dead}; log: {server.log_path}"

    async def _end(self, server: Server, drain_s: float) -> Ending:
        ending = await self._drain(server, drain_s) if drain_s > 0 else None
        self._enter(State.STOPPING)
        cut_off = drain_s > 0 and self._streams != 0
        if ending is not None or cut_off:  # tritonserver would wait for sequences that nobody ends
            await asyncio.to_thread(server.kill)
        else:
            await self._stop(server)
        if ending is not None:
            return ending
        if cut_off:
            return Ending(Exit.CUT_OFF, f"{_streams(self._streams)} not ended within {drain_s:g} s: cut off")
        return STOPPED

    async def _stop(self, server: Server) -> None:
        """What is in flight may end, unless somebody is in a hurry."""
        stopping = asyncio.ensure_future(asyncio.to_thread(server.stop))
        hurry = asyncio.ensure_future(self._hurry.wait())
        either: list[asyncio.Future[Any]] = [stopping, hurry]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if hurry.done():
            await asyncio.to_thread(server.kill)
        hurry.cancel()
        await stopping

    async def _drain(self, server: Server, drain_s: float) -> Ending | None:
        """Wait for the streams; an ending when there is nothing left to wait for."""
        stubs = watch_stubs(server.guard_pid)
        server.drain_file.write_text(str(round((time.time() + drain_s) * 1000)))
        self._enter(State.DRAINING, "no new streams are let in")
        give_up_at = time.monotonic() + drain_s
        while True:
            if (ending := self._look(server, stubs)) is not None:
                return ending
            load = await self._load(server)
            if load is not None and load.streams != self._streams:
                self._streams = load.streams
                if load.streams:
                    self._say(f"draining: {_streams(load.streams)} left")
            if (load is not None and load.idle) or self._hurry.is_set() or time.monotonic() >= give_up_at:
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._hurry.wait()

    async def _load(self, server: Server) -> Load | None:
        """None while the endpoint does not answer; without one, nothing is waited for."""
        if server.metrics_url is None:
            return Load(0, 0)
        try:
            return await asyncio.to_thread(read_load, server.metrics_url)
        except OSError:
            return None


def _same_ports(options: ServerOptions, server: Server) -> ServerOptions:
    ports = server.ports
    return replace(options, grpc_port=ports.grpc, http_port=ports.http, metrics_port=ports.metrics)


def _wait_s(failures: int) -> float:
    """Before the start that follows so many failures in a row."""
    return 0.0 if failures < 2 else min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (failures - 2))


def _streams(count: int | None) -> str:
    if count is None:  # the server has not told in all that time
        return "an unknown number of streams"
    return f"{count} stream{'s' if count != 1 else ''}"
