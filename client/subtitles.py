"""Subtitles beside the output video: what was said and what is heard now, as WebVTT and SubRip."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polylip.client.files import write_atomic
from polylip.client.results import SegmentResult

LINE_CHARACTERS = 42  # the usual limit of broadcast and streaming guides for Latin scripts
LINES_PER_CUE = 2  # more would cover the mouth; a longer text becomes several cues in turn
MIN_CUE_MS = 500  # a shorter cue flashes by unread
UNKNOWN_LANGUAGE = "und"  # ISO 639-2 "undetermined", for a source language of `auto`


@dataclass(frozen=True)
class Cue:
    """One text on screen, in milliseconds on the video's timeline."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def write_subtitles(
    segments: Sequence[SegmentResult], video: Path, source_language: str, target_language: str
) -> list[Path]:
    """Write four files beside `video` and return their paths: source .vtt, .srt, target .vtt, .srt.

    `out.mp4` in English and Spanish gives `out.en.vtt`, `out.en.srt`, `out.es.vtt`, `out.es.srt`, the names that
    players look for. When both languages are the same the role goes in between: `out.source.en.vtt`,
    `out.target.en.vtt`. Source texts stand at the segment's own times. Target texts stand at the times of the
    dub, or at the segment's own times when it has a text but could not be dubbed. A file without texts is
    written too, empty, so that a player finds what the job promised.
    """
    source, target = _tag(source_language), _tag(target_language)
    if source.casefold() == target.casefold():
        source, target = f"source.{source}", f"target.{target}"
    written = []
    for tag, spans in ((source, _source_spans(segments)), (target, _target_spans(segments))):
        cues = to_cues(spans)
        for extension, render in RENDERERS.items():
            path = video.with_name(f"{video.stem}.{tag}.{extension}")
            written.append(write_atomic(path, render(cues).encode()))
    return written


def to_cues(spans: Sequence[tuple[int, int, str]]) -> list[Cue]:
    """(start_ms, end_ms, text) in any order -> cues in order of time, none empty, none overlapping the next.

    A cue ends where the next begins at the latest; texts that begin at the same millisecond share a cue.
    """
    merged: dict[int, tuple[int, str]] = {}
    for start_ms, end_ms, text in sorted((max(0, start), end, " ".join(text.split())) for start, end, text in spans):
        if text:
            last_end_ms, before = merged.get(start_ms, (0, ""))
            merged[start_ms] = (max(last_end_ms, end_ms, start_ms + MIN_CUE_MS), f"{before} {text}".strip())
    starts = list(merged)
    cues: list[Cue] = []
    for index, (start_ms, (end_ms, text)) in enumerate(merged.items(), start=1):
        limit_ms = starts[index] if index < len(starts) else end_ms
        cues.extend(_split(start_ms, min(end_ms, limit_ms), text))
    return cues


def render_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT: `&`, `<` and `>` (and so `-->`) are escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_timestamp(cue.start_ms, '.')} --> {_timestamp(cue.end_ms, '.')}\n{text}\n")
    return "\n".join(blocks)


def render_srt(cues: Sequence[Cue]) -> str:
    """SubRip: it has no escapes, so an arrow in the text that would read as a time line loses a dash."""
    blocks = []
    for number, cue in enumerate(cues, start=1):
        text = "\n".join(cue.lines).replace("-->", "->")
        blocks.append(f"{number}\n{_timestamp(cue.start_ms, ',')} --> {_timestamp(cue.end_ms, ',')}\n{text}\n")
    return "\n".join(blocks)


RENDERERS: dict[str, Callable[[Sequence[Cue]], str]] = {"vtt": render_vtt, "srt": render_srt}


def wrap(text: str) -> list[str]:
    """`text` in as few lines of at most 42 characters as it needs, about equally long."""
    lines = textwrap.wrap(text, LINE_CHARACTERS)
    for width in range(math.ceil(len(text) / max(1, len(lines))), LINE_CHARACTERS):
        even = textwrap.wrap(text, width)
        if len(even) == len(lines):
            return even
    return lines


def _split(start_ms: int, end_ms: int, text: str) -> Iterator[Cue]:
    """One cue, or for a long text several in turn, each shown in proportion to its length."""
    lines = wrap(text)
    groups = [tuple(lines[i : i + LINES_PER_CUE]) for i in range(0, len(lines), LINES_PER_CUE)]
    if end_ms - start_ms < len(groups) * MIN_CUE_MS:
        groups = [tuple(lines)]
    weights = [sum(map(len, group)) for group in groups]
    at_ms = start_ms
    for index, group in enumerate(groups, start=1):
        until_ms = start_ms + (end_ms - start_ms) * sum(weights[:index]) // sum(weights)
        yield Cue(at_ms, until_ms, group)
        at_ms = until_ms


def _source_spans(segments: Sequence[SegmentResult]) -> list[tuple[int, int, str]]:
    return [(segment.start_ms, segment.end_ms, segment.source_text) for segment in segments]


def _target_spans(segments: Sequence[SegmentResult]) -> list[tuple[int, int, str]]:
    spans = []
    for segment in segments:
        start_ms, end_ms = segment.dub_start_ms, segment.dub_end_ms
        if start_ms is None or end_ms is None:
            start_ms, end_ms = segment.start_ms, segment.end_ms
        spans.append((start_ms, end_ms, segment.target_text))
    return spans


def _timestamp(time_ms: int, decimal_mark: str) -> str:
    """3723004 -> `01:02:03.004`."""
    seconds, milliseconds = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{decimal_mark}{milliseconds:03d}"


def _tag(language: str) -> str:
    """A language code as part of a file name: `zh_CN` -> `zh-CN`, `auto` or nothing -> `und`."""
    tag = re.sub(r"[^A-Za-z0-9]+", "-", language).strip("-")
    return UNKNOWN_LANGUAGE if tag.casefold() in ("", "auto") else tag
