"""What every experiment shares: its options, the head of its result (hardware, versions, weights), and its file.

An experiment is a module of this package with `run(setup) -> Result`, `markdown(result) -> str` and `main()`. Its
result is a plain dictionary: the head that `head` makes, and `data`. See docs/proof.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polylip.client.errors import PolylipError
from polylip.client.report import write_json
from polylip.perf.machine import machine
from polylip.serving.doctor import LINES
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.launcher import ServerOptions

Result = dict[str, Any]

PROFILES = ("lite", "cpu")  # that can run without a GPU and without public weights
OUT = Path("out/bench")
SEED = 1
REPETITIONS = 10  # as in the published experiments
WARM_UP = 2
QUICK_REPETITIONS, QUICK_WARM_UP = 2, 1
TRITONSERVER = "2.51.0"  # in the wheel of nvidia-pytriton 0.7.0
PACKAGES = (
    "polylip",
    "numpy",
    "opencv-python-headless",
    "av",
    "onnxruntime",
    "openvino",
    "torch",
    "nvidia-pytriton",
    "pocketsphinx",
    "sacrebleu",
)
STAND_INS = "stand-ins: pocketsphinx, apertium, espeak-ng, OpenCV's cascade, a geometric mouth warp; no public weights"
GENERATED = "S3FD and Wav2Lip full size with generated (random) weights; speech by the stand-ins of profile lite"
HELP = {
    "repetitions": f"default {REPETITIONS}, {QUICK_REPETITIONS} with --quick; some have their own, or none",
    "warm_up": f"runs before them; default {WARM_UP}, {QUICK_WARM_UP} with --quick",
}
WEIGHTS = {"lite": STAND_INS, "cpu": GENERATED}


@dataclass(frozen=True)
class Setup:
    """How an experiment is to be run."""

    profile: str = "lite"
    repository: Path | None = None  # a model repository in place of the checkout's
    seed: int = SEED
    repetitions: int = REPETITIONS
    warm_up: int = WARM_UP
    quick: bool = False  # fewer cases, for a look: the figures are not for publishing
    out: Path = OUT

    @property
    def server(self) -> ServerOptions:
        """A server of this profile, with the models that the client calls."""
        return ServerOptions(profile=self.profile, model_repository=self.repository, models=tuple(sorted(LINES)))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that all experiments have; the first line of `doc` is the help."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--profile", choices=PROFILES, default="lite", help="engines; cpu makes its own random weights")
    made.add_argument("--repository", type=Path, help="model repository with the profile's graphs; made where missing")
    made.add_argument("--seed", type=int, default=SEED, help="of everything random")
    made.add_argument("--repetitions", type=at_least(1), help=HELP["repetitions"])
    made.add_argument("--warm-up", type=at_least(0), help=HELP["warm_up"])
    made.add_argument("--quick", action="store_true", help="few cases and repetitions, to see that it works")
    made.add_argument("--out", type=Path, default=OUT, help=f"folder of the result files, default {OUT}")
    return made


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


def setup_of(arguments: argparse.Namespace) -> Setup:
    """The options of `parser`."""
    quick = arguments.quick
    repetitions, warm_up = (QUICK_REPETITIONS, QUICK_WARM_UP) if quick else (REPETITIONS, WARM_UP)
    return Setup(
        arguments.profile,
        arguments.repository,
        arguments.seed,
        repetitions if arguments.repetitions is None else arguments.repetitions,
        warm_up if arguments.warm_up is None else arguments.warm_up,
        quick,
        arguments.out,
    )


def head(name: str, title: str, setup: Setup, *, warm: bool = True, weights: str | None = None) -> Result:
    """The first entries of a result; `data` follows."""
    return {
        "experiment": name,
        "title": title,
        "profile": setup.profile,
        "weights": weights or WEIGHTS[setup.profile],
        "state": "warm" if warm else "cold",
        "seed": setup.seed,
        "repetitions": setup.repetitions,
        "warm_up": setup.warm_up,
        "quick": setup.quick,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the server and of the packages that do the work, where they are installed."""
    found = {"tritonserver": TRITONSERVER}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (0 of a single one) and the values themselves."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": sd, "raw": list(values)}


def caption(result: Result) -> str:
    """One line for below a table: where, with what, how often."""
    where = f"{result['machine']['cores']} cores ({result['machine']['cpu']})"
    quick = "; a quick run, not for publishing" if result["quick"] else ""
    return (
        f"Profile `{result['profile']}` ({result['weights']}); {where}; tritonserver "
        f"{result['versions']['tritonserver']}; {result['state']}, repetitions: {result['repetitions']}, "
        f"seed {result['seed']}{quick}."
    )


def file_name(result: Result) -> str:
    """`latency_lite.json`."""
    return f"{result['experiment']}_{result['profile']}.json"


def write(result: Result, out: Path) -> Path:
    """Into a folder that is made where it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    return write_json(result, out / file_name(result))


def check_folder(out: Path) -> None:
    """Make it where it is missing; before a run, so that none is lost. Ends the program with a line where it cannot."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {out}: {error.strerror}; name a folder that can be written to")


def command(doc: str | None, run: Callable[[Setup], Result], markdown: Callable[[Result], str]) -> None:
    """The `main` of an experiment without options of its own: run it, write its file, print its table."""
    complete(parser(doc).parse_args(), run, markdown)


def complete(arguments: argparse.Namespace, run: Callable[[Setup], Result], markdown: Callable[[Result], str]) -> None:
    """The same for one that has parsed more options than those of `parser`."""
    check_folder(arguments.out)
    with prepared(setup_of(arguments)) as setup:
        result = run(setup)
    path = write(result, setup.out)
    print(f"{result['title']}\n\n{markdown(result)}\n\n{caption(result)}\n\n{path}")


def exit_status(work: Callable[[], None]) -> int:
    """0, or 2 and a line where it cannot be done."""
    try:
        work()
    except (PolylipError, MissingError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def prepared(setup: Setup) -> Iterator[Setup]:
    """With a repository where the profile needs generated weights; it is removed at the end."""
    if setup.profile == "lite" or setup.repository is not None:
        yield setup
        return
    from polylip.perf.generated_repository import prepared_repository  # noqa: PLC0415  needs torch

    with prepared_repository() as repository:
        yield replace(setup, repository=repository)
