"""End-to-end latency by clip length, sequential against pipelined: `python -m polylip.perf.latency [--paced]`.

As in the published experiment the clip is at hand at 0 s and the server is warm; both leave a closed video. Beside the
figures it tells where the time goes in the longest clip. With --paced clips arrive in real time, too, and what counts
is the time after their last frame. See docs/baseline.md.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from polylip.client.media_in import probe_media
from polylip.perf import experiment
from polylip.perf.baseline import Baseline
from polylip.perf.baseline_paced import paced_baseline, paced_pipeline
from polylip.perf.baseline_runs import BASELINE, NAMES, PIPELINE, SILENCE, Timed, contenders, make_clip
from polylip.perf.experiment import Result, Setup
from polylip.serving.launcher import running_server

Measured = TypeVar("Measured")  # of one run

TITLE = "End-to-end latency by clip length"
LENGTHS_S = (1.0, 3.0, 5.0, 8.0)  # the published ones
QUICK_LENGTHS_S = (1.0, 3.0)
PACED_LENGTHS_S, QUICK_PACED_LENGTHS_S = (5.0, 8.0), (3.0,)
NEARLY = 0.02  # a factor this near 1 is none
PUBLISHED = {1.0: (4.8, 2.1), 3.0: (10.1, 4.9), 5.0: (15.7, 6.2), 8.0: (24.3, 7.9)}  # s: sequential, pipelined
# What is compared: the baseline's steps, the pipeline's stages. The pipeline decodes and cuts within its other stages.
GROUPS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("decode, segment", ("decode", "segment"), ()),
    (
        "recognise, translate, speak",
        ("transcribe", "translate", "synthesize", "place"),
        ("recognise", "translate_speak", "speak"),
    ),
    ("find faces", ("look", "detect", "track"), ("faces",)),
    ("mel, lips", ("mel", "lips"), ("lips",)),
    ("cut, blend", ("cut", "blend"), ("blend",)),
    ("mix, encode", ("mix", "encode"), ("encode",)),
)


def run(setup: Setup, *, paced: bool = False, silence: bool = False) -> Result:
    """All lengths in turn, and at each of them all contenders in turn; then, `paced`, as the clips arrive."""
    result = experiment.head("latency", TITLE, setup)
    names = (BASELINE, PIPELINE, *([SILENCE] if silence else []))
    with tempfile.TemporaryDirectory() as name, running_server(setup.server) as server:
        folder = Path(name)
        lengths = QUICK_LENGTHS_S if setup.quick else LENGTHS_S
        clips = {seconds: make_clip(folder / f"talk_{seconds:g}s.mp4", seconds) for seconds in lengths}
        baseline = Baseline(setup.profile, setup.repository)
        every = contenders(baseline, server.url, folder)
        runs = measure({name: every[name] for name in names}, clips, setup.warm_up, setup.repetitions)
        data = summary(runs, clips)
        if paced:
            arriving: dict[str, Callable[[Path], float]] = {
                BASELINE: lambda clip: paced_baseline(baseline, clip, folder),
                PIPELINE: lambda clip: paced_pipeline(server.url, clip, folder),
            }
            kept = QUICK_PACED_LENGTHS_S if setup.quick else PACED_LENGTHS_S
            late = measure(arriving, {s: clips[s] for s in kept}, setup.warm_up, setup.repetitions)
            data["paced"] = paced_rows(late)
        return {**result, "data": data}


def measure(
    contestants: dict[str, Callable[[Path], Measured]], clips: dict[float, Path], warm_up: int, repetitions: int
) -> dict[float, dict[str, list[Measured]]]:
    """Runs by length and name; who begins changes from round to round."""
    runs: dict[float, dict[str, list[Measured]]] = {seconds: {name: [] for name in contestants} for seconds in clips}
    for turn in range(warm_up + repetitions):
        names = list(contestants)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for seconds, clip in clips.items():
            for name in names:
                timed = contestants[name](clip)
                if turn >= warm_up:
                    runs[seconds][name].append(timed)
    return runs


def summary(runs: dict[float, dict[str, list[Timed]]], clips: dict[float, Path]) -> dict[str, Any]:
    """`data` of the result."""
    names = list(next(iter(runs.values())))
    rows = [_row(seconds, clips[seconds], by_name) for seconds, by_name in runs.items()]
    longest = max(runs)
    return {
        "names": {name: NAMES[name] for name in names},
        "clips": rows,
        "slopes": {name: _slope(rows, name) for name in names},
        "longest": {name: _parts(timed) for name, timed in runs[longest].items()},
        "spans": {name: list(_middle(timed).spans) for name, timed in runs[longest].items()},
        "published": {f"{seconds:g}": values for seconds, values in PUBLISHED.items()},
        "cores": os.cpu_count() or 1,
    }


def paced_rows(late_s: dict[float, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """By length: seconds from the last frame of a clip to its closed video."""
    rows = []
    for seconds, by_name in late_s.items():
        spreads = {name: experiment.spread(values) for name, values in by_name.items()}
        factor = spreads[BASELINE]["mean"] / spreads[PIPELINE]["mean"]
        rows.append({"seconds": seconds, "latency_s": spreads, "factor": factor})
    return rows


def _row(seconds: float, clip: Path, by_name: dict[str, list[Timed]]) -> dict[str, Any]:
    first = {name: timed[0] for name, timed in by_name.items()}
    latency = {name: experiment.spread([t.closed_s for t in timed]) for name, timed in by_name.items()}
    return {
        "seconds": seconds,
        "duration_s": probe_media(clip).duration_s or seconds,
        "frames": first[BASELINE].frames,
        "frames_lipsynced": {name: timed.frames_lipsynced for name, timed in first.items()},
        "dubbed_segments": {name: len(timed.texts) for name, timed in first.items()},
        "latency_s": latency,
        "first_frame_s": {name: experiment.spread([t.first_frame_s for t in timed]) for name, timed in by_name.items()},
        "returned_s": {name: experiment.spread([t.total_s for t in timed]) for name, timed in by_name.items()},
        "cpu_s": {name: experiment.spread([t.cpu_s for t in timed]) for name, timed in by_name.items()},
        "factor": {name: latency[BASELINE]["mean"] / latency[name]["mean"] for name in by_name if name != BASELINE},
    }


def _slope(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """Least squares over all runs: seconds of latency per second of clip, and what a clip costs whatever its length."""
    x = [row["seconds"] for row in rows for _ in row["latency_s"][name]["raw"]]
    y = [value for row in rows for value in row["latency_s"][name]["raw"]]
    slope, constant = np.polyfit(x, y, 1)
    return {"s_per_s": float(slope), "constant_s": float(constant)}


def _parts(timed: Sequence[Timed]) -> dict[str, Any]:
    """Means over the runs: each stage at work, what could not be done faster, and what lies between the two."""
    cores = os.cpu_count() or 1
    mean = _mean_of(timed)
    stages = {stage: statistics.mean(t.stages_s.get(stage, 0.0) for t in timed) for stage in timed[0].stages_s}
    closed_s, cpu_floor_s = mean(lambda t: t.closed_s), mean(lambda t: t.cpu_s) / cores
    groups = {name: sum(stages.get(stage, 0.0) for stage in {*own, *served}) for name, own, served in GROUPS}
    slowest = max(groups, key=lambda name: groups[name])
    floor_s = max(cpu_floor_s, groups[slowest])
    return {
        "stages_s": stages,
        "groups_s": groups,
        "closed_s": closed_s,
        "work_s": mean(lambda t: t.work_s),
        "busy_s": mean(lambda t: t.busy_s),
        "start_s": mean(lambda t: t.start_s),
        "last_stage_s": mean(lambda t: max(span["end_s"] for span in t.spans)),
        "cpu_s": mean(lambda t: t.cpu_s),
        "cpu_floor_s": cpu_floor_s,
        "slowest": slowest,
        "slowest_s": groups[slowest],
        "floor_s": floor_s,
        "synchronisation_s": closed_s - floor_s,
    }


def _mean_of(timed: Sequence[Timed]) -> Callable[[Callable[[Timed], float]], float]:
    return lambda of: statistics.mean(map(of, timed))


def _middle(timed: Sequence[Timed]) -> Timed:
    """The run with the median latency."""
    return sorted(timed, key=lambda t: t.closed_s)[len(timed) // 2]


def markdown(result: Result) -> str:
    """Latency by length, and the parts of the longest clip."""
    data = result["data"]
    tables = [_latency_table(data), _parts_table(data), *([_paced_table(data)] if "paced" in data else [])]
    return "\n\n".join([*tables, "\n".join(f"- {sentence}" for sentence in explanation(result))])


def short_table(result: Result) -> str:
    """Latency by length alone."""
    return _latency_table(result["data"])


def _latency_table(data: dict[str, Any]) -> str:
    names = data["names"]
    served = [name for name in names if name != BASELINE]
    heads = [f"{names[name]}, s to the closed video" for name in names]
    heads += [f"factor of the {names[name]}" for name in served]
    heads += ["first dubbed frame: baseline, pipeline", "command returns: baseline, pipeline"]
    lines = [f"| clip, frames with new lips | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    for row in data["clips"]:
        cells = [_cell(row["latency_s"][name]) for name in names]
        cells += [f"**{row['factor'][name]:.2f}**" for name in served]
        for figure in ("first_frame_s", "returned_s"):
            cells.append(", ".join(f"{row[figure][name]['mean']:.2f} s" for name in (BASELINE, PIPELINE)))
        clip = f"{row['seconds']:g} s, {row['frames_lipsynced'][PIPELINE]} of {row['frames']}"
        lines.append(f"| {clip} | {' | '.join(cells)} |")
    slopes = [f"{data['slopes'][name]['s_per_s']:.2f}" for name in names]
    return "\n".join([*lines, f"| s per s of clip | {' | '.join(slopes)} |{' |' * (len(heads) - len(slopes))}"])


def _cell(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.2f} ± {spread['sd']:.2f}"


def _parts_table(data: dict[str, Any]) -> str:
    names, parts = data["names"], data["longest"]
    heads = " | ".join(f"{names[name]}, s" for name in names)
    lines = [f"| at work in {data['clips'][-1]['seconds']:g} s | {heads} |", f"|---{'|---' * len(names)}|"]
    for group, _, _ in GROUPS:
        values = [parts[name]["groups_s"][group] for name in names]
        lines.append(f"| {group} | {' | '.join(f'{value:.2f}' if value else '-' for value in values)} |")
    for title, key in (
        ("all of them, one after the other", "work_s"),
        ("at least one of them at work", "busy_s"),
        ("CPU seconds of all processes", "cpu_s"),
        (f"CPU seconds on {data['cores']} cores", "cpu_floor_s"),
        ("to the closed file", "closed_s"),
    ):
        lines.append(f"| {title} | {' | '.join(f'{parts[name][key]:.2f}' for name in names)} |")
    return "\n".join(lines)


def _paced_table(data: dict[str, Any]) -> str:
    lines = [
        "| arriving in real time | baseline, s after its end | pipeline, s after its end | factor |",
        "|---|---|---|---|",
    ]
    for row in data["paced"]:
        cells = [_cell(row["latency_s"][name]) for name in (BASELINE, PIPELINE)]
        lines.append(f"| {row['seconds']:g} s | {' | '.join(cells)} | **{row['factor']:.2f}** |")
    return "\n".join(lines)


def explanation(result: Result) -> list[str]:
    """Where the time goes, in sentences made from the figures."""
    data = result["data"]
    seconds, cores = data["clips"][-1]["seconds"], data["cores"]
    own, served = data["longest"][BASELINE], data["longest"][PIPELINE]
    factor = data["clips"][-1]["factor"][PIPELINE]
    largest = max(own["groups_s"], key=lambda name: own["groups_s"][name])
    is_cpu = served["cpu_floor_s"] >= served["slowest_s"]
    what = f"the CPU time of all stages on {cores} cores" if is_cpu else f"its slowest stage ({served['slowest']})"
    behind_s = served["closed_s"] - served["last_stage_s"]
    saved_s = own["closed_s"] - served["closed_s"]
    lines = [
        f"{seconds:g} s of video take the baseline {own['closed_s']:.2f} s, the sum of its steps; the largest are "
        f"{largest} with {own['groups_s'][largest] / own['closed_s']:.0%}. It keeps {_share(own, cores):.0%} of the "
        f"{cores} cores at work.",
        f"The pipeline takes {served['closed_s']:.2f} s, {_compared(factor)}. Its stages together are "
        f"{served['work_s']:.2f} s of work, waits for each other included, of which at any time "
        f"{served['work_s'] / served['busy_s']:.1f} run side by side; it keeps {_share(served, cores):.0%} of the "
        "cores at work.",
        f"It could not end before {served['floor_s']:.2f} s: that is {what}. What lies above is "
        f"{served['synchronisation_s']:.2f} s ({served['synchronisation_s'] / served['closed_s']:.0%}): "
        f"{served['start_s']:.2f} s until its first stage begins (connecting, asking the server for the languages), "
        f"{behind_s:.2f} s behind its last stage (the sound's encoding, the file), the rest waits.",
        f"It uses {served['cpu_s'] / own['cpu_s']:.2f} times the baseline's CPU seconds. Had it used the same, and "
        f"were nothing ever to wait, {cores} cores would be {own['cpu_s'] / cores:.2f} s at work: a factor of "
        f"{own['closed_s'] * cores / own['cpu_s']:.2f} is all that overlap alone can give here; "
        f"{saved_s:+.2f} s were gained.",
    ]
    if SILENCE in data["longest"]:
        silence = data["longest"][SILENCE]
        lines.append(
            f"Cut by silence alone, as the baseline cuts, the pipeline takes {silence['closed_s']:.2f} s and "
            f"{silence['cpu_s']:.2f} CPU seconds: the difference to {served['closed_s']:.2f} s is what questions to "
            "the recogniser ahead of a segment's end do where the whole clip is at hand."
        )
    if "paced" in data:
        paced = data["paced"][-1]
        own_s, served_s = (paced["latency_s"][name]["mean"] for name in (BASELINE, PIPELINE))
        lines.append(
            f"Where {paced['seconds']:g} s arrive in real time the video is complete {own_s:.2f} s behind the last "
            f"frame with the baseline and {served_s:.2f} s with the pipeline, which has found faces and spoken by "
            f"then: a factor of {paced['factor']:.2f}."
        )
    published = data["published"].get(f"{seconds:g}")
    if published:
        lines.append(
            f"The published figures at this length are {published[0]} s and {published[1]} s, a factor of "
            f"{published[0] / published[1]:.1f}: on a GPU beside a CPU, where stages have processors of their own."
        )
    return lines


def _share(parts: dict[str, Any], cores: int) -> float:
    """Of the machine's cores, over the whole run."""
    return float(parts["cpu_s"] / parts["closed_s"] / cores)


def _compared(factor: float) -> str:
    if abs(factor - 1) < NEARLY:
        return "as long"
    return f"{factor:.2f} times as fast" if factor > 1 else f"slower by a factor of {1 / factor:.2f}"


def main() -> None:
    """Measure, print the tables, write the result."""
    options = experiment.parser(__doc__)
    options.add_argument("--paced", action="store_true", help="clips that arrive in real time, too")
    options.add_argument("--silence", action="store_true", help="the pipeline cut by silence alone, too")
    arguments = options.parse_args()
    experiment.complete(arguments, partial(run, paced=arguments.paced, silence=arguments.silence), markdown)


if __name__ == "__main__":
    main()
