"""A finished job as one HTML page that needs nothing else: figures, Gantt charts, every segment, pictures.

Pictures are data URIs. See docs/reports.md.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from polylip.client import html_parts
from polylip.client.files import write_atomic
from polylip.client.gantt_svg import plain
from polylip.client.html_parts import Card, figure, isolated, stretch
from polylip.client.results import Report
from polylip.client.trace import Trace

MAX_IMAGE_BYTES = 8 << 20  # of one picture: a page must still open
MAX_SPANS = 100  # hidden lips listed; the rest are in report.json
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


def write_html_report(report: Report, trace: Trace | None, path: Path, images: Mapping[str, Path]) -> Path:
    """Write the page and return its path. `images` are shown under their names; what is not there is left out."""
    return write_atomic(path, page(report, trace, images).encode())


def page(report: Report, trace: Trace | None, images: Mapping[str, Path]) -> str:
    """The whole page."""
    name = Path(report.output).name
    lead = [
        isolated(Path(report.input).name),
        f"{isolated(report.source_language)} to {isolated(report.target_language)}",
        f"profile {isolated(report.profile)}",
    ]
    return html_parts.document(
        name,
        [
            html_parts.heading(name, lead),
            html_parts.warning_list([*html_parts.stand_in_warnings(report.engines), *report.warnings]),
            html_parts.cards([*_summary(report), *html_parts.delay_cards(trace)]),
            html_parts.charts(report.segments, trace),
            html_parts.segment_table(report.segments, trace),
            *(_picture(caption, image) for caption, image in images.items()),
            _hidden(report),
            html_parts.details(
                {
                    "Engines": report.engines,
                    "Counters": {key: str(value) for key, value in report.counters.items()},
                    "Picture": _picture_figures(report),
                    "Versions": report.versions,
                }
            ),
        ],
    )


def _summary(report: Report) -> list[Card]:
    speed = f"real-time factor {figure(report.real_time_factor, '.2f')}"
    return [
        html_parts.segments_card(report.segments),
        Card("length", figure(report.duration_s, ".1f", " s"), f"{report.frames} frames"),
        Card("worked for", figure(report.wall_s, ".1f", " s"), speed),
        Card("lips", str(report.frames_lipsynced), f"frames; {report.frames_without_face} without a face"),
        Card("A/V offset", figure(report.av_offset_ms, "+.0f", " ms"), "picture behind sound (+) or before it"),
    ]


def _picture(caption: str, path: Path) -> str:
    """A picture inside the page, or why it is not there."""
    heading = f"<h2>{isolated(caption)}</h2>"
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_IMAGE_BYTES else b""
    except OSError as error:
        why = f"cannot be read ({plain(error.strerror or '')})"
        return f"<section>{heading}<p>{isolated(path.name)} {why}.</p></section>"
    kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
    if kind is None:
        why = "is too large for a page" if size > MAX_IMAGE_BYTES else "is no PNG, JPEG or GIF"
        return f"<section>{heading}<p>{isolated(path.name)} {why}; it is beside the video.</p></section>"
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return f'<section>{heading}<figure><img alt="{plain(caption)}" src="{source}"></figure></section>'


def _hidden(report: Report) -> str:
    """Where the lips stayed the source's own under a dub."""
    spans = report.face_spans_hidden
    if not spans:
        return ""
    shown = "".join(f"<li>{stretch(s.start_ms, s.end_ms)} s: {plain(s.reason)}</li>" for s in spans[:MAX_SPANS])
    more = f"<p>{len(spans) - MAX_SPANS} more are in report.json.</p>" if len(spans) > MAX_SPANS else ""
    return f"<section><h2>Lips left as they were under a dub</h2><ul class='spans'>{shown}</ul>{more}</section>"


def _picture_figures(report: Report) -> dict[str, str]:
    return {
        "seam": f"{figure(report.seam, '.2f')} (95 %: {figure(report.seam_worst, '.2f')}) grey levels per pixel",
        "flicker": f"{figure(report.flicker, '.2f')} (95 %: {figure(report.flicker_worst, '.2f')}) of the source's",
        "faces": str(len(report.faces)),
    }
