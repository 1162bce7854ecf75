"""Many paced streams of `dub`: for minutes, more than there are slots, through a rolling restart and through deaths.

The engines are stand-ins that sleep; gate, tracks, decoding, batching, sequences and the wire are the real ones.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from polylip.perf import experiment
from polylip.perf.capacity_proxy import running_proxy
from polylip.perf.dub_kills import killed
from polylip.perf.dub_load import PERIOD_S, DubLedger, DubLoad, play, play_during
from polylip.perf.dub_servers import PACES, Member, members
from polylip.perf.experiment import Result, Setup
from polylip.perf.paced_repository import paced_repository
from polylip.perf.steadiness import MIB, regions_of
from polylip.serving.launcher import Server, ServerOptions, running_server
from polylip.serving.runtime import find_model_repository

TITLE = "Streams of `dub`: many at once, more than there are slots, a rolling restart, models that die"
WEIGHTS = (
    "stand-ins that sleep: no recognition, no translation, silent voices; gate, tracks, decoding and wire are real"
)
STEADY, OFFERED, SLOTS, ROLLING, KILLED = 64, 200, 128, 60, 8  # streams; offered to so many slots
STEADY_S, QUICK_STEADY_S, OFFERED_S = 300.0, 12.0, 12.0
QUICK_DIVISOR = 8  # of all numbers of streams, with --quick
QUICK_KILLED = ("join",)
SERVERS = 3
DRAIN_S = 60.0
SETTLE_S = 5.0  # for the proxy to know that a server is back
SAMPLE_S = 5.0


@dataclass(frozen=True)
class Sample:
    """What one server takes, with all its processes."""

    at_s: float
    memory_mib: float  # proportional: shared pages are counted once
    shm_mib: float


def run(setup: Setup) -> Result:
    """Raises MissingError where haproxy is not installed."""
    divisor = QUICK_DIVISOR if setup.quick else 1
    with tempfile.TemporaryDirectory(prefix="polylip-dub-") as folder:
        repository = paced_repository(setup.repository or find_model_repository(), Path(folder), PACES)
        data = {
            "period_s": PERIOD_S,
            "steady": steady(repository, STEADY // divisor, QUICK_STEADY_S if setup.quick else STEADY_S),
            "offered": offered(repository, OFFERED // divisor, SLOTS // divisor),
            "rolling": rolling(repository, ROLLING // divisor),
            "killed": deadly(repository, KILLED // divisor, QUICK_KILLED if setup.quick else ()),
        }
    once = replace(setup, repetitions=1, warm_up=0)
    return {**experiment.head("dub_streams", TITLE, once, weights=WEIGHTS), "data": data}


def steady(repository: Path, streams: int, seconds: float) -> dict[str, Any]:
    """So many streams for so long, and what the server takes meanwhile."""
    with running_server(ServerOptions(model_repository=repository)) as server:
        ledger, samples = asyncio.run(_watched(server, DubLoad(server.url, streams, seconds)))
    return {"streams": streams, "seconds": seconds} | _ended(ledger) | _growth(samples)


def offered(repository: Path, streams: int, slots: int) -> dict[str, Any]:
    """More streams than slots."""
    with running_server(ServerOptions(model_repository=repository, slots=slots)) as server:
        ledger = asyncio.run(play(DubLoad(server.url, streams, OFFERED_S)))
    refused = {"streams_refused": len(ledger.refused_s), "refused_max_s": max(ledger.refused_s, default=0.0)}
    return {"streams": streams, "slots": slots} | _ended(ledger) | refused


def rolling(repository: Path, streams: int) -> dict[str, Any]:
    """Three servers behind HAProxy, each drained and started again while the streams go on."""
    with (
        members(repository, SERVERS, max(SLOTS, streams)) as servers,
        running_proxy([server.url for server in servers]) as proxy,
    ):
        ledger, drained = asyncio.run(_rolled(DubLoad(proxy.url, streams, 3600.0, name="rolling"), servers))
    return {"streams": streams, "servers": SERVERS, "drain_exits": drained} | _ended(ledger)


def deadly(repository: Path, streams: int, models: Sequence[str]) -> dict[str, Any]:
    """One supervised server, whose Python models die one after the other: these, or all of them."""
    ledger, deaths = killed(repository, streams, models)
    return {"streams": streams, "deaths": {name: vars(death) for name, death in deaths.items()}} | _ended(ledger)


async def _rolled(load: DubLoad, servers: Sequence[Member]) -> tuple[DubLedger, list[int]]:
    exits: list[int] = []

    async def restart_all() -> None:
        await asyncio.sleep(load.period_s + SETTLE_S)
        for server in servers:
            exits.append(await asyncio.to_thread(server.drain, DRAIN_S))
            await asyncio.to_thread(server.start)
            await asyncio.sleep(SETTLE_S)

    return await play_during(load, restart_all()), exits


async def _watched(server: Server, load: DubLoad) -> tuple[DubLedger, list[Sample]]:
    samples: list[Sample] = []
    began_s = time.monotonic()

    async def watch() -> None:
        while True:
            samples.append(await asyncio.to_thread(_sample, server, time.monotonic() - began_s))
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())  # ended and awaited below
    try:
        return await play(load), samples
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _sample(server: Server, at_s: float) -> Sample:
    processes = psutil.Process(server.guard_pid).children(recursive=True)
    memory = _pss(processes)
    regions = sum(region.st_blocks * 512 for region in regions_of(server.shm_prefix))
    return Sample(at_s, memory / MIB, regions / MIB)


def _pss(processes: list[psutil.Process]) -> int:
    """Bytes of memory, each shared page counted once."""
    total = 0
    for process in processes:
        try:
            total += int(process.memory_full_info().pss)
        except psutil.Error:  # a child that has just ended
            continue
    return total


def _growth(samples: list[Sample]) -> dict[str, Any]:
    """Of the last third over the middle one: in the first one caches and regions fill."""
    third = max(1, len(samples) // 3)
    middle, last = samples[third : 2 * third] or samples, samples[2 * third :] or samples

    def median(part: list[Sample], name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in part))

    return {
        name: {"middle": median(middle, name), "last": median(last, name)} for name in ("memory_mib", "shm_mib")
    } | {"samples": [vars(sample) for sample in samples]}


def _ended(ledger: DubLedger) -> dict[str, Any]:
    latencies = sorted(ledger.latencies_s)
    return {
        "sent": ledger.sent,
        "answered": ledger.answered,
        "ended_once": ledger.ended_once,
        "statuses": dict(ledger.statuses),
        "errors": dict(ledger.errors),
        "crossed": ledger.crossed,
        "broken_streams": len(ledger.broken),
        "links": ledger.links,
        "resent": ledger.resent,
        "latency_s": {
            "p50": statistics.median(latencies) if latencies else None,
            "p99": latencies[int(0.99 * (len(latencies) - 1))] if latencies else None,
            "max": latencies[-1] if latencies else None,
        },
    }


def markdown(result: Result) -> str:
    """The tables of docs/dub.md."""
    data = result["data"]
    lines = [
        "| load (stand-in engines) | streams | segments | answered | lost | another's | latency p50, p99, max |",
        "|---|---|---|---|---|---|---|",
    ]
    minutes = f"steady, {data['steady']['seconds']:.0f} s"
    for name, label in (
        ("steady", minutes),
        ("offered", "more than slots"),
        ("rolling", "rolling restart"),
        ("killed", "deaths"),
    ):
        part = data[name]
        latency = ", ".join(f"{part['latency_s'][key]:.2f}" for key in ("p50", "p99", "max"))
        lost = part["sent"] - part["answered"] - part.get("streams_refused", 0)
        lines.append(
            f"| {label} | {part['streams']} | {part['sent']} | {part['answered']} | {lost} | {len(part['crossed'])} "
            f"| {latency} s |"
        )
    steady, offered, rolling, killed = (data[name] for name in ("steady", "offered", "rolling", "killed"))
    memory, shm = steady["memory_mib"], steady["shm_mib"]
    return "\n".join(
        [
            *lines,
            "",
            f"- Memory of the server in the middle and the last third: {memory['middle']:.0f} and "
            f"{memory['last']:.0f} MiB; shared memory {shm['middle']:.1f} and {shm['last']:.1f} MiB.",
            f"- Of {offered['streams']} streams on {offered['slots']} slots {offered['streams_refused']} were refused, "
            f"each within {1000 * offered['refused_max_s']:.0f} ms; the others were served.",
            f"- Rolling restart of {rolling['servers']} servers: {rolling['broken_streams']} broken streams, "
            f"{rolling['resent']} tries to send a segment again, "
            f"exit codes of `polylip drain` {rolling['drain_exits']}.",
            _mended(killed),
        ]
    )


def _mended(killed: dict[str, Any]) -> str:
    """One line of the deaths."""
    red = [death["red_s"] for death in killed["deaths"].values()]
    back = [death["ready_s"] for death in killed["deaths"].values()]
    return (
        f"- The process of each of {len(red)} Python models killed once: {killed['broken_streams']} broken streams, "
        f"{killed['resent']} tries to send a segment again; the probe was red within {max(red):.2f} s, "
        f"the server back after {min(back):.0f} to {max(back):.0f} s."
    )


if __name__ == "__main__":
    experiment.command(__doc__, run, markdown)
