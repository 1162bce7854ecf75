"""Every model and ensemble under NVIDIA's perf_analyzer: `python -m polylip.perf.analyzer [--url URL] [--model NAME]`.

Throughput and latency at some concurrencies, and where the time goes in each composing model. `--install` gets the
binary; the CSV files of all runs are kept. See docs/perf-analyzer.md.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from polylip.client.errors import InputError, PolylipError
from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, new_sequence_id
from polylip.perf import experiment
from polylip.perf.analyzer_binary import Analyzer, find_analyzer, install
from polylip.perf.analyzer_inputs import CASES, Case, Contract, cases, contracts, request, write_case
from polylip.perf.analyzer_runs import PARTS, Run, RunError, measure, served_configs, server_stub
from polylip.perf.experiment import Result, Setup
from polylip.perf.streams_material import material
from polylip.serving.engines import Status
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.launcher import running_server
from polylip.serving.runtime import find_model_repository

TITLE = "Every model and ensemble under perf_analyzer"
CONCURRENCIES = (1, 4)
REPETITIONS, QUICK_REPETITIONS = 3, 1  # each is three windows of perf_analyzer
CSV_FOLDER = Path("out/perf_analyzer")
TIMEOUT_S = 120.0  # of a request to warm up: a full-size voice on two busy cores

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    url: str = ""  # of a server that runs already
    models: tuple[str, ...] = ()  # none means all that the server has
    concurrencies: tuple[int, ...] = ()  # none means CONCURRENCIES, or 1 with `--quick`
    csv_folder: Path = CSV_FOLDER


def run(setup: Setup, options: Options | None = None) -> Result:
    """Raises MissingError, EngineError, InputError."""
    asked = options or Options()
    analyzer = find_analyzer()
    asked.csv_folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if asked.url else running_server(setup.server) as server:
        url = asked.url if server is None else server.url
        wanted = _contracts(url, asked.models)
        with tempfile.TemporaryDirectory() as folder:
            runs = [row for each in wanted for row in _measure(each, url, analyzer, Path(folder), setup, asked)]
    data = {"perf_analyzer": analyzer.version, "runs": runs, "rows": summary(runs)}
    return {**experiment.head("perf_analyzer", TITLE, setup), "data": data}


def _contracts(url: str, models: tuple[str, ...]) -> list[Contract]:
    """Of the models to be called, in the order of CASES. Raises InputError."""
    try:
        with server_stub(url) as stub:
            served = contracts(served_configs(stub))
    except grpc.RpcError as error:
        raise InputError(f"no tritonserver answers at {url} ({error.code().name}); start one: polylip serve") from None
    if missing := sorted(set(models) - set(served)):
        raise InputError(f"the server has no model {', '.join(missing)}; it has: {', '.join(sorted(served))}")
    return [served[name] for name in CASES if name in (models or served)]


def _measure(contract: Contract, url: str, analyzer: Analyzer, folder: Path, setup: Setup, asked: Options) -> list[Row]:
    """All runs of one model. One that fails is a row with its error."""
    case = cases(material())[contract.name]
    concurrencies = asked.concurrencies or (CONCURRENCIES[:1] if setup.quick else CONCURRENCIES)
    turns = [(concurrency, turn) for turn in range(setup.repetitions) for concurrency in concurrencies]
    try:
        latency_ms = asyncio.run(_warm_up(url, contract, case, max(1, setup.warm_up)))
    except PolylipError as error:
        return [{"model": contract.name, "concurrency": concurrencies[0], "turn": 0, "error": str(error)}]
    data = write_case(case, folder)
    rows = []
    for concurrency, turn in turns:
        path = asked.csv_folder / f"{contract.name}_c{concurrency}_{turn + 1}.csv"
        row: Row = {"model": contract.name, "batch": case.batch, "concurrency": concurrency, "turn": turn}
        try:
            row |= measure(Run(url, contract, case, data, path, concurrency, latency_ms), analyzer)
        except RunError as error:
            row["error"] = str(error)
        except grpc.RpcError as error:
            row["error"] = f"the server does not answer ({error.code().name})"
        rows.append(row)
    data.unlink()
    return rows


async def _warm_up(url: str, contract: Contract, case: Case, requests: int) -> float:
    """Milliseconds of the last one, to its first answer. Raises PolylipError, also for an answer that did no work."""
    async with TritonClient(url) as client, client.line(decoupled=contract.decoupled) as line:
        for number in range(requests):
            inputs = request(contract, case, 0 if contract.sequence else number)
            sequence = SequencePosition(new_sequence_id(), start=True, end=True) if contract.sequence else None
            started = time.monotonic()
            pending = await line.submit(contract.name, inputs, TIMEOUT_S, sequence)
            async for answer in pending:
                status = str(answer["STATUS"].flat[0]) if "STATUS" in answer else Status.OK
                if status != Status.OK:
                    raise RunError(f"{contract.name} ended as {status}: {answer['STATUS_MESSAGE'].flat[0]}")
    return (pending.first_at - started) * 1000


def summary(runs: list[Row]) -> list[Row]:
    """A row per model and concurrency: mean and deviation of throughput, medians of the rest, over the repetitions."""
    rows = []
    for model, concurrency in dict.fromkeys((run["model"], run["concurrency"]) for run in runs):
        same = [run for run in runs if (run["model"], run["concurrency"]) == (model, concurrency)]
        good = [run for run in same if "error" not in run]
        row: Row = {"model": model, "concurrency": concurrency, "runs": len(good)}
        row["errors"] = sorted({run["error"] for run in same if "error" in run})
        if good:
            throughputs = [run["inferences_per_s"] for run in good]
            row["inferences_per_s"] = {
                "mean": round(statistics.fmean(throughputs), 2),
                "sd": round(statistics.stdev(throughputs), 2) if len(throughputs) > 1 else None,
            }
            row["batch"] = good[0]["batch"]
            row["requests"] = sum(run["requests"] or 0 for run in good)
            row |= {name: _median(run[name] for run in good) for name in ("p50_ms", "p95_ms", "p99_ms")}
            row["models"] = {
                part: {name: _median(run["models"][part][name] for run in good) for name in good[0]["models"][part]}
                for part in good[0]["models"]
            }
        rows.append(row)
    return rows


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def markdown(result: Result) -> str:
    """Throughput and latency, then queue and compute of each composing model, then what failed."""
    rows = result["data"]["rows"]
    good = [row for row in rows if row["runs"]]
    lines = [
        "| model | batch | concurrency | inferences/s | p50 ms | p95 ms | p99 ms | requests |",
        "|---|---|---|---|---|---|---|---|",
        *(_speed(row) for row in good),
        "",
        "| called | concurrency | model | queue ms | input ms | infer ms | output ms | per execution |",
        "|---|---|---|---|---|---|---|---|",
        *(_parts(row, part) for row in good for part in row["models"]),
    ]
    failed = [f"- `{row['model']}` at {row['concurrency']}: {error}" for row in rows for error in row["errors"]]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])])


def _speed(row: Row) -> str:
    speed = row["inferences_per_s"]
    spread = "" if speed["sd"] is None else f" ± {speed['sd']:.1f}"
    quantiles = " | ".join(f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
    shown = f"| `{row['model']}` | {row['batch']} | {row['concurrency']} | {speed['mean']:.1f}{spread}"
    return f"{shown} | {quantiles} | {row['requests']} |"


def _parts(row: Row, part: str) -> str:
    figures = row["models"][part]
    shown = " | ".join(f"{figures[f'{name}_ms']:.2f}" for name in PARTS)
    return f"| `{row['model']}` | {row['concurrency']} | `{part}` | {shown} | {figures['per_execution']:g} |"


def main() -> None:
    """Measure, print the tables, write `perf_analyzer_<profile>.json`; or install."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--install", action="store_true", help="get perf_analyzer into the user's cache, and end")
    parser.add_argument("--url", default="", help="of a running server; without it one of the profile is started")
    parser.add_argument("--model", nargs="+", choices=list(CASES), default=[], help="models to call, default all")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[], help=f"default {_listed(CONCURRENCIES)}")
    parser.add_argument("--csv", type=Path, default=CSV_FOLDER, help=f"folder of the CSV files, default {CSV_FOLDER}")
    arguments = parser.parse_args()
    if any(concurrency < 1 for concurrency in arguments.concurrency):
        parser.error("--concurrency must be at least 1")
    try:
        if arguments.install:
            analyzer = install()
            print(f"ready: perf_analyzer {analyzer.version} at {analyzer.path}")
            return
        _complete(arguments)
    except (PolylipError, MissingError, EngineError) as error:
        sys.exit(f"error: {error}")


def _listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def _complete(arguments: argparse.Namespace) -> None:
    if arguments.repetitions is None:
        arguments.repetitions = QUICK_REPETITIONS if arguments.quick else REPETITIONS
    if arguments.url:  # nothing is to be made for a server that runs already
        arguments.repository = find_model_repository()
    options = Options(arguments.url, tuple(arguments.model), tuple(arguments.concurrency), arguments.csv)
    experiment.complete(arguments, lambda setup: run(setup, options), markdown)


if __name__ == "__main__":
    main()
