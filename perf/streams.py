"""How many live streams a server sustains: `python -m polylip.perf.streams [--url HOST:PORT] [--max N] [--only KIND]`.

Each stream sends chunks of faces, batches of lips and segments of speech as a live client would, in real time. The
answer is the largest number of streams whose 99th percentiles stay below the length of what was sent, by bisection.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import grpc

from polylip.client.errors import InputError, PolylipError
from polylip.perf import experiment, server_work
from polylip.perf.experiment import Result, Setup
from polylip.perf.streams_load import KINDS, Probe, run_probe
from polylip.perf.streams_search import QUANTILES, judge, search
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.launcher import running_server
from polylip.serving.runtime import find_model_repository

TITLE = "How many live streams one server sustains"
MAX_STREAMS = 64  # the sequences that `track` holds at once
WARM_UP_S, WINDOW_S = 4.0, 20.0
QUICK_STREAMS, QUICK_WARM_UP_S, QUICK_WINDOW_S = 2, 1.5, 6.0
MIN_WINDOW_S = 6.0  # in a shorter one a stream may end no sentence
SEARCHES = 1  # one takes several probes already


@dataclass(frozen=True)
class Options:
    """What is asked for; None: as `--quick` or not says."""

    url: str = ""  # of a server that runs already
    limit: int | None = None  # streams
    window_s: float | None = None
    only: tuple[str, ...] = KINDS


def run(setup: Setup, options: Options | None = None) -> Result:
    """Search `repetitions` times, each with other phases of the streams. Raises InputError where no server answers."""
    asked = options or Options()
    limit = asked.limit or (QUICK_STREAMS if setup.quick else MAX_STREAMS)
    window_s = asked.window_s or (QUICK_WINDOW_S if setup.quick else WINDOW_S)
    probe = Probe(asked.url, 0, asked.only, QUICK_WARM_UP_S if setup.quick else WARM_UP_S, window_s, setup.seed)
    with nullcontext() if asked.url else running_server(setup.server) as server:
        probe = replace(probe, url=asked.url if server is None else server.url)
        searches = [_search(replace(probe, seed=setup.seed + turn), limit) for turn in range(setup.repetitions)]
    found = [one["streams"] for one in searches]
    return {
        **experiment.head("streams", TITLE, setup),
        "data": {
            "kinds": list(asked.only),
            "limit": limit,
            "warm_up_s": probe.warm_up_s,
            "window_s": window_s,
            "streams": statistics.median_low(found),
            "streams_range": [min(found), max(found)],
            "searches": searches,
        },
    }


def _search(probe: Probe, limit: int) -> dict[str, Any]:
    probes: list[dict[str, Any]] = []

    def sustained(streams: int) -> bool:
        before = _looked(probe.url)
        outcomes = run_probe(replace(probe, streams=streams))
        done = server_work.since(before, _looked(probe.url))
        verdict = judge(outcomes, probe.kinds)
        latencies = {
            kind: [round(o.latency_s * 1000, 1) for o in outcomes if o.kind == kind and o.latency_s is not None]
            for kind in probe.kinds
        }
        batches = {model: dict(work.batches) for model, work in done.items() if work.batches}
        probes.append(
            {"streams": streams, "seed": probe.seed, **verdict, "latencies_ms": latencies, "batches": batches}
        )
        return bool(verdict["sustained"])

    found = search(limit, sustained)
    return {"streams": found.good, "first_bad": found.bad, "probes": probes}


def _looked(url: str) -> dict[str, server_work.ModelWork]:
    """Raises InputError where no server answers."""
    try:
        return server_work.look(url)
    except grpc.RpcError:
        raise InputError(f"no tritonserver answers at {url}; start one: polylip serve") from None


def markdown(result: Result) -> str:
    """The answer, then every probe in the order of the search."""
    data = result["data"]
    low, high = data["streams_range"]
    spread = f" ({low} to {high} in {len(data['searches'])} searches)" if len(data["searches"]) > 1 else ""
    bound = ", the limit of the search" if data["streams"] == data["limit"] else ""
    quantiles = " | ".join(f"p{quantile} ms" for quantile in QUANTILES)
    lines = [
        f"**{data['streams']}** live streams{bound}{spread}; windows of {data['window_s']:g} s.",
        "",
        f"| streams | kind | sustained | limit ms | {quantiles} | requests | late | failed |",
        "|---|---|---|---|" + "---|" * (len(QUANTILES) + 3),
    ]
    for one in data["searches"]:
        for probe in one["probes"]:
            lines += [_row(probe, kind) for kind in probe["kinds"]]
    return "\n".join(lines)


def sentence(result: Result) -> str:
    """The answer in short, for the README."""
    data = result["data"]
    streams = f"{data['streams']} live stream{'s' * (data['streams'] != 1)}"
    return (
        f"{result['machine']['cores']} cores sustain {streams} of profile `{result['profile']}` (stand-ins): "
        f"with one more, the slowest chunks take longer than they play (windows of {data['window_s']:g} s; "
        "[docs/perf-analyzer.md](docs/perf-analyzer.md) counts the requests)."
    )


def _row(probe: dict[str, Any], kind: str) -> str:
    figures = probe["kinds"][kind]
    values = [figures["limit_ms"], *(figures[f"p{quantile}_ms"] for quantile in QUANTILES)]
    shown = " | ".join("-" if value is None else f"{value:.0f}" for value in values)
    verdict = {True: "yes", False: "no", None: "-"}[figures["sustained"]]
    counts = f"{figures['requests']} | {figures['missed']} | {figures['failed']}"
    return f"| {probe['streams']} | `{kind}` | {verdict} | {shown} | {counts} |"


def main() -> None:
    """Search, print the tables, write `streams_<profile>.json`."""
    parser = experiment.parser(__doc__)
    parser.set_defaults(repetitions=SEARCHES)
    parser.add_argument("--url", default="", help="of a running server; without it one of the profile is started")
    parser.add_argument("--max", type=int, help=f"streams to try at most, default {MAX_STREAMS}")
    parser.add_argument("--window-s", type=float, help=f"that is measured, default {WINDOW_S:g}")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="kinds of requests, default all")
    arguments = parser.parse_args()
    if arguments.max is not None and arguments.max < 1:
        parser.error("--max must be at least 1")
    if arguments.window_s is not None and arguments.window_s < MIN_WINDOW_S:
        parser.error(f"--window-s must be at least {MIN_WINDOW_S:g}: a shorter window may hold no segment of speech")
    if arguments.url:  # nothing is to be made for a server that runs already
        arguments.repository = find_model_repository()
    options = _options(arguments)
    try:
        experiment.complete(arguments, lambda setup: run(setup, options), markdown)
    except (PolylipError, MissingError, EngineError) as error:
        sys.exit(f"error: {error}")


def _options(arguments: argparse.Namespace) -> Options:
    return Options(arguments.url, arguments.max, arguments.window_s, tuple(arguments.only))


if __name__ == "__main__":
    main()
