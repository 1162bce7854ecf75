"""Service times for the paper model: those to begin with, and those of files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from polylip.client.errors import InputError
from polylip.perf.capacity_model import ENGINES, Service, Work

# To begin with, from two cores with AMX; `cpu` has networks for pictures and the speech of `lite`. Measure your own.
PROFILES = {
    "lite": {
        "transcribe": Service(0.2, on="cores"),
        "translate": Service(0.1, on="cores"),
        "synthesize": Service(0.02, on="cores"),
        "detect": Service(0.035, batch=16, on="cores"),
        "track": Service(0.001, on="cores"),
        "mel": Service(0.0001, on="cores"),
        "lips": Service(0.0005, batch=32, on="cores"),
    },
    "cpu": {
        "transcribe": Service(0.2, on="cores", units=2),
        "translate": Service(0.1, batch=64, on="cores"),
        "synthesize": Service(0.02, on="cores"),
        "detect": Service(0.061, batch=16, on="cores", units=2),
        "track": Service(0.001, on="cores"),
        "mel": Service(0.0001, on="cores"),
        "lips": Service(1 / 211, batch=32, on="cores", units=2),
    },
}
CORES = 2.0  # of the machine that these are from
BATCHED = ("detect", "lips")  # whose requests perf_analyzer makes of several items; others get one segment or batch
COMPUTE = ("compute_input_ms", "compute_infer_ms", "compute_output_ms")


def read_services(path: Path, work: Work, base: Mapping[str, Service]) -> dict[str, Service]:
    """From JSON: engines by name, or a result of `polylip.perf.analyzer`, whose times replace those of `base`.

    Raises InputError.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the service times in {path} ({error}); give a JSON file") from None
    if isinstance(content, dict) and content.get("experiment") == "perf_analyzer":
        return {**base, **_analyzed(content["data"]["rows"], work, base)}
    if isinstance(content, dict) and "experiment" in content:
        content = content.get("data", {}).get("services")
    if not isinstance(content, dict) or not content:
        raise InputError(f'{path} holds no service times; give {{"detect": {{"seconds": 0.012, "instances": 1}}}}')
    return {name: _service(path, name, entry) for name, entry in content.items()}


def _analyzed(rows: list[dict[str, Any]], work: Work, base: Mapping[str, Service]) -> dict[str, Service]:
    """The engines' own time at the least concurrency. A decoupled model's time ends before its work does."""
    found: dict[str, Service] = {}
    called = [row for row in rows if row["runs"] and row["model"] in ENGINES and row["model"] != "synthesize"]
    for row in sorted(called, key=lambda row: -row["concurrency"]):
        name = row["model"]
        items = row["batch"] if name in BATCHED else work.job(name).items
        seconds = sum(row["models"][name][part] for part in COMPUTE) / 1000 / items
        found[name] = replace(base.get(name, Service(seconds)), seconds=seconds)
    return found


def _service(path: Path, name: str, entry: Any) -> Service:
    known = {field.name for field in fields(Service)}
    if name not in ENGINES:
        raise InputError(f"{path}: there is no engine {name}; there are: {', '.join(ENGINES)}")
    if not isinstance(entry, dict) or "seconds" not in entry or set(entry) - known:
        raise InputError(f"{path}: {name} needs `seconds` and may have: {', '.join(sorted(known - {'seconds'}))}")
    service = Service(**entry)
    numbers = (service.seconds, service.call_seconds, service.scv)
    if min(numbers) < 0 or service.instances < 1 or service.batch < 1 or service.on not in ("", "cores", "gpus"):
        raise InputError(f"{path}: {name}: times are 0 or more, counts 1 or more, `on` is cores or gpus")
    return service


def read_perf_analyzer(path: Path, items: float) -> Service:
    """From the CSV that `perf_analyzer -f` writes for requests of so many items; its first row has the least queue.

    Raises InputError.
    """
    columns = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")  # microseconds
    try:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        micros = sum(float(rows[0][column]) for column in columns)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path} is no CSV file of perf_analyzer ({error}); make one with its option -f") from None
    return Service(micros / 1e6 / items)
