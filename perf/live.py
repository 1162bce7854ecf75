"""A live run of minutes: camera -> `live` -> player over loopback, in real time.

`python -m polylip.perf.live --minutes 5 --out out/bench` writes live.json and prints its table: whether the delay
grows, whether memory does, how far apart sound and picture are, and how soon the first new lips follow a segment.
With `--slow transcribe=10` that model takes ten times as long for the whole run; the file is then live_slow.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from polylip.client.live.job import live
from polylip.client.live.options import DELAY_S, LiveOptions
from polylip.client.live.report import LiveReport
from polylip.client.live.status import LiveStatus
from polylip.client.report import write_json
from polylip.client.server import ServerChoice
from polylip.client.wishes import SpeechWishes
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.machine import machine
from polylip.perf.slow_models import slow_repository
from polylip.perf.steadiness import Watch
from polylip.serving.launcher import Server, ServerOptions, running_server
from polylip.serving.runtime import find_model_repository

CLIP_S = 60.0  # of the clip that the camera repeats: all twelve sentences
SAMPLE_S = 2.0  # between two looks at the memory
WARM_UP_S = 30.0  # before the first: buffers of the delay fill


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--delay", type=float, default=DELAY_S, help="seconds from source to output")
    parser.add_argument("--profile", default="lite")
    parser.add_argument(
        "--slow", type=_slow, action="append", default=[], metavar="MODEL=FACTOR", help="slow a Python model down"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        clip = make_demo_clip(Path(folder) / "camera.mp4", seconds=min(CLIP_S, arguments.minutes * 60))
        options = ServerOptions(profile=arguments.profile)
        if arguments.slow:
            repository, flag = slow_repository(find_model_repository(), Path(folder), dict(arguments.slow))
            flag.touch()
            options = replace(options, model_repository=repository)
        with running_server(options) as server:
            result = run(server, clip, Path(folder), arguments.minutes, arguments.delay)
    result |= {"profile": arguments.profile, "slow": dict(arguments.slow), "machine": machine()}
    name = "live_slow.json" if arguments.slow else "live.json"
    write_json(result, arguments.out / name)
    print(markdown(result))


def _slow(text: str) -> tuple[str, float]:
    model, _, factor = text.partition("=")
    return model, float(factor)


def run(server: Server, clip: Path, folder: Path, minutes: float, delay_s: float) -> dict[str, Any]:
    """One live run of a clip that repeats."""
    source, sink = (f"tcp://127.0.0.1:{_free_port()}" for _ in range(2))
    packets = folder / "player.jsonl"
    ends = [
        _end("camera", str(clip), source, str(minutes * 60)),
        _end("player", f"{sink}?listen=1", str(packets)),
    ]
    try:
        report, watch = asyncio.run(_live(server, source, sink, delay_s))
    finally:
        for process in ends:
            process.terminate()
            process.wait()
    return summary(report, watch, [json.loads(line) for line in packets.read_text(encoding="utf-8").splitlines()])


def _end(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "polylip.perf.live_ends", *arguments])


async def _live(server: Server, source: str, sink: str, delay_s: float) -> tuple[LiveReport, Watch]:
    options = LiveOptions(
        source,
        sink,
        SpeechWishes("en", "es"),
        ServerChoice(server.url),
        delay_s=delay_s,
        listen=True,
        sink_format="mpegts",
    )
    watch = Watch(server)
    sampler = asyncio.create_task(_sample(watch))
    try:
        report = await live(options, _print_status())
    finally:
        sampler.cancel()
    return report, watch


async def _sample(watch: Watch) -> None:
    await asyncio.sleep(WARM_UP_S)
    while True:
        await asyncio.to_thread(watch.sample)
        await asyncio.sleep(SAMPLE_S)


def _print_status() -> Any:
    seen = [0.0]

    def show(status: LiveStatus) -> None:
        if status.media_s - seen[0] >= 10:
            seen[0] = status.media_s
            print(status.line().plain, file=sys.stderr, flush=True)

    return show


def summary(report: LiveReport, watch: Watch, packets: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that matter, each with what it is measured by."""
    pictures = [(p["time_s"], p["arrived_s"]) for p in packets if p["stream"] == "video"]
    times, arrivals = np.array(pictures).T if len(pictures) > 1 else (np.zeros(2), np.zeros(2))
    lateness_ms = (arrivals - times) * 1000
    lateness_ms = lateness_ms - np.median(lateness_ms)
    minutes = (arrivals - arrivals[0]) / 60
    after_closing = [s.latency_ms.first_frame for s in report.segments if s.latency_ms.first_frame is not None]
    return {
        "duration_s": round(report.duration_s, 1),
        "delay_s": report.delay_s,
        "segments": len(report.segments),
        "statuses": report.statuses,
        "ladder": report.ladder,
        "counters": report.counters,
        "lag": report.lag,
        "player": {
            "pictures": len(pictures),
            "slope_ms_per_min": float(np.polyfit(minutes, lateness_ms, 1)[0]) if len(pictures) > 2 else 0.0,
            "p99_ms": float(np.percentile(np.abs(lateness_ms), 99)),
            "longest_gap_ms": float(np.diff(arrivals).max() * 1000),
        },
        "first_frame_after_last_word_ms": report.first_frame_ms,
        "first_frame_after_closing_ms": {
            "p50": float(np.percentile(after_closing, 50)) if after_closing else None,
            "p90": float(np.percentile(after_closing, 90)) if after_closing else None,
        },
        "av_offset_ms": report.av_offset_ms,
        "memory": watch.verdict() if len(watch.times_s) >= 9 else None,
        "regions": [asdict(region) for region in watch.regions[-1:]],
    }


