"""The speech line under hours of work: `python -m polylip.perf.soak [--minutes 30] [--streams 4] [--out DIR]`.

Several callers send speech of varying length to one server of profile lite, as fast as it is answered, with
silence, noise, impossible wishes and broken sound in between. Every segment must end exactly once, in order, with the
words of its own stream; and no process may grow. Exit status 1 when one of these fails. Writes `soak.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from tritonclient.grpc import service_pb2_grpc

from polylip.client.errors import PolylipError, ServerError
from polylip.client.pending import Outputs, Pending
from polylip.client.triton import TritonStream
from polylip.client.wire import CHANNEL_OPTIONS, is_final, row, rows
from polylip.perf.machine import machine
from polylip.perf.soak_segments import MAX_STREAMS, Segment, Segments
from polylip.perf.steadiness import Watch
from polylip.serving.doctor import SPEECH_MODELS
from polylip.serving.launcher import Server, ServerOptions, running_server

IN_FLIGHT = 3  # per stream, as the client has
RENEWED_EVERY = 40  # segments after which a stream ends and a new one with a new STREAM_ID takes its place
TIMEOUT_S = 120.0  # a busy machine with all streams waiting for one recogniser; a hang is much longer
SAMPLED_EVERY_S = 5.0
SHOWN_PROBLEMS = 20
SHOWN_SAMPLES = 60  # of each process's memory, in the result


@dataclass(frozen=True)
class SoakOptions:
    """How long, how many, how fast."""

    minutes: float = 30.0
    streams: int = 4
    pace: float = 0.0  # seconds of speech per second and stream, 0.5 as people talk; 0: as fast as answered
    renewed_every: int = RENEWED_EVERY
    sampled_every_s: float = SAMPLED_EVERY_S
    largest_first: int = IN_FLIGHT  # segments of each stream, at once: what they need is then there from the start


@dataclass
class Tally:
    """What all streams did."""

    sent: Counter[str] = field(default_factory=Counter)  # by kind
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    streams: int = 0
    heard_s: float = 0.0
    spoken_s: float = 0.0
    first_audio_ms: list[float] = field(default_factory=list)

    def note(self, segment: Segment, status: str, problem: str | None) -> None:
        self.statuses[status] += 1
        if problem is not None:
            self.problems.append(f"{segment.name}: {problem}")


def main() -> None:
    """Soak, print the verdict, write `soak.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=SoakOptions.minutes)
    parser.add_argument("--streams", type=int, default=SoakOptions.streams, choices=range(1, MAX_STREAMS + 1))
    parser.add_argument(
        "--pace", type=float, default=SoakOptions.pace, help="seconds of speech per second; 0: as fast as answered"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with running_server(ServerOptions(models=tuple(SPEECH_MODELS), log_path=arguments.out / "soak.log")) as server:
        result = soak(server, SoakOptions(arguments.minutes, arguments.streams, arguments.pace))
    path = arguments.out / "soak.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{markdown(result)}\n\n{path}")
    sys.exit(not result["passed"])


def soak(server: Server, options: SoakOptions) -> dict[str, Any]:
    """Run it against a server of profile lite; the result with its verdict."""
    tally = Tally()
    return summary(options, tally, asyncio.run(run(server, options, tally)))


def summary(options: SoakOptions, tally: Tally, watch: Watch) -> dict[str, Any]:
    """The result of a run."""
    verdict = watch.verdict()
    step = max(1, len(watch.times_s) // SHOWN_SAMPLES)
    waits_ms = np.percentile(tally.first_audio_ms or [0.0], (50, 95))
    return {
        "profile": "lite",
        "machine": machine(),
        "minutes": options.minutes,
        "streams": options.streams,
        "pace": options.pace,
        "media_streams": tally.streams,
        "segments": dict(sorted(tally.sent.items())),
        "statuses": dict(sorted(tally.statuses.items())),
        "heard_s": round(tally.heard_s),
        "spoken_s": round(tally.spoken_s),
        "first_audio_ms": {"p50": round(float(waits_ms[0])), "p95": round(float(waits_ms[1]))},
        "problems": len(tally.problems),
        "first_problems": tally.problems[:SHOWN_PROBLEMS],
        **verdict,
        "passed": verdict["flat"] and not tally.problems,
        "seconds": [round(at_s) for at_s in watch.times_s[::step]],
        "mib": {name: [round(s.private_mib, 1) for s in all_[::step]] for name, all_ in watch.samples.items()},
    }


async def run(server: Server, options: SoakOptions, tally: Tally) -> Watch:
    """Until the time is up and every segment sent has ended."""
    segments = Segments(options.streams)
    watch = Watch(server)
    ends_at = time.monotonic() + options.minutes * 60
    async with asyncio.TaskGroup() as group:
        callers = [
            group.create_task(_caller(index, server, options, segments, tally, ends_at))
            for index in range(options.streams)
        ]
        sampling = group.create_task(_sample(watch, options.sampled_every_s, tally))
        await asyncio.wait(callers)
        sampling.cancel()
    return watch


async def _sample(watch: Watch, every_s: float, tally: Tally) -> None:
    while True:
        try:
            watch.sample()
        except psutil.NoSuchProcess as error:
            tally.problems.append(f"process {error.pid} of the server ended")
            return
        await asyncio.sleep(every_s)


async def _caller(
    index: int, server: Server, options: SoakOptions, segments: Segments, tally: Tally, ends_at: float
) -> None:
    """One media stream after the other until the time is up."""
    while time.monotonic() < ends_at and server.alive:
        stream = _Stream(server.url, options, tally)
        tally.streams += 1
        lost = False
        try:
            await stream.run(segments, index, ends_at)
        except* PolylipError as errors:
            tally.problems.extend(f"caller {index}: {error}" for error in errors.exceptions)
            lost = True
        if lost:  # the server, and with it what was on its way
            return


class _Stream:
    """One caller's gRPC stream and the ledger of its segments."""

    def __init__(self, url: str, options: SoakOptions, tally: Tally) -> None:
        self._url = url
        self._options = options
        self._tally = tally
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._wire = _Wire()
        self._in_flight: dict[str, str] = {}  # request -> segment, for the ledger
        self._ended: list[int] = []
        self._refused: set[int] = set()

    async def run(self, segments: Segments, index: int, ends_at: float) -> None:
        """Send segments until it is renewed or the time is up; then close the ledger."""
        identity = segments.new_stream(index)
        async with grpc.aio.insecure_channel(self._url, options=CHANNEL_OPTIONS) as channel:
            stub = self._wire.tap(service_pb2_grpc.GRPCInferenceServiceStub(channel))
            async with TritonStream(stub) as stream, asyncio.TaskGroup() as group:
                before: asyncio.Task[None] | None = None
                for number in range(1, self._options.renewed_every + 1):
                    if time.monotonic() >= ends_at:
                        break
                    first = number <= self._options.largest_first
                    segment = segments.make(identity, largest=first)
                    before = await self._send(stream, group, number, segment, before)
                    if self._options.pace and not first:
                        await asyncio.sleep(segment.seconds / self._options.pace)
        self._close()

    async def _send(
        self,
        stream: TritonStream,
        group: asyncio.TaskGroup,
        number: int,
        segment: Segment,
        before: asyncio.Task[None] | None,
    ) -> asyncio.Task[None]:
        await self._room.acquire()
        self._tally.sent[segment.kind] += 1
        self._tally.heard_s += segment.seconds
        self._in_flight[str(number)] = segment.name
        sent_at = time.monotonic()
        pending = await stream.submit("speech", rows(segment.inputs), TIMEOUT_S)
        return group.create_task(self._receive(segment, number, pending, sent_at, before))

    async def _receive(
        self, segment: Segment, number: int, pending: Pending, sent_at: float, before: asyncio.Task[None] | None
    ) -> None:
        """Take a segment's answers, wait for the segment before it to end, then judge it."""
        chunks: list[Outputs] = []
        error = ""
        try:
            async for answer in pending:
                chunks.append(row(answer))
                if len(chunks) == 1 and chunks[0]["AUDIO_CHUNK"].size:
                    self._tally.first_audio_ms.append((time.monotonic() - sent_at) * 1000)
        except ServerError as problem:
            error = str(problem)
            self._refused.add(number)
        finally:
            self._room.release()
        if before is not None:
            await before
        self._ended.append(number)
        self._tally.spoken_s += sum(c["AUDIO_CHUNK"].size / int(c["SAMPLE_RATE_HZ"][0]) for c in chunks)
        self._tally.note(segment, *segment.judge(chunks, error))

    def _close(self) -> None:
        """Every request must have ended once on the wire, and been begun to be answered in the order of requests.

        An error comes from the step that failed and may overtake those that are still in the steps behind.
        """
        for request, name in self._in_flight.items():
            if (ends := self._wire.ends[request]) != 1:
                self._tally.problems.append(f"{name}: ended {ends} times")
        for request in self._wire.ends.keys() - self._in_flight.keys():
            self._tally.problems.append(f"an answer to request {request!r}, which was never sent")
        if self._ended != sorted(self._ended) or len(self._ended) != len(self._in_flight):
            self._tally.problems.append(f"segments were lost or ended out of order: {self._ended}")
        firsts = [int(request) for request in self._wire.firsts if int(request) not in self._refused]
        if firsts != sorted(firsts):
            self._tally.problems.append(f"answers began out of order: {firsts}")


class _Wire:
    """Notes what comes off the wire before anything of ours can drop it."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()  # by request id
        self.firsts: list[str] = []  # request ids in the order in which their answers began

    def tap(self, stub: Any) -> _TappedStub:
        return _TappedStub(stub, self)

    def note(self, reply: Any) -> None:
        request = str(reply.infer_response.id)
        if request not in self.firsts:
            self.firsts.append(request)
        self.ends[request] += bool(reply.error_message) or is_final(reply.infer_response)


class _TappedStub:
    def __init__(self, stub: Any, wire: _Wire) -> None:
        self._stub = stub
        self._wire = wire

    def ModelStreamInfer(self) -> _TappedCall:  # noqa: N802  gRPC's name
        return _TappedCall(self._stub.ModelStreamInfer(), self._wire)


class _TappedCall:
    """A gRPC call whose replies pass through `_Wire`."""

    def __init__(self, call: Any, wire: _Wire) -> None:
        self._call = call
        self._wire = wire
        self.write, self.done_writing, self.cancel = call.write, call.done_writing, call.cancel

    async def __aiter__(self) -> Any:
        async for reply in self._call:
            self._wire.note(reply)
            yield reply


def markdown(result: dict[str, Any]) -> str:
    """The verdict as the documentation shows it."""
    here, segments = result["machine"], sum(result["segments"].values())
    pace = f"{result['pace']:g} s of speech per second each" if result["pace"] else "as fast as they are answered"
    lines = [
        f"{result['minutes']:g} minutes, {result['streams']} streams, {pace}, "
        f"profile `{result['profile']}`, {here['cores']} cores ({here['cpu']}): {segments} segments on "
        f"{result['media_streams']} gRPC streams, {result['problems']} lost, mixed or out of order; first audio after "
        f"{result['first_audio_ms']['p50']} ms (95 %: {result['first_audio_ms']['p95']} ms).",
        "",
        "| process | MiB at start, end | slope, MiB/h | last third over middle | threads | open files | flat |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, process in result["processes"].items():
        lines.append(
            f"| `{name}` | {process['start_mib']:.1f}, {process['end_mib']:.1f} | {process['slope_mib_per_h']:+.1f} "
            f"| {process['step_mib']:+.2f} MiB (allowed {process['allowed_step_mib']:.2f}) "
            f"| {process['threads'][-1]} | {process['files'][-1]} | {'yes' if process['flat'] else 'no'} |"
        )
    shared = result["shared_memory"]
    regions = ", ".join(map(str, shared["regions"]))
    lines += [
        "",
        f"Shared memory: {regions} regions, {shared['start_mib']:.1f} MiB at the start, {shared['end_mib']:.1f} at the "
        f"end, at most {shared['allowed_mib']} are allowed.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
