"""The speech line's networks on a CUDA GPU: `python -m polylip.perf.speech_gpu [--out DIR]`.

Whisper small, Opus-MT and XTTS-v2 at full size with generated weights and outputs of fixed length (see
speech_weights.py), called in-process one after another as the models do it: mean, standard deviation, p50 and p95 of
RUNS after WARM_UPS. Written without a GPU at hand: only `--device cpu --size tiny` has been run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from polylip.perf.demo_clip import SENTENCES
from polylip.perf.machine import machine
from polylip.perf.speech_triton import engine_parameters
from polylip.perf.speech_worker import Job, Timing, load, run_job
from polylip.perf.spoken import read_aloud
from polylip.serving.cpu_torchaudio import require_torchaudio
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.runtime import find_model_repository
from polylip.serving.weights import WEIGHTS_VARIABLE

RUNS, WARM_UPS = 20, 3
BATCHES = (1, 8, 32)  # of the translator
TARGETS = {"first_audio_s": 0.6, "real_time_factor": 0.3}  # of the whole line on an H100
PROFILES = {"cuda": "gpu", "cpu": "cpu"}
STEPS = ("transcribe", "translate", "synthesize")
ENGLISH = "We are leaving tomorrow at seven."
SPANISH = "Nos vamos mañana a las siete."

Work = Callable[[], Timing]


def main() -> None:
    """Run the benchmark, print its tables, write `speech_gpu.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--device", choices=PROFILES, default="cuda", help="cpu: to try this program out")
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help="of the generated weights")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--weights", type=Path, help="generated weights of that size, made there if there are none")
    arguments = parser.parse_args()
    require_torchaudio()
    if arguments.device == "cuda":
        _require_gpu()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = arguments.weights or Path(folder)
        if not (weights / "xtts-v2").is_dir():
            from polylip.perf.speech_weights import make_speech_weights  # noqa: PLC0415  needs the extra `export`

            make_speech_weights(weights, arguments.size)
        os.environ[WEIGHTS_VARIABLE] = str(weights.absolute())
        result = measure(arguments.device, arguments.size, arguments.runs)
    path = arguments.out / "speech_gpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{markdown(result)}\n\n{path}")


def measure(device: str, size: str, runs: int) -> dict[str, Any]:
    """Every engine by itself, then the line: transcribe, translate, synthesize, one after another."""
    repository = find_model_repository()
    engines = {
        model: load(model, engine_parameters(repository, PROFILES[device], model), str(repository / model / "1"))
        for model in STEPS
    }
    speech = np.concatenate([read_aloud(sentence) for sentence in SENTENCES[:2]])
    heard = Job("transcribe", audio=speech)
    jobs = [
        heard,
        *(Job("translate", text=ENGLISH, batch=batch) for batch in BATCHES),
        Job("synthesize", text=SPANISH),
    ]
    rows = [_row(job, runs, lambda job=job: run_job(engines[job.model], job)) for job in jobs]  # type: ignore[misc]
    line = _row(replace(heard, model="speech"), runs, lambda: _line(engines, heard))
    return {
        "weights": f"generated, {size}",
        "device": _gpu_name() if device == "cuda" else machine()["cpu"],
        "runs": runs,
        "warm_ups": WARM_UPS,
        "versions": {name: version(name) for name in ("torch", "ctranslate2", "faster-whisper", "coqui-tts")},
        "targets": TARGETS,
        "rows": [*rows, line],
        "met": _met(line) if device == "cuda" else {},
    }


def _met(line: dict[str, Any]) -> dict[str, bool]:
    return {
        "first_audio_s": line["first_ms"]["p50"] <= TARGETS["first_audio_s"] * 1000,
        "real_time_factor": line["real_time_factor"] <= TARGETS["real_time_factor"],
    }


def _line(engines: dict[str, Any], job: Job) -> Timing:
    """One segment from its end to its last sound."""
    heard = run_job(engines["transcribe"], job)
    said = run_job(engines["translate"], Job("translate", text=heard.text))
    voice = run_job(engines["synthesize"], Job("synthesize", text=said.text))
    before = heard.seconds + said.seconds
    return Timing(before + voice.seconds, before + voice.first_s, voice.spoken_s, said.text)


def _row(job: Job, runs: int, work: Work) -> dict[str, Any]:
    """Each answer is in this process's memory when `run_job` has it, so the GPU has nothing left to do then."""
    for _ in range(WARM_UPS):
        work()
    timings = [work() for _ in range(runs)]
    last = timings[-1]
    heard_s = 0.0 if job.audio is None else len(job.audio) / SAMPLE_RATE_HZ
    median_s = statistics.median(timing.seconds for timing in timings)
    return {
        "model": job.model,
        "batch": job.batch,
        "heard_s": round(heard_s, 2),
        "spoken_s": round(last.spoken_s, 2),
        "words": len(last.text.split()),
        "ms": _spread([timing.seconds * 1000 for timing in timings]),
        "first_ms": _spread([timing.first_s * 1000 for timing in timings]),
        "real_time_factor": round(median_s / (last.spoken_s or heard_s or 1.0), 4),
        "words_per_s": round(job.batch * len(last.text.split()) / median_s, 1),
    }


def _spread(values: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(values, (50, 95))
    found = {"mean": statistics.mean(values), "sd": statistics.stdev(values), "p50": float(p50), "p95": float(p95)}
    return {name: round(value, 2) for name, value in found.items()}


def _require_gpu() -> None:
    import ctranslate2  # noqa: PLC0415  needs the extra `speech`
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available() or not ctranslate2.get_cuda_device_count():
        sys.exit("no CUDA GPU is at hand; run this on a machine with one and CUDA builds of torch and CTranslate2")


def _gpu_name() -> str:
    import torch  # noqa: PLC0415  needs the extra `speech`

    return str(torch.cuda.get_device_name())


def markdown(result: dict[str, Any]) -> str:
    """Per engine and for the line, then the targets."""
    lines = [
        f"{result['weights'].capitalize()} weights, {result['device']}; {result['runs']} runs after "
        f"{result['warm_ups']} warm-ups. The real-time factor is time over the sound made or, where none is, heard.",
        "",
        "| model, batch | mean ms | sd | p50 | p95 | first sound p50, p95, ms | real-time factor | words/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        ms, first = row["ms"], row["first_ms"]
        sound = f"{first['p50']:.0f}, {first['p95']:.0f}" if row["spoken_s"] else ""
        factor = f"{row['real_time_factor']:.3f}" if row["spoken_s"] or row["heard_s"] else ""
        lines.append(
            f"| `{row['model']}`, {row['batch']} | {ms['mean']:.1f} | {ms['sd']:.1f} | {ms['p50']:.1f} "
            f"| {ms['p95']:.1f} | {sound} | {factor} | {row['words_per_s']:.0f} |"
        )
    line, targets = result["rows"][-1], result["targets"]
    verdicts = {name: _verdict(result["met"].get(name)) for name in targets}
    lines += [
        "",
        f"First audio {line['first_ms']['p50'] / 1000:.2f} s after the end of a segment "
        f"(target on an H100: {targets['first_audio_s']} s, {verdicts['first_audio_s']}); real-time factor of the line "
        f"{line['real_time_factor']:.2f} (target on an H100: {targets['real_time_factor']}, "
        f"{verdicts['real_time_factor']}).",
    ]
    return "\n".join(lines)


def _verdict(met: bool | None) -> str:
    return "not measured on a GPU" if met is None else "met" if met else "missed"


if __name__ == "__main__":
    main()
