"""A live job that has ended, as one HTML page: how it kept its time, what was left out, its charts and segments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polylip.client import html_parts
from polylip.client.files import write_atomic
from polylip.client.html_parts import UNKNOWN, Card, figure, isolated
from polylip.client.live.report import LiveReport
from polylip.client.trace import Trace

MAX_STEPS = 200  # of the ladder, listed; a job can run for days


def write_live_page(report: LiveReport, trace: Trace | None, path: Path) -> Path:
    """Write the page and return its path."""
    return write_atomic(path, live_page(report, trace).encode())


def live_page(report: LiveReport, trace: Trace | None) -> str:
    """The whole page."""
    name = _name(report.sink)
    lead = [
        isolated(_name(report.source)),
        f"{isolated(report.source_language)} to {isolated(report.target_language)}",
        f"profile {isolated(report.profile)}",
        f"live; ended: {isolated(report.ended)}",
    ]
    return html_parts.document(
        name,
        [
            html_parts.heading(name, lead),
            html_parts.warning_list([*html_parts.stand_in_warnings(report.engines), *report.warnings]),
            html_parts.cards([*_summary(report), *html_parts.delay_cards(trace)]),
            _ladder(report.ladder),
            html_parts.charts(report.segments, trace),
            html_parts.segment_table(report.segments, trace),
            html_parts.details(
                {
                    "Engines": report.engines,
                    "Counters": in_words(report.counters),
                    "Source: sound against picture": in_words(report.source_sync),
                    "Versions": report.versions,
                }
            ),
        ],
    )


def _name(place: str) -> str:
    """Of a file without its folders, of anything else as it is."""
    return place if "://" in place else Path(place).name


def _summary(report: LiveReport) -> list[Card]:
    lag, lips, offset = report.lag, report.first_frame_ms, report.av_offset_ms
    lags = f"{figure(lag['p50_ms'], '.0f', ' ms')} median, {figure(lag['worst_ms'], '.0f', ' ms')} at worst"
    grows = figure(lag["slope_ms_per_min"], "+z.1f", " ms per minute")
    late = report.counters.get("frames_without_lips_in_time", 0)
    return [
        html_parts.segments_card(report.segments),
        Card("length", figure(report.duration_s, ".1f", " s"), "of the source"),
        Card("delay", f"{report.delay_s:g} s", "from source to output, fixed"),
        Card("lag", figure(lag["p99_ms"], ".0f", " ms"), f"99 %; {lags}; slope {grows}"),
        Card(
            "first new lips",
            figure(lips["p50"], ".0f", " ms"),
            f"median, ready after the last word; 90 %: {figure(lips['p90'], '.0f', ' ms')}",
        ),
        Card(
            "A/V offset",
            figure(offset["p50"], ".0f", " ms"),
            f"size, median of the dubs; 99 %: {figure(offset['p99'], '.0f', ' ms')}",
        ),
        Card("ladder", str(len(report.ladder)), f"steps; {late} frames without lips in time"),
    ]


def _ladder(steps: list[dict[str, Any]]) -> str:
    """What was left out when, and why."""
    if not steps:
        return ""
    cut = f"The last {MAX_STEPS} of {len(steps)} steps. " if len(steps) > MAX_STEPS else ""
    rows = (
        f"<tr><td>{figure(step['at_s'], '.1f')}</td><td>{_level(step['from'])}</td><td>{_level(step['to'])}</td>"
        f"<td class='text'>{isolated(step['reason'])}</td></tr>\n"
        for step in steps[-MAX_STEPS:]
    )
    note = f"{cut}What was left out while the server was slow. At: seconds since the job began."
    table = html_parts.wide_table(["at s", "from", "to", "why"], rows)
    return f"<section><h2>The ladder</h2><p>{note}</p>{table}</section>"


def _level(name: str) -> str:
    return isolated(name.replace("_", " "))


def in_words(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """What a report nests, as names with values: a dash for what is unknown, floats with one decimal."""
    words: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            words |= in_words(value, f"{above}{key} ")
        else:
            words[f"{above}{key}"] = _word(value)
    return words


def _word(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    return f"{value:.1f}" if isinstance(value, float) else str(value)
