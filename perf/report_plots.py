"""The report's plots, each from one result; written as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polylip.perf.experiment import Result

SIZE_IN, DPI = (10.0, 4.2), 110
COLOURS = {"baseline": "#8a5a00", "pipeline": "#1a5fb4", "pipeline_silence": "#62a0ea"}
PUBLISHED_COLOUR = "#9a9996"
LABEL_PT = 8
MAX_BINS = 40  # of a histogram
mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})

Data = dict[str, Any]
Draw = Callable[[Figure, Data], None]


def draw(result: Result, out: Path) -> list[tuple[Path, str]]:
    """Every plot of an experiment: the PNG file, and what it shows."""
    drawn = []
    for stem, title, function in PLOTS.get(result["experiment"], ()):
        figure = Figure(SIZE_IN, DPI, layout="constrained")
        function(figure, result["data"])
        figure.suptitle(f"{title} ({_weights(result)})", fontsize=11)
        path = out / f"{stem}_{result['profile']}.png"
        figure.savefig(path)
        drawn.append((path, title))
    return drawn


def _weights(result: Result) -> str:
    """The shortest words that keep a reader from taking the plot for one of trained networks."""
    return f"profile {result['profile']}, " + ("stand-ins" if result["profile"] == "lite" else "generated weights")


def _axes(figure: Figure, across: str, up: str) -> Axes:
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y", alpha=0.3)
    return axes


def _latency(figure: Figure, data: Data) -> None:
    axes = _axes(figure, "clip, s", "to the closed file, s")
    lengths = [row["duration_s"] for row in data["clips"]]
    for name, label in data["names"].items():
        spreads = [row["latency_s"][name] for row in data["clips"]]
        slope = data["slopes"][name]["s_per_s"]
        axes.errorbar(
            lengths,
            [spread["mean"] for spread in spreads],
            [spread["sd"] for spread in spreads],
            marker="o",
            capsize=3,
            color=COLOURS[name],
            label=f"{label}: {slope:.2f} s per s of clip",
        )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _speed_up(figure: Figure, data: Data) -> None:
    axes = _axes(figure, "clip, s", "times as fast as the baseline")
    served = [name for name in data["names"] if name != "baseline"]
    width = 0.8 / (len(served) + 1)
    for place, name in enumerate([*served, "published"]):
        if name == "published":
            factors = [data["published"][f"{row['seconds']:g}"] for row in data["clips"]]
            heights, label, colour = [a / b for a, b in factors], "published (another machine)", PUBLISHED_COLOUR
        else:
            heights = [row["factor"][name] for row in data["clips"]]
            label, colour = data["names"][name], COLOURS[name]
        bars = axes.bar([i + place * width for i in range(len(heights))], heights, width, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=LABEL_PT)
    axes.set_xticks([i + width * len(served) / 2 for i in range(len(data["clips"]))])
    axes.set_xticklabels([f"{row['seconds']:g}" for row in data["clips"]])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.legend(frameon=False)


def _gantt(figure: Figure, data: Data) -> None:
    """One run of each, the median one of the longest clip, on one time axis."""
    shown = [name for name in ("baseline", "pipeline") if name in data["spans"]]
    both = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(both, shown, strict=True):
        stages = list(dict.fromkeys(span["stage"] for span in data["spans"][name]))
        for row, stage in enumerate(stages):
            bars = [
                (span["start_s"], span["end_s"] - span["start_s"])
                for span in data["spans"][name]
                if span["stage"] == stage
            ]
            axes.broken_barh(bars, (row - 0.4, 0.8), color=COLOURS[name], alpha=0.7)
        axes.set_yticks(range(len(stages)), [stage.replace("_", ", ") for stage in stages], fontsize=LABEL_PT)
        axes.invert_yaxis()
        axes.set_title(f"{data['names'][name]}, {data['clips'][-1]['seconds']:g} s of video", fontsize=10, loc="left")
        axes.grid(axis="x", alpha=0.3)
    both[-1].set_xlabel("s since the call")


def _best_probe(data: Data) -> Data:
    """The probe with the most streams that were sustained; the smallest one where none was."""
    probes: list[Data] = [probe for search in data["searches"] for probe in search["probes"]]
    good = [probe for probe in probes if probe["sustained"]]
    return max(good, key=lambda p: int(p["streams"])) if good else min(probes, key=lambda p: int(p["streams"]))


def _histograms(figure: Figure, data: Data) -> None:
    probe = _best_probe(data)
    every = figure.subplots(1, len(data["kinds"]), squeeze=False)[0]
    for axes, kind in zip(every, data["kinds"], strict=True):
        values = probe["latencies_ms"][kind]
        axes.hist(values, bins=min(MAX_BINS, max(5, len(values) // 4)), color=COLOURS["pipeline"])
        limit, p99 = probe["kinds"][kind]["limit_ms"], probe["kinds"][kind]["p99_ms"]
        if p99 is not None:
            axes.axvline(p99, color="black", linestyle=":", label=f"p99 {p99:.0f} ms")
        axes.set_title(
            f"{kind}, {probe['streams']} streams" + (f", limit {limit:.0f} ms" if limit else ""), fontsize=10
        )
        axes.set_xlabel("ms from the moment it was due")
        axes.legend(frameon=False)
    every[0].set_ylabel("requests")


def _batches(figure: Figure, data: Data) -> None:
    """What the server's dynamic batching made of the requests of several streams."""
    probe = _best_probe(data)
    models = [model for model in ("detect", "lips", "transcribe", "translate") if model in probe["batches"]]
    every = figure.subplots(1, max(1, len(models)), squeeze=False)[0]
    for axes, model in zip(every, models, strict=False):
        sizes = {int(size): count for size, count in probe["batches"][model].items()}
        axes.bar([str(size) for size in sorted(sizes)], [sizes[size] for size in sorted(sizes)], color="#26a269")
        axes.set_title(f"{model}, {probe['streams']} streams", fontsize=10)
        axes.set_xlabel("items in a pass")
        axes.tick_params(axis="x", labelrotation=90, labelsize=LABEL_PT)
    every[0].set_ylabel("passes")


