"""A clip that arrives in real time, through both: how long after its last frame the dubbed video is complete.

The pipeline is the client's own, its readers held back; the baseline takes up a segment when it has closed and the
picture when all of it is there.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

from polylip.client.closing import Policy
from polylip.client.errors import PolylipError
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate
from polylip.client.mix import Float32
from polylip.client.pipeline import Pipeline, Plan
from polylip.client.results import Status
from polylip.client.segmentation import Segmenter
from polylip.client.triton import TritonClient
from polylip.client.vad import make_vad
from polylip.client.wishes import SpeechWishes
from polylip.perf.baseline import Baseline
from polylip.perf.baseline_runs import SOURCE, TARGET

PIECE_S = 0.04  # of sound, as a live source gives it


class _Arrival:
    """The moment from which on a clip arrives."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def wait(self, media_s: float) -> None:
        """Until so much of it is there."""
        time.sleep(max(0.0, self.started + media_s - time.perf_counter()))


class _ArrivingPictures:
    """Pictures as they arrive, at least one at a time."""

    damaged = 0

    def __init__(self, info: MediaInfo, arrival: _Arrival) -> None:
        self._arrival = arrival
        self._frame_s = 1 / float(info.frame_rate)
        with closing(VideoReader(info)) as reader:
            self._rest = deque(reader.read(sys.maxsize))

    def read(self, count: int) -> list[tuple[float, Any]]:
        if self._rest:
            self._arrival.wait(self._rest[0][0] / 1000 + self._frame_s)
        here_ms = (time.perf_counter() - self._arrival.started - self._frame_s) * 1000
        taken: list[tuple[float, Any]] = []
        while self._rest and len(taken) < count and (not taken or self._rest[0][0] <= here_ms):
            taken.append(self._rest.popleft())
        return taken


class _ArrivingSound:
    """Sound as it arrives."""

    damaged = 0

    def __init__(self, reader: AudioReader, rate_hz: int, arrival: _Arrival) -> None:
        self._reader = reader
        self._rate_hz = rate_hz
        self._arrival = arrival
        self._heard_s = 0.0

    def read(self, seconds: float) -> tuple[Float32, Float32] | None:
        piece = self._reader.read(min(seconds, PIECE_S))
        if piece is not None:
            self._heard_s += piece[0].shape[1] / self._rate_hz
            self._arrival.wait(self._heard_s)
        return piece


class Arriving:
    """A clip as the pipeline reads it. What is written has arrived before, so that is read as it is."""

    def __init__(self, info: MediaInfo) -> None:
        rate_hz = output_sample_rate(info)
        self._audio = AudioReader(info, rate_hz, output_channels(info))
        self.pictures = VideoReader(info, info.planar_format)
        self.arrival = _Arrival()
        self.analysis = _ArrivingPictures(info, self.arrival)
        self.sound = _ArrivingSound(self._audio, rate_hz, self.arrival)
        self.arrival.started = time.perf_counter()  # the pictures of the analysis are decoded by now

    def close(self) -> None:
        self._audio.close()
        self.pictures.close()


def paced_baseline(baseline: Baseline, clip: Path, folder: Path) -> float:
    """Seconds from the clip's last frame to the closed video."""
    run = baseline.dub(clip, folder / "sequential.mp4", source=SOURCE, target=TARGET, paced=True)
    _require([segment.status for segment in run.segments], clip)
    return run.total_s - run.duration_s


def paced_pipeline(url: str, clip: Path, folder: Path) -> float:
    """Seconds from the clip's last frame to the closed video."""
    return asyncio.run(_paced_pipeline(url, clip, folder / "pipelined.mp4"))


async def _paced_pipeline(url: str, clip: Path, output: Path) -> float:
    info = await asyncio.to_thread(probe_media, clip)
    duration_s = info.duration_s or 0.0
    writer = await asyncio.to_thread(MediaWriter, output, info)
    try:
        async with TritonClient(url) as client:
            plan = Plan(
                info,
                SpeechWishes(SOURCE, TARGET),
                Segmenter(make_vad()),
                Policy.SEMANTIC,
                duration_ms=duration_s * 1000,
                incremental=await client.parameter("transcribe", "incremental") == "true",
            )
            pipeline = Pipeline(client, plan, writer)
            source = await asyncio.to_thread(Arriving, info)
            try:
                await pipeline.run(source)
            finally:
                await asyncio.to_thread(source.close)
        await asyncio.to_thread(writer.finish, output)
        closed_s = time.perf_counter() - source.arrival.started
    finally:
        await asyncio.to_thread(writer.discard)
    _require([str(result.status) for result in pipeline.timeline.results], clip)
    return closed_s - duration_s


def _require(statuses: list[str], clip: Path) -> None:
    if Status.DUBBED not in statuses:
        raise PolylipError(f"{clip}: no segment was dubbed, so there is nothing to time; use a clip with speech")
