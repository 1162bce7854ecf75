"""Paced live streams, each a client of its own: chunks of `faces`, batches of `lipsync`, segments of `speech`.

A request is due by the clock and sent then, whatever became of the ones before; latency counts from that instant. A
sequence that is lost goes on as a new one with the next chunk.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np

from polylip.client.errors import PolylipError, ServerError
from polylip.client.lines import Line
from polylip.client.segmentation import SPEECH_RATE_HZ
from polylip.client.triton import TritonClient
from polylip.client.wire import Inputs, Keepalive, SequencePosition, new_sequence_id, row, rows
from polylip.perf.capacity_model import Work
from polylip.perf.streams_search import Outcome, allowed_misses
from polylip.serving.dub.request import ANALYSIS_HEIGHT, ANALYSIS_WIDTH
from polylip.serving.engines import Status

WORK = Work()
HEAD_START_S = 0.3  # for all clients to be connected
TIMEOUT_S = 60.0  # an answer is wanted however late, to know how late
CONNECT_APART_S = 0.02  # so that the proxy knows of one stream before it places the next


@dataclass(frozen=True)
class Load:
    """So many streams for so long."""

    url: str
    streams: int
    work: Work = WORK
    warm_up_s: float = 2.0
    window_s: float = 12.0
    seed: int = 1
    name: str = "load"  # ids of its streams begin with it
    stops_early: bool = True  # when it is clear that p99 is beyond the deadline

    @property
    def seconds(self) -> float:
        return self.warm_up_s + self.window_s

    def stream_id(self, stream: int) -> str:
        return f"{self.name}-{self.seed}-{stream}"


@dataclass(frozen=True)
class Due:
    """A request of one stream."""

    kind: str
    at_s: float
    number: int


@dataclass
class Ledger:
    """How all requests ended."""

    load: Load
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)  # by stream id; the warm-up's failures among them
    sequences: dict[str, list[int]] = field(default_factory=dict)  # by stream id: chunks answered, of each sequence
    misses: dict[str, int] = field(default_factory=dict)
    stopped: bool = False

    @property
    def all(self) -> list[Outcome]:
        return [outcome for outcomes in self.outcomes.values() for outcome in outcomes]

    def enter(self, stream: str, outcome: Outcome) -> None:
        if outcome.due_s < self.load.warm_up_s and not outcome.error:
            return
        self.outcomes.setdefault(stream, []).append(outcome)
        self.misses[outcome.kind] = self.misses.get(outcome.kind, 0) + outcome.missed
        expected = self.load.streams * self.load.window_s * per_s(self.load.work, outcome.kind)
        if self.load.stops_early and self.misses[outcome.kind] > allowed_misses(round(expected)) + 1:
            self.stopped = True


def run_load(load: Load) -> Ledger:
    """Until all requests have ended. Raises InputError where the server cannot be reached."""
    return asyncio.run(play(load))


async def play(load: Load) -> Ledger:
    """The same inside an event loop."""
    ledger = Ledger(load)
    starts_at = time.monotonic() + HEAD_START_S + CONNECT_APART_S * load.streams
    try:
        async with asyncio.TaskGroup() as group:
            for stream in range(load.streams):
                group.create_task(_Stream(load, stream, ledger, starts_at).run())
                await asyncio.sleep(CONNECT_APART_S)
    except ExceptionGroup as errors:
        raise _first(errors) from None
    return ledger


def per_s(work: Work, kind: str) -> float:
    """Requests of one stream."""
    return {
        "faces": 1.0 / work.chunk_s,
        "lipsync": work.lip_frames_per_s / work.lip_batch,
        "speech": work.segments_per_s,
    }[kind]


def due(load: Load, stream: int) -> list[Due]:
    """What a stream sends, in order: pictures by the clock from an instant of its own, segments at random."""
    chance = random.Random(f"{load.seed}/{stream}")  # noqa: S311  instants, no secrets

    def paced(kind: str) -> Iterator[Due]:
        period_s = 1.0 / per_s(load.work, kind)
        at_s, number = chance.uniform(0, period_s), 0
        while at_s < load.seconds:
            yield Due(kind, at_s, number)
            at_s, number = at_s + period_s, number + 1

    def at_random(kind: str) -> Iterator[Due]:
        at_s, number = chance.expovariate(per_s(load.work, kind)), 0
        while at_s < load.seconds:
            yield Due(kind, at_s, number)
            at_s, number = at_s + chance.expovariate(per_s(load.work, kind)), number + 1

    return sorted([*paced("faces"), *paced("lipsync"), *at_random("speech")], key=lambda request: request.at_s)


class _Stream:
    def __init__(self, load: Load, stream: int, ledger: Ledger, starts_at: float) -> None:
        self._load = load
        self._id = load.stream_id(stream)
        self._due = due(load, stream)
        self._ledger = ledger
        self._starts_at = starts_at
        self._sequence = 0  # open at the server; 0: none
        self._limits_s = load.work.deadlines_s

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            client = TritonClient(self._load.url, stream_id=self._id, keepalive=Keepalive(alone=True))
            await stack.enter_async_context(client)
            lines = {
                "faces": await stack.enter_async_context(client.line()),
                "lipsync": await stack.enter_async_context(client.line()),
                "speech": await stack.enter_async_context(client.line(decoupled=True)),
            }
            last = max((request.number for request in self._due if request.kind == "faces"), default=0)
            async with asyncio.TaskGroup() as group:
                for request in self._due:
                    await asyncio.sleep(self._starts_at + request.at_s - time.monotonic())
                    if self._ledger.stopped and not (request.kind == "faces" and self._sequence):
                        continue
                    end = request.kind == "faces" and (self._ledger.stopped or request.number == last)
                    group.create_task(self._send(request, lines[request.kind], end))
                    if self._ledger.stopped and end:
                        return

    async def _send(self, request: Due, line: Line, end: bool) -> None:
        position = self._place(end) if request.kind == "faces" else None
        due_at, length_s = self._starts_at + request.at_s, self._limits_s[request.kind]
        lag_s = time.monotonic() - due_at
        try:
            answered_at = await _answer(line, request.kind, _inputs(request, self._load.work), position)
        except PolylipError as error:
            if position is not None and position.id == self._sequence:
                self._sequence = 0
            code = error.code if isinstance(error, ServerError) else ""
            told = f"{code}: {error}"
            self._ledger.enter(self._id, Outcome(request.kind, request.at_s, length_s, None, lag_s, told))
            return
        if position is not None:
            counts = self._ledger.sequences.setdefault(self._id, [])
            if position.start:
                counts.append(0)
            counts[-1] += 1
        self._ledger.enter(self._id, Outcome(request.kind, request.at_s, length_s, answered_at - due_at, lag_s))

    def _place(self, end: bool) -> SequencePosition:
        start = not self._sequence
        place = SequencePosition(self._sequence or new_sequence_id(), start, end)
        self._sequence = 0 if end else place.id
        return place


async def _answer(line: Line, kind: str, inputs: Inputs, position: SequencePosition | None) -> float:
    """When its last part came, by time.monotonic(). Raises ServerError."""
    pending = await line.submit(kind, inputs, TIMEOUT_S, position)
    if kind != "speech":
        await pending.result()
        return pending.last_at
    status = "no answer"
    async for answer in pending:
        status = str(row(answer)["STATUS"][0])
    if status != Status.OK:
        raise ServerError(f"no speech ({status})")
    return pending.last_at


def _inputs(request: Due, work: Work) -> Inputs:
    """Of the real sizes; what they hold is nothing."""
    frame_ms = 1000.0 / work.frame_rate
    if request.kind == "faces":
        keys = round(work.key_frames_per_s * work.chunk_s)
        first_ms = request.number * work.chunk_s * 1000
        queries = round(work.chunk_s * work.frame_rate)
        return {
            "FRAMES": np.zeros((keys, ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), np.uint8),
            "KEYFRAME_MS": np.round(first_ms + np.arange(keys) * 1000 / work.key_frames_per_s).astype(np.int64),
            "QUERY_MS": np.round(first_ms + np.arange(queries) * frame_ms).astype(np.int64),
        }
    if request.kind == "lipsync":
        return {
            "AUDIO": np.zeros(SPEECH_RATE_HZ, np.float32),
            "FRAME_OFFSETS_MS": np.round(np.arange(work.lip_batch) * frame_ms).astype(np.int64),
            "FACES": np.zeros((work.lip_batch, 96, 96, 3), np.uint8),
        }
    samples = round(work.speech_share / work.segments_per_s * SPEECH_RATE_HZ)
    return rows({"AUDIO": np.zeros(samples, np.float32), "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"})


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error
