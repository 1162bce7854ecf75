"""What the evaluation of segmentation tells a reader: its worst mistakes and its tables."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from polylip.perf.segmentation_metrics import Run
from polylip.perf.segmentation_streams import LONG_PAUSE_MS, PauseKind

EXAMPLES = 10  # of each kind of mistake
EXAMPLE_SEED = 3
NEXT_WORDS = 4  # shown behind a cut
SAME_PAUSE_MS = 120  # between a pause as heard and as spoken
POLICIES = {"silence": "silence only", "paper": "the paper's", "semantic": "semantic"}
ADDED = ("added_latency_ms", "added_words_latency_ms")
TARGETS = {"accuracy": 0.92, "completion_rate": 0.93, "added_latency_ms": 15.0}  # at least, at least, at most


def confusions(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """A sample of cuts where no sentence ends, and of sentence ends with a long pause that were not cut."""
    chosen = random.Random(EXAMPLE_SEED)  # noqa: S311  a sample, no secret
    found = {}
    for name, every in (("cut_wrongly", _wrong_cuts(runs)), ("missed", _missed(runs))):
        cases = list(every)
        found[name] = chosen.sample(cases, min(EXAMPLES, len(cases)))
    return found


def _wrong_cuts(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for first, cut, sent in zip(run.firsts, run.cuts, run.closing, strict=True):
            if not run.stream.words[cut].ends_sentence:
                yield {**_case(run, first, cut), "closed_by": sent.closed_by}


def _missed(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for pause in run.stream.pauses:
            missed = pause.kind is PauseKind.END and pause.after not in run.cuts
            if missed and pause.length_ms >= LONG_PAUSE_MS:
                first = max((first for first in run.firsts if first <= pause.after), default=0)
                yield _case(run, first, pause.after)


def _case(run: Run, first: int, last: int) -> dict[str, Any]:
    words = run.stream.words
    pause = next((pause for pause in run.stream.pauses if pause.after == last), None)
    near = [h for h in run.heard if abs(h.pause_ms - words[last].end_ms) <= SAME_PAUSE_MS]
    known = next((h.probability for h in near if h.probability is not None), None)
    return {
        "voice": run.stream.voice,
        "text": " ".join(word.written for word in words[first : last + 1]),
        "next": " ".join(word.written for word in words[last + 1 : last + 1 + NEXT_WORDS]),
        "pause": None if pause is None else pause.kind,
        "pause_ms": None if pause is None else round(pause.length_ms),
        "heard": near[0].words if near else None,
        "probability": None if known is None else round(known, 3),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as the documentation shows it."""
    english, other = result["languages"]["en"], result["languages"].get("es")
    here = result["machine"]
    blocks = [
        f"Written texts, voices {', '.join(result['voices']['en'])}, {here['cores']} cores ({here['cpu']}), "
        f"recogniser {result['recogniser']}, VAD {result['vad']}. In brackets 95 % intervals (Wilson; for the added "
        "latency bootstrap over sentences). The paper's policy cuts a part of the streams; its added latency is to "
        "silence only on the same ones.",
        _main_table(english),
        "Right decisions at long pauses, by what the pause is:",
        _kinds(english),
        "By text and by voice (semantic / silence only):",
        _breakdown(english),
        "Delays and costs:",
        _costs(english),
        "The scorer alone, at every pause of 0.2 s, without the words behind it:",
        _scorer(english["semantic"]["scorer"]),
    ]
    if other:
        blocks += [
            "Spanish (espeak-ng; the recogniser is simulated: it is told the words with their marks):",
            _main_table(other),
        ]
    return "\n\n".join(blocks)


def short_table(result: dict[str, Any]) -> str:
    """The README's rows: semantic against silence alone, on English."""
    found, targets = result["languages"]["en"], result["targets"]
    silence, semantic = found["silence"], found["semantic"]
    rows = [
        ("right decisions at pauses of 0.5 s and more", "accuracy", targets["accuracy"]),
        ("cuts against sentence ends, F1", "f1", None),
        ("segments that end with a sentence", "completion_rate", targets["completion_rate"]),
        ("segments that are whole sentences", "strict_completion_rate", None),
    ]
    lines = ["| | silence alone | semantic | target |", "|---|---|---|---|"]
    for name, field, target in rows:
        aim = f"{100 * target:.0f} %" if target else ""
        lines.append(f"| {name} | {100 * silence[field]:.1f} % | {100 * semantic[field]:.1f} % | {aim} |")
    for name, field in (("a sentence is sent", "added_latency_ms"), ("its words are known", "added_words_latency_ms")):
        aim = f"{targets['added_latency_ms']:.0f} ms"
        lines.append(f"| how much later {name} | 0 | {semantic[field]:+.0f} ms | {aim} |")
    return "\n".join(lines)


