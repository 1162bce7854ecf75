"""What the HTML pages of jobs are made of: the document's frame, cards, warnings, Gantt charts, tables of segments.

A page has no scripts and makes no requests. Every text is escaped, for texts come from recognisers. Light or dark as
the reader's system is, and fit to be printed. See docs/reports.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from polylip.client.gantt import LIMIT, gain_sentence, lay_out
from polylip.client.gantt_svg import plain, svg
from polylip.client.html_style import STYLE
from polylip.client.results import STAND_INS, SegmentResult, Status
from polylip.client.trace import Figures, Stage, Trace, spread

UNKNOWN = "\N{EN DASH}"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # for the browser: nothing is loaded or run
TIMES = {
    "queue": "queue",
    "first_audio": "first audio",
    "speech": "speech",
    "first_frame": "first frame",
    "lipsync": "lip sync",
    "total": "total",
}  # field of `Latency` -> heading
FIGURES = {"first_audio_s": "audio s", "first_mouth_s": "mouth s", "overlap_s": "overlap s", "gain": "gain"}


class Card(NamedTuple):
    """One of the figures that a page begins with. Plain texts."""

    name: str
    value: str
    note: str


def document(title: str, body: Iterable[str]) -> str:
    """The whole page; empty parts of `body` are left out."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f"<html lang='en'><head><meta charset='utf-8'><title>{plain(title)}</title>",
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<style>{STYLE}</style></head><body><main>",
            *filter(None, body),
            "</main></body></html>\n",
        ]
    )


def isolated(text: str) -> str:
    """Foreign text, in an element that keeps its reading order to itself."""
    return f"<bdi>{plain(text)}</bdi>"


def figure(value: float | None, form: str = ".0f", unit: str = "") -> str:
    """A figure, or a dash for what is unknown."""
    return f"{value:{form}}{unit}" if value is not None and math.isfinite(value) else UNKNOWN


def stretch(start_ms: float | None, end_ms: float | None) -> str:
    """From when to when, in seconds."""
    return UNKNOWN if start_ms is None or end_ms is None else f"{start_ms / 1000:.2f}-{end_ms / 1000:.2f}"


def heading(title: str, lead: Sequence[str]) -> str:
    """The page's title, and in a line what it is about."""
    return f"<h1>{isolated(title)}</h1>\n<p class='lead'>{', '.join(lead)}</p>"


def stand_in_warnings(engines: Mapping[str, str]) -> list[str]:
    """What has no trained network behind it, so that nobody takes its figures for those of one."""
    used = [f"{model} ({engine})" for model, engine in STAND_INS.items() if engines.get(model) == engine]
    return [f"rules stand in for trained networks in {' and '.join(used)}"] if used else []


def warning_list(warnings: Sequence[str]) -> str:
    """Empty where there is nothing to warn of."""
    if not warnings:
        return ""
    return "<ul class='warnings'>" + "".join(f"<li>{isolated(warning)}</li>" for warning in warnings) + "</ul>"


def cards(shown: Iterable[Card]) -> str:
    """The figures that say how the job went."""
    parts = (f"<div><dt>{plain(c.name)}</dt><dd><b>{plain(c.value)}</b> {plain(c.note)}</dd></div>" for c in shown)
    return f"<dl class='cards'>{''.join(parts)}</dl>"


def segments_card(segments: Sequence[SegmentResult]) -> Card:
    """How many there are, and how they ended."""
    ends = {status: sum(segment.status is status for segment in segments) for status in Status}
    how = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in ends.items() if count)
    return Card("segments", str(len(segments)), how or "no speech")


def delay_cards(trace: Trace | None) -> list[Card]:
    """First audio and first mouth after the person stops; none without a trace."""
    if trace is None:
        return []
    every, found = trace.all_figures(), []
    for name, values in (
        ("first audio", [figures.first_audio_s for figures in every]),
        ("first mouth", [figures.first_mouth_s for figures in every]),
    ):
        known = spread(values)
        note = f"median, after the person stops; 95 %: {figure(known['p95'], '.2f', ' s')}"
        found.append(Card(name, figure(known["p50"], ".2f", " s"), note))
    return found


