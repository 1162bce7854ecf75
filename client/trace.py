"""When each stage of a job worked on what: spans on one wall clock, per segment and for the picture as a whole.

Noting a span is one append. A run that never ends keeps its last segments whole and says how many it let go. All
times go in as `time.monotonic()` and come out as seconds since the job began. See docs/reports.md.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np

KEEP_SEGMENTS = 100  # whole, with their spans: a quarter of an hour of speech, 1 MB of report.json
KEEP_FIGURES = 10_000  # segments whose figures are kept when their spans are let go: a day of speech
LOOSE_PER_SEGMENT = 64  # spans without a segment that are kept per segment: 15 s of picture make about 40
MAX_SPANS = 1024  # of one segment: 10 s of speech and single-frame batches make 500
KEEP_ASKED = 64  # questions to the recogniser whose segment has not closed yet
LEAST_ASKED_S = 0.001  # a question that took less was never sent
KEEP_MARKS = 4096  # arrivals of sound: half an hour in steps of 0.5 s, 80 s in steps of 20 ms

Interval = tuple[float, float]


class Stage(StrEnum):
    """What a segment goes through, in order."""

    HEARD = "heard"  # its sound came in
    PAUSE = "pause"  # the silence that it took to close it
    RECOGNISE = "recognise"  # ahead of its request, in the pause
    QUEUE = "queue"  # closed, and waiting for its request to be sent
    TRANSLATE_SPEAK = "translate_speak"  # request to first sound; recognition too where it was not done in the pause
    SPEAK = "speak"  # first sound to last
    FACES = "faces"  # a chunk of the picture, without a segment
    LIPS = "lips"  # a batch of frames
    BLEND = "blend"
    ENCODE = "encode"  # pictures and sound, without a segment


WAITS = frozenset({Stage.HEARD, Stage.PAUSE, Stage.QUEUE})  # nothing is computed in these


@dataclass(frozen=True, slots=True)
class Span:
    """One stage at work, in seconds since the job began, on a stretch of the video's timeline."""

    stage: Stage
    start_s: float
    end_s: float
    media_start_ms: float | None = None
    media_end_ms: float | None = None


@dataclass(frozen=True)
class Figures:
    """What the spans of one segment come to, in seconds of wall time."""

    segment_id: str
    first_audio_s: float | None  # from the end of the source speech to the first translated sound
    first_mouth_s: float | None  # from there to the first mouths
    last_s: float | None  # and to the end of its last stage
    early_faces_s: float  # spent on its faces before the end of the source speech
    overlap_s: float  # in which lips were made while its speech was still coming
    stages_s: dict[Stage, float]  # each stage at work; what one stage does at the same time counts once
    busy_s: float  # in which at least one of the working stages ran

    @property
    def work_s(self) -> float:
        """What the working stages would have taken one after the other."""
        return sum(seconds for stage, seconds in self.stages_s.items() if stage not in WAITS)

    @property
    def gain(self) -> float | None:
        """`work_s` over `busy_s`: how much working side by side saved. None where nothing worked."""
        return self.work_s / self.busy_s if self.busy_s > 0 else None

    @property
    def shares(self) -> dict[Stage, float]:
        """Of each working stage in `work_s`."""
        work_s = self.work_s
        return {stage: s / work_s for stage, s in self.stages_s.items() if stage not in WAITS and work_s > 0}


