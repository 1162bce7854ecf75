"""The paper model of a server under live streams: service times in; loads, queues, streams per server and levers out.

Pure functions; the formulas of the queues are in `capacity_queues`. See docs/capacity.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polylip.perf.capacity_queues import ENDLESS, NO_WAIT, Wait, fullest_holds, paced_wait, random_wait

LINES = {
    "speech": ("transcribe", "translate", "synthesize"),
    "faces": ("detect", "track"),
    "lipsync": ("mel", "lips"),
}
PACED = ("faces", "lipsync")  # sent by the clock; speech comes when somebody pauses
ENGINES = tuple(engine for line in LINES.values() for engine in line)
MOST_LOAD = 0.95  # of an engine or a resource: one that is never idle never gets over a hiccup
MOST_STREAMS = 2000  # on one server: beyond it something else than the engines will be short
HASH_HOLDS = 0.99  # the chance that a hash must leave no server with too many streams
HASH_TIMES = 5  # as many servers as with an even deal: no more are looked for


@dataclass(frozen=True)
class Service:
    """An engine as it is served.

    Its items are seconds of sound (`transcribe`, `synthesize`), segments (`translate`), key frames (`detect`, `track`)
    and frames (`mel`, `lips`).
    """

    seconds: float  # of an item
    instances: int = 1
    call_seconds: float = 0.0  # of a call, whatever it holds
    batch: int = 1  # rows that a call takes at most: segments, key frames, frames
    scv: float = 0.0  # squared coefficient of variation of the time that a job takes
    on: str = ""  # "cores" or "gpus": what an instance occupies while it works; empty: nothing that others want
    units: float = 1.0  # of it


@dataclass(frozen=True)
class Work:
    """What one live stream asks for. The defaults: a talk that is speech for 80 % of the time, 25 frames per second."""

    speech_share: float = 0.8  # seconds of speech per second
    segments_per_s: float = 0.25
    key_frames_per_s: float = 5.0
    chunk_s: float = 1.0  # of picture in a request to `faces`
    frame_rate: float = 25.0
    lip_batch: int = 16  # frames in a request to `lipsync`

    @property
    def lip_frames_per_s(self) -> float:
        """Lips are made while somebody speaks."""
        return self.frame_rate * self.speech_share

    @property
    def deadlines_s(self) -> dict[str, float]:
        """By line: the time that a request's own content lasts. Who answers later falls behind for good."""
        return {
            "speech": 1.0 / self.segments_per_s,
            "faces": self.chunk_s,
            "lipsync": self.lip_batch / self.frame_rate,
        }

    def job(self, engine: str) -> Job:
        """Of one stream."""
        if engine in LINES["speech"]:
            length_s = self.speech_share / self.segments_per_s
            return Job(self.segments_per_s, 1.0 if engine == "translate" else length_s, 1)
        if engine in LINES["faces"]:
            keys = self.key_frames_per_s * self.chunk_s
            return Job(1.0 / self.chunk_s, keys, math.ceil(keys))
        return Job(self.lip_frames_per_s / self.lip_batch, self.lip_batch, self.lip_batch)


@dataclass(frozen=True)
class Job:
    """A request as one engine sees it."""

    per_s: float  # and stream
    items: float
    rows: int  # of its tensors, which is what a batch counts


@dataclass(frozen=True)
class Host:
    """What a server's engines share. None: more than they can ask for."""

    cores: float | None = None
    gpus: float | None = None

    def units(self, resource: str) -> float | None:
        return {"cores": self.cores, "gpus": self.gpus}.get(resource)


@dataclass(frozen=True)
class Plan:
    """A server and the work of its streams."""

    services: Mapping[str, Service]
    work: Work = Work()
    host: Host = Host()
    paced: tuple[str, ...] = PACED  # lines whose requests come by the clock


@dataclass(frozen=True)
class EngineLoad:
    """Of one engine on one server."""

    job_s: float  # that a job takes
    load: float  # share of the instances' time
    wait: Wait  # where it is the slowest engine of its line; the others get jobs no faster than they can do them
    slowest: bool


