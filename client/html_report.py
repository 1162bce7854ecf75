"""A finished job as one HTML page that needs nothing else: figures, Gantt charts, every segment, pictures.

No scripts, no requests: styles are inline and pictures are data URIs. Every text is escaped, for texts come from
recognisers. Light or dark as the reader's system is, and fit to be printed. See docs/reports.md.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from polylip.client.files import write_atomic
from polylip.client.gantt import LIMIT, gain_sentence, lay_out
from polylip.client.gantt_svg import plain, svg
from polylip.client.html_style import STYLE
from polylip.client.results import Report, SegmentResult, Status
from polylip.client.trace import Figures, Stage, Trace, spread

MAX_IMAGE_BYTES = 8 << 20  # of one picture: a page must still open
MAX_SPANS = 100  # hidden lips listed; the rest are in report.json
UNKNOWN = "\N{EN DASH}"
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # for the browser: nothing is loaded or run
TIMES = {
    "queue": "queue",
    "first_audio": "first audio",
    "speech": "speech",
    "first_frame": "first frame",
    "lipsync": "lip sync",
    "total": "total",
}  # field of `Latency` -> heading


def write_html_report(report: Report, trace: Trace | None, path: Path, images: Mapping[str, Path]) -> Path:
    """Write the page and return its path. `images` are shown under their names; what is not there is left out."""
    return write_atomic(path, page(report, trace, images).encode())


def page(report: Report, trace: Trace | None, images: Mapping[str, Path]) -> str:
    """The whole page."""
    name = Path(report.output).name
    body = [
        f"<h1>{_text(name)}</h1>",
        f"<p class='lead'>{_text(Path(report.input).name)}, {_text(report.source_language)} to "
        f"{_text(report.target_language)}, profile {_text(report.profile)}</p>",
        _warnings([*_stand_ins(report), *report.warnings]),
        _summary(report, trace),
        *([] if trace is None else _charts(report, trace)),
        _segments(report, trace),
        *(_picture(caption, image) for caption, image in images.items()),
        _hidden(report),
        "<section><h2>Details</h2><div class='columns'>",
        _pairs("Engines", report.engines),
        _pairs("Counters", {key: str(value) for key, value in report.counters.items()}),
        _pairs("Picture", _picture_figures(report)),
        _pairs("Versions", report.versions),
        "</div></section>",
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f"<html lang='en'><head><meta charset='utf-8'><title>{plain(name)}</title>",
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<style>{STYLE}</style></head><body><main>",
            *filter(None, body),
            "</main></body></html>\n",
        ]
    )


def _text(text: str) -> str:
    """Foreign text, in an element that keeps its reading order to itself."""
    return f"<bdi>{plain(text)}</bdi>"


def _number(value: float | None, form: str = ".0f", unit: str = "") -> str:
    """A figure, or a dash for what is unknown."""
    return f"{value:{form}}{unit}" if value is not None and math.isfinite(value) else UNKNOWN


def _stand_ins(report: Report) -> list[str]:
    """What has no trained network behind it, so that nobody takes its figures for those of one."""
    from polylip.client.outcome import STAND_INS  # noqa: PLC0415  outcome writes this page

    used = [f"{model} ({engine})" for model, engine in STAND_INS.items() if report.engines.get(model) == engine]
    return [f"rules stand in for trained networks in {' and '.join(used)}"] if used else []


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return "<ul class='warnings'>" + "".join(f"<li>{_text(warning)}</li>" for warning in warnings) + "</ul>"


def _summary(report: Report, trace: Trace | None) -> str:
    """The figures that say how the job went."""
    ends = Counter(segment.status for segment in report.segments)
    how = ", ".join(f"{ends[status]} {str(status).replace('_', ' ')}" for status in Status if ends[status])
    facts = [
        ("segments", str(len(report.segments)), how or "no speech"),
        ("length", _number(report.duration_s, ".1f", " s"), f"{report.frames} frames"),
        (
            "worked for",
            _number(report.wall_s, ".1f", " s"),
            f"real-time factor {_number(report.real_time_factor, '.2f')}",
        ),
        ("lips", str(report.frames_lipsynced), f"frames; {report.frames_without_face} without a face"),
        ("A/V offset", _number(report.av_offset_ms, "+.0f", " ms"), "picture behind sound (+) or before it"),
    ]
    if trace is not None:
        every = trace.all_figures()
        for name, values in (
            ("first audio", [figures.first_audio_s for figures in every]),
            ("first mouth", [figures.first_mouth_s for figures in every]),
        ):
            known = spread(values)
            unit = f"median, after the person stops; 95 %: {_number(known['p95'], '.2f', ' s')}"
            facts.append((name, _number(known["p50"], ".2f", " s"), unit))
    cards = "".join(f"<div><dt>{name}</dt><dd><b>{plain(v)}</b> {plain(unit)}</dd></div>" for name, v, unit in facts)
    return f"<dl class='cards'>{cards}</dl>"


def _charts(report: Report, trace: Trace) -> list[str]:
    """All shown segments on one axis, then each on its own."""
    overview = lay_out(trace, report.segments, close_up=False)
    if not overview.shown:
        return []
    known = set(trace.segment_ids)
    numbered = [(number, s) for number, s in enumerate(report.segments, 1) if s.id in known][-LIMIT:]
    left_out = overview.of - overview.shown
    note = f"The last {overview.shown} of {overview.of} segments are drawn." if left_out else ""
    parts = [
        "<section><h2>What ran when</h2>",
        f"<p>{note} {plain(_ahead(trace.all_figures()))}</p>",
        _scrolled(svg(overview, "Every stage of the segments on one time axis")),
        "</section><section><h2>Segment by segment</h2>",
    ]
    for number, segment in numbered:
        chart = lay_out(trace, report.segments, chosen=[segment.id], close_up=False, legend=False)
        parts += [
            f"<h3>{number} {_text(segment.target_text or segment.source_text)}</h3>",
            f"<p>{plain(_told(trace.figures(segment.id)))}</p>",
            _scrolled(svg(chart, f"Every stage of segment {number}")),
        ]
    return [*parts, "</section>"]


def _ahead(every: Sequence[Figures]) -> str:
    """How much of the picture's work was done while sound was still coming, in a sentence."""
    faces_s, lips_s = (sum(f.stages_s.get(stage, 0.0) for f in every) for stage in (Stage.FACES, Stage.LIPS))
    early_s, overlap_s = sum(f.early_faces_s for f in every), sum(f.overlap_s for f in every)
    return (
        f"Of {faces_s:.2f} s of finding faces, {early_s:.2f} s were done while the person still spoke; "
        f"of {lips_s:.2f} s of making lips, {overlap_s:.2f} s while the voice still streamed in."
    )


