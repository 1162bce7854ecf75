"""Real-time factor of the whole path on a warm server: `python -m polylip.perf.real_time [--clip FILE] [--out DIR]`.

Starts one server and dubs the demo clip, and any further ones, again and again. The real-time factor is wall time over
the clip's duration; below 1 is faster than real time.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polylip.client.job import DubOptions, dub
from polylip.client.results import Report, Status
from polylip.perf import experiment
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.experiment import Result, Setup
from polylip.serving.launcher import running_server

TITLE = "Real-time factor of whole clips"
MOST_RUNS = 3  # of a clip: each takes half a minute


def run(setup: Setup, clips: Sequence[Path] = ()) -> Result:
    """The demo clip and `clips`, of English speech."""
    runs, warm_up = min(setup.repetitions, MOST_RUNS), min(setup.warm_up, 1)
    result = experiment.head("real_time", TITLE, setup) | {"repetitions": runs, "warm_up": warm_up}
    with tempfile.TemporaryDirectory() as name, running_server(setup.server) as server:
        folder = Path(name)
        every = [make_demo_clip(folder / "demo.mp4"), *clips]
        rows = [_measure(clip, server.url, folder, runs, warm_up) for clip in every]
    return {**result, "data": {"clips": rows}}


def _measure(clip: Path, url: str, folder: Path, runs: int, warm_up: int) -> dict[str, Any]:
    options = DubOptions(clip, folder / "out.mp4", "es", url=url)
    reports = [asyncio.run(dub(options)).report for _ in range(warm_up + runs)][warm_up:]
    return {
        "clip": clip.name,
        "duration_s": round(reports[0].duration_s, 3),
        "frames": reports[0].frames,
        "segments": len(reports[0].segments),
        "key_frames_per_s": round(reports[0].counters["key_frames"] / reports[0].duration_s, 2),
        "real_time_factor": [round(report.real_time_factor, 3) for report in reports],
        "latency_ms": {
            name: round(statistics.median(_latencies(reports, name)))
            for name in ("queue", "first_audio", "speech", "lipsync", "total")
        },
    }


def _latencies(reports: list[Report], name: str) -> list[float]:
    values = [getattr(s.latency_ms, name) for r in reports for s in r.segments if s.status is Status.DUBBED]
    return values or [0.0]


def markdown(result: Result) -> str:
    """Median, lowest to highest."""
    lines = [
        "| clip | length | frames | segments | real-time factor | first audio | whole segment's speech |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["data"]["clips"]:
        factors, latency = row["real_time_factor"], row["latency_ms"]
        lines.append(
            f"| {row['clip']} | {row['duration_s']:.1f} s | {row['frames']} | {row['segments']} "
            f"| **{statistics.median(factors):.2f}** ({min(factors):.2f} to {max(factors):.2f}) "
            f"| {latency['first_audio']} ms | {latency['speech']} ms |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run it, print its table, write its file."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--clip", type=Path, action="append", default=[], help="a further clip, English speech")
    arguments = parser.parse_args()
    for clip in arguments.clip:
        if not clip.is_file():
            parser.error(f"--clip {clip}: no such file")
    experiment.complete(arguments, lambda setup: run(setup, arguments.clip), markdown)


if __name__ == "__main__":
    main()
