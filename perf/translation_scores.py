"""How near texts are to references: BLEU and chrF++ by sacrebleu, COMET by its own package, and word errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result

from polylip.client.errors import InputError
from polylip.export.checkpoints import read_tensors
from polylip.perf.segmentation_voices import bare

RESAMPLES = 1000  # of the talks, for the intervals and the paired test
SEED_VARIABLE = "SACREBLEU_SEED"  # the only way to tell sacrebleu
WORD_ORDER = 2  # makes chrF chrF++
COMET_PACKAGE = "unbabel-comet"
COMET_BATCH = 8

Systems = Mapping[str, Sequence[str]]  # by name, one text per talk


def scored(systems: Systems, references: Sequence[str], seed: int) -> dict[str, Any]:
    """By metric its signature and each system's score with mean and 95 % interval of RESAMPLES; the first system is the
    one that the others are tested against (`p_value`, paired bootstrap).
    """
    metrics = {"bleu": BLEU(references=[references]), "chrf": CHRF(word_order=WORD_ORDER, references=[references])}
    with _seeded(seed):
        signatures, scores = PairedTest(list(systems.items()), metrics, None, test_type="bs", n_samples=RESAMPLES)()
    return {
        name: {
            "signature": f"{label}|{signature.format()}",
            "systems": {
                system: {"score": found.score, "mean": found.mean, "ci": found.ci, "p_value": _p_value(found, first)}
                for first in [cast(Result, scores[label][0])]
                for system, found in zip(systems, cast(list[Result], scores[label]), strict=True)
            },
        }
        for name, (label, signature) in zip(metrics, signatures.items(), strict=True)
    }


def _p_value(found: Result, first: Result) -> float | None:
    """Of a score that is the same sacrebleu says that it differs for sure."""
    return 1.0 if found.p_value is not None and found.score == first.score else found.p_value


def talk_scores(hypothesis: str, reference: str) -> dict[str, float]:
    """BLEU and chrF++ of one talk."""
    return {
        "bleu": BLEU(effective_order=True).sentence_score(hypothesis, [reference]).score,
        "chrf": CHRF(word_order=WORD_ORDER).sentence_score(hypothesis, [reference]).score,
    }


def check_comet(checkpoint: Path | None) -> None:
    """Before anything long is done. Raises InputError."""
    if checkpoint is None:
        return
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: is no file; name the model.ckpt of a downloaded COMET model")
    if find_spec("comet") is None:
        raise InputError(f"COMET's package is not installed; run: pip install {COMET_PACKAGE}")
    read_tensors(checkpoint)


def comet_scores(checkpoint: Path, sources: Sequence[str], systems: Systems, references: Sequence[str]) -> Any:
    """Each system's score per talk; nothing is fetched from the network. The file has passed `check_comet`."""
    model = import_module("comet").load_from_checkpoint(str(checkpoint), local_files_only=True)
    found = {}
    for system, texts in systems.items():
        samples = [{"src": s, "mt": m, "ref": r} for s, m, r in zip(sources, texts, references, strict=True)]
        found[system] = [float(x) for x in model.predict(samples, COMET_BATCH, gpus=0, progress_bar=False).scores]
    return found


def word_errors(heard: str, said: str) -> int:
    """Words replaced, left out or added, without their marks and case."""
    said_words = [word for token in said.split() if (word := bare(token))]
    row = list(range(len(said_words) + 1))
    for token in heard.split():
        before, row = row, [row[0] + 1]
        for j, word in enumerate(said_words):
            row.append(min(before[j] + (word != bare(token)), before[j + 1] + 1, row[j] + 1))
    return row[-1]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before = os.environ.get(SEED_VARIABLE)
    os.environ[SEED_VARIABLE] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SEED_VARIABLE]
        else:
            os.environ[SEED_VARIABLE] = before
