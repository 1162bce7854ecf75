"""All experiments one after another, and the report: `python -m polylip.perf.bench [--profile lite] [--quick]`.

Each runs in a process of its own, so that none inherits another's memory, threads or failure. What fails or takes too
long is a line of the report. Writes a JSON file per experiment, `bench_<profile>.json` and `index.html`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from polylip.client.report import write_json
from polylip.perf import experiment
from polylip.perf.catalogue import CATALOGUE, Entry
from polylip.perf.experiment import Setup
from polylip.perf.report import write_report

PATIENCE = 3.0  # times an experiment's usual time, and MIN_DEADLINE_S at least: then it is ended
MIN_DEADLINE_S = 300.0
TAIL_LINES = 12  # of what a failed experiment said
BESIDE = 2  # untimed experiments at once
SLOWER = {"lite": 1.0, "cpu": 4.0}  # than profile lite's usual times


@dataclass(frozen=True)
class Outcome:
    """How one experiment ended."""

    name: str
    seconds: float
    error: str = ""  # empty where it succeeded


def main() -> int:
    """Run them all; 1 when one failed."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=[entry.name for entry in CATALOGUE], help="these alone")
    parser.add_argument("--clip", type=Path, help="a further clip of English speech, for the real-time factor")
    arguments = parser.parse_args()
    chosen = [entry for entry in CATALOGUE if _is_wanted(entry, arguments)]
    setup = experiment.setup_of(arguments)
    experiment.check_folder(setup.out)
    if arguments.clip is not None and not arguments.clip.is_file():
        sys.exit(f"error: --clip {arguments.clip}: no such file")
    print(f"{len(chosen)} experiments, about {_usual_s(chosen, setup) / 60:.0f} minutes on two cores", flush=True)
    started = time.monotonic()
    with experiment.prepared(setup) if _needs_repository(chosen) else nullcontext(setup) as ready:
        run = partial(_run, setup=ready, arguments=arguments)
        outcomes = [run(entry) for entry in chosen if entry.timed]
        with ThreadPoolExecutor(BESIDE) as pool:
            outcomes += pool.map(run, [entry for entry in chosen if not entry.timed])
    total_s = time.monotonic() - started
    told = {"profile": setup.profile, "seconds": total_s, "experiments": [asdict(outcome) for outcome in outcomes]}
    write_json(told, setup.out / f"bench_{setup.profile}.json")
    print(f"{total_s / 60:.1f} minutes; {write_report(setup.out, setup.profile)}")
    return int(any(outcome.error for outcome in outcomes))


def _is_wanted(entry: Entry, arguments: argparse.Namespace) -> bool:
    if arguments.only:
        return entry.name in arguments.only
    return entry.quick_s is not None or not arguments.quick


def _needs_repository(chosen: Sequence[Entry]) -> bool:
    return any(entry.uses_profile for entry in chosen)


def _usual_s(chosen: Sequence[Entry], setup: Setup) -> float:
    return sum(_entry_s(entry, setup) for entry in chosen)


def _entry_s(entry: Entry, setup: Setup) -> float:
    seconds = entry.quick_s if setup.quick and entry.quick_s is not None else entry.full_s
    return seconds * (SLOWER[setup.profile] if entry.uses_profile else 1.0)


def _run(entry: Entry, setup: Setup, arguments: argparse.Namespace) -> Outcome:
    """In a child; its output is shown only when it fails."""
    started = time.monotonic()
    deadline_s = max(MIN_DEADLINE_S, PATIENCE * _entry_s(entry, setup))
    try:
        done = subprocess.run(
            _command(entry, setup, arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=deadline_s,
            check=False,
        )
        error = "" if done.returncode == 0 else "\n".join(done.stdout.splitlines()[-TAIL_LINES:]) or "no output"
    except subprocess.TimeoutExpired:
        error = f"ended after {deadline_s:.0f} s, {PATIENCE:g} times what it usually takes"
    seconds = time.monotonic() - started
    print(f"{entry.title}: {f'failed after {seconds:.0f} s' if error else f'{seconds:.0f} s'}", flush=True)
    if error:
        print(error, flush=True)
    return Outcome(entry.name, round(seconds, 1), error)


def _command(entry: Entry, setup: Setup, arguments: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", entry.module, "--profile", setup.profile, "--seed", str(setup.seed)]
    command += ["--out", str(setup.out)]
    if setup.repository is not None and entry.uses_profile:
        command += ["--repository", str(setup.repository)]
    command += ["--quick"] if setup.quick else list(entry.options)
    if arguments.repetitions is not None:
        command += ["--repetitions", str(arguments.repetitions)]
    if arguments.clip is not None and entry.name == "real_time":
        command += ["--clip", str(arguments.clip)]
    return command


if __name__ == "__main__":
    sys.exit(main())