def markdown(result: dict[str, Any]) -> str:
    """The run as a table."""
    ends = ", ".join(f"{count} {status}" for status, count in result["statuses"].items())
    lag, player, memory = result["lag"], result["player"], result["memory"]
    first, closing = result["first_frame_after_last_word_ms"], result["first_frame_after_closing_ms"]
    rows = [
        ("segments", ends, ""),
        ("lag of the output, p99, slope", f"{lag['p99_ms']:.0f} ms, {lag['slope_ms_per_min']:+.2f} ms per minute", "0"),
        (
            "the player's view: slope, longest gap",
            f"{player['slope_ms_per_min']:+.2f} ms per minute, {player['longest_gap_ms']:.0f} ms",
            "0",
        ),
        ("sound against picture, p99 of segments", _ms(result["av_offset_ms"]["p99"]), "40 ms"),
        ("last word to first new lips ready, p50, p90", f"{_ms(first['p50'])}, {_ms(first['p90'])}", "p50 1000 ms"),
        ("segment closed to first new lips ready, p50, p90", f"{_ms(closing['p50'])}, {_ms(closing['p90'])}", ""),
        ("steps of the ladder", str(len(result["ladder"])), "" if result["slow"] else "0"),
    ]
    if memory is not None:
        for name, process in memory["processes"].items():
            figures = f"{process['start_mib']}, {process['end_mib']}, at most {process['highest_mib']} MiB"
            rows.append((f"memory of `{name}`", figures, f"{trend_mib(process, result['duration_s']):+.1f} MiB"))
    seconds, delay_s = result["duration_s"], result["delay_s"]
    slow = "".join(f", `{model}` {factor:g} times slower" for model, factor in result["slow"].items())
    lines = [
        f"Profile `{result['profile']}` (stand-ins), {seconds:.0f} s in real time, delay {delay_s:g} s{slow}:",
        "",
        "| | measured | asked; of memory: its trend |",
        "|---|---|---|",
        *(f"| {name} | {value} | {target} |" for name, value, target in rows),
        "",
    ]
    return "\n".join(lines)


def sentence(result: dict[str, Any]) -> str:
    """The run in short, for the README."""
    minutes, lips = result["duration_s"] / 60, _ms(result["first_frame_after_last_word_ms"]["p50"])
    offset, slope = _ms(result["av_offset_ms"]["p99"]), result["lag"]["slope_ms_per_min"]
    return (
        f"A live run of {minutes:.0f} minutes on the same machine: the first new lips of a segment were ready {lips} "
        f"after its last word (median), sound and picture within {offset} of each other (99 % of segments), and the "
        f"lag changed by {slope:+.2f} ms per minute."
    )


def trend_mib(process: dict[str, Any], duration_s: float) -> float:
    """What the line through the last half of a process's memory rises by in the length of a run.

    Pictures come and go by the megabyte, so that the highest moments of a few minutes say little of a leak.
    """
    return float(process["slope_mib_per_h"]) * duration_s / 3600


def _ms(value: float | None) -> str:
    return "none" if value is None or np.isnan(value) else f"{value:.0f} ms"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
