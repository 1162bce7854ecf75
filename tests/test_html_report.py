"""The HTML report: one file that needs nothing else, holds every segment, and lets no text out of its place."""

import base64
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from test_report import dubbed, report
from test_trace import WORDS, live_run

from polylip.client import html_report
from polylip.client.gantt import LIMIT
from polylip.client.html_report import MAX_SPANS, page, write_html_report
from polylip.client.results import HiddenSpan, HideReason, SegmentResult, Status, TimeFit

VOID = {"meta", "img", "br", "rect", "line"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></svg></table><script src=http://evil.example/x.js></script>",
    "\"onmouseover='alert(1)' x=\"",
    "&lt;b&gt; & &amp; &#60;",
    "<img src=x onerror=alert(1)>",
    "\u202eevil\u2066\u2069\u2069\u200f mark",
    "]]><!-- --> {{ }} ${x} \\u003c",
    "nul\x00 bell\x07 escape\x1b[31m half \ud800 end",
]
ARABIC, CHINESE = "مرحبا بكم في المدينة", "你好,世界"


class Page(HTMLParser):
    """Elements with their attributes, texts by the element they are in, and whether every element is closed."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.texts, self.declared = [], [], [], ""
        self.feed(content)
        self.close()

    def handle_decl(self, decl):
        self.declared = decl

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID or (tag == "rect" and self.get_starttag_text()[-2] != "/"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self.open), data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag):
        return [data for stack, data in self.texts if tag in stack]


def parsed(content):
    read = Page(content)
    assert read.open == [], "every element is closed"
    assert read.declared == "DOCTYPE html"
    return read


def plain_report(segments, **changes):
    return report(segments, engines={"transcribe": "pocketsphinx", "synthesize": "espeak-ng"}, **changes)


def test_a_page_shows_the_job(tmp_path):
    trace, segments = live_run(3)
    segments[1].fit = TimeFit(3000, 4500, spoken_ms=3100.0, natural_ms=3300.0)
    segments[2].status, segments[2].message, segments[2].error_code = Status.ERROR, "no answer", "deadline"
    content = plain_report(segments, warnings=["generated weights in lips: the picture means nothing"])
    path = write_html_report(content, trace, tmp_path / "report.html", {})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"], "no temporary file stays"
    read = parsed(path.read_text(encoding="utf-8"))
    shown = " ".join(data for _, data in read.texts)
    for part in (
        "2 dubbed, 1 error",
        "real-time factor 0.62",
        "generated weights in lips: the picture means nothing",
        "rules stand in for trained networks in synthesize (espeak-ng)",
        "pocketsphinx",
        "3100 of 3000",
        "deadline: no answer",
        "0.95 s",
    ):
        assert part in shown, part
    assert shown.count(WORDS) >= 6
    assert len(read.all("tr")) >= 3
    assert len(read.all("svg")) == 1 + 3, "all segments on one axis, and each on its own"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_its_place(text):
    trace, segments = live_run(2, words=text)
    for segment in segments:
        segment.message, segment.status = text, Status.ERROR
    content = plain_report(
        segments,
        warnings=[text],
        versions={text: text},
        input=f"{text.replace('/', '')}.mp4",
        output=f"{text.replace('/', '')}.mp4",
        source_language=text,
        profile=text,
        counters={text: 1},
    )
    made = page(content, trace, {text: html_report.Path("/nowhere.png")})
    calm = page(plain_report(live_run(2)[1]), trace, {})
    read = parsed(made.encode().decode())
    assert {tag for tag, _ in read.elements} <= {tag for tag, _ in parsed(calm).elements}
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07\x1b]", made), (
        "reading order and terminals stay as they are"
    )
    seen = re.sub("[\u202a-\u202e\u2066-\u2069\u200f\x00\x07\x1b\ud800]", "", text)
    assert any(seen in data for data in read.within("td"))


def test_nothing_is_loaded_from_anywhere(tmp_path):
    picture = tmp_path / "contact_sheet.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    trace, segments = live_run(2)
    made = page(plain_report(segments), trace, {"Contact sheet": picture})
    read = parsed(made)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", made)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in read.elements}
    for _, attributes in read.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert "href" not in attributes
    (policy,) = [m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_pictures_are_inside_the_page(tmp_path):
    content = b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(5000)
    picture = tmp_path / "contact_sheet.png"
    picture.write_bytes(content)
    (image,) = parsed(page(plain_report([dubbed()]), None, {"Contact sheet": picture})).all("img")
    kind, data = image["src"].split(",", 1)
    assert (kind, base64.b64decode(data)) == ("data:image/png;base64", content)
    assert image["alt"] == "Contact sheet"


def test_a_picture_that_cannot_be_shown_is_named(tmp_path, monkeypatch):
    missing, other, large = (tmp_path / name for name in ("missing.png", "other.png", "large.png"))
    other.write_bytes(b"<svg onload=alert(1)>")
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    monkeypatch.setattr(html_report, "MAX_IMAGE_BYTES", 50)
    read = parsed(page(plain_report([]), None, {"a": missing, "b": other, "c": large}))
    shown = " ".join(data for _, data in read.texts)
    assert read.all("img") == []
    for part in ("missing.png", "cannot be read", "other.png", "is no PNG", "large.png", "is too large"):
        assert part in shown


def test_texts_keep_their_own_reading_order():
    segment = SegmentResult("a", 0, 1000, source_text=ARABIC, target_text=CHINESE, status=Status.DUBBED)
    read = parsed(page(plain_report([segment]), None, {}))
    assert [p for p in read.all("p") if p.get("dir") == "auto"]
    cells = read.within("td")
    assert ARABIC in cells and CHINESE in cells


def test_light_and_dark_and_paper_are_provided_for():
    style = "".join(parsed(page(plain_report([]), None, {})).within("style"))
    assert "prefers-color-scheme: dark" in style and "@media print" in style
    used, defined = set(re.findall(r"var\((--\w+)\)", style)), set(re.findall(r"(--\w+):", style))
    assert used <= defined
    drawn = page(plain_report(live_run(1)[1]), live_run(1)[0], {})
    assert set(re.findall(r"var\((--\w+)\)", drawn)) <= defined
    for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)[1:]:
        assert set(re.findall(r"(--\w+):", block)) == defined, "each scheme sets every colour"


def test_an_hour_long_job_stays_a_page():
    """Every segment has its row, charts are of the last ones and say so."""
    count = 3000
    trace, segments = live_run(count)
    began = time.process_time()
    made = page(plain_report(segments), trace, {})
    assert time.process_time() - began < 15, "it takes about 1 s"
    assert len(made.encode()) < 4_000_000
    read = parsed(made)
    assert len(read.all("svg")) == 1 + LIMIT
    shown = " ".join(data for _, data in read.texts)
    assert f"The last {LIMIT} of {count} segments are drawn." in shown
    assert len([data for data in read.within("th") if data.isdigit()]) == count
    first = next(row for row in re.findall(r"<tr><th scope='row'>1</th>.*?</tr>", made))
    assert "<td>0.95</td>" in first, "figures of segments whose spans are gone are still there"


def test_many_hidden_spans_are_counted_not_listed():
    spans = [HiddenSpan(n * 100, n * 100 + 50, HideReason.SMALL) for n in range(MAX_SPANS + 7)]
    read = parsed(page(plain_report([], face_spans_hidden=spans), None, {}))
    assert len(read.all("li")) == MAX_SPANS + 1  # with the warning
    assert "7 more are in report.json." in [data for _, data in read.texts]


def test_without_trace_segments_or_figures():
    read = parsed(page(report([], av_offset_ms=float("nan"), versions={}), None, {}))
    shown = " ".join(data for _, data in read.texts)
    assert "no speech" in shown and "nan" not in shown
    assert read.all("svg") == [] and read.all("table") != []
    failed = SegmentResult("id", 0, 1000, status=Status.ERROR, message="[translate] no answer")
    assert "[translate] no answer" in " ".join(parsed(page(report([failed]), None, {})).within("td"))


def test_the_offset_of_a_segment_is_shown_where_it_is_known():
    segments = [dubbed(1), dubbed(2)]
    assert "-23" not in page(report(segments), None, {})
    segments[1].av_offset_ms = -23.4
    made = page(report(segments), None, {})
    assert "A/V ms" in made and "<td>-23</td>" in made
    assert "new lips" not in made, "a live job's"
