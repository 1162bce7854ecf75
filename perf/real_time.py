"""Real-time factor of the whole path on a warm server: `python -m polylip.perf.bench [--clip FILE] [--out DIR]`.

Starts one server, dubs each clip once to warm up and then RUNS times, and writes `bench.json` with the machine, the
versions and every run. The real-time factor is wall time over the clip's duration; below 1 is faster than real time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from polylip.client.job import DubOptions, dub
from polylip.client.results import Report, Status
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.machine import machine
from polylip.serving.launcher import ServerOptions, running_server

RUNS = 3


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clip", type=Path, action="append", default=[], help="a further clip, English speech")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--runs", type=int, default=RUNS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        clips = [make_demo_clip(Path(folder) / "demo.mp4"), *arguments.clip]
        with running_server(ServerOptions()) as server:
            rows = [_measure(clip, server.url, Path(folder), arguments.runs) for clip in clips]
    result = {"profile": "lite", "weights": "stand-ins, no public weights", "machine": machine(), "clips": rows}
    path = arguments.out / "bench.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    print(f"\n{path}")


def _measure(clip: Path, url: str, folder: Path, runs: int) -> dict[str, Any]:
    options = DubOptions(clip, folder / "out.mp4", "es", url=url)
    reports = [asyncio.run(dub(options)).report for _ in range(runs + 1)][1:]
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


def markdown(result: dict[str, Any]) -> str:
    """The result as the table that the README shows."""
    machine = result["machine"]
    where = f"{machine['cores']} cores ({machine['cpu']})"
    lines = [
        f"Profile `{result['profile']}` ({result['weights']}), {where}, warm server; median, lowest to highest:",
        "",
        "| clip | length | frames | segments | real-time factor | first audio | whole segment's speech |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["clips"]:
        factors, latency = row["real_time_factor"], row["latency_ms"]
        lines.append(
            f"| {row['clip']} | {row['duration_s']:.1f} s | {row['frames']} | {row['segments']} "
            f"| **{statistics.median(factors):.2f}** ({min(factors):.2f} to {max(factors):.2f}) "
            f"| {latency['first_audio']} ms | {latency['speech']} ms |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
