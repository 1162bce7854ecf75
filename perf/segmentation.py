"""Segmentation against known truth, policy by policy: `python -m polylip.perf.segmentation --out out/bench`.

Texts are spoken by voices with drawn pauses (`segmentation_streams`), cut by the client's own segmenter with the lite
profile's recogniser (`segmentation_runs`), and compared with the truth (`segmentation_metrics`). Writes
`segmentation.json` and prints its tables. Texts and voices of part `test` served neither training nor choosing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polylip.client.closing import Policy
from polylip.client.errors import PolylipError
from polylip.client.vad import VadChoice, silero_installed
from polylip.perf.machine import machine
from polylip.perf.segmentation_metrics import Run, metrics
from polylip.perf.segmentation_report import TARGETS, confusions, examples, markdown
from polylip.perf.segmentation_runs import run
from polylip.perf.segmentation_streams import NOISE_DB, Script, scripts, speak
from polylip.perf.segmentation_texts import DEV, SAMPLED, TEST, Turn, sampled_turns, written_turns
from polylip.perf.segmentation_voices import Espeak, Flite, Voice
from polylip.serving.errors import EngineError, MissingError

VOICES = {DEV: ("rms",), TEST: ("slt", "awb", "kal16")}  # of flite
SPANISH_VOICES = ("es", "es-419")  # of espeak-ng
WRITTEN = "everyday"
SEED = 20_26
PROCESSES = 2
BOTH = (Policy.SEMANTIC, Policy.SILENCE)
ALL = (Policy.SEMANTIC, Policy.PAPER, Policy.SILENCE)  # the paper's policy asks for so much sound that it gets a share
HEADLINES = ("accuracy", "precision", "recall", "f1", "completion_rate", "added_latency_ms")
QUICK_TURNS = 1  # of the written text, with the first voice


@dataclass(frozen=True)
class Job:
    """One stream to be spoken and cut by every policy."""

    language: str
    text: str
    voice: str
    script: Script
    seed: int
    noise_db: float
    vad: VadChoice
    policies: tuple[Policy, ...] = BOTH


@dataclass(frozen=True)
class Outcome:
    """A job and its run under each of its policies."""

    job: Job
    runs: dict[Policy, Run]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.perf.segmentation",
        description="Measure how well segments fit sentences, and what that costs.",
        epilog="example: python -m polylip.perf.segmentation --out out/bench --quick",
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--data", type=Path, help="folder with en_dialogue_dev.txt.gz and en_web_dev.txt.gz")
    parser.add_argument("--quick", action="store_true", help="a few sentences and one voice")
    parser.add_argument("--part", choices=(TEST, DEV), default=TEST, help="dev: what thresholds may be chosen on")
    parser.add_argument("--vad", type=VadChoice, choices=list(VadChoice), default=VadChoice.AUTO)
    parser.add_argument("--noise-db", type=float, default=NOISE_DB, help="RMS of the noise re full scale")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a stream each for the processes
    try:
        todo = jobs(options.part, options.data, options.quick, options.seed, options.noise_db, options.vad)
        result = evaluate(todo, options.processes)
    except (PolylipError, MissingError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result |= {"part": options.part, "seed": options.seed, "noise_db": options.noise_db}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("segmentation.json" if options.part == TEST else "segmentation_dev.json")
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{markdown(result)}\n\n{examples(result)}\n\n{path}")
    return 0


def jobs(
    part: str = TEST,
    data: Path | None = None,
    quick: bool = False,
    seed: int = SEED,
    noise_db: float = NOISE_DB,
    vad: VadChoice = VadChoice.AUTO,
) -> list[Job]:
    """Every stream. Written English is spoken by all voices but one, in turn; the paper's policy cuts one of those."""
    voices = VOICES[part][:1] if quick else VOICES[part]

    def planned(language: str, text: str, turns: Sequence[Turn], voice: str) -> list[Job]:
        own = zlib.crc32(f"{seed} {language} {text} {voice}".encode())
        every = enumerate(scripts(turns, language, own))
        return [Job(language, text, voice, script, own + number, noise_db, vad) for number, script in every]

    def in_turn(found: Sequence[list[Job]], skipped: int) -> list[Job]:
        """Of each stream all voices' jobs, but for so many, each time other ones."""
        kept = len(found) - skipped
        return [found[(n + i) % len(found)][n] for n in range(len(found[0])) for i in range(kept)]

    written = written_turns("en", part)[: QUICK_TURNS if quick else None]
    spoken = [planned("en", WRITTEN, written, voice) for voice in voices]
    found = in_turn(spoken, skipped=0 if len(voices) == 1 else 1)
    compared = in_turn(spoken, skipped=len(voices) - 1)
    found = [replace(job, policies=ALL) if job in compared else job for job in found]
    if quick or part == DEV:
        return found
    for kind in SAMPLED if data else ():
        turns = sampled_turns(data or Path(), kind)
        found += in_turn([planned("en", kind, turns, voice) for voice in voices], skipped=len(voices) - 1)
    for voice in SPANISH_VOICES:
        spanish = planned("es", WRITTEN, written_turns("es", part), voice)
        found += [replace(job, policies=ALL) for job in spanish]
    return found


