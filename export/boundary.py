"""`python -m polylip.export.boundary`: trains and tests what judges pauses in English (docs/boundaries.md)"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from polylip.client.boundary import ENGLISH_WEIGHTS, HashedScorer
from polylip.client.errors import InputError
from polylip.export.boundary_examples import Lexicon, Pause, pauses
from polylip.export.boundary_report import Judged, confusions, judge, report, summary
from polylip.export.boundary_text import (
    DEV_FILES,
    KINDS_OF_TEXT,
    TRAIN_FILES,
    Unit,
    all_files,
    read_units,
    split_for_choosing,
)
from polylip.export.boundary_train import Settings, train
from polylip.export.boundary_weights import EVEN, calibrated, save

CALIBRATION_PAUSES = {"dialogue": 5000, "web": 1666}  # of the held-out slice: three quarters talk, as users do
TEST_PAUSES = {"dialogue": 6000, "web": 2000}
TEST_SEED = 20_000  # pauses are drawn anew for choosing and for testing; no training seed is this large
SOURCES = (
    "Sentence-boundary weights for English, for polylip.client.boundary.HashedScorer.",
    "Trained on text of two data sets, both under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/):",
    "Schema-Guided Dialogue, part train: https://github.com/google-research-datasets/dstc8-schema-guided-dialogue",
    "UD English EWT, part train: https://github.com/UniversalDependencies/UD_English-EWT",
    "Licence of this file: CC BY-SA 4.0.",
)

Texts = Mapping[str, Sequence[Unit]]
Log = Callable[[str], None]


def train_weights(data: Path, output: Path, settings: Settings, log: Log) -> None:
    """Train on `data`'s train files, calibrate on a slice of them, test on the dev files, write `output`."""
    texts, tests = _read(data, TRAIN_FILES), _read(data, DEV_FILES)
    split = {kind: split_for_choosing(units, kind) for kind, units in texts.items()}
    parts = train({kind: kept for kind, (kept, _) in split.items()}, settings, log)
    save(output, parts, EVEN, SOURCES)
    choosing = {kind: held for kind, (_, held) in split.items()}
    held_out = drawn(choosing, CALIBRATION_PAUSES, settings.seed)
    calibration = calibrated(HashedScorer(output), [pause for some in held_out.values() for pause in some])
    for look, row in enumerate(calibration):
        log(f"calibration, {look} words ahead: {', '.join(f'{value:.3f}' for value in row)}")
    save(output, parts, calibration, SOURCES)
    figures = summary(judged_on(HashedScorer(output), tests))
    made_by = f"Made by: python -m polylip.export.boundary --data <folder> --seed {settings.seed}"
    save(output, parts, calibration, [*SOURCES, made_by, *figures])
    for line in [*figures, f"wrote {output} ({output.stat().st_size / 1024:.0f} KiB)"]:
        log(line)


def judged_on(scorer: HashedScorer, texts: Texts) -> dict[str, dict[int, Judged]]:
    """Answers at pauses of texts, by kind of text and look-ahead."""
    return {kind: judge(scorer, found) for kind, found in drawn(texts, TEST_PAUSES, TEST_SEED).items()}


def drawn(texts: Texts, counts: Mapping[str, int], seed: int) -> dict[str, list[Pause]]:
    """Pauses of every text; the complete share stays, even where a text has fewer sentence ends than wished for."""
    found = {}
    for kind, units in texts.items():
        stream = Lexicon().stream(units)
        found[kind] = pauses(stream, counts[kind], np.random.default_rng(seed))
    return found


def _read(data: Path, files: Mapping[str, str]) -> dict[str, list[Unit]]:
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data names the one with {', '.join(all_files())}")
    return {kind: read_units(data / files[kind]) for kind in KINDS_OF_TEXT}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.export.boundary",
        description="Trains the weights that judge whether a sentence is complete at a pause, or tests them.",
        epilog="example: python -m polylip.export.boundary --data texts",
    )
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(all_files())}")
    parser.add_argument("--output", type=Path, default=ENGLISH_WEIGHTS, help="the weight file (default: the package's)")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="of the training (default: %(default)s)")
    parser.add_argument("--evaluate", action="store_true", help="train nothing; print the figures on the dev files")
    parser.add_argument("--confusions", action="store_true", help="with --evaluate: print what is judged wrong, too")
    parser.add_argument("--choosing", action="store_true", help="with --evaluate: on the slice held out for choosing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = _parser().parse_args(arguments)
    try:
        if given.evaluate:
            _evaluate(given.data, given.output, given.choosing, given.confusions)
        else:
            began = time.monotonic()
            train_weights(given.data, given.output, Settings(seed=given.seed), _say)
            _say(f"{time.monotonic() - began:.0f} s")
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _evaluate(data: Path, weights: Path, choosing: bool, show_confusions: bool) -> None:
    texts: Texts
    if choosing:
        texts = {kind: split_for_choosing(units, kind)[1] for kind, units in _read(data, TRAIN_FILES).items()}
    else:
        texts = _read(data, DEV_FILES)
    found = judged_on(HashedScorer(weights), texts)
    for line in [*report(found), "", *(confusions(found) if show_confusions else ())]:
        _say(line)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
