"""Spans in, geometry and pixels out: every stage of both branches, in its column, however many segments there are."""

import itertools
import re

import cv2
import numpy as np
import pytest
from test_trace import EVERY_S, ORIGIN, live_run

from polylip.client import gantt
from polylip.client.gantt import COLOURS, LANES, LIMIT, MIN_BAR, draw, lay_out, write_gantt
from polylip.client.gantt_svg import svg
from polylip.client.lettering import SMALL_TEXT, TEXT, fit, text_width
from polylip.client.results import SegmentResult
from polylip.client.trace import Stage, Trace

# What is left of linear red, green and blue (Machado, Oliveira and Fernandes 2009, severity 1).
COLOUR_BLIND = {
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
LEAST_DIFFERENCE = 12  # in CIE Lab: 2.3 is just noticed side by side
MAX_HEIGHT = 1500  # of a full chart: two screens


def bars(chart, stage):
    """Of the panels, without the legend's swatches."""
    return [bar for bar in chart.bars if bar.stage is stage and bar.title]


def column(chart_range, time_s):
    start_s, end_s = chart_range
    return gantt.GUTTER + (time_s - start_s) / (end_s - start_s) * (gantt.WIDTH - gantt.GUTTER - gantt.RIGHT)


def overlapping(boxes):
    """Pairs of boxes that share more than an edge."""
    return [
        (a, b)
        for a, b in itertools.combinations(boxes, 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > 0.6 and min(a[3], b[3]) - max(a[1], b[1]) > 0.6
    ]


def bgr(colour):
    return np.frombuffer(bytes.fromhex(colour[1:])[::-1], np.uint8)


def test_bars_stand_in_the_columns_of_their_times():
    trace, segments = live_run(1)
    chart = lay_out(trace, segments)
    whole = (0.0, 4.36 + 8 * 0.22 + 0.16)
    for stage, start_s, end_s in (
        (Stage.HEARD, 0.0, 3.5),
        (Stage.PAUSE, 3.5, 4.0),
        (Stage.RECOGNISE, 3.7, 3.95),
        (Stage.TRANSLATE_SPEAK, 4.01, 4.31),
        (Stage.SPEAK, 4.31, 5.81),
    ):
        (bar,) = bars(chart, stage)
        assert (bar.x0, bar.x1) == pytest.approx((column(whole, start_s), column(whole, end_s)))
    lips = bars(chart, Stage.LIPS)
    assert [bar.x0 for bar in lips] == pytest.approx([column(whole, 4.36 + n * 0.22) for n in range(9)])
    assert len(bars(chart, Stage.ENCODE)) == len(bars(chart, Stage.BLEND)) == 9
    assert len(bars(chart, Stage.FACES)) == 4


def test_lanes_are_in_order_and_rows_below_each_other():
    trace, segments = live_run(4)
    chart = lay_out(trace, segments, close_up=False)
    for number in range(1, 5):
        tops = [
            min(bar.y0 for bar in chart.bars if bar.stage in stages and bar.title.startswith(f"{number}: "))
            for _, stages in LANES
        ]
        assert tops == sorted(tops)
    heard = bars(chart, Stage.HEARD)
    assert [bar.y0 for bar in heard] == sorted(bar.y0 for bar in heard)
    assert [bar.x0 for bar in heard] == sorted(bar.x0 for bar in heard)


def test_the_overlap_is_shaded_from_the_first_lips_to_the_last_under_speech():
    trace, segments = live_run(1)
    chart = lay_out(trace, segments, legend=False)
    (shade,) = [back for back in chart.backs if back.shade]
    lips = bars(chart, Stage.LIPS)
    assert (shade.x0, shade.x1) == pytest.approx((lips[0].x0, lips[6].x1))
    end = next(rule for rule in chart.rules if rule.end)
    assert end.x == pytest.approx(bars(chart, Stage.HEARD)[0].x1)
    assert [bar.x1 < end.x for bar in bars(chart, Stage.FACES)] == [True, True, True, False]


@pytest.mark.parametrize("count", [1, 3, 12, 40])
def test_nothing_lies_on_anything_else_and_nothing_outside(count):
    trace, segments = live_run(count, words="The " + "very " * 40 + "long sentence of somebody")
    chart = lay_out(trace, segments)
    boxes = [(bar.x0, bar.y0, bar.x1, bar.y1) for bar in chart.bars]
    assert all(x0 >= 0 and x1 <= chart.width and y0 >= 0 and y1 <= chart.height for x0, y0, x1, y1 in boxes)
    texts = []
    for text in chart.texts:
        scale = TEXT if text.large else SMALL_TEXT
        width = text_width(fit(text.text, int(text.width), scale), scale)
        x = text.x - width / 2 if text.centred else text.x
        texts.append((x, text.y - (11 if text.large else 9), x + width, text.y))
    assert all(x0 >= 0 and x1 <= chart.width and y0 > 0 and y1 < chart.height for x0, y0, x1, y1 in texts)
    assert not overlapping(texts)
    wide = [box for box in boxes if box[2] - box[0] > 2 * MIN_BAR]
    assert not overlapping(wide)
    assert not [pair for pair in itertools.product(texts, wide) if overlapping(pair)]


def test_height_is_bounded_and_what_is_left_out_is_said():
    heights = []
    for count in (1, 4, 8, LIMIT, 50):
        trace, segments = live_run(count)
        chart = lay_out(trace, segments)
        heights.append(chart.height)
        assert (chart.shown, chart.of) == (min(count, LIMIT), count)
    assert heights[-1] == heights[-2] == max(heights) < MAX_HEIGHT
    assert chart.texts[0].text.startswith("Segments 39 to 50 of 50 (38 left out)")


def test_chosen_segments_are_drawn():
    trace, segments = live_run(20)
    chart = lay_out(trace, segments, chosen=["segment-3", "segment-7", "unknown"])
    assert chart.texts[0].text.startswith("Segments 4, 8 of 20 (18 left out)")
    assert {bar.title.split(":")[0] for bar in chart.bars if bar.title} == {"4", "8"}


def test_segments_whose_spans_are_gone_are_left_out():
    trace, segments = live_run(20, keep=5)
    assert lay_out(trace, segments).texts[0].text.startswith("Segments 16 to 20 of 20 (15 left out)")


def test_the_close_up_is_of_the_segment_with_the_most_overlap():
    trace, segments = live_run(6)
    start_s = ORIGIN + 2 * EVERY_S + 4.4
    trace.span("segment-2", Stage.LIPS, start_s, start_s + 1.3)
    chart = lay_out(trace, segments)
    assert any(text.text.startswith("close-up of segment 3") for text in chart.texts)
    rows = [bar for bar in bars(chart, Stage.SPEAK) if bar.title.startswith("3:")]
    assert len(rows) == 2
    assert rows[1].x1 - rows[1].x0 > 3 * (rows[0].x1 - rows[0].x0)
    assert not any("close-up" in text.text for text in lay_out(*live_run(1)).texts), "it would show the same again"


def test_requests_side_by_side_share_the_height_of_their_lane():
    trace = Trace(0.0)
    for start_s in (0.0, 0.5, 1.0, 1.5):
        trace.span("a", Stage.LIPS, start_s, start_s + 0.9)
    chart = lay_out(trace, [SegmentResult("a", 0, 1000)])
    lips = bars(chart, Stage.LIPS)
    assert len({bar.y0 for bar in lips}) == 2
    assert not overlapping([(bar.x0, bar.y0, bar.x1, bar.y1) for bar in lips])


def test_a_picture_has_the_colour_of_each_stage_where_its_span_is(tmp_path):
    trace, segments = live_run(3)
    chart = lay_out(trace, segments)
    image = cv2.imread(str(write_gantt(trace, segments, tmp_path / "gantt.png")))
    assert [path.name for path in tmp_path.iterdir()] == ["gantt.png"], "no temporary file stays"
    assert image.shape == (chart.height, gantt.WIDTH, 3)
    seen = set()
    for bar in chart.bars:
        x, y = round(bar.x0), round((bar.y0 + bar.y1) / 2)
        assert np.array_equal(image[y, x], bgr(COLOURS[bar.stage])), bar
        seen.add(bar.stage)
    assert seen == set(Stage)


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_the_colour_blind_tell_every_stage_from_every_other(kind):
    def lab(colour):
        rgb = np.array(list(bytes.fromhex(colour[1:]))) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(COLOUR_BLIND[kind]) @ linear, 0, 1)
        encoded = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
        return cv2.cvtColor(encoded.astype(np.float32).reshape(1, 1, 3), cv2.COLOR_RGB2Lab).ravel()

    for a, b in itertools.combinations(sorted({*COLOURS.values(), gantt.PAPER, gantt.BAND, gantt.SHADE}), 2):
        if not {a, b} <= {gantt.PAPER, gantt.BAND, gantt.SHADE}:
            assert np.linalg.norm(lab(a) - lab(b)) > LEAST_DIFFERENCE, (kind, a, b)


def test_the_shortest_span_can_be_seen(tmp_path):
    trace = Trace(0.0)
    trace.span("a", Stage.HEARD, 0.0, 3600.0)
    trace.span("a", Stage.LIPS, 1800.0, 1800.001)
    chart = lay_out(trace, [SegmentResult("a", 0, 1000)])
    (bar,) = bars(chart, Stage.LIPS)
    assert bar.x1 - bar.x0 == MIN_BAR
    image = draw(chart)
    assert (image[round(bar.y0) + 3] == bgr(COLOURS[Stage.LIPS])).all(axis=-1).sum() >= 2


def test_an_empty_trace_is_said_in_words(tmp_path):
    chart = lay_out(Trace(), [SegmentResult("a", 0, 1000)])
    assert (chart.shown, chart.texts[0].text) == (0, "No segment was traced.")
    assert write_gantt(Trace(), [], tmp_path / "gantt.png").stat().st_size > 0


def test_a_span_without_length_makes_a_chart():
    trace = Trace(0.0)
    trace.span("a", Stage.SPEAK, 5.0, 5.0)
    (bar,) = bars(lay_out(trace, [SegmentResult("a", 0, 1000)]), Stage.SPEAK)
    assert bar.x1 - bar.x0 == MIN_BAR


def test_svg_has_the_same_bars_and_tells_their_times():
    trace, segments = live_run(3, words="\u202e<b>&'\" 你好")
    chart = lay_out(trace, segments)
    drawn = svg(chart, 'a "name" <&>')
    places = [float(x) for x in re.findall(r'<rect x="([\d.]+)"[^>]*><title>', drawn)]
    assert places == pytest.approx([bar.x0 for bar in chart.bars if bar.title], abs=0.06)
    assert "lips, a batch, 4.360-4.450 s (90 ms), video 0.00-0.40 s" in drawn
    assert 'aria-label="a &quot;name&quot; &lt;&amp;&gt;"' in drawn
    assert "&lt;b&gt;&amp;" in drawn and "<b>" not in drawn and "\u202e" not in drawn
    assert "你好" in drawn
    assert all(f'fill="{colour}"' in drawn for stage, colour in COLOURS.items() if stage is not Stage.QUEUE)
