"""A trace as a Gantt chart: per segment every stage of both branches on one wall-clock axis, as geometry and as a PNG.

`lay_out` places bars, lines and texts in pixels; `write_gantt` draws them. `polylip.client.html_parts` draws the same
chart as SVG. Colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from polylip.client.contact_sheet import TICK_STEPS_S
from polylip.client.files import write_atomic
from polylip.client.lettering import SMALL_TEXT, TEXT, Colour, Pixels, fit, put, text_width
from polylip.client.results import SegmentResult
from polylip.client.trace import Figures, Interval, Span, Stage, Trace, together

# Layout in pixels. The left gutter holds what is known of a segment, and the names of its lanes.
WIDTH, GUTTER, RIGHT, MARGIN = 1600, 318, 28, 16
LANE_NAMES = 250  # where they begin
TITLE_HEIGHT, LEGEND_HEIGHT, AXIS_HEIGHT = 40, 22, 26
LEGEND_COLUMNS = 6
LANE_HEIGHTS = ((4, 20), (8, 17))  # up to so many segments: taller lanes ...
LANE_HEIGHT, CLOSE_UP_LANE = 15, 22  # ... than these, so that the height is bounded
ROW_GAP = 12
CLOSE_UP_GAP = 34
PARTS = 2  # of a lane, for spans that run side by side
TOUCH_S = 0.001  # spans that overlap by less follow each other
EDGE_PX = 1  # of paper at the end of a bar
MIN_BAR = 2.0  # wide, however short the span
WAIT_SHARE = 0.4  # of a lane's height: waiting is drawn thinner than work
MAX_TICKS = 16
LIMIT = 12  # segments in one chart
CLOSE_UP_FACTOR = 1.5  # the axis must be this much longer than a segment's own for a close-up to show more

COLOURS = {
    Stage.HEARD: "#666666",
    Stage.PAUSE: "#666666",
    Stage.RECOGNISE: "#f0e442",
    Stage.QUEUE: "#000000",
    Stage.TRANSLATE_SPEAK: "#e69f00",
    Stage.SPEAK: "#d55e00",
    Stage.FACES: "#009e73",
    Stage.LIPS: "#0072b2",
    Stage.BLEND: "#cc79a7",
    Stage.ENCODE: "#56b4e9",
}
THIN = frozenset({Stage.PAUSE, Stage.QUEUE})
MEANINGS = {
    Stage.HEARD: "heard",
    Stage.PAUSE: "pause that closes it",
    Stage.RECOGNISE: "recognise, in the pause",
    Stage.QUEUE: "queue",
    Stage.TRANSLATE_SPEAK: "translate, speak: first audio",
    Stage.SPEAK: "speak: the rest streams in",
    Stage.FACES: "faces, a chunk",
    Stage.LIPS: "lips, a batch",
    Stage.BLEND: "blend",
    Stage.ENCODE: "encode",
}
LANES = (
    ("sound in", (Stage.HEARD, Stage.PAUSE)),
    ("speech", (Stage.RECOGNISE, Stage.QUEUE, Stage.TRANSLATE_SPEAK, Stage.SPEAK)),
    ("faces", (Stage.FACES,)),
    ("lips", (Stage.LIPS,)),
    ("output", (Stage.BLEND, Stage.ENCODE)),
)
SHADE, PAPER, BAND, GRID, INK, FAINT = "#cfe0ff", "#fcfcfc", "#f2f2f2", "#dcdcdc", "#2d2d2d", "#6e6e6e"
SHADE_MEANING, END_MEANING = "lips while speech streams in", "the person stops speaking"


@dataclass(frozen=True)
class Bar:
    """A filled box: of a stage, or without one of the paper behind them."""

    x0: float
    y0: float
    x1: float
    y1: float
    stage: Stage | None = None
    shade: bool = False  # without a stage: the overlap's shade, else a segment's band
    title: str = ""  # what a pointer is told


@dataclass(frozen=True)
class Rule:
    """An upright line: a tick of the axis, or the end of a segment's source speech."""

    x: float
    y0: float
    y1: float
    end: bool = False