@dataclass(frozen=True)
class LineLoad:
    """Of one line on one server."""

    mean_s: float
    p99_s: float
    deadline_s: float

    @property
    def holds(self) -> bool:
        return self.p99_s <= self.deadline_s


@dataclass(frozen=True)
class ServerLoad:
    """Of a server with so many streams."""

    streams: int
    engines: dict[str, EngineLoad] = field(default_factory=dict)
    lines: dict[str, LineLoad] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)  # share of "cores", "gpus"

    @property
    def bottleneck(self) -> str:
        """The engine or the resource with the largest load."""
        loads = {name: engine.load for name, engine in self.engines.items()} | self.resources
        return max(loads, key=lambda name: loads[name])

    @property
    def holds(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> dict[str, str]:
        """By the engine or the resource at fault: why it is too much, in words."""
        loads = {name: engine.load for name, engine in self.engines.items()} | self.resources
        over = {name: f"{name} would be {load:.0%} busy" for name, load in loads.items() if load > MOST_LOAD}
        late = {
            next(engine for engine in LINES[name] if engine in self.engines and self.engines[engine].slowest): (
                f"p99 of {name} would be {_seconds(line.p99_s)}, its deadline is {line.deadline_s:.2f} s"
            )
            for name, line in self.lines.items()
            if not line.holds
        }
        return late | over


def server_load(plan: Plan, streams: int) -> ServerLoad:
    """Load, queues and latencies of a server with so many streams."""
    resources = {name: _resource_load(plan, name, streams) for name in ("cores", "gpus") if plan.host.units(name)}
    engines: dict[str, EngineLoad] = {}
    lines: dict[str, LineLoad] = {}
    for line, names in LINES.items():
        served = {name: plan.services[name] for name in names if name in plan.services}
        if not served:
            continue
        times = {name: _job_s(plan, name, streams) for name in served}
        slowest = max(served, key=lambda name: times[name] / served[name].instances)
        for name, service in served.items():
            load = streams * plan.work.job(name).per_s * times[name] / service.instances
            wait = _wait(plan, line, name, streams, times[name]) if name == slowest else NO_WAIT
            engines[name] = EngineLoad(times[name], load, wait, name == slowest)
        service_s = sum(_answer_s(plan, name, streams) for name in served)
        wait = engines[slowest].wait if all(engines[name].load <= 1.0 for name in served) else ENDLESS
        lines[line] = LineLoad(service_s + wait.mean_s, service_s + wait.p99_s, plan.work.deadlines_s[line])
    return ServerLoad(streams, engines, lines, resources)


def streams_per_server(plan: Plan) -> int:
    """The most with which every line keeps its deadline at p99; 0 where one stream is too much."""
    low, high = 0, 1
    while high <= MOST_STREAMS and server_load(plan, high).holds:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if server_load(plan, middle).holds else (low, middle)
    return min(low, MOST_STREAMS)


def servers_needed(streams: int, per_server: int, spare: int = 1) -> int:
    """With `spare` of them down the others still carry all; the proxy deals streams out evenly."""
    return math.ceil(streams / per_server) + spare


def servers_needed_hashed(streams: int, per_server: int, spare: int = 1) -> int | None:
    """The same where a hash of the stream's id deals them out: by luck, one server gets more than others.

    None where it takes more than HASH_TIMES as many.
    """
    least = math.ceil(streams / per_server)
    for servers in range(least, HASH_TIMES * least + 1):
        if fullest_holds(streams, servers, per_server) >= HASH_HOLDS:
            return servers + spare
    return None


@dataclass(frozen=True)
class Lever:
    """One change, and the streams per server with it."""

    change: str
    per_server: int


def levers(plan: Plan) -> list[Lever]:
    """Changes at what limits the server, the best first; only those that help, alone or, where none does, in pairs."""
    now = streams_per_server(plan)
    changes = [change for limit in server_load(plan, now + 1).failures for change in _changes(plan, limit)]
    tried = [Lever(change.name, streams_per_server(change.of(plan))) for change in changes]
    if not any(lever.per_server > now for lever in tried):
        tried = [
            Lever(f"{one.name}, and {other.name}", streams_per_server(other.of(one.of(plan))))
            for one, other in itertools.combinations(changes, 2)
            if one.limit != other.limit
        ]
    return sorted((lever for lever in tried if lever.per_server > now), key=lambda lever: -lever.per_server)


@dataclass(frozen=True)
class _Change:
    """Of a plan, at one of its limits."""

    limit: str
    name: str
    of: Callable[[Plan], Plan]


def _changes(plan: Plan, limit: str) -> Iterable[_Change]:
    def serving(engine: str, **changed: Any) -> Callable[[Plan], Plan]:
        return lambda p: replace(p, services={**p.services, engine: replace(p.services[engine], **changed)})

    if (units := plan.host.units(limit)) is not None:
        yield _Change(limit, f"{2 * units:g} {limit}", lambda p: replace(p, host=replace(p.host, **{limit: 2 * units})))
        using = [name for name, service in plan.services.items() if service.on == limit]
        engine = max(using, key=lambda name: plan.work.job(name).per_s * _call_share_s(plan, name))
    else:
        engine = limit
        instances = plan.services[engine].instances + 1
        yield _Change(limit, f"{instances} instances of {engine}", serving(engine, instances=instances))
    service = plan.services[engine]
    halved = serving(engine, seconds=service.seconds / 2, call_seconds=service.call_seconds / 2)
    yield _Change(limit, f"{engine} in half the time", halved)
    if service.call_seconds:
        rows = 2 * max(service.batch, plan.work.job(engine).rows)
        yield _Change(limit, f"calls of up to {rows} rows for {engine}", serving(engine, batch=rows))
    if engine in LINES["faces"]:
        rate = 0.8 * plan.work.key_frames_per_s
        rarer = f"{rate:g} key frames per second"
        yield _Change(limit, rarer, lambda p: replace(p, work=replace(p.work, key_frames_per_s=rate)))


def _resource_load(plan: Plan, resource: str, streams: int, but: str = "") -> float:
    """Share of a resource that all engines on it use, but for one."""
    used = sum(
        streams * plan.work.job(name).per_s * _call_share_s(plan, name) * service.units
        for name, service in plan.services.items()
        if service.on == resource and name != but
    )
    return used / (plan.host.units(resource) or math.inf)


def _slowdown(plan: Plan, name: str, streams: int) -> float:
    """An engine whose resource is too small for all instances at once runs at the speed that the others leave it."""
    resource = plan.services[name].on
    units = plan.host.units(resource)
    wanted = sum(s.instances * s.units for s in plan.services.values() if s.on == resource)
    if units is None or wanted <= units:
        return 1.0
    return 1.0 / max(1e-9, 1.0 - _resource_load(plan, resource, streams, but=name))


def _jobs_per_call(plan: Plan, name: str) -> int:
    return max(1, plan.services[name].batch // plan.work.job(name).rows)


def _call_share_s(plan: Plan, name: str) -> float:
    """That a job takes of an instance: where calls are full, jobs share what a call costs."""
    service, job = plan.services[name], plan.work.job(name)
    return service.call_seconds / _jobs_per_call(plan, name) + service.seconds * job.items


def _job_s(plan: Plan, name: str, streams: int) -> float:
    return _call_share_s(plan, name) * _slowdown(plan, name, streams)


def _answer_s(plan: Plan, name: str, streams: int) -> float:
    """Until the whole call of a job has been done."""
    service, job = plan.services[name], plan.work.job(name)
    together = _jobs_per_call(plan, name) if service.call_seconds else 1
    return (service.call_seconds + service.seconds * job.items * together) * _slowdown(plan, name, streams)


def _wait(plan: Plan, line: str, name: str, streams: int, job_s: float) -> Wait:
    service, job = plan.services[name], plan.work.job(name)
    if line in plan.paced:
        return paced_wait(streams, 1.0 / job.per_s, job_s, service.instances)
    return random_wait(streams * job.per_s, job_s, service.instances, service.scv)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if math.isfinite(seconds) else "endless"
