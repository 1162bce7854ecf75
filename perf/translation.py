"""How well talks are translated, cut by silence and cut by meaning: `python -m polylip.perf.translation [--quick]`.

Talks with hesitations go through a real server under both policies; what comes out is joined per talk and compared with
Spanish references (BLEU, chrF++, and COMET where its weights are given). See docs/quality.md.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from polylip.client.closing import Policy
from polylip.client.triton import TritonClient
from polylip.perf import experiment
from polylip.perf.experiment import Result, Setup
from polylip.perf.segmentation_streams import Stream
from polylip.perf.translation_runs import Heard, hear, translated, without_marks
from polylip.perf.translation_scores import (
    COMET_PACKAGE,
    RESAMPLES,
    check_comet,
    comet_scores,
    scored,
    talk_scores,
    word_errors,
)
from polylip.perf.translation_texts import Talk, spoken, talks
from polylip.serving.launcher import running_server

NAME, TITLE = "translation", "Translation quality: segments cut by silence against segments cut by meaning"
QUICK_TALKS, QUICK_SENTENCES = 2, 3
MODELS = ("transcribe", "translate")
POLICIES = (Policy.SILENCE, Policy.SEMANTIC)
LABELS = {
    "silence": "silence only",
    "semantic": "semantic",
    "silence_true": "silence only, true words",
    "semantic_true": "semantic, true words",
    "unmarked": "true sentences without marks",
    "sentences": "true sentences as written (ceiling)",
}
GROUPS = (("silence", "semantic"), ("silence_true", "semantic_true"), ("unmarked", "sentences"))  # tested in pairs
NOT_RUN = "not run: weights absent"


@dataclass(frozen=True)
class Outcome:
    """A talk under every policy, and its true sentences translated without and with their marks."""

    talk: Talk
    stream: Stream
    heard: dict[Policy, Heard]
    unmarked: str
    sentences: str

    @property
    def targets(self) -> dict[str, str]:
        """The talk in Spanish, by system."""
        return {
            **{policy.value: heard.target_text for policy, heard in self.heard.items()},
            **{f"{policy.value}_true": heard.true_target for policy, heard in self.heard.items()},
            "unmarked": self.unmarked,
            "sentences": self.sentences,
        }

    @property
    def source(self) -> str:
        return " ".join(self.talk.source)

    @property
    def reference(self) -> str:
        return " ".join(self.talk.reference)


def run(setup: Setup, comet: Path | None = None, most: int | None = None) -> Result:
    """The whole experiment, or its first `most` talks, on a server of its own.

    Raises InputError where `comet` cannot be used.
    """
    check_comet(comet)
    chosen = [talk.first(QUICK_SENTENCES) for talk in talks()[:QUICK_TALKS]] if setup.quick else talks()[:most]
    with running_server(replace(setup.server, models=MODELS)) as server:
        outcomes = asyncio.run(_outcomes(server.url, chosen, setup.seed))
    # Nothing is timed, and the same seed gives the same figures: there is nothing to repeat.
    head = experiment.head(NAME, TITLE, replace(setup, repetitions=1, warm_up=0))
    return {**head, "data": evaluate(outcomes, setup.seed, comet)}


async def _outcomes(url: str, chosen: Sequence[Talk], seed: int) -> list[Outcome]:
    """One request after the other: what pocketsphinx hears depends a little on what it heard before."""
    outcomes = []
    async with TritonClient(url) as client:
        for talk in chosen:
            stream = await asyncio.to_thread(spoken, talk, seed)
            heard = {policy: await hear(client, stream, policy) for policy in POLICIES}
            unmarked = await translated(client, [without_marks(sentence.split()) for sentence in talk.source])
            outcomes.append(Outcome(talk, stream, heard, unmarked, await translated(client, talk.source)))
    return outcomes


def evaluate(outcomes: Sequence[Outcome], seed: int, comet: Path | None = None) -> dict[str, Any]:
    """All figures, with the texts that they are of."""
    references = [outcome.reference for outcome in outcomes]
    systems = {name: [outcome.targets[name] for outcome in outcomes] for name in LABELS}
    metrics = _scored(systems, references, seed)
    metrics["comet"] = {"status": NOT_RUN, "package": COMET_PACKAGE}
    if comet is not None:
        found = comet_scores(comet, [outcome.source for outcome in outcomes], systems, references)
        metrics["comet"] = {"status": comet.name, "package": COMET_PACKAGE, "systems": found}
    return {
        "pair": "en-es",
        "compared": "per talk: a talk's segments joined against its reference sentences joined",
        "resamples": RESAMPLES,
        "sentences": sum(len(outcome.talk.source) for outcome in outcomes),
        "hesitations": sum(pause.kind in ("clause", "phrase") for o in outcomes for pause in o.stream.pauses),
        "systems": {name: _system(name, outcomes, metrics) for name in LABELS},
        "metrics": metrics,
        "talks": [_talk(outcome) for outcome in outcomes],
    }


def _scored(systems: Mapping[str, list[str]], references: Sequence[str], seed: int) -> dict[str, Any]:
    """Each group by itself: its second system is tested against its first."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        for metric, scores in scored({name: systems[name] for name in group}, references, seed).items():
            known = found.setdefault(metric, {"signature": scores["signature"], "systems": {}})
            known["systems"] |= scores["systems"]
    return found