@dataclass(frozen=True)
class Text:
    """One line of letters, cut to `width`."""

    x: float
    y: float  # of the baseline
    text: str
    width: float
    faint: bool = False
    large: bool = False
    centred: bool = False


@dataclass
class Chart:
    """What is drawn, in this order: bands and shades, rules, bars, texts."""

    width: int
    height: int = 0
    shown: int = 0  # segments
    of: int = 0
    backs: list[Bar] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """One segment to be drawn."""

    number: int  # of the report, from 1
    segment: SegmentResult
    spans: list[Span]
    figures: Figures

    @property
    def extent(self) -> Interval:
        return min(span.start_s for span in self.spans), max(span.end_s for span in self.spans)


def write_gantt(
    trace: Trace, segments: Sequence[SegmentResult], path: Path, *, chosen: Sequence[str] | None = None
) -> Path:
    """Write the chart as a PNG, 1600 pixels wide, and return its path. For `chosen` see `lay_out`."""
    _, png = cv2.imencode(".png", draw(lay_out(trace, segments, chosen=chosen)))
    return write_atomic(path, png.tobytes())


def lay_out(
    trace: Trace,
    segments: Sequence[SegmentResult],
    *,
    chosen: Sequence[str] | None = None,
    limit: int = LIMIT,
    close_up: bool = True,
    legend: bool = True,
) -> Chart:
    """Place the last `limit` segments, or of those `chosen` by their ids the first, with a close-up of one of them."""
    known = set(trace.segment_ids)
    numbered = [(number, s) for number, s in enumerate(segments, 1) if s.id in known]
    if chosen is None:
        numbered = numbered[-limit:]
    else:
        numbered = [(number, s) for number, s in numbered if s.id in chosen][:limit]
    rows = [_Row(number, s, trace.spans(s.id), trace.figures(s.id)) for number, s in numbered]
    chart = Chart(WIDTH, shown=len(rows), of=len(segments))
    y = MARGIN / 2
    if legend:
        chart.texts.append(Text(MARGIN, y + 20, _title(rows, len(segments), trace), WIDTH - 2 * MARGIN, large=True))
        y = _lay_legend(chart, y + TITLE_HEIGHT)
    if rows:
        lane = next((height for most, height in LANE_HEIGHTS if len(rows) <= most), LANE_HEIGHT)
        y = _lay_panel(chart, rows, y, lane)
        detail = _most_overlap(rows)
        if close_up and _shows_more(detail, rows):
            heading = f"close-up of segment {detail.number}, on an axis of its own"
            chart.texts.append(Text(MARGIN, y + CLOSE_UP_GAP - 8, heading, WIDTH - 2 * MARGIN))
            y = _lay_panel(chart, [detail], y + CLOSE_UP_GAP, CLOSE_UP_LANE)
    chart.height = round(y + MARGIN / 2)
    return chart


def _title(rows: Sequence[_Row], count: int, trace: Trace) -> str:
    if not rows:
        return "No segment was traced."
    first, last = rows[0].number, rows[-1].number
    if len(rows) == count:
        which = "All segments" if count > 1 else "The segment"
    else:
        run = f"{first} to {last}" if last - first + 1 == len(rows) else ", ".join(str(row.number) for row in rows)
        which = f"Segments {run} of {count} ({count - len(rows)} left out)"
    return f"{which}, in seconds since the job began.  {gain_sentence(trace.totals())}"


def gain_sentence(figures: Figures) -> str:
    """What working side by side has saved, in words; empty where nothing worked."""
    if figures.gain is None:
        return ""
    return f"The stages took {figures.work_s:.1f} s, in {figures.busy_s:.1f} s on the wall: {figures.gain:.1f} times."


