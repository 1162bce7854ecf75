"""One clip through the sequential baseline or through the pipeline on a running server, timed in the same way."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import numpy as np
import psutil

from polylip.client.closing import Policy
from polylip.client.errors import PolylipError
from polylip.client.job import DubOptions, dub
from polylip.client.media_in import AudioReader, VideoReader, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate
from polylip.client.results import Report, Status
from polylip.perf.baseline import Baseline
from polylip.perf.demo_clip import make_demo_clip

SOURCE, TARGET = "en", "es"
SHORTEST_S = 3.5  # of a demo clip with a whole sentence; a shorter one is cut out of it
CUT_FROM_S = 0.5  # at most; its speech starts 0.1 s later
POLL_S = 0.005  # between looks for the finished file

BASELINE, PIPELINE, SILENCE = "baseline", "pipeline", "pipeline_silence"
NAMES = {
    BASELINE: "baseline",
    PIPELINE: "pipeline",
    SILENCE: "pipeline, cut by silence alone",
}


@dataclass(frozen=True)
class Timed:
    """What one run took, in seconds from the call on."""

    closed_s: float  # until the video was complete and closed
    first_frame_s: float  # until the first frame with new lips went to the encoder
    total_s: float  # until the call returned: the pipeline writes a report beside the video
    start_s: float  # before the first work on the clip
    cpu_s: float  # of this process and all below it, from the call to the closed file
    frames: int
    frames_lipsynced: int
    texts: tuple[str, ...]  # of the dubbed segments
    stages_s: dict[str, float]  # each at work; within a stage overlaps count once
    busy_s: float  # in which any of them worked
    work_s: float  # all of them one after the other
    spans: tuple[dict[str, Any], ...]  # stage, start_s, end_s


Run = Callable[[Path], Timed]


def contenders(baseline: Baseline, url: str, folder: Path) -> dict[str, Run]:
    """What dubs a clip, by name."""
    return {
        BASELINE: lambda clip: run_baseline(baseline, clip, folder),
        PIPELINE: lambda clip: run_pipeline(url, clip, folder),
        SILENCE: lambda clip: run_pipeline(url, clip, folder, Policy.SILENCE),
    }


def run_baseline(baseline: Baseline, clip: Path, folder: Path) -> Timed:
    """Raises PolylipError where nothing was dubbed."""
    output = folder / "sequential.mp4"
    output.unlink(missing_ok=True)
    cpu_s = cpu_seconds()
    run = baseline.dub(clip, output, source=SOURCE, target=TARGET)
    cpu_s = cpu_seconds() - cpu_s
    texts = tuple(segment.target_text for segment in run.segments if segment.status == Status.DUBBED)
    return Timed(
        closed_s=run.total_s,
        first_frame_s=_dubbed(run.first_frame_s, texts, clip),
        total_s=run.total_s,
        start_s=0.0,
        cpu_s=cpu_s,
        frames=run.frames,
        frames_lipsynced=run.frames_lipsynced,
        texts=texts,
        stages_s=run.stages_s,
        busy_s=run.total_s,
        work_s=sum(run.stages_s.values()),
        spans=tuple({"stage": str(s.step), "start_s": s.start_s, "end_s": s.end_s} for s in run.spans),
    )


def run_pipeline(url: str, clip: Path, folder: Path, policy: Policy = Policy.SEMANTIC) -> Timed:
    """Unmarked, as the baseline does not mark either. Raises PolylipError where nothing was dubbed."""
    output = folder / "pipelined.mp4"
    output.unlink(missing_ok=True)
    options = DubOptions(clip, output, TARGET, SOURCE, url=url, segmentation=policy, mark=False)
    return asyncio.run(_run_pipeline(options))


async def _run_pipeline(options: DubOptions) -> Timed:
    with _Watch(options.output) as watch:
        cpu_s, clock, started = cpu_seconds(), time.time(), time.perf_counter()
        report = (await dub(options)).report
        total_s = time.perf_counter() - started
    if watch.closed_at is None:
        raise PolylipError(f"{options.input}: the server failed a segment; look at its log")
    return _timed(report, options.input, watch.closed_at - started, total_s, watch.cpu_s - cpu_s, clock)


class _Watch:
    """Notes when a video is moved to its place, and the CPU seconds by then: the call itself returns later."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._over = Event()
        self._thread = Thread(target=self._watch)
        self.closed_at: float | None = None
        self.cpu_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._output.exists():
            if self._over.wait(POLL_S):
                return
        self.closed_at, self.cpu_s = time.perf_counter(), cpu_seconds()


def _timed(report: Report, clip: Path, closed_s: float, total_s: float, cpu_s: float, clock: float) -> Timed:
    trace = report.trace or {}
    start_s = datetime.fromisoformat(trace["began"]).timestamp() - clock
    own = [span for segment in trace["segments"] for span in segment["spans"]]
    spans = [
        {"stage": str(s["stage"]), "start_s": start_s + s["start_s"], "end_s": start_s + s["end_s"]}
        for s in sorted([*own, *trace["picture"]], key=lambda span: float(span["start_s"]))
    ]
    blended = [span["end_s"] for span in spans if span["stage"] == "blend"]
    texts = tuple(segment.target_text for segment in report.segments if segment.status is Status.DUBBED)
    totals = trace["totals"]
    return Timed(
        closed_s=closed_s,
        first_frame_s=_dubbed(min(blended, default=None), texts, clip),
        total_s=total_s,
        start_s=start_s,
        cpu_s=cpu_s,
        frames=report.frames,
        frames_lipsynced=report.frames_lipsynced,
        texts=texts,
        stages_s={str(stage): seconds for stage, seconds in totals["stages_s"].items()},
        busy_s=totals["busy_s"],
        work_s=totals["work_s"],
        spans=tuple(spans),
    )


def _dubbed(first_frame_s: float | None, texts: tuple[str, ...], clip: Path) -> float:
    if first_frame_s is None or not texts:
        raise PolylipError(f"{clip}: no segment was dubbed, so there is nothing to time; use a clip with speech")
    return first_frame_s


def cpu_seconds() -> float:
    """Of this process and all below it so far, those that have ended included."""
    own = psutil.Process()
    used = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:4])  # user, system, and both of ended children
    return used


def make_clip(path: Path, seconds: float) -> Path:
    """Talk of any length from about half a second on, with speech in it."""
    if seconds >= SHORTEST_S:
        return make_demo_clip(path, seconds)
    with tempfile.TemporaryDirectory() as folder:
        whole = make_demo_clip(Path(folder) / "whole.mp4", SHORTEST_S)
        return cut_clip(whole, path, min(CUT_FROM_S, SHORTEST_S - seconds), seconds)


def cut_clip(clip: Path, out: Path, start_s: float, seconds: float) -> Path:
    """A part of a clip, encoded anew."""
    info = probe_media(clip)
    rate_hz, channels = output_sample_rate(info), output_channels(info)
    with closing(VideoReader(info, info.planar_format)) as video:
        frames = video.read(sys.maxsize)
    with closing(AudioReader(info, rate_hz, channels)) as audio:
        sound = audio.read(float(info.duration_s or 0) + 1.0)
    kept = [(frame, ms - start_s * 1000) for ms, frame in frames if start_s <= ms / 1000 < start_s + seconds - 1e-6]
    first = round(start_s * rate_hz)
    pcm = (
        np.zeros((channels, 0), np.float32) if sound is None else sound[0][:, first : first + round(seconds * rate_hz)]
    )
    writer = MediaWriter(out, info)
    try:
        writer.write(kept, pcm)
        writer.finish(out)
    finally:
        writer.discard()
    return out
