"""One dubbing job: checks the input, runs the three branches side by side, leaves the video and its companions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from polylip.client.checkpoint import JobState, Keeper, check_engines, damaged, job_state
from polylip.client.errors import InputError
from polylip.client.marking import prepare_identity
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import output_channels, output_sample_rate
from polylip.client.media_resume import PicturesFrom, SoundFrom
from polylip.client.mix import sample_at
from polylip.client.options import DubOptions, check_languages, check_options
from polylip.client.outcome import DubResult, container_marks, finish, make_report, missing_segments
from polylip.client.parts import PartsWriter
from polylip.client.pipeline import ENGINE_MODELS, Pipeline, Plan
from polylip.client.segmentation import Segmenter
from polylip.client.server import running_client
from polylip.client.vad import make_vad
from polylip.client.workplace import Workplace, is_resumable

__all__ = ["DubOptions", "DubResult", "Progress", "dub", "is_resumable", "missing_segments"]


LEAD_FRAMES = 8  # before the first new one: a cut between the two is seen


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
    workplace = await asyncio.to_thread(Workplace, options)
    earlier = job_state(workplace.state, options.output)
    writer = await asyncio.to_thread(PartsWriter, options.output, info, workplace, container_marks(options))
    try:
        async with running_client(options.server, lambda stage: on_progress(Progress(stage))) as client:
            started = time.monotonic() - (earlier.wall_s if earlier else 0.0)
            await check_languages(client, options.wishes)
            engines = {model: await client.engine(model) for model in ENGINE_MODELS}  # now: later it may be lost
            check_engines(earlier, engines, options.output)
            await asyncio.to_thread(writer.begin, engines)
            duration_ms = info.duration_s * 1000 if info.duration_s else None
            total = round(info.duration_s * info.frame_rate) if info.duration_s else None
            keeper = Keeper(workplace.journal, writer.end_part, engines, lambda: time.monotonic() - started, earlier)
            try:
                pipeline = Pipeline(
                    client,
                    Plan(info, options.wishes, segmenter, options.segmentation, options.face, duration_ms),
                    writer,
                    keeper=keeper,
                    on_progress=lambda _, frames: on_progress(Progress("dubbing", frames, total)),
                )
            except ValueError:
                raise damaged(options.output) from None
            damaged_packets = await _run(pipeline, info, earlier)
            report = make_report(options, info, pipeline, keeper.wall_s(), engines, damaged_packets)
            report.versions["tritonserver"] = client.server_version
            report.counters["runs"] = workplace.runs
        on_progress(Progress("writing", report.frames, report.frames))
        result = await asyncio.to_thread(finish, options, writer, report, pipeline, identity)
    finally:
        await asyncio.to_thread(writer.discard)
    return result


async def _run(pipeline: Pipeline, info: MediaInfo, earlier: JobState | None) -> int:
    """All that is left of the file; how many damaged packets it has."""
    files = await asyncio.to_thread(_Files, info, earlier)
    try:
        await pipeline.run(files)
    finally:
        files.close()
    if pipeline.renderer.counts.frames == 0:
        raise InputError(f"{info.path}: holds no picture that can be decoded")
    before = earlier.picture.counts.damaged_packets if earlier else 0
    return before + files.pictures.damaged + files.sound.damaged


class _Files:
    """A file as the pipeline reads it: opened three times, each at its own pace."""

    sound: AudioReader | SoundFrom
    analysis: VideoReader | PicturesFrom
    pictures: VideoReader | PicturesFrom

    def __init__(self, info: MediaInfo, earlier: JobState | None) -> None:
        rate_hz = output_sample_rate(info)
        sound = AudioReader(info, rate_hz, output_channels(info))
        if earlier is None:
            self.sound, self.analysis, self.pictures = sound, VideoReader(info), VideoReader(info, info.planar_format)
            return
        last_ms, written = earlier.picture.position_ms, earlier.picture.counts.frames
        self.sound = SoundFrom(sound, sample_at(last_ms, rate_hz), earlier.speech.segmenter.samples)
        self.analysis = PicturesFrom(info, None, last_ms, written, lead=LEAD_FRAMES)
        self.pictures = PicturesFrom(info, info.planar_format, last_ms, written)

    def close(self) -> None:
        for reader in (self.sound, self.analysis, self.pictures):
            reader.close()
