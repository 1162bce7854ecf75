"""The paper model against three real servers behind HAProxy: `python -m polylip.perf.capacity_run [--quick]`.

The engines are stand-ins that sleep (`paced_repository`), so that three servers fit on one machine; servers, proxy,
network, sequences, batching and clients are real. See docs/capacity.md.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from polylip.perf import experiment
from polylip.perf.capacity_load import Ledger, Load, run_load
from polylip.perf.capacity_model import (
    LINES,
    PACED,
    Plan,
    Service,
    Work,
    server_load,
    servers_needed,
    servers_needed_hashed,
    streams_per_server,
)
from polylip.perf.capacity_proxy import (
    NAMES,
    BalancedProxy,
    ModelCount,
    kill,
    model_counts,
    running_proxy,
    running_servers,
)
from polylip.perf.experiment import Result, Setup
from polylip.perf.paced_repository import Pace, paced_repository
from polylip.perf.streams_search import judge
from polylip.serving.launcher import Server, ServerOptions
from polylip.serving.runtime import find_model_repository

TITLE = "Streams per server: calculated, and measured with three servers behind HAProxy"
STAND_INS = "every engine a stand-in that sleeps for a fixed time; `track` does its real work too"
PROFILE = "lite"  # whose configs the stand-ins have
# Of the stand-ins, chosen so that a server carries four streams and the detector is its limit.
SERVICES = {
    "transcribe": Service(0.05),
    "translate": Service(0.03),
    "synthesize": Service(0.1),
    "detect": Service(0.042, batch=16),
    "track": Service(0.002),
    "mel": Service(0.0005),
    "lips": Service(0.006, batch=32),
}
WORK = Work()
SECONDS, QUICK_SECONDS = 12.0, 8.0  # of a load: at 110 % an engine falls behind by a second in ten
WARM_UP_S = 2.0
ALONE_S = 4.0
SEARCHES, QUICK_SEARCHES = 3, 1  # each with other instants
KILLED_AFTER_S = 4.0
SETTLED_S = 2.0  # after that, for the streams of a server that was killed to have a new one

Counts = Mapping[str, ModelCount]  # by model


@dataclass(frozen=True)
class Probe:
    """What came of one load."""

    streams: int
    seed: int
    sustained: bool
    kinds: dict[str, Any]
    latencies_ms: dict[str, list[float]]
    lag_p99_ms: float | None
    errors: list[str]
    servers: dict[str, int]  # streams by server
    split: list[str]  # streams that more than one server had
    counted: dict[str, dict[str, int]]  # by server: pictures' requests by the proxy's log, and by its own count
    sequences: int


def run(setup: Setup) -> Result:
    """Calculate, then search around it. Raises MissingError where haproxy is not installed."""
    searches = min(setup.repetitions, QUICK_SEARCHES if setup.quick else SEARCHES)
    setup = replace(setup, profile=PROFILE, repetitions=searches, warm_up=1)
    with tempfile.TemporaryDirectory(prefix="polylip-capacity-") as name:
        folder = Path(name)
        paces = {model: Pace(service.seconds) for model, service in SERVICES.items()}
        repository = paced_repository(setup.repository or find_model_repository(), folder, paces)
        options = [ServerOptions(PROFILE, repository, log_path=folder / f"{name}.log") for name in NAMES]
        with running_servers(options) as servers, running_proxy([server.url for server in servers]) as proxy:
            data = _measure(setup, servers, proxy)
    return {**experiment.head("capacity", TITLE, setup, weights=STAND_INS), "data": data}


def _measure(setup: Setup, servers: Sequence[Server], proxy: BalancedProxy) -> dict[str, Any]:
    seconds, load_before = QUICK_SECONDS if setup.quick else SECONDS, os.getloadavg()[0]
    before = [model_counts(server.url) for server in servers]
    alone = run_load(Load(proxy.url, 1, WORK, 0.0, ALONE_S, setup.seed, "alone"))
    measured = services_of(before, [model_counts(server.url) for server in servers])
    given, found = Plan(SERVICES, WORK), Plan(measured, WORK)
    per_server = streams_per_server(given)
    predicted = len(servers) * per_server
    probes: list[Probe] = []

    def probe(streams: int, seed: int) -> bool:
        load = Load(proxy.url, streams, WORK, WARM_UP_S, seconds, seed, f"probe{len(probes)}")
        probes.append(_probe(load, servers, proxy))
        return probes[-1].sustained

    if not setup.quick:
        probe(predicted // 2, setup.seed)
    seeds = range(setup.seed, setup.seed + setup.repetitions)
    capacities = [search(predicted, lambda streams, seed=seed: probe(streams, seed)) for seed in seeds]
    capacity = statistics.mean(capacities)
    carried = predicted - per_server
    return {
        "services": {name: asdict(service) for name, service in SERVICES.items()},
        "services_measured": {name: asdict(service) for name, service in measured.items()},
        "alone_errors": sorted({outcome.error for outcome in alone.all if outcome.error}),
        "work": {**asdict(WORK), "deadlines_s": WORK.deadlines_s},
        "servers": len(servers),
        "machine_load": load_before,
        "predicted": {
            "per_server": per_server,
            "streams": predicted,
            "bottleneck": server_load(given, per_server + 1).bottleneck,
            "at_random": len(servers) * streams_per_server(replace(given, paced=())),
            "with_measured_times": len(servers) * streams_per_server(found),
            "next_fails": list(server_load(given, per_server + 1).failures.values()),
            "servers_for_60": servers_needed(60, per_server),
            "servers_for_60_hashed": servers_needed_hashed(60, per_server),
        },
        "measured": {"streams": capacities, "mean": capacity, "sd": statistics.pstdev(capacities)},
        "error_percent": round(100 * (predicted - capacity) / capacity, 1) if capacity else None,
        "probes": [asdict(made) | {"predicted": _predicted(found, made, len(servers))} for made in probes],
        "one_killed": None if setup.quick else _kill_one(setup, servers, proxy, carried, seconds),
    }


def search(start: int, holds: Any) -> int:
    """The largest number that holds, looked for upwards and downwards from `start`; 0 where none does."""
    if holds(start):
        while holds(start + 1):
            start += 1
        return start
    while start > 1:
        start -= 1
        if holds(start):
            return start
    return 0


def services_of(before: Sequence[Counts], after: Sequence[Counts]) -> dict[str, Service]:
    """The stand-ins' times in the servers' statistics before and after a stream alone, so that no call held two jobs.

    Nothing is kept of the time that a decoupled model takes, so that of `synthesize` stays as given.
    """
    services = dict(SERVICES)
    for name in services.keys() - {"synthesize"}:
        requests = sum(new[name].requests - old[name].requests for old, new in zip(before, after, strict=True))
        service_s = sum(new[name].service_s - old[name].service_s for old, new in zip(before, after, strict=True))
        if requests:
            services[name] = replace(services[name], seconds=service_s / requests / WORK.job(name).items)
    return services


def _probe(load: Load, servers: Sequence[Server], proxy: BalancedProxy) -> Probe:
    before = [model_counts(server.url) for server in servers]
    ledger = run_load(load)
    after = [model_counts(server.url) for server in servers]
    asked = proxy.asked(lambda stream: stream.startswith(f"{load.name}-"))
    served = [sum(a[line].requests - b[line].requests for line in PACED) for b, a in zip(before, after, strict=True)]
    verdict = judge(ledger.all, LINES)
    return Probe(
        load.streams,
        load.seed,
        verdict["sustained"],
        verdict["kinds"],
        {
            kind: [round(o.latency_s * 1000, 1) for o in ledger.all if o.kind == kind and o.latency_s is not None]
            for kind in LINES
        },
        verdict["lag_p99_ms"],
        verdict["errors"],
        asked.streams,
        asked.split,
        {name: {"proxy": asked.calls[name], "server": count} for name, count in zip(NAMES, served, strict=True)},
        sum(len(sequences) for sequences in ledger.sequences.values()),
    )


def _predicted(plan: Plan, probe: Probe, servers: int) -> dict[str, Any]:
    """On the server with the most streams."""
    load = server_load(plan, max(probe.servers.values(), default=math.ceil(probe.streams / servers)))
    return {
        "busy": round(load.engines[load.bottleneck].load, 3),
        **{f"{kind}_p99_ms": _finite(line.p99_s) for kind, line in load.lines.items()},
    }


def _kill_one(
    setup: Setup, servers: Sequence[Server], proxy: BalancedProxy, streams: int, seconds: float
) -> dict[str, Any]:
    """As many streams as the others carry, and one server killed under them."""
    load = Load(proxy.url, streams, WORK, 0.0, seconds, setup.seed, "killed", stops_early=False)
    timer = threading.Timer(KILLED_AFTER_S, kill, [servers[0]])
    timer.start()
    try:
        ledger = run_load(load)
    finally:
        timer.join()
    return killed_summary(ledger, proxy, KILLED_AFTER_S + SETTLED_S)


def killed_summary(ledger: Ledger, proxy: BalancedProxy, settled_s: float) -> dict[str, Any]:
    """What became of the streams that had the server named first, and of the others."""
    asked = proxy.asked(lambda stream: stream.startswith(f"{ledger.load.name}-"))
    moved = {stream for stream, by in asked.servers.items() if NAMES[0] in by}
    errors = {stream: [o.error for o in outcomes if o.error] for stream, outcomes in ledger.outcomes.items()}
    late = [o for o in ledger.all if o.due_s >= settled_s]
    kept = Counter(asked.last.values())
    return {
        "streams": len(asked.servers),
        "moved": len(moved),
        "errors_of_moved": dict(Counter(e.split(":")[0] for s in moved for e in errors.get(s, []))),
        "errors_of_others": sum(len(found) for stream, found in errors.items() if stream not in moved),
        "sequences_of_moved": [len(ledger.sequences.get(stream, [])) for stream in sorted(moved)],
        "sequences_of_others": [len(s) for stream, s in sorted(ledger.sequences.items()) if stream not in moved],
        "streams_after": {name: kept[name] for name in NAMES[1:]},
        "after": judge(late, LINES),
    }


def _finite(seconds: float) -> float | None:
    return round(seconds * 1000, 1) if math.isfinite(seconds) else None


def markdown(result: Result) -> str:
    """Prediction beside measurement, the probes, and what a killed server did."""
    data = result["data"]
    return "\n\n".join([_summary(data), _probes(data), *([_killed(data)] if data["one_killed"] else [])])


def _summary(data: Mapping[str, Any]) -> str:
    predicted, measured = data["predicted"], data["measured"]
    lines = [
        f"| streams on {data['servers']} servers, p99 within the deadlines | |",
        "|---|---|",
        f"| calculated from the given times | {predicted['streams']} ({predicted['per_server']} each) |",
        f"| calculated from the times in the servers' statistics | {predicted['with_measured_times']} |",
        f"| the same, had all requests come at random (M/D/1) | {predicted['at_random']} |",
        f"| measured | {measured['mean']:.3g} ({', '.join(map(str, measured['streams']))}) |",
        f"| error | {data['error_percent']:+g} % |" if data["error_percent"] is not None else "| error | - |",
        f"| limit | {predicted['bottleneck']}: with one more per server {'; '.join(predicted['next_fails'])} |",
    ]
    return "\n".join(lines)


def _probes(data: Mapping[str, Any]) -> str:
    deadlines = data["work"]["deadlines_s"]
    heads = [f"{kind}, p99 in ms of {deadlines[kind] * 1000:.0f}: calculated, measured" for kind in LINES]
    lines = [
        f"| streams | by server | busiest engine | {' | '.join(heads)} | held | on two servers |",
        "|---|---|---|" + "---|" * len(heads) + "---|---|",
    ]
    for probe in data["probes"]:
        said, seen = probe["predicted"], probe["kinds"]
        latencies = [f"{_shown(said[f'{kind}_p99_ms'])}, {_shown(seen[kind]['p99_ms'])}" for kind in LINES]
        by_server = "/".join(str(probe["servers"].get(name, 0)) for name in NAMES)
        lines.append(
            f"| {probe['streams']} | {by_server} | {probe['predicted']['busy']:.0%} | {' | '.join(latencies)} "
            f"| {'yes' if probe['sustained'] else '**no**'} | {len(probe['split'])} |"
        )
    return "\n".join(lines)


def _killed(data: Mapping[str, Any]) -> str:
    found = data["one_killed"]
    errors = ", ".join(f"{count} {code}" for code, count in found["errors_of_moved"].items()) or "none"
    after = "/".join(map(str, found["streams_after"].values()))
    p99 = {kind: _shown(figures["p99_ms"]) for kind, figures in found["after"]["kinds"].items()}
    lines = [
        f"| one of {data['servers']} servers killed under {found['streams']} streams | |",
        "|---|---|",
        f"| streams that it had | {found['moved']}, then on the others: {after} in all |",
        f"| their errors | {errors} |",
        f"| errors of the other streams | {found['errors_of_others']} |",
        f"| p99 afterwards in ms | {', '.join(f'{kind} {value}' for kind, value in p99.items())} |",
        f"| within the deadlines | {'yes' if found['after']['sustained'] else 'no'} |",
    ]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "endless" if value is None else f"{value:.0f}"


def main() -> None:
    """Run, print, write."""
    experiment.command(__doc__, run, markdown)


if __name__ == "__main__":
    main()
