"""How well segments fit the truth of their streams: boundaries, completed sentences, and when they could be sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from polylip.client.closing import Asked
from polylip.perf.segmentation_streams import LONG_PAUSE_MS, PauseKind, Stream, TruePause

TOLERANCE_MS = 250  # between a cut and the word boundary that it is taken for
MIN_SPEECH_MS = 1500  # of the segment before a pause that counts for accuracy
THRESHOLDS = (0.5, 0.7, 0.85, 0.9)  # at which the scorer's precision and recall are given
WILSON_Z = 1.96  # 95 %
BOOTSTRAPS, BOOTSTRAP_SEED = 1000, 7


@dataclass(frozen=True)
class Sent:
    """A segment as it left."""

    start_ms: float
    end_ms: float
    sent_ms: float  # on the stream's clock, with the recogniser's and scorer's time
    words_ms: float  # when its words were known: at once, or after the recogniser has heard it
    closed_by: str
    forced: bool


@dataclass(frozen=True)
class Hearing:
    """A question to the recogniser and what the scorer made of the answer."""

    asked: Asked
    pause_ms: float  # where the pause begins
    sound_ms: float  # length of what was recognised
    recogniser_ms: float
    words: str  # the answer
    scorer_ms: float = 0.0
    probability: float | None = None  # that a sentence ends at the pause, knowing nothing behind it


@dataclass(frozen=True)
class Run:
    """A stream under one policy."""

    stream: Stream
    sent: tuple[Sent, ...]
    heard: tuple[Hearing, ...] = ()

    @cached_property
    def closing(self) -> list[Sent]:
        """The segments that end at a word; one that ends at none, such as a cough, is left out."""
        return [sent for sent in self.sent if boundary(self.stream, sent.end_ms)[1] <= TOLERANCE_MS]

    @cached_property
    def cuts(self) -> list[int]:
        """The word behind which each of those ends."""
        return [boundary(self.stream, sent.end_ms)[0] for sent in self.closing]

    @cached_property
    def firsts(self) -> list[int]:
        """The word with which each of those begins."""
        return [0, *(cut + 1 for cut in self.cuts[:-1])] if self.cuts else []

    def speech_ms(self, pause: TruePause) -> float:
        """Of the segment that the pause falls into, up to the pause."""
        first = max((first for first in self.firsts if first <= pause.after), default=0)
        return self.stream.words[pause.after].end_ms - self.stream.words[first].start_ms

    def endings(self) -> list[Sent | None]:
        """For each sentence the segment that ends it, None where none does."""
        ends = [(segment, boundary(self.stream, segment.end_ms)[0]) for segment in self.closing]
        return [next((segment for segment, word in ends if word >= end), None) for end in self.stream.ends]


def boundary(stream: Stream, at_ms: float) -> tuple[int, float]:
    """The word behind which a time lies or is nearest to, and its distance from the gap there."""
    starts = [word.start_ms for word in stream.words[1:]] + [math.inf]
    gaps = zip((word.end_ms for word in stream.words), starts, strict=True)
    distances = [max(0.0, end - at_ms, at_ms - start) for end, start in gaps]
    word = int(np.argmin(distances))
    return word, distances[word]


def metrics(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Any]:
    """All figures over runs of one policy; `baseline` holds the silence rule's runs of the same streams."""
    return {
        **_accuracy(runs),
        **_ends(runs),
        **_segments(runs),
        **_delays(runs, baseline),
        **(_recogniser(runs) if any(run.heard for run in runs) else {}),
    }


