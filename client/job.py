"""One dubbing job: checks the input, runs the three branches side by side, leaves the video and its companions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from polylip.client.errors import InputError
from polylip.client.marking import prepare_identity
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate
from polylip.client.options import DubOptions, check_languages, check_options
from polylip.client.outcome import DubResult, container_marks, finish, make_report, missing_segments
from polylip.client.pipeline import ENGINE_MODELS, Pipeline, Plan
from polylip.client.segmentation import Segmenter
from polylip.client.server import running_client
from polylip.client.vad import make_vad

__all__ = ["DubOptions", "DubResult", "Progress", "dub", "missing_segments"]


@dataclass(frozen=True)
class Progress:
    """Where a job is."""

    stage: str
    frames: int = 0
    frames_total: int | None = None  # None while unknown


OnProgress = Callable[[Progress], None]


async def dub(options: DubOptions, on_progress: OnProgress = lambda progress: None) -> DubResult:
    """Dub a file. Raises InputError (nothing is written); server failures end in a partial result instead."""
    check_options(options)
    segmenter = Segmenter(make_vad(options.vad), options.segmentation)
    identity = await asyncio.to_thread(prepare_identity) if options.mark else None
    info = await asyncio.to_thread(probe_media, options.input)
    writer = await asyncio.to_thread(MediaWriter, options.output, info, container_marks(options))
    try:
        async with running_client(options.server, lambda stage: on_progress(Progress(stage))) as client:
            started = time.monotonic()
            await check_languages(client, options.wishes)
            engines = {model: await client.engine(model) for model in ENGINE_MODELS}  # now: later it may be lost
            duration_ms = info.duration_s * 1000 if info.duration_s else None
            total = round(info.duration_s * info.frame_rate) if info.duration_s else None
            pipeline = Pipeline(
                client,
                Plan(info, options.wishes, segmenter, options.segmentation, options.face, duration_ms),
                writer,
                on_progress=lambda _, frames: on_progress(Progress("dubbing", frames, total)),
            )
            damaged = await _run(pipeline, info)
            report = make_report(options, info, pipeline, time.monotonic() - started, engines, damaged)
            report.versions["tritonserver"] = client.server_version
        on_progress(Progress("writing", report.frames, report.frames))
        result = await asyncio.to_thread(finish, options, writer, report, pipeline, identity)
    finally:
        await asyncio.to_thread(writer.discard)
    return result


async def _run(pipeline: Pipeline, info: MediaInfo) -> int:
    """The whole file; how many damaged packets it has."""
    files = await asyncio.to_thread(_Files, info)
    try:
        await pipeline.run(files)
    finally:
        files.close()
    if pipeline.renderer.counts.frames == 0:
        raise InputError(f"{info.path}: holds no picture that can be decoded")
    return files.pictures.damaged + files.sound.damaged


class _Files:
    """A file as the pipeline reads it: opened three times, each at its own pace."""

    def __init__(self, info: MediaInfo) -> None:
        self.sound = AudioReader(info, output_sample_rate(info), output_channels(info))
        self.analysis = VideoReader(info)
        self.pictures = VideoReader(info, info.planar_format)

    def close(self) -> None:
        for reader in (self.sound, self.analysis, self.pictures):
            reader.close()