def charts(segments: Sequence[SegmentResult], trace: Trace | None) -> str:
    """All shown segments on one axis, then each on its own; empty where nothing was traced."""
    if trace is None:
        return ""
    overview = lay_out(trace, segments, close_up=False)
    if not overview.shown:
        return ""
    known = set(trace.segment_ids)
    numbered = [(number, s) for number, s in enumerate(segments, 1) if s.id in known][-LIMIT:]
    left_out = overview.of - overview.shown
    note = f"The last {overview.shown} of {overview.of} segments are drawn." if left_out else ""
    parts = [
        "<section><h2>What ran when</h2>",
        f"<p>{note} {plain(_ahead(trace.all_figures()))}</p>",
        _scrolled(svg(overview, "Every stage of the segments on one time axis")),
        "</section><section><h2>Segment by segment</h2>",
    ]
    for number, segment in numbered:
        chart = lay_out(trace, segments, chosen=[segment.id], close_up=False, legend=False)
        parts += [
            f"<h3>{number} {isolated(segment.target_text or segment.source_text)}</h3>",
            f"<p>{plain(_told(trace.figures(segment.id)))}</p>",
            _scrolled(svg(chart, f"Every stage of segment {number}")),
        ]
    return "\n".join([*parts, "</section>"])


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


def segment_table(segments: Sequence[SegmentResult], trace: Trace | None) -> str:
    """Every segment, however many there are; empty without any."""
    if not segments:
        return ""
    figures = {} if trace is None else {f.segment_id: f for f in trace.all_figures()}
    live = any(segment.first_frame_after_ms is not None for segment in segments)
    heads = ["#", "source s", "dub s", "text", "status", "rate", "fit ms", *(f"{name} ms" for name in TIMES.values())]
    heads += ["new lips ms"] if live else []
    heads += ["A/V ms", *(FIGURES.values() if trace is not None else ())]
    rows = []
    for number, segment in enumerate(segments, 1):
        cells = _cells(segment)
        cells += [figure(segment.first_frame_after_ms)] if live else []
        cells.append(figure(segment.av_offset_ms, "+.0f"))
        if trace is not None:
            own = figures.get(segment.id)
            cells += [figure(None if own is None else getattr(own, name), ".2f") for name in FIGURES]
        rows.append(f"<tr><th scope='row'>{number}</th>{_first_cells(segment)}{_data(cells)}</tr>\n")
    note = (
        "Source and dub: seconds of the video. Fit: spoken of the time there was. Queue to total: milliseconds of wall "
        "time. Audio and mouth: seconds from the end of the source speech to the first of them."
    )
    if live:
        note += " New lips: from its last word to its first frame with them being ready."
    return f"<section><h2>Segments</h2><p>{note}</p>{wide_table(heads, rows)}</section>"


def _first_cells(segment: SegmentResult) -> str:
    """When, what was said, and how it ended."""
    why = f"{segment.error_code}: {segment.message}" if segment.error_code else segment.message
    texts = {"heard": segment.source_text, "said": segment.target_text, "why": why}
    text = "".join(f"<p class='{kind}' dir='auto'>{plain(text)}</p>" for kind, text in texts.items() if text)
    return (
        f"<td>{stretch(segment.start_ms, segment.end_ms)}</td>"
        f"<td>{stretch(segment.dub_start_ms, segment.dub_end_ms)}</td><td class='text'>{text}</td>"
        f"<td class='{plain(segment.status)}'>{plain(segment.status.replace('_', ' '))}</td>"
    )


def _cells(segment: SegmentResult) -> list[str]:
    fit = segment.fit
    return [
        f"{segment.rate:.2f}" if segment.status is Status.DUBBED else UNKNOWN,
        f"{fit.spoken_ms:.0f} of {fit.slot_ms}" if fit is not None and fit.spoken_ms else UNKNOWN,
        *(figure(getattr(segment.latency_ms, name) or None) for name in TIMES),  # 0: it never ran
    ]


def _data(cells: Iterable[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)


def wide_table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """A table of whole `<tr>` elements that scrolls where the window is narrow."""
    head = "".join(f"<th scope='col'>{head}</th>" for head in heads)
    return _scrolled(f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table>")


def _scrolled(content: str) -> str:
    return f"<div class='wide'>{content}</div>"


def details(tables: Mapping[str, Mapping[str, str]]) -> str:
    """Names with their values under a heading each, side by side; what has none is left out."""
    parts = (_pairs(name, values) for name, values in tables.items() if values)
    return "\n".join(["<section><h2>Details</h2><div class='columns'>", *parts, "</div></section>"])


def _pairs(name: str, values: Mapping[str, str]) -> str:
    rows = (
        f"<tr><th scope='row'>{plain(key.replace('_', ' '))}</th><td>{isolated(value or UNKNOWN)}</td></tr>"
        for key, value in values.items()
    )
    return f"<div><h3>{plain(name)}</h3><table class='pairs'>{''.join(rows)}</table></div>"
