"""A finished `Report` as a file for machines (`report.json`) and as a short table for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polylip.client.files import write_atomic
from polylip.client.results import Report, SegmentResult, Status

DECIMALS = 3  # of every float in the file: microseconds in a time of milliseconds, more would be noise
MAX_ROWS = 40  # segments shown in full: about two screens
EDGE_ROWS = 20  # segments shown at each end of a longer job
STYLES = {
    Status.DUBBED: "green",
    Status.NO_SPEECH: "dim",
    Status.TOO_LATE: "yellow",
    Status.UNSUPPORTED: "yellow",
    Status.ERROR: "red",
    Status.CAPTIONED: "yellow",
    Status.PASSED: "yellow",
}
LATENCY_COLUMNS = {
    "queue": "queue ms",
    "first_audio": "first audio ms",
    "speech": "speech ms",
    "lipsync": "lipsync ms",
    "total": "total ms",
}  # field of `Latency` -> heading


class Reportable(Protocol):
    """A report of a file's or of a live job."""

    def to_dict(self) -> dict[str, Any]: ...


def write_report(report: Reportable, path: Path) -> Path:
    """Write `report` as JSON."""
    return write_json(report.to_dict(), path)


def write_json(content: dict[str, Any], path: Path) -> Path:
    """UTF-8, floats rounded to 3 decimals, NaN and infinity as null."""
    text = json.dumps(_plain(content), ensure_ascii=False, indent=2, allow_nan=False)
    return write_atomic(path, f"{text}\n".encode())


def summary_table(report: Report) -> Table:
    """One row per segment: when, at which rate, both texts, how it ended, and how long each stage took."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("span s", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    table.add_column(
        f"{report.source_language} text\n→ {report.target_language} text", overflow="fold", ratio=1, min_width=12
    )
    table.add_column("status", no_wrap=True)
    for heading in LATENCY_COLUMNS.values():
        # One word a line, so that headings do not take the width from the texts.
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)

    count = len(report.segments)
    hidden = count - 2 * EDGE_ROWS if count > MAX_ROWS else 0
    for number, segment in enumerate(report.segments, start=1):
        if not hidden or number <= EDGE_ROWS or number > count - EDGE_ROWS:
            table.add_row(*_row(number, segment))
        elif number == EDGE_ROWS + 1:
            table.add_row("…", "", "", f"[dim]{hidden} segments left out[/dim]")
    return table


def print_summary(report: Report, console: Console) -> None:
    """Print the table, one line of totals and the warnings."""
    if report.segments:
        console.print(summary_table(report))
    else:
        console.print("No speech segments.")
    console.print(_totals(report), highlight=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)


def _row(number: int, segment: SegmentResult) -> list[str]:
    """The cells of one segment, in rich markup."""
    dubbed = segment.status is Status.DUBBED
    texts = [escape(segment.source_text)] if segment.source_text else []
    if segment.target_text:
        texts.append(f"[cyan]→ {escape(segment.target_text)}[/cyan]")
    if segment.message:
        texts.append(f"[dim]{escape(segment.message)}[/dim]")
    style = STYLES[segment.status]
    latencies = (getattr(segment.latency_ms, name) for name in LATENCY_COLUMNS)
    return [
        str(number),
        f"{segment.start_ms / 1000:.2f}-{segment.end_ms / 1000:.2f}",
        f"{segment.rate:.2f}" if dubbed else "-",
        "\n".join(texts),
        f"[{style}]{segment.status}[/{style}]",
        # Zero is the default of a stage that never ran.
        *(f"{value:.0f}" if value and math.isfinite(value) else "-" for value in latencies),
    ]


def _totals(report: Report) -> str:
    """Frames, durations, speed and the measured sound delay, in one line."""
    offset = report.av_offset_ms
    sync = f"A/V offset {offset:+.0f} ms" if offset is not None and math.isfinite(offset) else "A/V offset unknown"
    spans = len(report.face_spans_hidden)
    hidden = f", lips hidden in {spans} span{'s' if spans > 1 else ''}" if spans else ""
    return (
        f"{report.frames} frames, {report.frames_lipsynced} lip-synced, "
        f"{report.frames_without_face} without face{hidden}; "
        f"{report.duration_s:.1f} s in {report.wall_s:.1f} s (real-time factor {report.real_time_factor:.2f}); {sync}"
    )


def _plain(value: Any) -> Any:
    """`value` with numpy scalars unwrapped, floats rounded and non-finite numbers as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
