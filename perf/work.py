"""Counted work of a dub: `python -m polylip.perf.work [--profile lite]`. No clock: the same on every machine.

Passes of each model per second of video or per segment, bytes over gRPC, and copies of whole pictures. A change that
makes the client ask for more than it must shows here, and in the tests that hold these counts, on any machine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from polylip.client import render
from polylip.client.faces import Letterbox
from polylip.client.job import DubOptions, dub
from polylip.client.results import Report, Status
from polylip.perf import experiment, server_work
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.experiment import Result, Setup
from polylip.perf.relay import Relay
from polylip.serving.launcher import running_server

TITLE = "Counted work of a dub"
SPEECH_MODELS = ("transcribe", "translate", "synthesize")


@dataclass(frozen=True)
class Work:
    """What one dub has cost in counts."""

    duration_s: float
    frames: int
    frames_lipsynced: int
    segments: int  # that were dubbed
    detector_frames_per_s: float  # key frames through `detect`, per second of video
    lips_frames_per_frame: float  # through `lips`, per frame that got a new mouth
    lipsync_calls_per_s: float  # per second of dubbed video
    passes_per_segment: dict[str, float]  # of the speech models; the recogniser's questions included
    sent_kib_per_s: float  # over gRPC to the server, per second of video
    received_kib_per_s: float
    whole_copies_per_lipsynced_frame: float  # of pixels, out of a decoded frame and back into one
    shrunk_per_key_frame: float  # pictures made small for the detector
    batches: dict[str, dict[int, int]]  # model -> batch size -> passes


class Calls:
    """How often functions were called."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @contextmanager
    def counting(self, owner: Any, name: str) -> Iterator[None]:
        """Of `owner.name`, while inside."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return function(*arguments, **named)

        setattr(owner, name, counted)
        try:
            yield
        finally:
            setattr(owner, name, function)


async def count_work(clip: Path, url: str, folder: Path) -> tuple[Work, Report]:
    """Dub a clip on a running server that does nothing else. The first dub on a server asks a little more."""
    calls = Calls()
    before = await asyncio.to_thread(server_work.look, url)
    with ExitStack() as stack:
        for owner, name in ((render, "frame_planes"), (render, "to_frame"), (Letterbox, "shrink")):
            stack.enter_context(calls.counting(owner, name))
        async with Relay(url) as relay:
            report = (await dub(DubOptions(clip, folder / "out.mp4", "es", "en", url=relay.url))).report
    after = await asyncio.to_thread(server_work.look, url)
    return _work(report, server_work.since(before, after), calls.counts, relay), report


def _work(report: Report, done: dict[str, server_work.ModelWork], calls: dict[str, int], relay: Relay) -> Work:
    seconds = report.duration_s
    dubbed = [segment for segment in report.segments if segment.status is Status.DUBBED]
    dubbed_s = sum((s.dub_end_ms or 0) - (s.dub_start_ms or 0) for s in dubbed) / 1000
    lipsynced, keys = max(1, report.frames_lipsynced), max(1, report.counters["key_frames"])
    return Work(
        seconds,
        report.frames,
        report.frames_lipsynced,
        len(dubbed),
        done["detect"].inferences / seconds,
        done["lips"].inferences / lipsynced,
        report.counters["lipsync_calls"] / max(dubbed_s, 1e-3),
        {model: done[model].passes / max(1, len(dubbed)) for model in SPEECH_MODELS},
        relay.sent_bytes / 1024 / seconds,
        relay.received_bytes / 1024 / seconds,
        (calls.get("frame_planes", 0) + calls.get("to_frame", 0)) / lipsynced,
        calls.get("shrink", 0) / keys,
        {model: dict(work.batches) for model, work in done.items() if work.batches},
    )


def run(setup: Setup) -> Result:
    """Dub the demo clip once to warm up and once to count."""
    result = experiment.head("work", TITLE, setup)
    with tempfile.TemporaryDirectory() as name, running_server(setup.server) as server:
        folder = Path(name)
        clip = make_demo_clip(folder / "demo.mp4")
        asyncio.run(count_work(clip, server.url, folder))
        work, _ = asyncio.run(count_work(clip, server.url, folder))
    return {**result, "repetitions": 1, "warm_up": 1, "data": asdict(work)}


def markdown(result: Result) -> str:
    """What is counted, and how much of it."""
    data = result["data"]
    rows = [
        ("key frames through the detector, per second of video", f"{data['detector_frames_per_s']:.1f}"),
        ("frames through `lips`, per frame with a new mouth", f"{data['lips_frames_per_frame']:.2f}"),
        ("`lipsync` calls, per second of dubbed video", f"{data['lipsync_calls_per_s']:.1f}"),
        *((f"passes of `{model}`, per segment", f"{count:.1f}") for model, count in data["passes_per_segment"].items()),
        ("KiB to the server, per second of video", f"{data['sent_kib_per_s']:.0f}"),
        ("KiB from the server, per second of video", f"{data['received_kib_per_s']:.0f}"),
        ("copies of a whole picture, per frame with a new mouth", f"{data['whole_copies_per_lipsynced_frame']:.2f}"),
        ("pictures made small, per key frame", f"{data['shrunk_per_key_frame']:.2f}"),
    ]
    return "\n".join(["| counted | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    """Count, print the table, write the result."""
    experiment.command(__doc__, run, markdown)


if __name__ == "__main__":
    main()