def examples(result: dict[str, Any]) -> str:
    """The confusion cases as two lists."""
    cases = result["confusions"]
    parts = []
    for title, name in (
        ("Cut where no sentence ends:", "cut_wrongly"),
        ("Missed, though the pause was long:", "missed"),
    ):
        lines = [_example(case) for case in cases[name]] or ["- none"]
        parts.append("\n".join([title, "", *lines]))
    return "\n\n".join(parts)


def _example(case: dict[str, Any]) -> str:
    p = "unknown" if case["probability"] is None else f"{case['probability']:.2f}"
    pause = "no pause" if case["pause"] is None else f"{case['pause']}, {case['pause_ms'] / 1000:.2f} s"
    reason = f", closed by {case['closed_by']}" if "closed_by" in case else ""
    return f"- {case['text']} **|** {case['next']} ({case['voice']}; {pause}; p {p}{reason})"


def _main_table(found: dict[str, Any]) -> str:
    lines = [
        "| policy | sentences | accuracy at long pauses | base rate | precision | recall | F1 | completion "
        "| strict completion | added latency, ms: to dispatch | to known words |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy, name in POLICIES.items():
        row = found[policy]
        added = " | ".join("0" if policy == "silence" else _added(row, name) for name in ADDED)
        lines.append(
            f"| {name} | {row['sentences']} | {_share(row, 'accuracy')} | {row['base_rate']:.3f} "
            f"| {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {_share(row, 'completion_rate')} "
            f"| {row['strict_completion_rate']:.3f} | {added} |"
        )
    return "\n".join(lines)


def _added(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:+.0f} ({low:+.0f} to {high:+.0f})"


def _share(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} ({low:.3f} to {high:.3f})"


def _kinds(found: dict[str, Any]) -> str:
    lines = [
        "| policy | ends of sentences | hesitations between clauses | within phrases | all, after any length |",
        "|---|---|---|---|---|",
    ]
    for policy, name in POLICIES.items():
        row = found[policy]
        kinds = row["right_by_kind"].values()
        cells = [f"{kind['value']:.3f} of {kind['of']}" if kind["of"] else "-" for kind in kinds]
        every = f"{row['accuracy_all_long_pauses']:.3f} of {row['accuracy_all_long_pauses_of']}"
        lines.append(f"| {name} | {' | '.join(cells)} | {every} |")
    return "\n".join(lines)


def _breakdown(found: dict[str, Any]) -> str:
    lines = ["| | sentences | accuracy | F1 | completion | added latency, ms |", "|---|---|---|---|---|---|"]
    for group in ("texts", "voices"):
        for name, own in found["semantic"][group].items():
            before = found["silence"][group][name]
            pairs = [f"{own[key]:.3f} / {before[key]:.3f}" for key in ("accuracy", "f1", "completion_rate")]
            lines.append(f"| {name} | {own['sentences']} | {' | '.join(pairs)} | {own['added_latency_ms']:+.0f} |")
    return "\n".join(lines)


def _costs(found: dict[str, Any]) -> str:
    lines = [
        "| policy | delay to dispatch, ms: mean, p50, p90 | to known words | added p50, ms "
        "| segment length, s: mean, p50, p90 | forced share | questions per segment "
        "| recogniser, ms: mean, p90 | scorer, ms: mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for policy, name in POLICIES.items():
        row = found[policy]
        length = row["length_ms"]
        delays = " | ".join(
            ", ".join(f"{row[kind][key]:.0f}" for key in ("mean", "p50", "p90"))
            for kind in ("dispatch_delay_ms", "words_delay_ms")
        )
        lengths = ", ".join(f"{length[key] / 1000:.1f}" for key in ("mean", "p50", "p90"))
        asked = ["", "", ""]
        if "questions_per_segment" in row:
            asked = [
                f"{row['questions_per_segment']:.2f}",
                f"{row['recogniser_ms']['mean']:.0f}, {row['recogniser_ms']['p90']:.0f}",
                f"{row['scorer_ms']['mean']:.1f}",
            ]
        lines.append(
            f"| {name} | {delays} | {row['added_latency_p50_ms']:+.0f} | {lengths} | {row['forced_share']:.3f} "
            f"| {' | '.join(asked)} |"
        )
    return "\n".join(lines)


def _scorer(found: dict[str, Any]) -> str:
    lines = [
        f"AUC {found['auc']:.3f}, Brier score {found['brier']:.3f}, base rate {found['base_rate']:.3f} "
        f"over {found['pauses']} pauses.",
        "",
        "| threshold | precision | recall | accuracy |",
        "|---|---|---|---|",
    ]
    for threshold, row in found["at"].items():
        cells = ["-" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall", "accuracy")]
        lines.append(f"| {threshold} | {' | '.join(cells)} |")
    return "\n".join(lines)
