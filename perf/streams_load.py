"""Paced live streams against a server: each request is due at an instant of its stream's own clock, answered or not.

Latency counts from that instant, so a server that is behind cannot hide it by keeping the generator waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import time
import uuid
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from threading import Event as ThreadEvent
from typing import Any, Protocol

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import ServerError
from polylip.client.lines import Line
from polylip.client.pending import Pending
from polylip.client.render import MAX_BATCH
from polylip.client.triton import TritonClient
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id, row, rows
from polylip.perf.streams_material import FPS, Chunk, Material, Talk, batches, chunk_plan, material
from polylip.perf.streams_search import Outcome, allowed_misses
from polylip.serving.engines import Status

KINDS = ("faces", "lipsync", "speech")
CHUNK_S = 1.0  # of `faces`: the 25 frames of all chunks but a shot's first
BATCH_S = MAX_BATCH / FPS  # of `lipsync`
TIMEOUT_S = 60.0  # of a request: its answer is wanted however late, and its latency known
END_TIMEOUT_S = 10.0
STREAMS_PER_PROCESS = 8  # a stream costs the generator about 2 % of a core: it must not be what is measured
HEAD_START_S = 0.2  # from the first stream's making to the first request
PREPARE_S = 120.0  # for all processes to have their material

# The server has forgotten the sequence, or is gone: there is nothing to end.
OVER = (ErrorCode.SEQUENCE_LOST, ErrorCode.SERVER_LOST, ErrorCode.FROZEN, ErrorCode.UNAVAILABLE)


class Flag(Protocol):
    """Of threads or of processes."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...


@dataclass(frozen=True)
class Request:
    """What a stream is going to send."""

    kind: str
    due_s: float
    length_s: float
    chunk: Chunk | None = None  # of `faces`
    sentence: int = 0  # of the others
    first: int = 0  # frame of it, of `lipsync`
    count: int = 0


@dataclass(frozen=True)
class Probe:
    """So many streams for so long."""

    url: str
    streams: int
    kinds: tuple[str, ...] = KINDS
    warm_up_s: float = 4.0
    window_s: float = 20.0
    seed: int = 1
    first: int = 0  # stream of this process
    of: int = 0  # all streams of all processes, for the allowance of misses; 0: these are all

    @property
    def seconds(self) -> float:
        return self.warm_up_s + self.window_s


def plan(probe: Probe, stream: int, lengths_s: tuple[float, ...]) -> list[Request]:
    """The requests of one stream in order: its picture starts within the first second, its talk is anywhere."""
    chance = random.Random(f"{probe.seed}/{stream}")  # noqa: S311  a phase, no secret
    picture_s, talk = chance.uniform(0, CHUNK_S), Talk(lengths_s)
    talk_s = max(lengths_s) + chance.uniform(0, talk.cycle_s)
    requests = [
        Request("faces", picture_s + chunk.sent_at / FPS, CHUNK_S, chunk)
        for chunk in chunk_plan(round(probe.seconds * FPS))
    ]
    for sentence, start_s, end_s in talk.sentences(talk_s - max(lengths_s), talk_s + probe.seconds):
        due_s, length_s = end_s - talk_s, end_s - start_s  # the dub begins when the sentence is over
        requests.append(Request("speech", due_s, length_s, sentence=sentence))
        requests += [
            Request("lipsync", due_s + first / FPS, BATCH_S, None, sentence, first, count)
            for first, count in batches(length_s)
        ]
    wanted = [request for request in requests if request.kind in probe.kinds and 0 <= request.due_s < probe.seconds]
    return sorted(wanted, key=lambda request: request.due_s)


def run_probe(probe: Probe, per_process: int = STREAMS_PER_PROCESS) -> list[Outcome]:
    """What was due in the window; ends early once the probe cannot be sustained. Raises PolylipError.

    With more streams than one process can pace, in several.
    """
    if probe.streams <= per_process:
        return run_streams(probe, ThreadEvent())
    parts = [
        replace(probe, first=first, streams=min(per_process, probe.streams - first), of=probe.streams)
        for first in range(0, probe.streams, per_process)
    ]
    context = multiprocessing.get_context("spawn")  # a forked gRPC hangs
    shared = context.Event(), context.Barrier(len(parts))
    with ProcessPoolExecutor(len(parts), context, _share, shared) as pool:
        return [outcome for outcomes in pool.map(_run_part, parts) for outcome in outcomes]


_shared: list[Any] = []  # of a process of the generator: the flag to stop, and the barrier at the start


def _share(*shared: Any) -> None:
    _shared.extend(shared)


def _run_part(probe: Probe) -> list[Outcome]:
    stop, barrier = _shared
    _warm(material())
    barrier.wait(PREPARE_S)
    return run_streams(probe, stop)


def run_streams(probe: Probe, stop: Flag) -> list[Outcome]:
    """In this process, until all are done or `stop` is set."""
    _warm(material())
    return asyncio.run(_run(probe, stop, material()))


def _warm(made: Material) -> None:
    """Nothing is to be made while streams are paced."""
    _ = made.frames, made.crops, made.lengths_s