def _resources(figure: Figure, data: Data) -> None:
    """The median run of each: share of the cores and memory, process upon process."""
    shown = list(data["contenders"])
    grid = figure.subplots(2, len(shown), sharex="col", sharey="row", squeeze=False)
    for column, name in enumerate(shown):
        series = data["contenders"][name]["series"]
        highest = {group: max(values) for group, values in series["memory_mib"].items()}
        groups = sorted(highest, key=highest.__getitem__, reverse=True)
        for row, (key, label) in enumerate((("cpu_share", "share of the cores"), ("memory_mib", "memory, MiB"))):
            axes = grid[row][column]
            axes.stackplot(series["times_s"], [series[key][group] for group in groups], labels=groups, alpha=0.8)
            axes.set_ylabel(label if column == 0 else "")
        grid[0][column].set_title(name, fontsize=10, loc="left")
        grid[1][column].set_xlabel("s since the call")
    grid[0][-1].legend(frameon=False, fontsize=LABEL_PT, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _prediction(figure: Figure, data: Data) -> None:
    """p99 of each line against the number of streams, calculated and measured."""
    lines = list(data["work"]["deadlines_s"])
    every = figure.subplots(1, len(lines), squeeze=False)[0]
    for axes, line in zip(every, lines, strict=True):
        probes = sorted(data["probes"], key=lambda probe: probe["streams"])
        said = [(p["streams"], p["predicted"][f"{line}_p99_ms"]) for p in probes]
        seen = [(p["streams"], p["kinds"][line]["p99_ms"]) for p in probes]
        for points, marker, label in ((said, "_", "calculated"), (seen, "o", "measured")):
            known = [(x, y) for x, y in points if y is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], marker, label=label)
        axes.axhline(data["work"]["deadlines_s"][line] * 1000, color="black", linestyle=":", label="deadline")
        axes.set_ylim(bottom=0)
        axes.set_title(line, fontsize=10)
        axes.set_xlabel("streams on three servers")
    every[0].set_ylabel("p99, ms")
    every[0].legend(frameon=False)


# Experiment -> name of the file, what it shows, the function.
PLOTS: dict[str, tuple[tuple[str, str, Draw], ...]] = {
    "latency": (
        ("latency", "Latency against clip length", _latency),
        ("speed_up", "Speed-up over the sequential baseline", _speed_up),
        ("gantt", "What ran when", _gantt),
    ),
    "efficiency": (("resources", "Resources while a clip runs", _resources),),
    "capacity": (("capacity", "Predicted and measured latency", _prediction),),
    "streams": (
        ("histograms", "Latency of each chunk", _histograms),
        ("batches", "Batch sizes", _batches),
    ),
}


def _factor_card(data: Data) -> tuple[str, str, str]:
    longest = data["clips"][-1]
    return (
        "speed-up",
        f"{longest['factor']['pipeline']:.2f}x",
        f"over the baseline (one by one, FP32), to the closed video of {longest['seconds']:g} s",
    )


def _streams_card(data: Data) -> tuple[str, str, str]:
    return "live streams", str(data["streams"]), "at once on this machine, p99 of a chunk below its length"


# Experiment -> name, value and note of its card.
CARDS: dict[str, Callable[[Data], tuple[str, str, str]]] = {"latency": _factor_card, "streams": _streams_card}