def _lay_legend(chart: Chart, top: float) -> float:
    """Swatches with their meanings; where the panel can begin."""
    step = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS
    swatch = 22
    entries: list[tuple[Stage | None, str]] = list(MEANINGS.items())
    for place, (stage, meaning) in enumerate([*entries, (None, SHADE_MEANING), (None, END_MEANING)]):
        x = MARGIN + place % LEGEND_COLUMNS * step
        y = top + place // LEGEND_COLUMNS * LEGEND_HEIGHT
        if stage is not None:
            chart.bars.append(_bar(x, x + swatch, y, 12, stage))
        elif meaning == SHADE_MEANING:
            chart.backs.append(Bar(x, y, x + swatch, y + 12, shade=True))
        else:
            chart.rules.append(Rule(x + swatch / 2, y - 1, y + 13, end=True))
        chart.texts.append(Text(x + swatch + 8, y + 11, meaning, step - swatch - 14))
    return top + -(-(len(entries) + 2) // LEGEND_COLUMNS) * LEGEND_HEIGHT + 4


def _lay_panel(chart: Chart, rows: Sequence[_Row], top: float, lane: float) -> float:
    """Rows over one axis, which is labelled above and below; where the panel ends."""
    start_s, end_s = min(row.extent[0] for row in rows), max(row.extent[1] for row in rows)
    span_s = max(end_s - start_s, 1e-3)
    scale = (WIDTH - GUTTER - RIGHT) / span_s

    def x(time_s: float) -> float:
        return GUTTER + (time_s - start_s) * scale

    height = len(LANES) * lane + ROW_GAP
    y = top + AXIS_HEIGHT
    bottom = y + height * len(rows)
    _lay_axis(chart, start_s, end_s, x, y, bottom)
    for index, row in enumerate(rows):
        if index % 2 == 0:
            chart.backs.append(Bar(0, y, WIDTH, y + height))
        _lay_facts(chart, row, y + ROW_GAP / 2, lane)
        if both := together(row.spans, Stage.LIPS, Stage.SPEAK):
            begin, end = x(both[0][0]), x(both[-1][1])
            chart.backs.append(Bar(begin, y + 2, max(end, begin + MIN_BAR), y + height - 2, shade=True))
        for heard in (span for span in row.spans if span.stage is Stage.HEARD):
            chart.rules.append(Rule(x(heard.end_s), y + 1, y + height - 1, end=True))
        for place, (_, stages) in enumerate(LANES):
            spans = [span for span in row.spans if span.stage in stages]
            lane_top = y + ROW_GAP / 2 + place * lane + 1
            for span, part, parts in _packed(spans):
                share = (lane - 2) / parts
                bar_top = lane_top + part * share
                chart.bars.append(
                    _bar(x(span.start_s), x(span.end_s), bar_top, share, span.stage, _tooltip(row.number, span))
                )
        y += height
    return bottom + AXIS_HEIGHT


def _lay_axis(
    chart: Chart, start_s: float, end_s: float, x: Callable[[float], float], top: float, bottom: float
) -> None:
    step_s = next((step for step in TICK_STEPS_S if (end_s - start_s) / step <= MAX_TICKS), TICK_STEPS_S[-1])
    first = math.ceil(start_s / step_s - 1e-6)
    for tick in range(first, math.floor(end_s / step_s + 1e-6) + 1):
        at = x(tick * step_s)
        chart.rules.append(Rule(at, top - 4, bottom + 4))
        label = f"{tick * step_s:g}" + (" s" if tick == first else "")
        for y in (top - 9, bottom + 18):
            chart.texts.append(Text(at, y, label, 60, faint=True, centred=True))


def _lay_facts(chart: Chart, row: _Row, top: float, lane: float) -> None:
    """What is known of a segment, a line per lane, beside the names of the lanes."""
    segment, figures = row.segment, row.figures
    lines = [
        f"{row.number}  \u2068{segment.source_text or segment.status}\u2069",
        f"{segment.start_ms / 1000:.1f}-{segment.end_ms / 1000:.1f} s, {segment.status}",
    ]
    for name, value in (("first audio", figures.first_audio_s), ("first mouth", figures.first_mouth_s)):
        lines += [] if value is None else [f"{name} {value:+.2f} s"]
    if figures.first_mouth_s is not None:
        lines.append(f"lips while it speaks {figures.overlap_s:.2f} s")
    for place, (name, _) in enumerate(LANES):
        baseline = top + (place + 0.5) * lane + 5
        chart.texts.append(Text(LANE_NAMES, baseline, name, GUTTER - LANE_NAMES - 6, faint=True))
        if place < len(lines):
            chart.texts.append(Text(MARGIN, baseline, lines[place], LANE_NAMES - MARGIN - 10, faint=place > 0))


def _bar(x0: float, x1: float, top: float, height: float, stage: Stage, title: str = "") -> Bar:
    if stage in THIN:
        top, height = top + height * (1 - WAIT_SHARE) / 2, height * WAIT_SHARE
    return Bar(x0, top, max(x1, x0 + MIN_BAR), top + height, stage, title=title)


def _packed(spans: Sequence[Span]) -> list[tuple[Span, int, int]]:
    """Each span of a lane with its part of it and their number: spans that run side by side share the lane's height."""
    groups: list[list[Span]] = []
    end_s = -math.inf
    for span in sorted(spans, key=lambda span: span.start_s):
        if span.start_s >= end_s - TOUCH_S:
            groups.append([])
        groups[-1].append(span)
        end_s = max(end_s, span.end_s)
    packed = []
    for group in groups:
        ends = [-math.inf] * min(PARTS, len(group))
        for span in group:
            part = ends.index(min(ends))
            ends[part] = span.end_s
            packed.append((span, part, len(ends)))
    return packed


def _tooltip(number: int, span: Span) -> str:
    took_ms = (span.end_s - span.start_s) * 1000
    media = ""
    if span.media_start_ms is not None and span.media_end_ms is not None:
        media = f", video {span.media_start_ms / 1000:.2f}-{span.media_end_ms / 1000:.2f} s"
    return f"{number}: {MEANINGS[span.stage]}, {span.start_s:.3f}-{span.end_s:.3f} s ({took_ms:.0f} ms){media}"


def _most_overlap(rows: Sequence[_Row]) -> _Row:
    return max(rows, key=lambda row: (row.figures.overlap_s, row.figures.first_mouth_s is not None, row.number))


def _shows_more(detail: _Row, rows: Sequence[_Row]) -> bool:
    """Whether an axis of its own would be much finer than the common one."""
    (start, end), whole = detail.extent, max(row.extent[1] for row in rows) - min(row.extent[0] for row in rows)
    return whole > CLOSE_UP_FACTOR * (end - start)


def draw(chart: Chart) -> Pixels:
    """uint8 (height, width, 3) BGR."""
    image = np.full((chart.height, chart.width, 3), _bgr(PAPER), dtype=np.uint8)
    for back in chart.backs:
        _fill(image, back, _bgr(SHADE if back.shade else BAND))
    for rule in chart.rules:
        _draw_rule(image, rule)
    for bar in chart.bars:
        if bar.stage is not None:
            _fill(image, bar, _bgr(COLOURS[bar.stage]))
    for text in chart.texts:
        scale = TEXT if text.large else SMALL_TEXT
        letters = fit(text.text, int(text.width), scale)
        x = text.x - text_width(letters, scale) / 2 if text.centred else text.x
        put(image, letters, (round(x), round(text.y)), _bgr(FAINT if text.faint else INK), scale)
    return image


def _fill(image: Pixels, bar: Bar, colour: Colour) -> None:
    x0, x1, y0, y1 = round(bar.x0), round(bar.x1), round(bar.y0), round(bar.y1)
    image[y0 : max(y1, y0 + 2), x0 : max(x1, x0 + 2)] = colour
    if bar.stage is not None and x1 - x0 > 3 * EDGE_PX:
        image[y0:y1, x1 - EDGE_PX : x1] = _bgr(PAPER)  # so that neighbours of one stage stay two


def _draw_rule(image: Pixels, rule: Rule) -> None:
    x, y0, y1 = round(rule.x), round(rule.y0), round(rule.y1)
    if not rule.end:
        cv2.line(image, (x, y0), (x, y1), _bgr(GRID), 1)
        return
    for y in range(y0, y1, 6):
        cv2.line(image, (x, y), (x, min(y + 3, y1)), _bgr(INK), 1)


def _bgr(colour: str) -> Colour:
    red, green, blue = bytes.fromhex(colour[1:])
    return blue, green, red
