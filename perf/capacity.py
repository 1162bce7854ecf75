"""How many live streams a server carries, by calculation: `python -m polylip.perf.capacity --streams 60`.

From the time that each engine takes to its load, its queue, the streams per server and the servers for so many streams
with one of them down. No server is started: `polylip.perf.capacity_run` does that, to check the formulas. See
docs/capacity.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from polylip.client.errors import InputError, PolylipError
from polylip.perf.capacity_model import (
    ENGINES,
    HASH_TIMES,
    LINES,
    Host,
    Plan,
    ServerLoad,
    Service,
    Work,
    levers,
    server_load,
    servers_needed,
    servers_needed_hashed,
    streams_per_server,
)
from polylip.perf.capacity_services import CORES, PROFILES, read_perf_analyzer, read_services

SHOWN_LEVERS = 4
CSV_MODEL = "="  # in --services MODEL=FILE.csv


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What the options ask for. Raises InputError."""
    work = Work(
        arguments.speech_share,
        arguments.segments_per_s,
        arguments.key_frames_per_s,
        arguments.chunk_s,
        arguments.frame_rate,
        arguments.lip_batch,
    )
    if not 0 < work.speech_share <= 1 or min(work.segments_per_s, work.key_frames_per_s, work.chunk_s) <= 0:
        raise InputError("the speech share lies within 0 and 1; segments, key frames and chunks are more than 0")
    services: Mapping[str, Service] = PROFILES[arguments.profile]
    given = arguments.services or []
    for source in given:
        model, _, file = source.rpartition(CSV_MODEL)
        if model and model not in ENGINES:
            raise InputError(f"--services {source}: there is no engine {model}; there are: {', '.join(ENGINES)}")
        if model:
            services = {**services, model: read_perf_analyzer(Path(file), work.job(model).items)}
        else:
            services = read_services(Path(file), work, services)
    cores = CORES if arguments.cores is None and not given else arguments.cores
    return Plan(services, work, Host(cores, arguments.gpus))


def table(plan: Plan, streams: int) -> str:
    """What a server can do, why, and what `streams` need; in markdown."""
    per_server = streams_per_server(plan)
    shown = max(1, per_server)
    load = server_load(plan, shown)
    parts = [
        "The times are those that were given, or else a profile's stand-ins on two cores, which say nothing of your "
        "hardware: give --services.",
        f"Loads and queues of one server with {shown} {_streams(shown)}:",
        engine_table(plan, load),
        f"Latency of a request, against the time that what is in it lasts, {shown} {_streams(shown)}:",
        line_table(plan, load),
        *([f"Shared: {_shared(plan, load)}."] if load.resources else []),
        _verdict(plan, per_server, streams),
        _next(plan, per_server),
    ]
    return "\n\n".join(parts)


def engine_table(plan: Plan, load: ServerLoad) -> str:
    """Jobs, times, loads and waits."""
    lines = [
        "| engine | jobs per s and stream | ms per job | instances | busy per stream | busy | wait: mean | wait: p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, engine in load.engines.items():
        waits = [f"{_ms(engine.wait.mean_s)} ms", f"{_ms(engine.wait.p99_s)} ms"] if engine.slowest else ["-", "-"]
        mark = "**" if name == load.bottleneck else ""
        lines.append(
            f"| {mark}{name}{mark} | {plan.work.job(name).per_s:.2f} | {_ms(engine.job_s)} "
            f"| {plan.services[name].instances} | {engine.load / load.streams:.1%} | {engine.load:.0%} | "
            + " | ".join(waits)
            + " |"
        )
    return "\n".join(lines)


def line_table(plan: Plan, load: ServerLoad) -> str:
    """Mean and p99 of each line beside its deadline."""
    lines = ["| line | arrivals | mean | p99 | deadline |", "|---|---|---|---|---|"]
    for name, line in load.lines.items():
        arrivals = "by the clock" if name in plan.paced else "at random"
        steps = " → ".join(engine for engine in LINES[name] if engine in load.engines)
        times = " | ".join(f"{_ms(seconds)} ms" for seconds in (line.mean_s, line.p99_s, line.deadline_s))
        lines.append(f"| {steps} | {arrivals} | {times} |")
    return "\n".join(lines)


def _shared(plan: Plan, load: ServerLoad) -> str:
    shares = [f"{share:.0%} of {plan.host.units(name):g} {name}" for name, share in load.resources.items()]
    return ", ".join(shares)


def _verdict(plan: Plan, per_server: int, streams: int) -> str:
    more = server_load(plan, per_server + 1)
    # Engines that share what is overcommitted never end: their own loads say nothing.
    shared = [more.failures[name] for name, load in more.resources.items() if load > 1.0]
    why = "; ".join(shared or more.failures.values()) or "no more were tried"
    if not per_server:
        return f"**Not even one stream per server**: {why}."
    even, hashed = servers_needed(streams, per_server), servers_needed_hashed(streams, per_server)
    dealt = f"{hashed} where" if hashed else f"more than {HASH_TIMES} times as many where"
    return (
        f"**{per_server} {_streams(per_server)} per server.** With {per_server + 1}: {why}.\n\n"
        f"**{even} servers for {streams} {_streams(streams)}**, one of them down, dealt out evenly; {dealt} a hash "
        "deals them out."
    )


def _next(plan: Plan, per_server: int) -> str:
    found = levers(plan)
    if not found:
        return "No change of these kinds helps; another server does."
    lines = list(dict.fromkeys(f"- {lever.change}: {lever.per_server} per server" for lever in found))[:SHOWN_LEVERS]
    return f"Next lever (now {per_server}):\n\n" + "\n".join(lines)


def _ms(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "endless"
    return f"{seconds * 1000:.0f}" if seconds >= 0.01 else f"{seconds * 1000:.1f}"


def _streams(count: int) -> str:
    return "stream" if count == 1 else "streams"


POSITIVE = ("streams", "cores", "gpus", "segments_per_s", "key_frames_per_s", "chunk_s", "frame_rate", "lip_batch")


def main() -> None:
    """Print the tables; exit status 2 where the options cannot be used."""
    work = Work()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--streams", type=int, default=60, help="to be carried by all servers together")
    parser.add_argument("--profile", choices=PROFILES, default="lite", help="service times to begin with")
    parser.add_argument(
        "--services",
        action="append",
        metavar="FILE.json|ENGINE=FILE.csv",
        help="your own service times: JSON for all, or perf_analyzer's CSV for one; can be repeated",
    )
    parser.add_argument(
        "--cores", type=float, help=f"of a server; {CORES:g} with the times of a profile, else not looked at"
    )
    parser.add_argument("--gpus", type=float, help="of a server; not looked at without")
    parser.add_argument("--speech-share", type=float, default=work.speech_share, help="seconds of speech per second")
    parser.add_argument("--segments-per-s", type=float, default=work.segments_per_s)
    parser.add_argument("--key-frames-per-s", type=float, default=work.key_frames_per_s)
    parser.add_argument("--chunk-s", type=float, default=work.chunk_s, help="of picture in a request to faces")
    parser.add_argument("--frame-rate", type=float, default=work.frame_rate)
    parser.add_argument("--lip-batch", type=int, default=work.lip_batch, help="frames in a request to lipsync")
    arguments = parser.parse_args()
    for option in POSITIVE:
        value = getattr(arguments, option)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{option.replace('_', '-')} {value:g}: must be more than 0")
    try:
        print(table(plan_of(arguments), arguments.streams))
    except PolylipError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