async def _run(probe: Probe, stop: Flag, made: Material) -> list[Outcome]:
    of = probe.of or probe.streams
    plans = {stream: plan(probe, stream, made.lengths_s) for stream in range(of)}
    due = Counter(r.kind for requests in plans.values() for r in requests if r.due_s >= probe.warm_up_s)
    ledger = _Ledger(probe, stop, {kind: allowed_misses(count) for kind, count in due.items()})
    async with TritonClient(probe.url) as client:
        starts_at = time.monotonic() + HEAD_START_S
        async with asyncio.TaskGroup() as group:
            for stream in range(probe.first, probe.first + probe.streams):
                group.create_task(_Stream(client, made, ledger, starts_at).run(plans[stream]))
    return ledger.outcomes


class _Ledger:
    """How the requests ended; stops everything when it is decided that they are not sustained."""

    def __init__(self, probe: Probe, stop: Flag, allowed: dict[str, int]) -> None:
        self._probe = probe
        self._allowed = allowed
        self._misses: Counter[str] = Counter()
        self.stop = stop
        self.outcomes: list[Outcome] = []

    def enter(self, request: Request, latency_s: float | None, lag_s: float, error: str = "") -> None:
        """A failure counts in the warm-up too."""
        outcome = Outcome(request.kind, request.due_s, request.length_s, latency_s, lag_s, error)
        if request.due_s < self._probe.warm_up_s and latency_s is not None:
            return
        self.outcomes.append(outcome)
        self._misses[request.kind] += outcome.missed
        if latency_s is None or self._misses[request.kind] > self._allowed.get(request.kind, 0):
            self.stop.set()


class _Stream:
    """One live stream: its sequence, its lines to the server."""

    def __init__(self, client: TritonClient, made: Material, ledger: _Ledger, starts_at: float) -> None:
        self._client = client
        self._made = made
        self._ledger = ledger
        self._starts_at = starts_at
        self._id = uuid.uuid4().hex
        self._sequence = 0  # open at the server; 0: none
        self._last = Chunk((), (), 0)  # sent

    async def run(self, requests: list[Request]) -> None:
        """Send each when it is due; end the sequence on every path."""
        async with AsyncExitStack() as lines:
            plain: Line = await lines.enter_async_context(self._client.line())
            lips: Line = await lines.enter_async_context(self._client.line())
            spoken: Line = await lines.enter_async_context(self._client.line(decoupled=True))
            by_kind = {"faces": plain, "lipsync": lips, "speech": spoken}
            try:
                async with asyncio.TaskGroup() as answers:
                    for request in requests:
                        inputs = self._inputs(request)
                        await asyncio.sleep(self._starts_at + request.due_s - time.monotonic())
                        if self._ledger.stop.is_set():
                            break
                        answers.create_task(self._send(request, inputs, by_kind[request.kind]))
            finally:
                await self._end_sequence(plain)

    def _inputs(self, request: Request) -> Inputs:
        """Made before they are due, so that this takes no time from the server's."""
        if request.chunk is not None:
            return self._made.faces(request.chunk)
        if request.kind == "lipsync":
            return self._made.lipsync(request.sentence, request.first, request.count)
        return rows(self._made.segment(request.sentence, self._id))

    async def _send(self, request: Request, inputs: Inputs, line: Line) -> None:
        due_at = self._starts_at + request.due_s
        lag_s = time.monotonic() - due_at
        try:
            pending = await line.submit(request.kind, inputs, TIMEOUT_S, self._place(request))
            answered_at = await (_first_sound(pending) if request.kind == "speech" else _answer(pending))
        except ServerError as error:
            if request.kind == "faces" and error.code in OVER:
                self._sequence = 0
            self._ledger.enter(request, None, lag_s, f"{request.kind}: {error}")
        else:
            self._ledger.enter(request, answered_at - due_at, lag_s)

    def _place(self, request: Request) -> SequencePosition | None:
        if request.chunk is None:
            return None
        start = not self._sequence
        self._sequence = self._sequence or new_sequence_id()
        self._last = request.chunk
        return SequencePosition(self._sequence, start)

    async def _end_sequence(self, line: Line) -> None:
        """With one more key frame: an open sequence holds its place at the server for a minute."""
        if not self._sequence or line.lost is not None:
            return
        behind = self._last.keys[-1] + 1
        inputs = self._made.faces(Chunk((behind,), (self._last.queries[-1] + 1,), behind))
        with contextlib.suppress(ServerError):
            await line.call("faces", inputs, END_TIMEOUT_S, SequencePosition(self._sequence, end=True))


async def _answer(pending: Pending) -> float:
    """When it came, by time.monotonic()."""
    await pending.result()
    return pending.last_at


async def _first_sound(pending: Pending) -> float:
    """When it came; all of it is taken in. Raises ServerError where there is none."""
    first_at, status = 0.0, "no answer"
    async for answer in pending:
        outputs = row(answer)
        status = f"{outputs['STATUS'][0]} {outputs['STATUS_MESSAGE'][0]}".strip()
        if not first_at and outputs["AUDIO_CHUNK"].size:
            first_at = time.monotonic()
    if not first_at or status != Status.OK:
        raise ServerError(f"no speech ({status})")
    return first_at