def evaluate(todo: Sequence[Job], processes: int = PROCESSES) -> dict[str, Any]:
    """The figures of all jobs."""
    outcomes: list[Outcome] = []
    with multiprocessing.get_context("spawn").Pool(min(processes, len(todo))) as pool:
        for outcome in pool.imap_unordered(perform, todo):
            outcomes.append(outcome)
            job = outcome.job
            print(f"{len(outcomes)} of {len(todo)}: {job.language} {job.text} {job.voice}", file=sys.stderr)
    outcomes.sort(key=lambda outcome: [job.seed for job in todo].index(outcome.job.seed))
    return summary(outcomes)


def perform(job: Job) -> Outcome:
    """Speak a stream and cut it by every policy."""
    stream = speak(job.script, _voice(job), job.seed, job.noise_db)
    return Outcome(job, {policy: run(stream, policy, job.language, job.vad) for policy in job.policies})


def _voice(job: Job) -> Voice:
    if job.language != "en":
        return Espeak(job.voice)
    return Flite(job.voice, [token for sentence in job.script.sentences for token in sentence])


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Per language and policy the figures of the written text, and those of every text and voice."""
    languages = {}
    for language in dict.fromkeys(outcome.job.language for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.job.language == language]
        written = [outcome for outcome in own if outcome.job.text == WRITTEN]
        languages[language] = {
            policy.value: {
                **_metrics(written, policy),
                "texts": _grouped(own, "text", policy),
                "voices": _grouped(written, "voice", policy),
            }
            for policy in ALL
        }
    english = [outcome for outcome in outcomes if (outcome.job.language, outcome.job.text) == ("en", WRITTEN)]
    voices = list(dict.fromkeys(outcome.job.voice for outcome in english))
    energy = outcomes[0].job.vad is VadChoice.ENERGY or not silero_installed()
    return {
        "machine": machine(),
        "versions": {name: version(name) for name in ("polylip", "pocketsphinx", "numpy")},
        "recogniser": "pocketsphinx",
        "vad": "energy" if energy else "silero",
        "targets": TARGETS,
        "voices": {"en": voices, "es": list(SPANISH_VOICES)},
        "simulated": {"es": "the recogniser: it is told the words with their marks"},
        **headlines(languages),
        "languages": languages,
        "confusions": confusions([outcome.runs[Policy.SEMANTIC] for outcome in english]),
    }


def headlines(languages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """By policy and language the figures that others are compared with."""
    return {
        policy.value: {
            language: {name: figures[policy.value][name] for name in HEADLINES}
            for language, figures in languages.items()
        }
        for policy in ALL
    }


def _metrics(outcomes: Iterable[Outcome], policy: Policy) -> dict[str, Any]:
    some = [outcome for outcome in outcomes if policy in outcome.runs]
    return metrics([outcome.runs[policy] for outcome in some], [outcome.runs[Policy.SILENCE] for outcome in some])


def _grouped(outcomes: Sequence[Outcome], by: str, policy: Policy) -> dict[str, Any]:
    """The figures by text or by voice, of those that have runs."""
    own = [outcome for outcome in outcomes if policy in outcome.runs]
    names = dict.fromkeys(getattr(outcome.job, by) for outcome in own)
    return {name: _metrics([o for o in own if getattr(o.job, by) == name], policy) for name in sorted(names)}


if __name__ == "__main__":
    sys.exit(main())