def share(part: int, whole: int) -> dict[str, Any]:
    """A proportion with its Wilson 95 % interval."""
    if not whole:
        return {"value": None, "of": 0, "low": None, "high": None}
    p, z = part / whole, WILSON_Z
    centre = (p + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * math.sqrt(p * (1 - p) / whole + z * z / (4 * whole * whole)) / (1 + z * z / whole)
    return {"value": round(p, 4), "of": whole, "low": round(centre - half, 4), "high": round(centre + half, 4)}


def _accuracy(runs: Sequence[Run]) -> dict[str, Any]:
    """Right decisions at long pauses: those that end a sentence cut, the others not."""
    every = [(run, pause) for run in runs for pause in run.stream.pauses if pause.length_ms >= LONG_PAUSE_MS]
    counted = [(run, pause) for run, pause in every if run.speech_ms(pause) >= MIN_SPEECH_MS]
    return {
        **_interval("accuracy", sum(_right(*item) for item in counted), len(counted)),
        "base_rate": share(sum(pause.kind is PauseKind.END for _, pause in counted), len(counted))["value"],
        **_interval("accuracy_all_long_pauses", sum(_right(*item) for item in every), len(every)),
        "right_by_kind": {
            kind: share(sum(_right(*item) for item in own), len(own))
            for kind in (PauseKind.END, PauseKind.CLAUSE, PauseKind.PHRASE)
            for own in [[item for item in counted if item[1].kind is kind]]
        },
    }


def _right(run: Run, pause: TruePause) -> bool:
    return (pause.after in run.cuts) == (pause.kind is PauseKind.END)


def _ends(runs: Sequence[Run]) -> dict[str, Any]:
    """Cuts against all sentence ends, whether there was a pause or none."""
    ends = sum(len(run.stream.ends) for run in runs)
    cuts = sum(len(run.sent) for run in runs)
    matched = sum(len(set(run.cuts) & set(run.stream.ends)) for run in runs)
    precision, recall = matched / max(cuts, 1), matched / max(ends, 1)
    return {
        **_interval("precision", matched, cuts),
        **_interval("recall", matched, ends),
        "f1": round(2 * precision * recall / max(precision + recall, 1e-9), 4),
    }


def _segments(runs: Sequence[Run]) -> dict[str, Any]:
    """Shares of segments that end at a sentence's end, that also begin at one's beginning, and lengths."""
    sent = [segment for run in runs for segment in run.sent]
    complete = [
        (run, first)
        for run in runs
        for first, cut in zip(run.firsts, run.cuts, strict=True)
        if run.stream.words[cut].ends_sentence
    ]
    strict = sum(first == 0 or run.stream.words[first - 1].ends_sentence for run, first in complete)
    reasons = sorted({segment.closed_by for segment in sent})
    return {
        "segments": len(sent),
        **_interval("completion_rate", len(complete), len(sent)),
        **_interval("strict_completion_rate", strict, len(sent)),
        "forced_share": share(sum(segment.forced for segment in sent), len(sent))["value"],
        "closed_by": {reason: sum(segment.closed_by == reason for segment in sent) for reason in reasons},
        "length_ms": spread([segment.end_ms - segment.start_ms for segment in sent]),
    }


def _delays(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[str, Any]:
    """From each sentence's last sound to the dispatch of the segment that ends it, and to when its words are known."""
    own, before = list(_endings(runs)), list(_endings(baseline))
    ended = [(at, segment) for at, segment in own if segment]
    both = [(a, b) for (_, a), (_, b) in zip(own, before, strict=True) if a and b]
    return {
        "sentences": len(own),
        "lost_sentences": len(own) - len(ended),
        "dispatch_delay_ms": spread([segment.sent_ms - at for at, segment in ended]),
        "words_delay_ms": spread([segment.words_ms - at for at, segment in ended]),
        **_added("added_latency", [a.sent_ms - b.sent_ms for a, b in both]),
        **_added("added_words_latency", [a.words_ms - b.words_ms for a, b in both]),
    }


def _endings(runs: Sequence[Run]) -> Iterator[tuple[float, Sent | None]]:
    for run in runs:
        yield from zip((run.stream.words[end].end_ms for end in run.stream.ends), run.endings(), strict=True)


def _added(name: str, differences: Sequence[float]) -> dict[str, Any]:
    """Mean with its bootstrap 95 % interval, and median."""
    values = np.array(differences)
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(0, len(values), (BOOTSTRAPS, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return {
        f"{name}_ms": round(float(values.mean()), 1),
        f"{name}_ms_interval": [round(float(low), 1), round(float(high), 1)],
        f"{name}_p50_ms": round(float(np.median(values)), 1),
    }


def _recogniser(runs: Sequence[Run]) -> dict[str, Any]:
    asked = [question for run in runs for question in run.heard]
    pairs = list(_scored(runs))
    return {
        "questions_per_segment": round(len(asked) / max(sum(len(run.sent) for run in runs), 1), 3),
        "recogniser_ms": spread([question.recogniser_ms for question in asked]),
        "recogniser_real_time_factor": round(
            sum(q.recogniser_ms for q in asked) / max(sum(q.sound_ms for q in asked), 1), 4
        ),
        "scorer_ms": spread([question.scorer_ms for question in asked]),
        **({"scorer": scorer_figures(pairs)} if pairs else {}),
    }


def _scored(runs: Sequence[Run]) -> Iterator[tuple[float, bool]]:
    """The scorer's probability at each pause as first seen, and whether a sentence ended there."""
    for run in runs:
        for question in run.heard:
            if question.asked is Asked.PAUSE and question.probability is not None:
                yield question.probability, run.stream.words[boundary(run.stream, question.pause_ms)[0]].ends_sentence


def scorer_figures(pairs: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """AUC, Brier score, and precision and recall at the thresholds."""
    p, end = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    return {
        "pauses": len(pairs),
        "base_rate": round(float(end.mean()), 4),
        "auc": area(p[end], p[~end]),
        "brier": round(float(((p - end) ** 2).mean()), 4),
        "at": {str(t): _at(p >= t, end) for t in THRESHOLDS},
    }


def _at(said: np.ndarray[Any, Any], end: np.ndarray[Any, Any]) -> dict[str, Any]:
    hits = int((said & end).sum())
    return {
        "precision": share(hits, int(said.sum()))["value"],
        "recall": share(hits, int(end.sum()))["value"],
        "accuracy": share(int((said == end).sum()), len(end))["value"],
    }


def area(positive: np.ndarray[Any, Any], negative: np.ndarray[Any, Any]) -> float | None:
    """The chance that a positive scores above a negative, ties counted half; None without either."""
    if not len(positive) or not len(negative):
        return None
    above = (positive[:, None] > negative[None]).mean() + (positive[:, None] == negative[None]).mean() / 2
    return round(float(above), 4)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, median and 90th percentile."""
    if not values:
        return {"mean": None, "p50": None, "p90": None}
    kinds: Mapping[str, Callable[[Sequence[float]], Any]] = {
        "mean": np.mean,
        "p50": np.median,
        "p90": lambda v: np.percentile(v, 90),
    }
    return {name: round(float(kind(values)), 2) for name, kind in kinds.items()}


def _interval(name: str, part: int, whole: int) -> dict[str, Any]:
    found = share(part, whole)
    return {name: found["value"], f"{name}_of": found["of"], f"{name}_interval": [found["low"], found["high"]]}
