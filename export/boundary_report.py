"""A scorer and pauses with known truth in, the figures of docs/boundaries.md out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.client.boundary import BoundaryScorer
from polylip.client.boundary_features import LOOK_AHEADS
from polylip.export.boundary_examples import Pause

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

THRESHOLDS = (0.5, 0.7, 0.85, 0.9)
COMMA_LIKE = ("comma", "joint")
Z = 1.96  # standard deviations of a 95 % interval
CONFUSIONS = 10  # shown each way
LAST_WORDS = 12  # of a segment, shown


@dataclass(frozen=True)
class Share:
    """`count` of `total`, with its Wilson 95 % interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        share, spread = self.value, Z**2 / self.total
        centre = (share + spread / 2) / (1 + spread)
        reach = Z / (1 + spread) * np.sqrt(share * (1 - share) / self.total + spread / 4 / self.total)
        return float(max(0.0, centre - reach)), float(min(1.0, centre + reach))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{_short(self.value)} ({_short(low)}-{_short(high)})" if self.total else "-"


@dataclass(frozen=True)
class Judged:
    """A scorer's answers on one text at one look-ahead."""

    pauses: Sequence[Pause]
    scores: Float64
    milliseconds: float  # per decision

    @property
    def complete(self) -> Bools:
        return np.array([pause.complete for pause in self.pauses])

    @property
    def base_rate(self) -> float:
        return float(self.complete.mean())

    def drawn_as(self, *names: str) -> Bools:
        return np.array([pause.drawn_as in names for pause in self.pauses])

    def accuracy(self, chosen: Bools | None = None) -> Share:
        """Right at 0.5, of all or of the chosen pauses."""
        right = (self.scores >= 0.5) == self.complete
        return _share(right if chosen is None else right[chosen])

    def balanced_on(self, *names: str) -> float:
        """Accuracy at 0.5 if the incomplete pauses were only of these kinds, at the same share of complete ones."""
        ends, base = self.accuracy(self.complete).value, self.base_rate
        return base * ends + (1 - base) * self.accuracy(self.drawn_as(*names)).value

    def precision(self, threshold: float) -> Share:
        return _share(self.complete[self.scores >= threshold])

    def recall(self, threshold: float) -> Share:
        return _share((self.scores >= threshold)[self.complete])

    @property
    def auc(self) -> float:
        """How often a complete pause scores above an incomplete one; ties count half."""
        yes, no = self.scores[self.complete], np.sort(self.scores[~self.complete])
        below = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
        return float(below.mean() / 2 / len(no)) if len(yes) and len(no) else float("nan")

    @property
    def brier(self) -> float:
        return float(((self.scores - self.complete) ** 2).mean())

    def confusions(self, complete: bool) -> list[tuple[float, str]]:
        """(score, text) of pauses that are wrong by 0.5, spread evenly from the worst to the mildest."""
        wrong = np.flatnonzero((self.complete == complete) & ((self.scores >= 0.5) != complete))
        ordered = wrong[np.argsort(np.abs(self.scores[wrong] - complete))[::-1]]
        chosen = ordered[np.unique(np.linspace(0, len(ordered) - 1, CONFUSIONS).astype(int))] if len(ordered) else []
        return [(float(self.scores[i]), _shown(self.pauses[int(i)])) for i in chosen]


def judge(scorer: BoundaryScorer, pauses: Sequence[Pause]) -> dict[int, Judged]:
    """By look-ahead."""
    found = {}
    for look in LOOK_AHEADS:
        began = time.process_time()
        scores = [scorer.probability(pause.words, pause.following[:look]) for pause in pauses]
        spent = (time.process_time() - began) * 1000 / len(pauses)
        found[look] = Judged(pauses, np.array([0.5 if s is None else s for s in scores]), spent)
    return found


def report(found: Mapping[str, Mapping[int, Judged]]) -> Iterator[str]:
    """Lines of Markdown, text by text."""
    yield "| text, words ahead | pauses | base rate | AUC | Brier | right at 0.5 | ms |"
    yield "|---|---|---|---|---|---|---|"
    for name, look, judged in _each(found):
        yield (
            f"| {name}, {look} | {len(judged.pauses)} | {_short(judged.base_rate)} | {_short(judged.auc)} "
            f"| {_short(judged.brier)} | {judged.accuracy()} | {judged.milliseconds:.2f} |"
        )
    yield ""
    yield "| right at 0.5 | sentence ends | commas | joints | any gap | all, if commas and joints | all, if gaps |"
    yield "|---|---|---|---|---|---|---|"
    for name, look, judged in _each(found):
        kinds = (judged.accuracy(judged.drawn_as(kind)) for kind in ("end", "comma", "joint", "gap"))
        cells = " | ".join(str(share) for share in kinds)
        balanced = f"{_short(judged.balanced_on(*COMMA_LIKE))} | {_short(judged.balanced_on('gap'))}"
        yield f"| {name}, {look} | {cells} | {balanced} |"
    yield ""
    yield "| precision / recall at | " + " | ".join(str(threshold) for threshold in THRESHOLDS) + " |"
    yield "|---" * (len(THRESHOLDS) + 1) + "|"
    for name, look, judged in _each(found):
        cells = " | ".join(f"{judged.precision(t)} / {judged.recall(t)}" for t in THRESHOLDS)
        yield f"| {name}, {look} | {cells} |"


def confusions(found: Mapping[str, Mapping[int, Judged]]) -> Iterator[str]:
    """Lines of Markdown: what is wrong by 0.5, without and with both words ahead."""
    for name, look, judged in _each(found):
        if look == 1:
            continue
        for complete, title in ((True, "complete, taken for incomplete"), (False, "incomplete, taken for complete")):
            yield f"{name}, {look} words ahead, {title}:"
            yield ""
            for score, text in judged.confusions(complete):
                yield f"- {score:.2f} {text}"
            yield ""


def summary(found: Mapping[str, Mapping[int, Judged]]) -> list[str]:
    """One line per text and look-ahead, for the weight file."""
    return [
        f"{name} dev, {look} words ahead: base rate {_short(judged.base_rate)}, AUC {_short(judged.auc)}, "
        f"right at 0.5 {judged.accuracy()}, n {len(judged.pauses)}"
        for name, look, judged in _each(found)
    ]


def _each(found: Mapping[str, Mapping[int, Judged]]) -> Iterator[tuple[str, int, Judged]]:
    for name, by_look in found.items():
        for look, judged in by_look.items():
            yield name, look, judged


def _share(right: Bools) -> Share:
    return Share(int(right.sum()), len(right))


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if 0 <= value < 1 else f"{value:.2f}"


def _shown(pause: Pause) -> str:
    return f"{' '.join(pause.words[-LAST_WORDS:])} **|** {' '.join(pause.following)}"
