"""What a dubbing job leaves behind: the report with its warnings, the marked video and the files beside it."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from polylip.client.contact_sheet import write_contact_sheet
from polylip.client.errors import InputError
from polylip.client.gantt import write_gantt
from polylip.client.html_report import write_html_report
from polylip.client.marking import DubFacts, VoiceKind, container_tags, drop_sidecar, mark_video
from polylip.client.marking_keys import Identity
from polylip.client.media_in import MediaInfo
from polylip.client.options import DubOptions
from polylip.client.parts import PartsWriter
from polylip.client.pipeline import Pipeline
from polylip.client.report import write_report
from polylip.client.results import STAND_INS, FaceSample, Report, SegmentResult, Status, VoiceUsed
from polylip.client.speaker import parse_wish
from polylip.client.subtitles import RENDERERS, UNKNOWN_LANGUAGE, write_subtitles


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


def missing_segments(report: Report) -> list[int]:
    """Numbers (from 1) of the segments that have no dub because the server failed."""
    return _failed(report.segments)


def _failed(segments: list[SegmentResult]) -> list[int]:
    return [i for i, segment in enumerate(segments, 1) if segment.status is Status.ERROR]


def container_marks(options: DubOptions) -> dict[str, str]:
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


def finish(
    options: DubOptions, writer: PartsWriter, report: Report, run: Pipeline, identity: Identity | None
) -> DubResult:
    """Move the video into place and write its companions beside it."""
    video = _partial(options.output) if missing_segments(report) else options.output
    writer.finish(video)
    report.output = str(video)
    _mark(video, options, report, identity)
    folder, samples = video.parent, run.renderer.samples.kept
    source, sheet = options.input.absolute(), folder / "contact_sheet.png"  # absolute: av takes names for URLs
    try:
        subtitles = write_subtitles(report.segments, video, report.source_language, report.target_language)
        files = [
            write_report(report, folder / "report.json"),
            *subtitles,
            write_contact_sheet(source, video, samples, report.segments, sheet, duration_s=report.duration_s),
            write_gantt(run.trace, report.segments, folder / "gantt.png"),
            write_html_report(report, run.trace, folder / "report.html", {"Contact sheet": sheet}),
        ]
    except OSError as error:
        raise InputError(f"{video} is written, but not what belongs beside it ({error.strerror}); make room") from None
    if options.resume and video == options.output:
        _remove_partial(video, subtitles)
    return DubResult(report, video, files, samples)


def _partial(output: Path) -> Path:
    """The video's name where segments are missing in it."""
    return output.with_suffix(f".partial{output.suffix}")


def _remove_partial(output: Path, subtitles: list[Path]) -> None:
    """What an earlier run wrote that lost its server; it may have ended before a language was heard."""
    video = _partial(output)
    if not video.is_file():
        return
    endings = [path.name.removeprefix(output.stem) for path in subtitles]
    endings += [f".{UNKNOWN_LANGUAGE}.{extension}" for extension in RENDERERS]
    with suppress(OSError):  # the dub is done all the same
        for ending in endings:
            video.with_name(video.stem + ending).unlink(missing_ok=True)
        drop_sidecar(video)
        video.unlink()


def make_report(
    options: DubOptions, info: MediaInfo, run: Pipeline, wall_s: float, engines: dict[str, str], damaged_packets: int
) -> Report:
    counts, offsets = run.renderer.counts, run.renderer.offsets
    for segment in run.timeline.results:
        segment.av_offset_ms = offsets.segment_ms(segment.id)
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
        av_offset_ms=offsets.offset_ms,
        av_offsets={
            "segments": asdict(offsets.segments),
            "windows": asdict(offsets.windows),
            "source": asdict(run.renderer.source_sync.windows),
        },
        trace=run.trace.to_dict(),
        segments=run.timeline.results,
        versions={
            "polylip": version("polylip"),
            "python": platform.python_version(),
            "av": version("av"),
            "numpy": version("numpy"),
        },
        engines=engines,
        faces=run.faces.tracks,
        face_spans_hidden=run.renderer.hidden.spans,
        counters=run.counters,
        seam=run.renderer.quality.seam,
        seam_worst=run.renderer.quality.seam_worst,
        flicker=run.renderer.quality.flicker,
        flicker_worst=run.renderer.quality.flicker_worst,
        warnings=_warnings(options, run, duration_s, engines, damaged_packets),
    )


def _weights_warning(options: DubOptions) -> list[str]:
    """Of a server that was started for the job; what a running one serves cannot be seen from here."""
    if options.url is not None:
        return []
    from polylip.serving.doctor import generated_networks  # noqa: PLC0415  needs the extra `serve`

    names = generated_networks(options.profile)
    return [f"generated weights in {' and '.join(names)}: the picture means nothing"] if names else []


def _warnings(
    options: DubOptions, run: Pipeline, duration_s: float, engines: dict[str, str], damaged_packets: int
) -> list[str]:
    counts, segments = run.renderer.counts, run.timeline.results
    warnings = []
    if not segments:
        warnings.append("no speech found: picture and sound pass through unchanged")
    elif counts.without_face == counts.frames:
        warnings.append("no face found: only the sound is dubbed, the picture passes through unchanged")
    warnings += _weights_warning(options)
    if options.voice_consent and any(s.voice is VoiceUsed.STOCK for s in segments):
        engine = engines["synthesize"] or "the server's voice"
        warnings.append(f"a stock voice speaks where {engine} cannot clone or has heard less than 1 s of speech")
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
    if damaged_packets:
        warnings.append(f"the input is damaged: {damaged_packets} packets of picture or sound were skipped")
    if run.faces.failed_chunks or counts.lips_failures:
        failed = run.faces.failed_chunks + counts.lips_failures
        warnings.append(f"{failed} picture requests failed: the frames they cover pass unchanged")
    over_ms = max([s.dub_end_ms or 0 for s in segments], default=0) - duration_s * 1000
    if over_ms > 1:
        warnings.append(f"the last dub runs {over_ms:.0f} ms past the end of the picture: no word is cut")
    return warnings
