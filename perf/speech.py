"""The speech line's engines in-process and through Triton: `python -m polylip.perf.speech [--size full] [--out DIR]`.

Profile `lite` with its own engines, then profile `cpu` with generated weights. The two ways take turns call by call,
so that a busy moment hits both, with the same threads. Triton may cost ALLOWED_SHARE of its time or ALLOWED_MS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from polylip.client.triton import TritonClient
from polylip.perf.demo_clip import SENTENCES
from polylip.perf.machine import machine
from polylip.perf.speech_triton import engine_parameters, load_model, send
from polylip.perf.speech_worker import Job, Timing, Worker, peak_mib
from polylip.perf.spoken import read_aloud
from polylip.perf.steadiness import server_processes
from polylip.serving.launcher import Server, ServerOptions, running_server
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.runtime import find_model_repository, find_runtime, server_environment
from polylip.serving.weights import WEIGHTS_VARIABLE

ROUNDS = 8
BUDGET_S = 30.0  # of one job's turns; at least one is taken
ALLOWED_SHARE, ALLOWED_MS = 0.05, 10.0  # of Triton's own time; the larger one counts
STEPS = ("transcribe", "translate", "synthesize")
BATCHES = (1, 8, 32)  # of the translator that can do more than one at once
LOAD_S = 600.0  # full-size weights on a busy machine
# The threads that the server gives its engines; in-process they get the same.
SAME_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE")
LONG, SHORT = "Nos vamos mañana a las siete.", "Nos vamos."  # what voices say, the latter on slow machines


def main() -> None:
    """Run the benchmark, print its tables, write `speech.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help="of the generated weights")
    parser.add_argument("--weights", type=Path, help="generated weights of that size, made there if there are none")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = arguments.weights or Path(folder)
        rows = measure("lite", arguments.rounds, arguments.out)
        with _weights(weights, arguments.size):
            rows += measure("cpu", arguments.rounds, arguments.out, f"generated, {arguments.size}")
    result = {
        "machine": machine(),
        "threads": server_environment(find_runtime())["OMP_NUM_THREADS"],
        "allowed": {"share": ALLOWED_SHARE, "ms": ALLOWED_MS},
        "rows": rows,
    }
    path = arguments.out / "speech.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{markdown(result)}\n\n{path}")


@contextmanager
def _weights(folder: Path, size: str) -> Iterator[None]:
    """Generated weights for the server and the workers."""
    if not (folder / "xtts-v2").is_dir():
        from polylip.perf.speech_weights import make_speech_weights  # noqa: PLC0415  needs the extra `export`

        print(f"making {size} weights", file=sys.stderr)
        make_speech_weights(folder, "full" if size == "full" else "tiny")
    before = os.environ.get(WEIGHTS_VARIABLE)
    os.environ[WEIGHTS_VARIABLE] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[WEIGHTS_VARIABLE]
        else:
            os.environ[WEIGHTS_VARIABLE] = before


def measure(
    profile: str, rounds: int, out: Path, weights: str = "its own", steps: tuple[str, ...] = STEPS
) -> list[dict[str, Any]]:
    """A row per job of a profile; with all steps, one of the whole line too."""
    repository = find_model_repository()
    served = server_environment(find_runtime())
    os.environ.update({name: served[name] for name in SAME_THREADS})
    parameters = {model: engine_parameters(repository, profile, model) for model in steps}
    options = ServerOptions(profile, models=steps, log_path=out / f"speech_{profile}.log", start_timeout_s=LOAD_S)
    with ExitStack() as stack:
        workers = {model: Worker(model, parameters[model], repository / model / "1") for model in steps}
        for worker in workers.values():
            stack.enter_context(worker)
        server = stack.enter_context(running_server(options))
        engines = {model: found["engine"] for model, found in parameters.items()}
        rows = asyncio.run(_measure(server, workers, jobs(profile, steps), rounds))
    label = {"profile": profile, "weights": weights}
    return [{**label, "engine": engines.get(row["model"], "all three"), **row} for row in rows]


def jobs(profile: str, steps: tuple[str, ...]) -> list[Job]:
    """What is asked of a profile's steps and, where all are there, of the whole line."""
    speech = np.concatenate([read_aloud(sentence) for sentence in SENTENCES[:2]])
    batches = (1,) if profile == "lite" else BATCHES
    english = "We are leaving tomorrow at seven."
    every = [
        Job("transcribe", audio=speech),
        *(Job("translate", text=english, batch=batch) for batch in batches),
        Job("synthesize", text=LONG if profile == "lite" else SHORT),
        Job("speech", audio=speech),
    ]
    wanted = {*steps, *(["speech"] if set(steps) == set(STEPS) else [])}
    return [job for job in every if job.model in wanted]


async def _measure(server: Server, workers: dict[str, Worker], todo: list[Job], rounds: int) -> list[dict[str, Any]]:
    rows = []
    if any(job.model == "speech" for job in todo):
        load_model(server.url, "speech")
    async with TritonClient(server.url) as client, client.stream() as plain, client.stream() as decoupled:

        async def triton(job: Job) -> Timing:
            return await send(plain, decoupled, job)

        async def own(job: Job) -> Timing:
            return await asyncio.to_thread(_in_process, workers, job)

        for job in todo:
            print(f"{job.model}, batch {job.batch}", file=sys.stderr)
            pairs = await _turns(own, triton, job, rounds)
            used = [job.model] if job.model in workers else list(workers)
            stubs = server_processes(server)  # now: loading `speech` may have started its steps anew
            memory = {
                "in_process_peak_mib": round(sum(workers[model].peak_mib for model in used)),
                "triton_peak_mib": round(sum(peak_mib(stubs[model].pid) for model in used)),
            }
            rows.append({**figures(job, pairs), **memory})
    return rows


async def _turns(own: Any, triton: Any, job: Job, rounds: int) -> list[tuple[Timing, Timing]]:
    """In-process and Triton in turns, now this one first and now that, until the rounds or the time are used up."""
    if job.model in STEPS:  # to warm up; the line comes last and finds all of it warm
        await own(job), await triton(job)
    pairs: list[tuple[Timing, Timing]] = []
    ends_at = time.monotonic() + BUDGET_S
    while len(pairs) < rounds and (not pairs or time.monotonic() < ends_at):
        if len(pairs) % 2:
            served = await triton(job)
            pairs.append((await own(job), served))
        else:
            pairs.append((await own(job), await triton(job)))
    return pairs


def _in_process(workers: dict[str, Worker], job: Job) -> Timing:
    """One step, or all three one after another."""
    if job.model != "speech":
        return workers[job.model].run(job)
    heard = workers["transcribe"].run(replace(job, model="transcribe"))
    said = workers["translate"].run(replace(job, model="translate", audio=None, text=heard.text))
    voice = workers["synthesize"].run(replace(job, model="synthesize", audio=None, text=said.text))
    before = heard.seconds + said.seconds
    return Timing(before + voice.seconds, before + voice.first_s, voice.spoken_s, said.text)


def figures(job: Job, pairs: list[tuple[Timing, Timing]]) -> dict[str, Any]:
    """A row of the result; what Triton costs is the median of the pairs' differences."""
    served_ms = statistics.median(served.seconds for _, served in pairs) * 1000
    extra_ms = statistics.median(served.seconds - own.seconds for own, served in pairs) * 1000
    first_ms = statistics.median(served.first_s - own.first_s for own, served in pairs) * 1000
    allowed_ms = max(ALLOWED_MS, ALLOWED_SHARE * served_ms)
    return {
        "model": job.model,
        "batch": job.batch,
        "rounds": len(pairs),
        "heard_s": 0.0 if job.audio is None else round(len(job.audio) / SAMPLE_RATE_HZ, 2),
        "spoken_s": round(pairs[-1][0].spoken_s, 2),
        "words": len(pairs[-1][0].text.split()),
        "tokens": _pieces(pairs[-1][0].text) if job.model == "translate" else 0,
        "in_process": _side(job, [own for own, _ in pairs]),
        "triton": _side(job, [served for _, served in pairs]),
        "triton_costs_ms": round(extra_ms, 2),
        "triton_costs_first_ms": round(first_ms, 2),
        "triton_share": round(extra_ms / served_ms, 4),
        "allowed_ms": round(allowed_ms, 2),
        "met": extra_ms <= allowed_ms,
    }


def _side(job: Job, timings: list[Timing]) -> dict[str, float]:
    """Latencies in ms; the real-time factor is time over the sound that was made or, where none was, heard."""
    times, firsts = [t.seconds for t in timings], [t.first_s for t in timings]
    median = statistics.median(times)
    found = {
        "p50_ms": median * 1000,
        "p95_ms": float(np.percentile(times, 95)) * 1000,
    }
    if job.model == "translate":
        text = timings[-1].text
        found["words_per_s"] = job.batch * len(text.split()) / median
        found["tokens_per_s"] = job.batch * _pieces(text) / median
    elif job.model == "transcribe":
        found["real_time_factor"] = median * SAMPLE_RATE_HZ / (1 if job.audio is None else len(job.audio))
        found["words_per_s"] = len(timings[-1].text.split()) / median
    else:
        found["real_time_factor"] = median / timings[-1].spoken_s
        found["first_p50_ms"] = statistics.median(firsts) * 1000
        found["first_p95_ms"] = float(np.percentile(firsts, 95)) * 1000
    return {name: round(value, 3) for name, value in found.items()}


def _pieces(text: str) -> int:
    """Target tokens of a translation with the end, 0 where no SentencePiece model is at hand."""
    model = Path(os.environ.get(WEIGHTS_VARIABLE, ""), "opus-mt-en-es-ct2", "target.spm")
    return len(_processor(model).encode(text)) + 1 if model.is_file() else 0


@cache
def _processor(model: Path) -> Any:
    import sentencepiece  # noqa: PLC0415  only with real translators

    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def markdown(result: dict[str, Any]) -> str:
    """The result as the documentation shows it, a table per profile."""
    return "\n\n".join(_table(result, profile) for profile in dict.fromkeys(row["profile"] for row in result["rows"]))


def _table(result: dict[str, Any], profile: str) -> str:
    rows = [row for row in result["rows"] if row["profile"] == profile]
    here = result["machine"]
    lines = [
        f"Profile `{profile}` ({rows[0]['weights']} weights), {here['cores']} cores ({here['cpu']}), "
        f"OMP_NUM_THREADS={result['threads']}; median (95 %) of calls that take turns. Triton may cost "
        f"{result['allowed']['share']:.0%} of its time or {result['allowed']['ms']:g} ms. A batch is sent as that many "
        "requests at once, of which Triton passes on what has come when the engine is free.",
        "",
        "| model, batch | engine | in-process, ms | Triton, ms | real-time factor or rate | first sound, ms "
        "| Triton costs, ms (allowed) | peak MiB in-process, Triton |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    own, served = row["in_process"], row["triton"]
    first = "" if "first_p50_ms" not in own else f"{own['first_p50_ms']:.0f}, {served['first_p50_ms']:.0f}"
    return (
        f"| `{row['model']}`, {row['batch']} | {row['engine']} | {own['p50_ms']:.1f} ({own['p95_ms']:.1f}) "
        f"| {served['p50_ms']:.1f} ({served['p95_ms']:.1f}) | {_rate(row)} | {first} "
        f"| {row['triton_costs_ms']:+.1f} ({row['allowed_ms']:.1f}){'' if row['met'] else ' **missed**'} "
        f"| {row['in_process_peak_mib']}, {row['triton_peak_mib']} |"
    )


def _rate(row: dict[str, Any]) -> str:
    """Through Triton."""
    served = row["triton"]
    if "real_time_factor" in served:
        return f"{served['real_time_factor']:.2f}"
    if row["tokens"]:
        return f"{served['tokens_per_s']:.0f} tokens/s"
    return f"{served['words_per_s']:.0f} words/s"


if __name__ == "__main__":
    main()