class Trace:
    """The spans of one job."""

    def __init__(self, origin_s: float | None = None, keep: int = KEEP_SEGMENTS) -> None:
        self.origin_s = time.monotonic() if origin_s is None else origin_s
        self._began = datetime.fromtimestamp(time.time() - time.monotonic() + self.origin_s, UTC)
        self._keep = keep
        self._segments: dict[str, list[Span]] = {}  # oldest first
        self._loose: deque[Span] = deque(maxlen=keep * LOOSE_PER_SEGMENT)
        self._marks: deque[tuple[float, float]] = deque(maxlen=KEEP_MARKS)  # media time -> when it was there
        self._asked: deque[Span] = deque(maxlen=KEEP_ASKED)
        self._gone: deque[str] = deque(maxlen=keep)
        self._old_figures: deque[Figures] = deque(maxlen=KEEP_FIGURES)
        self.dropped_segments = 0
        self.dropped_spans = 0  # beyond those of the dropped segments

    def span(
        self,
        segment_id: str | None,
        stage: Stage,
        start_s: float,
        end_s: float,
        *,
        media_start_ms: float | None = None,
        media_end_ms: float | None = None,
    ) -> None:
        """Note a span between two readings of `time.monotonic()`; without a segment it belongs to the picture."""
        start_s, end_s = start_s - self.origin_s, max(start_s, end_s) - self.origin_s
        span = Span(stage, start_s, end_s, media_start_ms, media_end_ms)
        if segment_id is None:
            self.dropped_spans += len(self._loose) == self._loose.maxlen
            self._loose.append(span)
            return
        spans = self._segments.get(segment_id)
        if spans is None:
            if segment_id in self._gone:
                self.dropped_spans += 1
                return
            spans = self._segments[segment_id] = []
            if len(self._segments) > self._keep:
                self._drop_oldest()
        if len(spans) < MAX_SPANS:
            spans.append(span)
        else:
            self.dropped_spans += 1

    def arrived(self, media_ms: float) -> None:
        """The sound up to this time of the video has come in just now."""
        self._marks.append((media_ms, time.monotonic()))

    def asked(self, start_s: float, media_start_ms: float) -> None:
        """The recogniser, asked at `start_s` about the sound from a time on, has answered just now.

        The question belongs to the segment that closes next, unless that ends before this sound.
        """
        now = time.monotonic()
        if now - start_s >= LEAST_ASKED_S:
            span = Span(Stage.RECOGNISE, start_s - self.origin_s, now - self.origin_s, media_start_ms)
            self._asked.append(span)

    def closed(self, segment_id: str, start_ms: float, end_ms: float) -> None:
        """A segment has closed just now: when it was heard follows from when its sound arrived."""
        now = time.monotonic()
        begin, end = (min(now, self._arrival(media_ms, now)) for media_ms in (start_ms, end_ms))
        self.span(segment_id, Stage.HEARD, begin, end, media_start_ms=start_ms, media_end_ms=end_ms)
        self.span(segment_id, Stage.PAUSE, end, now)
        while self._asked and (self._asked[0].media_start_ms or 0.0) < end_ms:
            self._segments[segment_id].append(replace(self._asked.popleft(), media_start_ms=None))

    @property
    def segment_ids(self) -> list[str]:
        """Of the segments that are kept whole, oldest first."""
        return list(self._segments)

    def spans(self, segment_id: str) -> list[Span]:
        """A segment's own spans and those of the picture that it covers; empty where it is not kept."""
        own = self._segments.get(segment_id, [])
        window = _window(own)
        loose = [] if window is None else [span for span, _ in self._loose_in(window)]
        return sorted([*own, *loose], key=lambda span: (span.start_s, span.end_s))

    def figures(self, segment_id: str) -> Figures:
        """Of a segment that is kept, with its part of the picture's spans. Raises KeyError."""
        own = self._segments[segment_id]
        window = _window(own)
        clipped = [] if window is None else [part for _, part in self._loose_in(window)]
        return _figures(segment_id, [*own, *clipped], _end_of_speech(own))

    def all_figures(self) -> list[Figures]:
        """Of every segment, those included whose spans were let go."""
        return [*self._old_figures, *map(self.figures, self._segments)]

    def totals(self) -> Figures:
        """The kept segments and the whole picture together: lips of one segment and speech of another overlap too."""
        return _figures("", [*self._loose, *(span for spans in self._segments.values() for span in spans)], None)

    def to_dict(self) -> dict[str, Any]:
        """For report.json."""
        every, totals = self.all_figures(), self.totals()
        return {
            "began": self._began.isoformat(timespec="milliseconds"),
            "dropped_segments": self.dropped_segments,
            "dropped_spans": self.dropped_spans,
            "totals": _figures_dict(totals),
            **{
                f"{name}_{key}": value
                for name in ("first_audio_s", "first_mouth_s", "last_s", "overlap_s")
                for key, value in spread([getattr(figures, name) for figures in every]).items()
            },
            "segments": [
                {**_figures_dict(self.figures(segment_id)), "spans": [_span_dict(span) for span in spans]}
                for segment_id, spans in self._segments.items()
            ],
            "picture": [_span_dict(span) for span in self._loose],
        }

    def _loose_in(self, window: Interval) -> list[tuple[Span, Span]]:
        """The picture's spans on a stretch of video, each with its part of it."""
        early = [span for span in self._loose if span.media_start_ms is not None and span.media_start_ms < window[1]]
        return [(span, part) for span in early if (part := _clip(span, window)) is not None]

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._segments))
        self._old_figures.append(self.figures(oldest))
        window = _window(self._segments.pop(oldest))
        while window and self._loose and (self._loose[0].media_end_ms or 0.0) <= window[0]:
            self._loose.popleft()  # of video before it: no kept segment has a part in it
        self._gone.append(oldest)
        self.dropped_segments += 1

    def _arrival(self, media_ms: float, default_s: float) -> float:
        """When the sound of a time had come in; between two arrivals it is taken to have come evenly."""
        marks = self._marks
        if not marks:
            return default_s
        after = bisect_left(marks, (media_ms, float("-inf")))
        if after == 0:
            return marks[0][1]
        if after == len(marks):
            return marks[-1][1]
        (media_0, wall_0), (media_1, wall_1) = marks[after - 1], marks[after]
        return wall_0 + (wall_1 - wall_0) * (media_ms - media_0) / (media_1 - media_0)


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Median and 95th percentile of what is known."""
    known = [value for value in values if value is not None]
    if not known:
        return {"p50": None, "p95": None}
    p50, p95 = np.percentile(known, (50, 95))
    return {"p50": float(p50), "p95": float(p95)}


def together(spans: Iterable[Span], one: Stage, other: Stage) -> list[Interval]:
    """When both stages were at work."""
    by_stage = _by_stage(spans)
    return [
        (max(a, c), min(b, d))
        for a, b in by_stage.get(one, [])
        for c, d in by_stage.get(other, [])
        if max(a, c) < min(b, d)
    ]


def _figures(name: str, spans: Sequence[Span], end_of_speech_s: float | None) -> Figures:
    by_stage = _by_stage(spans)
    working = {stage: intervals for stage, intervals in by_stage.items() if stage not in WAITS}

    def first(stage: Stage) -> float | None:
        """The end of the first span of a stage, counted from the end of the source speech."""
        ends = [span.end_s for span in spans if span.stage is stage]
        return min(ends) - end_of_speech_s if ends and end_of_speech_s is not None else None

    faces = by_stage.get(Stage.FACES, [])
    early = [] if end_of_speech_s is None else [(a, min(b, end_of_speech_s)) for a, b in faces if a < end_of_speech_s]
    last = [intervals[-1][1] for intervals in working.values()]
    return Figures(
        name,
        first_audio_s=first(Stage.TRANSLATE_SPEAK),
        first_mouth_s=first(Stage.LIPS),
        last_s=max(last) - end_of_speech_s if last and end_of_speech_s is not None else None,
        early_faces_s=_length(early),
        overlap_s=_length(together(spans, Stage.LIPS, Stage.SPEAK)),
        stages_s={stage: _length(intervals) for stage, intervals in by_stage.items()},
        busy_s=_length(_merged(interval for intervals in working.values() for interval in intervals)),
    )


def _end_of_speech(own: Sequence[Span]) -> float | None:
    """When the source speech of a segment had come in; None where nobody noted it."""
    heard = [span.end_s for span in own if span.stage is Stage.HEARD]
    closed = [span.start_s for span in own if span.stage in (Stage.PAUSE, Stage.QUEUE)]
    return max(heard) if heard else min(closed, default=None)


def _window(own: Sequence[Span]) -> Interval | None:
    """The stretch of video that a segment and its dub cover."""
    known = [(s.media_start_ms, s.media_end_ms) for s in own]
    pairs = [(start, end) for start, end in known if start is not None and end is not None]
    return (min(start for start, _ in pairs), max(end for _, end in pairs)) if pairs else None


def _clip(span: Span, window: Interval) -> Span | None:
    """The part of a span that fell to a stretch of video, as if it had worked through its own evenly."""
    start_ms, end_ms = span.media_start_ms, span.media_end_ms
    if start_ms is None or end_ms is None or end_ms <= window[0] or start_ms >= window[1]:
        return None
    inside = max(start_ms, window[0]), min(end_ms, window[1])
    pace = (span.end_s - span.start_s) / (end_ms - start_ms) if end_ms > start_ms else 0.0
    return replace(
        span,
        start_s=span.start_s + (inside[0] - start_ms) * pace,
        end_s=span.end_s - (end_ms - inside[1]) * pace,
        media_start_ms=inside[0],
        media_end_ms=inside[1],
    )


def _by_stage(spans: Iterable[Span]) -> dict[Stage, list[Interval]]:
    """When each stage was at work, in the stages' order; overlaps within a stage merged."""
    intervals: dict[Stage, list[Interval]] = {}
    for span in spans:
        intervals.setdefault(span.stage, []).append((span.start_s, span.end_s))
    return {stage: _merged(intervals[stage]) for stage in Stage if stage in intervals}


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _length(intervals: Sequence[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _span_dict(span: Span) -> dict[str, Any]:
    return {key: value for key, value in asdict(span).items() if value is not None}


def _figures_dict(figures: Figures) -> dict[str, Any]:
    return {
        **asdict(figures),
        "work_s": figures.work_s,
        "gain": figures.gain,
        "shares": figures.shares,
    }