def _told(figures: Figures) -> str:
    """Of one segment, in a sentence."""
    facts = [
        f"{name} {value:+.2f} s"
        for name, value in (
            ("first audio", figures.first_audio_s),
            ("first mouth", figures.first_mouth_s),
            ("all done", figures.last_s),
        )
        if value is not None
    ]
    after = f"After the person stopped: {', '.join(facts)}. " if facts else ""
    return f"{after}{_ahead([figures])} {gain_sentence(figures)}"


def _scrolled(content: str) -> str:
    return f"<div class='wide'>{content}</div>"


def _segments(report: Report, trace: Trace | None) -> str:
    """Every segment, however many there are."""
    if not report.segments:
        return ""
    figures = {} if trace is None else {f.segment_id: f for f in trace.all_figures()}
    offsets = any(hasattr(segment, "av_offset_ms") for segment in report.segments)
    heads = ["#", "source s", "dub s", "text", "status", "rate", "fit ms", *(f"{name} ms" for name in TIMES.values())]
    heads += ["A/V ms"] if offsets else []
    heads += ["audio s", "mouth s", "overlap s", "gain"] if trace is not None else []
    rows = (
        _row(number, segment, offsets, trace is not None, figures.get(segment.id))
        for number, segment in enumerate(report.segments, 1)
    )
    head = "".join(f"<th scope='col'>{head}</th>" for head in heads)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table>"
    note = (
        "Source and dub: seconds of the video. Fit: spoken of the time there was. Queue to total: milliseconds of wall "
        "time. Audio and mouth: seconds from the end of the source speech to the first of them."
    )
    return f"<section><h2>Segments</h2><p>{note}</p>{_scrolled(table)}</section>"


