"""One dubbing job: checks the input, runs the three branches side by side, leaves the video and its companions."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from polylip.client.contact_sheet import write_contact_sheet
from polylip.client.errors import InputError, PolylipError, ServerError
from polylip.client.faces import FacesBranch
from polylip.client.languages_command import source_tag, target_tag
from polylip.client.marking import (
    DubFacts,
    VoiceKind,
    container_tags,
    drop_sidecar,
    mark_video,
    prepare_identity,
)
from polylip.client.marking_keys import Identity
from polylip.client.media_in import AudioReader, MediaInfo, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate
from polylip.client.mix import AudioBed
from polylip.client.pulse import Pulse
from polylip.client.render import Renderer
from polylip.client.report import write_report
from polylip.client.results import FaceSample, Report, SegmentResult, Status, VoiceUsed
from polylip.client.ring import FrameRing
from polylip.client.speaker import SpeakerChooser, parse_wish
from polylip.client.speech import SpeechBranch, SpeechWishes
from polylip.client.subtitles import write_subtitles
from polylip.client.timeline import Timeline
from polylip.client.triton import TritonClient
from polylip.client.visibility import frames_around
from polylip.client.wire import Tensor, row, rows
from polylip.serving import engines
from polylip.serving.isochrony import Fit

ENGINE_MODELS = ("transcribe", "translate", "synthesize", "detect", "lips")
STAND_INS = {"synthesize": "espeak-ng", "lips": "onnxruntime"}  # rules, no trained networks
CHECK_TIMEOUT_S = 60.0  # the first request after a cold start may still load an engine


@dataclass(frozen=True)
class DubOptions:
    """What to dub and how."""

    input: Path
    output: Path
    target_language: str  # ISO 639-1
    source_language: str = "auto"
    url: str | None = None  # host:port of a running server; None starts one for the job
    profile: str = "lite"  # of the server to start; with a url only a name in the report
    face: str | None = None  # the face to re-lip: its id in report.json, or a place: "0.7,0.4"; None: who speaks
    fit: Fit = Fit.TIGHT
    voice_consent: bool = False  # the speaker agreed to have their voice cloned; without it a stock voice speaks
    glossary: str = ""  # lines "term" (kept) or "term = translation" (forced)
    mark: bool = True  # as AI-dubbed, for machines

    @property
    def wishes(self) -> SpeechWishes:
        return SpeechWishes(self.source_language, self.target_language, self.fit, self.voice_consent, self.glossary)


@dataclass(frozen=True)
class Progress:
    """Where a job is."""

    stage: str
    frames: int = 0
    frames_total: int | None = None  # None while unknown


@dataclass(frozen=True)
class DubResult:
    """What a job left behind."""

    report: Report
    video: Path
    files: list[Path] = field(default_factory=list)  # report, subtitles, contact sheet
    face_samples: list[FaceSample] = field(default_factory=list)  # spread over the whole video

    @property
    def complete(self) -> bool:
        """Whether no segment failed."""
        return not missing_segments(self.report)


OnProgress = Callable[[Progress], None]


def missing_segments(report: Report) -> list[int]:
    """Numbers (from 1) of the segments that have no dub because the server failed."""
    return _failed(report.segments)


def _failed(segments: list[SegmentResult]) -> list[int]:
    return [i for i, segment in enumerate(segments, 1) if segment.status is Status.ERROR]


async def dub(options: DubOptions, on_progress: OnProgress = lambda progress: None) -> DubResult:
    """Dub a file. Raises InputError (nothing is written); server failures end in a partial result instead."""
    _check_options(options)
    identity = await asyncio.to_thread(prepare_identity) if options.mark else None
    info = await asyncio.to_thread(probe_media, options.input)
    writer = await asyncio.to_thread(MediaWriter, options.output, info, _tags(options))
    try:
        async with _server_url(options, on_progress) as url, TritonClient(url) as client:
            started = time.monotonic()
            await _check_languages(client, options)
            branches = await _run(client, options, info, writer, on_progress)
            report = _report(options, info, branches, time.monotonic() - started)
            report.versions["tritonserver"] = client.server_version
            report.engines = {model: await client.engine(model) for model in ENGINE_MODELS}
        on_progress(Progress("writing", report.frames, report.frames))
        result = await asyncio.to_thread(_finish, options, writer, report, branches.renderer.samples, identity)
    finally:
        await asyncio.to_thread(writer.discard)
    return result


@dataclass
class _Branches:
    """The parts of a finished run that the report is made from."""

    timeline: Timeline
    ring: FrameRing
    faces: FacesBranch
    speech: SpeechBranch
    renderer: Renderer
    damaged_packets: int  # of picture and sound


async def _run(
    client: TritonClient, options: DubOptions, info: MediaInfo, writer: MediaWriter, on_progress: OnProgress
) -> _Branches:
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
    return _Branches(timeline, ring, faces, speech, renderer, renderer.counts.damaged_packets + sound.damaged)


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


async def _check_languages(client: TritonClient, options: DubOptions) -> None:
    """One tiny request through the whole speech branch: an unsupported pair is refused before any work."""
    inputs: dict[str, Tensor | str] = {
        "AUDIO": np.zeros(1, np.float32),
        "SOURCE_LANGUAGE": options.source_language,
        "TARGET_LANGUAGE": options.target_language,
        "KNOWN_TEXT": "yes",
    }
    async with client.stream() as stream:
        try:
            async for answer in await stream.submit("speech", rows(inputs), CHECK_TIMEOUT_S):
                if (chunk := row(answer))["STATUS"][0] in (engines.Status.UNSUPPORTED, engines.Status.ERROR):
                    raise InputError(str(chunk["STATUS_MESSAGE"][0]))
        except ServerError as error:
            raise InputError(str(error)) from None


def _check_options(options: DubOptions) -> None:
    """What can be seen without opening anything."""
    target_tag(options.target_language)
    source_tag(options.source_language)
    if options.url is not None and not re.fullmatch(r"[^/\s]+:\d{1,5}", options.url):
        raise InputError(f"{options.url!r} is not host:port, for example: 127.0.0.1:8001")
    parse_wish(options.face)
    if options.output.exists() and options.input.exists() and options.output.samefile(options.input):
        raise InputError(f"{options.output}: output and input are the same file; choose another output")


def _tags(options: DubOptions) -> dict[str, str]:
    """Of the container; written before the server is asked for its engines."""
    generative = options.profile != "lite" or options.url is not None
    return container_tags(options.target_language, generative=generative) if options.mark else {}


def _mark(video: Path, options: DubOptions, report: Report, identity: Identity | None) -> None:
    if identity is None:
        drop_sidecar(video)
        return
    cloned = any(segment.voice is VoiceUsed.CLONED for segment in report.segments)
    facts = DubFacts(
        report.source_language,
        report.target_language,
        dubbed_segments=sum(segment.status is Status.DUBBED for segment in report.segments),
        lips_rendered=report.frames_lipsynced > 0,
        voice=VoiceKind.CLONED_WITH_CONSENT if cloned else VoiceKind.STOCK,
        generative=any(report.engines[model] != stand_in for model, stand_in in STAND_INS.items()),
        profile=report.profile,
        engines=tuple(filter(None, report.engines.values())),
    )
    report.warnings += mark_video(video, options.input, facts, identity)


def _finish(
    options: DubOptions, writer: MediaWriter, report: Report, samples: list[FaceSample], identity: Identity | None
) -> DubResult:
    """Move the video into place and write its companions beside it."""
    video = options.output
    if missing_segments(report):
        video = options.output.with_suffix(f".partial{options.output.suffix}")
    writer.finish(video)
    report.output = str(video)
    _mark(video, options, report, identity)
    folder = video.parent
    source, sheet = options.input.absolute(), folder / "contact_sheet.png"  # absolute: av takes names for URLs
    try:
        files = [
            write_report(report, folder / "report.json"),
            *write_subtitles(report.segments, video, report.source_language, report.target_language),
            write_contact_sheet(source, video, samples, report.segments, sheet, duration_s=report.duration_s),
        ]
    except OSError as error:
        raise InputError(f"{video} is written, but not what belongs beside it ({error.strerror}); make room") from None
    return DubResult(report, video, files, samples)


def _report(options: DubOptions, info: MediaInfo, run: _Branches, wall_s: float) -> Report:
    counts = run.renderer.counts
    duration_s = info.duration_s or run.renderer.position_ms / 1000
    return Report(
        profile=options.profile,
        input=str(options.input),
        output=str(options.output),
        source_language=run.speech.detected_language,
        target_language=options.target_language,
        duration_s=duration_s,
        frames=counts.frames,
        frames_lipsynced=counts.lipsynced,
        frames_without_face=counts.without_face,
        real_time_factor=wall_s / duration_s,
        wall_s=wall_s,
        av_offset_ms=run.renderer.offsets.offset_ms,
        segments=run.timeline.results,
        versions={
            "polylip": version("polylip"),
            "python": platform.python_version(),
            "av": version("av"),
            "numpy": version("numpy"),
        },
        faces=run.faces.tracks,
        face_spans_hidden=run.renderer.hidden.spans,
        counters={
            "key_frames": run.faces.keys.total,
            "dense_key_frames": run.faces.keys.dense,
            "cuts": run.faces.cuts,
            "lipsync_calls": counts.lips_calls,
            "lipsync_frames": counts.lips_frames,
            "failed_lipsync_calls": counts.lips_failures,
            "failed_faces_chunks": run.faces.failed_chunks,
            "ring_capacity": run.ring.capacity,
            "ring_high_water": run.ring.high_water,
        },
        seam=run.renderer.quality.seam,
        seam_worst=run.renderer.quality.seam_worst,
        flicker=run.renderer.quality.flicker,
        flicker_worst=run.renderer.quality.flicker_worst,
        warnings=_warnings(options, run, duration_s),
    )


def _weights_warning(options: DubOptions) -> list[str]:
    """Of a server that was started for the job; what a running one serves cannot be seen from here."""
    if options.url is not None:
        return []
    from polylip.serving.doctor import generated_networks  # noqa: PLC0415  needs the extra `serve`

    names = generated_networks(options.profile)
    return [f"generated weights in {' and '.join(names)}: the picture means nothing"] if names else []


def _warnings(options: DubOptions, run: _Branches, duration_s: float) -> list[str]:
    counts, segments = run.renderer.counts, run.timeline.results
    warnings = []
    if not segments:
        warnings.append("no speech found: picture and sound pass through unchanged")
    elif counts.without_face == counts.frames:
        warnings.append("no face found: only the sound is dubbed, the picture passes through unchanged")
    warnings += _weights_warning(options)
    if options.voice_consent and any(s.voice is VoiceUsed.STOCK for s in segments):
        warnings.append(
            "a stock voice speaks where the server's voice cannot clone or has heard less than 1 s of speech"
        )
    unsupported = [segment for segment in segments if segment.status is Status.UNSUPPORTED]
    if unsupported:
        warnings.append(f"{len(unsupported)} segments keep their original sound: {unsupported[0].message}")
    wish = parse_wish(options.face)
    if wish is not None and wish.track_id is not None and wish.track_id not in [t.id for t in run.faces.tracks]:
        warnings.append(f"--face {options.face}: no face has this number, so the one who speaks was taken")
    missing = _failed(segments)
    if missing:
        reason = segments[missing[0] - 1].message
        warnings.append(
            f"segments without a dub: {', '.join(map(str, missing))}, their original sound passes ({reason})"
        )
    if run.damaged_packets:
        warnings.append(f"the input is damaged: {run.damaged_packets} packets of picture or sound were skipped")
    if run.faces.failed_chunks or counts.lips_failures:
        failed = run.faces.failed_chunks + counts.lips_failures
        warnings.append(f"{failed} picture requests failed: the frames they cover pass unchanged")
    over_ms = max([s.dub_end_ms or 0 for s in segments], default=0) - duration_s * 1000
    if over_ms > 1:
        warnings.append(f"the last dub runs {over_ms:.0f} ms past the end of the picture: no word is cut")
    return warnings
