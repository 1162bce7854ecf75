"""One dubbing job: checks the input, runs the three branches side by side, leaves the video and its companions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from polylip.client.errors import InputError, PolylipError
from polylip.client.faces import FacesBranch
from polylip.client.marking import (
    prepare_identity,
)
from polylip.client.media_in import AudioReader, MediaInfo, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate
from polylip.client.mix import AudioBed
from polylip.client.options import DubOptions, check_languages, check_options
from polylip.client.outcome import DubResult, Run, container_marks, finish, make_report, missing_segments
from polylip.client.pulse import Pulse
from polylip.client.render import Renderer
from polylip.client.ring import FrameRing
from polylip.client.speaker import SpeakerChooser, parse_wish
from polylip.client.speech import SpeechBranch
from polylip.client.timeline import Timeline
from polylip.client.triton import TritonClient
from polylip.client.visibility import frames_around

__all__ = ["DubOptions", "DubResult", "Progress", "dub", "missing_segments"]

ENGINE_MODELS = ("transcribe", "translate", "synthesize", "detect", "lips")


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
    identity = await asyncio.to_thread(prepare_identity) if options.mark else None
    info = await asyncio.to_thread(probe_media, options.input)
    writer = await asyncio.to_thread(MediaWriter, options.output, info, container_marks(options))
    try:
        async with _server_url(options, on_progress) as url, TritonClient(url) as client:
            started = time.monotonic()
            await check_languages(client, options)
            engines = {model: await client.engine(model) for model in ENGINE_MODELS}  # now: later it may be lost
            branches = await _run(client, options, info, writer, on_progress)
            wall_s = time.monotonic() - started
            report = make_report(options, info, branches, wall_s, engines)
            report.versions["tritonserver"] = client.server_version
        on_progress(Progress("writing", report.frames, report.frames))
        result = await asyncio.to_thread(finish, options, writer, report, branches.renderer.samples, identity)
    finally:
        await asyncio.to_thread(writer.discard)
    return result


async def _run(
    client: TritonClient, options: DubOptions, info: MediaInfo, writer: MediaWriter, on_progress: OnProgress
) -> Run:
    pulse = Pulse()
    duration_ms = info.duration_s * 1000 if info.duration_s else None
    total = round(info.duration_s * info.frame_rate) if info.duration_s else None
    rate, channels, fps = output_sample_rate(info), output_channels(info), float(info.frame_rate)
    timeline, ring = Timeline(duration_ms, pulse), FrameRing(fps, pulse, frames_around(fps))
    bed = AudioBed(rate, channels)
    sound = await asyncio.to_thread(AudioReader, info, rate, channels)
    try:
        async with client.stream() as speech_stream, client.stream() as faces_stream, client.stream() as lips_stream:
            renderer = Renderer(
                info,
                ring=ring,
                timeline=timeline,
                chooser=SpeakerChooser(info.width, info.height, parse_wish(options.face)),
                bed=bed,
                stream=lips_stream,
                writer=writer,
                pulse=pulse,
                on_progress=lambda _, frames: on_progress(Progress("dubbing", frames, total)),
            )
            speech = SpeechBranch(
                timeline=timeline,
                bed=bed,
                stream=speech_stream,
                pulse=pulse,
                wishes=options.wishes,
                output_ms=lambda: max(renderer.position_ms, renderer.next_ms),
            )
            faces = FacesBranch(info, ring, faces_stream)
            with _unwrapped():
                async with asyncio.TaskGroup() as group:
                    group.create_task(speech.run(sound))
                    group.create_task(faces.run())
                    group.create_task(renderer.run())
    finally:
        sound.close()
    if renderer.counts.frames == 0:
        raise InputError(f"{info.path}: holds no picture that can be decoded")
    return Run(timeline, ring, faces, speech, renderer, renderer.counts.damaged_packets + sound.damaged)


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Task groups wrap what went wrong in groups; the caller wants the first cause."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            known = [e for e in error.exceptions if isinstance(e, (PolylipError, BaseExceptionGroup))]
            error = (known or list(error.exceptions))[0]
        raise error from None


@contextlib.asynccontextmanager
async def _server_url(options: DubOptions, on_progress: OnProgress) -> AsyncIterator[str]:
    """The given server, or one of our own that ends with the block."""
    if options.url is not None:
        yield options.url
        return
    try:
        from polylip.serving.launcher import ServerOptions, start_server  # noqa: PLC0415  needs the extra `serve`
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'polylip[serve]', or name a --url") from None
    on_progress(Progress("starting the server"))
    server = await asyncio.to_thread(start_server, ServerOptions(profile=options.profile))
    try:
        yield server.url
    finally:
        await asyncio.shield(asyncio.to_thread(server.stop))
