"""Trained parts in, one small calibrated weight file out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from polylip.client.boundary import EVIDENCE, FORMAT, HashedScorer
from polylip.client.boundary_features import LOOK_AHEADS
from polylip.export.boundary_examples import Pause
from polylip.export.boundary_train import Parts

Float32 = npt.NDArray[np.float32]

LARGEST = 127  # of int8
EMBEDDING_STEPS = 40  # each way; more digits cost space and bring nothing
NGRAM_STEP = 0.04  # of a logit: two thirds of the table round to a few values, which then compress
POSITIVE = 2  # the first factors: a surer part never makes the sum less sure
PRIOR = 1e-3  # pulls the factors to 0, where data does not say
EVEN = np.tile(np.array([0.5, 0.5, 0.0, 0.0, 0.0], np.float32), (len(LOOK_AHEADS), 1))  # the mean of both logits


def save(path: Path, parts: Parts, calibration: Float32, about: Sequence[str]) -> None:
    """Embedding and n-grams in int8, the rest in float16; nothing that needs pickle."""
    embedding = parts.recurrent["embedding"]
    scale = np.maximum(np.abs(embedding).max(axis=1, keepdims=True), 1e-3) / EMBEDDING_STEPS
    half = {name: value.astype(np.float16) for name, value in parts.recurrent.items() if name != "embedding"}
    np.savez_compressed(
        path,
        format=np.int32(FORMAT),
        about=np.array(about),
        vocabulary=parts.vocabulary,
        embedding=_int8(embedding / scale),
        embedding_scale=scale.astype(np.float16),
        ngrams=_int8(parts.ngrams / NGRAM_STEP),
        ngrams_scale=np.float32(NGRAM_STEP),
        calibration=calibration.astype(np.float32),
        **half,
    )


def _int8(values: Float32) -> npt.NDArray[np.int8]:
    rounded: npt.NDArray[np.int8] = np.clip(np.rint(values), -LARGEST, LARGEST).astype(np.int8)
    return rounded


def calibrated(scorer: HashedScorer, pauses: Sequence[Pause]) -> Float32:
    """float32 (look-aheads, EVIDENCE + 1): how to add the evidence up to a logit, by Platt's method."""
    return np.array([_platt(scorer, pauses, look) for look in LOOK_AHEADS], np.float32)


def _platt(scorer: HashedScorer, pauses: Sequence[Pause], look: int) -> npt.NDArray[np.float64]:
    given = np.array([scorer.evidence(pause.words, pause.following[:look]) for pause in pauses], np.float64)
    evidence = torch.from_numpy(np.c_[given, np.ones(len(given))])
    complete = torch.tensor([float(pause.complete) for pause in pauses], dtype=torch.float64)
    free = torch.zeros(EVIDENCE + 1, dtype=torch.float64)
    free[:POSITIVE] = np.log(0.5)
    free.requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        found = functional.binary_cross_entropy_with_logits(evidence @ _factors(free), complete, reduction="sum")
        found = found + PRIOR * free.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found.item()

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return _factors(free).detach().numpy()


def _factors(free: Tensor) -> Tensor:
    return torch.cat([free[:POSITIVE].exp(), free[POSITIVE:]])
