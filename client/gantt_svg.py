"""A Gantt chart as inline SVG for an HTML page: sharp at any size, each bar with its times under the pointer.

Colours that must change with the page, light or dark, are its CSS variables: ink, faint, grid, band, shade.
"""

from __future__ import annotations

import html
import re
import unicodedata

from polylip.client.gantt import COLOURS, Bar, Chart, Rule, Text
from polylip.client.trace import Stage

FONT_PX, LARGE_PX = 13, 16
EM_ASCII, EM_WIDE = 0.55, 1.0  # mean widths of letters, in font sizes: what a system font has, rounded up
WAITING = Stage.QUEUE  # black in the palette: the page's ink, so that it is seen on a dark page
# Orders of reading, which one text could impose on its neighbours, and what neither HTML nor XML may hold.
CONTROLS = re.compile(
    "[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff]"
)


def svg(chart: Chart, name: str) -> str:
    """The chart as an `<svg>` element, with a name for those who cannot see it."""
    parts = [
        f'<svg class="gantt" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{plain(name)}">',
        *(_rect(back, f"var(--{'shade' if back.shade else 'band'})") for back in chart.backs),
        *(_rule(rule) for rule in chart.rules),
        *(_rect(bar, "var(--ink)" if bar.stage is WAITING else COLOURS[bar.stage]) for bar in chart.bars if bar.stage),
        *(_text(text) for text in chart.texts),
        "</svg>",
    ]
    return "\n".join(parts)


def plain(text: str) -> str:
    """Any text, made safe between tags and in quoted attributes; without controls and reading-order marks."""
    return html.escape(CONTROLS.sub("", text), quote=True)


def _rect(bar: Bar, fill: str) -> str:
    gap = 1 if bar.stage and bar.x1 - bar.x0 > 3 else 0  # so that neighbours of one stage stay two
    box = f'x="{bar.x0:.1f}" y="{bar.y0:.1f}" width="{bar.x1 - bar.x0 - gap:.1f}" height="{bar.y1 - bar.y0:.1f}"'
    if not bar.title:
        return f'<rect {box} fill="{fill}"/>'
    return f'<rect {box} fill="{fill}"><title>{plain(bar.title)}</title></rect>'


def _rule(rule: Rule) -> str:
    ends = f'x1="{rule.x:.1f}" y1="{rule.y0:.1f}" x2="{rule.x:.1f}" y2="{rule.y1:.1f}"'
    style = 'stroke="var(--ink)" stroke-dasharray="3 3"' if rule.end else 'stroke="var(--grid)"'
    return f"<line {ends} {style}/>"


def _text(text: Text) -> str:
    size = LARGE_PX if text.large else FONT_PX
    fill = "var(--faint)" if text.faint else "var(--ink)"
    anchor = ' text-anchor="middle"' if text.centred else ""
    letters = _fitted(CONTROLS.sub("", text.text), text.width, size)
    return f'<text x="{text.x:.1f}" y="{text.y:.1f}" font-size="{size}" fill="{fill}"{anchor}>{plain(letters)}</text>'


def _fitted(text: str, width: float, size: int) -> str:
    """`text`, cut to about `width` pixels."""
    room = width
    for place, letter in enumerate(text):
        room -= size * (EM_WIDE if unicodedata.east_asian_width(letter) in "WF" else EM_ASCII)
        if room < 0:
            return text[: max(0, place - 1)].rstrip() + "…"
    return text