def _row(number: int, segment: SegmentResult, offsets: bool, traced: bool, figures: Figures | None) -> str:
    why = f"{segment.error_code}: {segment.message}" if segment.error_code else segment.message
    texts = [segment.source_text, segment.target_text, why]
    kinds = ("heard", "said", "why")
    text = "".join(f"<p class='{kind}' dir='auto'>{plain(t)}</p>" for kind, t in zip(kinds, texts, strict=True) if t)
    fit = segment.fit
    cells = [
        f"{segment.rate:.2f}" if segment.status is Status.DUBBED else UNKNOWN,
        f"{fit.spoken_ms:.0f} of {fit.slot_ms}" if fit is not None and fit.spoken_ms else UNKNOWN,
        *(_number(getattr(segment.latency_ms, name) or None) for name in TIMES),  # 0: it never ran
    ]
    if offsets:
        cells.append(_number(getattr(segment, "av_offset_ms", None), "+.0f"))
    if traced:
        names = ("first_audio_s", "first_mouth_s", "overlap_s", "gain")
        cells += [UNKNOWN if figures is None else _number(getattr(figures, name), ".2f") for name in names]
    return (
        f"<tr><th scope='row'>{number}</th><td>{_stretch(segment.start_ms, segment.end_ms)}</td>"
        f"<td>{_stretch(segment.dub_start_ms, segment.dub_end_ms)}</td><td class='text'>{text}</td>"
        f"<td class='{plain(segment.status)}'>{plain(segment.status.replace('_', ' '))}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>\n"
    )


def _stretch(start_ms: float | None, end_ms: float | None) -> str:
    return UNKNOWN if start_ms is None or end_ms is None else f"{start_ms / 1000:.2f}-{end_ms / 1000:.2f}"


def _picture(caption: str, path: Path) -> str:
    """A picture inside the page, or why it is not there."""
    heading = f"<h2>{_text(caption)}</h2>"
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_IMAGE_BYTES else b""
    except OSError as error:
        return f"<section>{heading}<p>{_text(path.name)} cannot be read ({plain(error.strerror or '')}).</p></section>"
    kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
    if kind is None:
        why = "is too large for a page" if size > MAX_IMAGE_BYTES else "is no PNG, JPEG or GIF"
        return f"<section>{heading}<p>{_text(path.name)} {why}; it is beside the video.</p></section>"
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return f'<section>{heading}<figure><img alt="{plain(caption)}" src="{source}"></figure></section>'


def _hidden(report: Report) -> str:
    """Where the lips stayed the source's own under a dub."""
    spans = report.face_spans_hidden
    if not spans:
        return ""
    shown = "".join(f"<li>{_stretch(s.start_ms, s.end_ms)} s: {plain(s.reason)}</li>" for s in spans[:MAX_SPANS])
    more = f"<p>{len(spans) - MAX_SPANS} more are in report.json.</p>" if len(spans) > MAX_SPANS else ""
    return f"<section><h2>Lips left as they were under a dub</h2><ul class='spans'>{shown}</ul>{more}</section>"


def _picture_figures(report: Report) -> dict[str, str]:
    return {
        "seam": f"{_number(report.seam, '.2f')} (95 %: {_number(report.seam_worst, '.2f')}) grey levels per pixel",
        "flicker": f"{_number(report.flicker, '.2f')} (95 %: {_number(report.flicker_worst, '.2f')}) of the source's",
        "faces": str(len(report.faces)),
    }


def _pairs(heading: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    return f"<div><h3>{heading}</h3><table class='pairs'>{''.join(_pair_rows(values.items()))}</table></div>"


def _pair_rows(items: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, value in items:
        yield f"<tr><th scope='row'>{plain(name.replace('_', ' '))}</th><td>{_text(value or UNKNOWN)}</td></tr>"
