"""One run of perf_analyzer against one model: its command line, its deadline, its CSV, and what the server counted.

The server's own statistics before and after give queue and compute of each composing model: the CSV has them for the
model called, and adds them up for an ensemble.
"""

from __future__ import annotations

import csv
import io
import re
import secrets
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from polylip.client.errors import PolylipError
from polylip.client.wire import CHANNEL_OPTIONS
from polylip.perf.analyzer_binary import Analyzer
from polylip.perf.analyzer_inputs import Case, Contract
from polylip.serving.probe import loaded_models

WINDOWS = 3  # perf_analyzer measures no fewer
ANY_SPREAD = 999  # per cent between windows: a run takes WINDOWS windows, not as many as it takes to be steady
TRIALS = 2 * WINDOWS  # some may hold no answer
SLOW_MS = 100.0  # a model that takes longer is measured in windows of so many requests, a faster one in windows of time
SLOW_REQUESTS = 2  # per window at least, and one of each that are open at once
WINDOW_MS = 400  # perf_analyzer waits a fifth longer
MAX_SEQUENCE_ID = 2**30  # perf_analyzer reads the first id as a 32-bit number
DEADLINE_S, DEADLINE_REQUESTS = 30.0, 40  # of a run: this and the time of so many requests
GRACE_S = 15.0  # after being interrupted, to end its sequences
RPC_S = 10.0

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")  # as the server counts
Counted = dict[str, dict[str, int]]  # model -> count and nanoseconds of each part


class RunError(PolylipError):
    """A run of perf_analyzer failed; the others go on."""


@dataclass(frozen=True)
class Run:
    """What is asked of perf_analyzer."""

    url: str
    contract: Contract
    case: Case
    data: Path  # the file of the case
    csv: Path  # to be written
    concurrency: int
    latency_ms: float  # of one request alone, about


@contextmanager
def server_stub(url: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """To ask the server about itself."""
    with grpc.insecure_channel(url, options=CHANNEL_OPTIONS) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def served_configs(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> dict[str, model_config_pb2.ModelConfig]:
    """Of all models that the server has loaded. Raises grpc.RpcError."""
    names = sorted(loaded_models(stub))
    return {n: stub.ModelConfig(service_pb2.ModelConfigRequest(name=n), timeout=RPC_S).config for n in names}


def command_line(run: Run, binary: Path) -> list[str]:
    """As a person would type it."""
    slow = run.latency_ms > SLOW_MS
    window = (
        f"--measurement-mode count_windows --measurement-request-count {max(SLOW_REQUESTS, run.concurrency)}"
        if slow
        else f"--measurement-mode time_windows --measurement-interval {WINDOW_MS}"
    )
    command = [str(binary), "-m", run.case.model, "-u", run.url, "-i", "grpc", "--input-data", str(run.data)]
    command += ["-b", str(run.case.batch), "--concurrency-range", str(run.concurrency), *window.split()]
    command += ["--stability-percentage", str(ANY_SPREAD), "--max-trials", str(TRIALS)]
    if run.contract.sequence:  # two loads with the same ids would be one sequence to the server
        command += ["--sequence-id-range", str(1 + secrets.randbelow(MAX_SEQUENCE_ID))]
    if run.contract.decoupled:
        command.append("--streaming")
    return [*command, "--verbose-csv", "-f", str(run.csv)]


def measure(run: Run, analyzer: Analyzer) -> dict[str, Any]:
    """Its figures, and those of the models behind it. Raises RunError, grpc.RpcError."""
    run.csv.unlink(missing_ok=True)  # a failed run leaves none
    with server_stub(run.url) as stub:
        before = counted(stub)
        command = command_line(run, analyzer.path)
        deadline_s = DEADLINE_S + DEADLINE_REQUESTS * run.concurrency * run.latency_ms / 1000
        said = supervised(command, analyzer.environment, deadline_s)
        parts = per_request(before, counted(stub), run.contract.steps or (run.case.model,))
    if not run.csv.is_file():
        raise RunError(f"{run.case.model}: perf_analyzer wrote no CSV; it said: {_last_line(said)}")
    requests = re.search(r"Request count: (\d+)", said)
    return {
        **parse_csv(run.csv.read_text()),
        "requests": int(requests[1]) if requests else None,
        "models": parts,
        "command": [Path(part).name if Path(part).is_absolute() else part for part in command],
    }


def supervised(command: list[str], environment: Mapping[str, str], deadline_s: float) -> str:
    """What a run said. Raises RunError when it failed, or was ended because its time was up.

    Interrupted, perf_analyzer ends its sequences first; only one that does not is killed, and its sequences expire.
    """
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        raise RunError(
            f"perf_analyzer did not end within {deadline_s:.0f} s and was stopped; look at the server's log"
        ) from None
    finally:
        _end(process)
    if process.returncode:
        raise RunError(f"perf_analyzer ended with {process.returncode}: {_last_line(said)}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _last_line(said: str) -> str:
    """Where perf_analyzer says what went wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|fail|invalid|no valid|what\(\)", line, re.I)]
    return (telling or lines or ["nothing"])[-1]


def parse_csv(text: str) -> dict[str, float]:
    """The one row of a run: inferences per second, and milliseconds. Raises RunError."""
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
        (row,) = rows
        quantiles = {f"p{quantile}_ms": _ms(row[f"p{quantile} latency"]) for quantile in (50, 90, 95, 99)}
        server = {f"{part}_ms": _ms(row["Server " + part.replace("_", " ").title()]) for part in PARTS}
        return {
            "inferences_per_s": float(row["Inferences/Second"]),
            "mean_ms": _ms(row["Avg latency"]),
            **quantiles,
            **server,
            "network_ms": _ms(row["Network+Server Send/Recv"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"perf_analyzer wrote a CSV of {len(rows)} rows that is not understood ({error})") from None


def counted(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> Counted:
    """What the server has counted so far. Raises grpc.RpcError."""
    answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=RPC_S)
    return {model.name: _counts(model) for model in answer.model_stats}


def _counts(model: service_pb2.ModelStatistics) -> dict[str, int]:
    stats = model.inference_stats
    found = {"requests": stats.success.count, "failed": stats.fail.count, "executions": model.execution_count}
    return found | {"inferences": model.inference_count} | {part: getattr(stats, part).ns for part in PARTS}


def per_request(before: Counted, after: Counted, models: Iterable[str]) -> dict[str, dict[str, float]]:
    """Between two counts: mean milliseconds per request of each part, and how many inferences ran together."""
    found = {}
    for model in models:
        gone = {name: after[model][name] - before.get(model, {}).get(name, 0) for name in after[model]}
        requests, executions = max(1, gone["requests"]), max(1, gone["executions"])
        found[model] = {
            "requests": float(gone["requests"]),
            "failed": float(gone["failed"]),
            "per_execution": round(gone["inferences"] / executions, 2),
            **{f"{part}_ms": round(gone[part] / requests / 1e6, 3) for part in PARTS},
        }
    return found


def _ms(microseconds: str) -> float:
    return round(float(microseconds) / 1000, 3)