def _system(name: str, outcomes: Sequence[Outcome], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    scores = {metric: metrics[metric]["systems"][name] for metric in ("bleu", "chrf")}
    comet = metrics["comet"].get("systems", {}).get(name)
    scores["comet"] = None if comet is None else {"score": sum(comet) / len(comet), "talks": comet}
    if name not in [policy.value for policy in POLICIES]:
        return {"label": LABELS[name], **scores}
    heard = [outcome.heard[Policy(name)] for outcome in outcomes]
    errors = [word_errors(own.source_text, outcome.source) for own, outcome in zip(heard, outcomes, strict=True)]
    return {
        "label": LABELS[name],
        "segments": sum(len(own.passages) for own in heard),
        "sentence_ends_met": sum(passage.within is None for own in heard for passage in own.passages),
        "cuts_within_sentences": sum(len(own.cuts_within) for own in heard),
        "sentences_cut": sum(len(set(own.cuts_within)) for own in heard),
        "word_errors": sum(errors),
        "words": sum(len(outcome.source.split()) for outcome in outcomes),
        "word_error_rate": sum(errors) / sum(len(outcome.source.split()) for outcome in outcomes),
        "questions": sum(own.questions for own in heard),
        "unanswered": sum(own.unanswered for own in heard),
        **scores,
    }


def _talk(outcome: Outcome) -> dict[str, Any]:
    """The raw texts of a talk, its scores and its segments."""
    return {
        "talk": outcome.talk.name,
        "seconds": round(outcome.stream.words[-1].end_ms / 1000, 2),
        "source": outcome.source,
        "reference": outcome.reference,
        "targets": outcome.targets,
        "scores": {name: talk_scores(text, outcome.reference) for name, text in outcome.targets.items()},
        "segments": {
            policy.value: [asdict(passage) for passage in heard.passages] for policy, heard in outcome.heard.items()
        },
    }


def markdown(result: Result) -> str:
    """One row per system, and what the columns are."""
    data = result["data"]
    lines = [
        "| translated | segments | cut within a sentence | sentence ends met | word errors | BLEU | chrF++ | COMET |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row, data) for row in data["systems"].values()]
    lines += [
        "",
        f"{len(data['talks'])} talks, {data['sentences']} sentences, {data['hesitations']} hesitations; compared "
        f"{data['compared']}. ± is half the 95 % interval of {data['resamples']} resamples of the talks, p the paired "
        "bootstrap test against the row above.",
        "",
        f"BLEU `{data['metrics']['bleu']['signature']}`, chrF++ `{data['metrics']['chrf']['signature']}`, "
        f"COMET: {data['metrics']['comet']['status']}.",
    ]
    return "\n".join(lines)


def _line(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    cut = ["-"] * 4
    if "segments" in row:
        within, met = row["cuts_within_sentences"] / row["segments"], row["sentence_ends_met"] / data["sentences"]
        cut = [str(row["segments"]), f"{within:.0%}", f"{met:.0%}", f"{row['word_error_rate']:.1%}"]
    comet = data["metrics"]["comet"]["status"] if row["comet"] is None else f"{row['comet']['score']:.3f}"
    return f"| {' | '.join([row['label'], *cut, _score(row['bleu']), _score(row['chrf']), comet])} |"


def _score(score: Mapping[str, Any]) -> str:
    p = "" if score["p_value"] is None else f", p {score['p_value']:.3f}"
    return f"{score['score']:.1f} ± {score['ci']:.1f}{p}"


def main() -> int:
    """Run it, write `translation_<profile>.json`, print its table."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--comet", type=Path, metavar="FILE", help="model.ckpt of a downloaded COMET model")
    parser.add_argument("--talks", type=experiment.at_least(1), metavar="N", help="only the first N, default all")
    arguments = parser.parse_args()
    work = partial(run, comet=arguments.comet, most=arguments.talks)

    def checked() -> None:
        check_comet(arguments.comet)  # before a repository is made
        experiment.complete(arguments, work, markdown)

    return experiment.exit_status(checked)


if __name__ == "__main__":
    sys.exit(main())
