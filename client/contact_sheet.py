"""Two videos -> one picture that shows the dub at a glance: frames, mouths and sound, source over dubbed.

Frames are sought one by one and sound is folded into one peak per pixel column as it is decoded, so a sheet of a
long video costs the memory of a short one. Times count from the first picture or sound of each file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from polylip.client.files import write_atomic
from polylip.client.lettering import SMALL_TEXT, Colour, Pixels, fit, plate, put, text_width
from polylip.client.pixels import Orientation
from polylip.client.results import FaceSample, HideReason, SegmentResult
from polylip.client.ring import Box

# Layout in pixels. The left gutter holds the names of the rows.
WIDTH, LEFT, RIGHT, GAP = 1600, 88, 20, 8
COLUMNS, OUTSIDE = 6, 2  # frames shown, and how many of them are taken outside speech
CONTENT = WIDTH - LEFT - RIGHT
TILE_WIDTH = (CONTENT - (COLUMNS - 1) * GAP) // COLUMNS
MAX_TILE_HEIGHT = 300  # of an upright video's frames
CROP_HEIGHT = TILE_WIDTH * 3 // 4
HEADER_HEIGHT, PANEL_HEIGHT, AXIS_HEIGHT = 40, 120, 34
LEGEND_WIDTH, FACTS_WIDTH = 160, 400  # of one entry, and of the facts beside the title
MAX_TICKS = 20
TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)

# The part of a face box that an enlarged crop shows: nose to chin, as wide as the face.
MOUTH_CENTRE = 0.72  # of the box's height, from its top
MOUTH_WIDTH = 0.9  # of the box's width

ENVELOPE_HZ = 16_000  # sound is resampled to this before its peaks are taken: more than speech needs
QUIET_PEAK = 0.05  # of full scale: a file below it is not blown up to fill its panel

# Colours, BGR.
PAPER, TILE, INK, FAINT = (252, 252, 252), (236, 236, 236), (45, 45, 45), (150, 150, 150)
BOX_LIPSYNCED, BOX_UNTOUCHED, BOX_OTHER = (80, 200, 60), (165, 165, 165), (230, 130, 20)
SOURCE_WAVE, DUBBED_WAVE = (190, 120, 50), (70, 140, 40)
SOURCE_SPAN, DUBBED_SPAN, PLAIN_SPAN = (250, 234, 214), (218, 242, 216), (236, 236, 236)

Envelope = NDArray[np.float32]


@dataclass(frozen=True)
class Pick:
    """One column of frames: a time, and what is known of the face there."""

    time_ms: int
    sample: FaceSample | None = None


@dataclass(frozen=True)
class Span:
    """One stretch of sound in a panel: what is said from when to when, and in which segment."""

    number: int
    start_ms: int
    end_ms: int
    text: str
    colour: Colour


def write_contact_sheet(
    source: Path,
    dubbed: Path,
    samples: Sequence[FaceSample],
    segments: Sequence[SegmentResult],
    out: Path,
    *,
    duration_s: float,
) -> Path:
    """Write the sheet as a PNG, 1600 pixels wide, and return its path.

    It has a row of source frames over the same dubbed frames with all faces' boxes and ids, enlarged mouths of both
    where there is a speaker's face, and both sound envelopes on one time axis with the segments' spans.
    """
    sounds = [envelope(path, duration_s) for path in (source, dubbed)]
    picks = choose_picks(samples, segments, duration_s, sounds[1])
    frames, mouths = [], []
    height = None
    for name, path in (("source", source), ("dubbed", dubbed)):
        tiles, crops = [], []
        for pick, frame in zip(picks, frames_at(path, [pick.time_ms for pick in picks]), strict=True):
            if height is None and frame is not None:
                height = min(MAX_TILE_HEIGHT, round(TILE_WIDTH * frame.shape[0] / frame.shape[1]))
            tiles.append(_frame_tile(frame, pick, height or CROP_HEIGHT))
            crops.append(_mouth_tile(frame, pick))
        frames.append(_row(name, tiles))
        mouths.append(_row(name, crops))
    shown = [pick.sample for pick in picks if pick.sample is not None]
    has_face, has_others = any(sample.box_px for sample in shown), any(sample.others for sample in shown)
    legend = [(BOX_LIPSYNCED, "lips re-rendered"), (BOX_UNTOUCHED, "lips untouched")] if has_face else []
    legend += [(BOX_OTHER, "another face")] if has_others else []
    peaks = [float(np.abs(sound).max()) for sound in sounds]
    scales = {"duration_s": duration_s, "full_scale": max(QUIET_PEAK, *peaks)}
    strips = [
        _header(f"{source.name} > {dubbed.name}", segments, duration_s, legend),
        *frames,
        *(mouths if has_face else []),
        _panel("source", sounds[0], _source_spans(segments), SOURCE_WAVE, **scales),
        _panel("dubbed", sounds[1], _dubbed_spans(segments), DUBBED_WAVE, **scales),
        _axis(picks, duration_s),
    ]
    _, png = cv2.imencode(".png", np.vstack(strips))
    return write_atomic(out, png.tobytes())


def choose_picks(
    samples: Sequence[FaceSample], segments: Sequence[SegmentResult], duration_s: float, sound: Envelope
) -> list[Pick]:
    """Six times in order: lip-synced frames over the whole video, each at a loud moment, and two outside speech.

    What is missing is made up from other samples, then from evenly spaced times.
    """
    ordered = sorted(samples, key=lambda sample: sample.time_ms)
    spans = [*_source_spans(segments), *_dubbed_spans(segments)]

    def loudness(sample: FaceSample) -> float:
        column = int(sample.time_ms / 1000 / max(duration_s, 1e-3) * len(sound))
        return float(np.ptp(sound[min(column, len(sound) - 1)]))

    synced = [sample for sample in ordered if sample.lipsynced]
    outside = [
        sample
        for sample in ordered
        if not sample.lipsynced and not any(s.start_ms <= sample.time_ms <= s.end_ms for s in spans)
    ]
    quiet = _spread(outside, OUTSIDE if synced else COLUMNS)
    chosen = quiet + [max(part, key=loudness) for part in _parts(synced, COLUMNS - len(quiet))]
    others = [sample for sample in ordered if sample not in chosen]
    chosen += _spread(others, COLUMNS - len(chosen))
    missing = COLUMNS - len(chosen)
    picks = [Pick(sample.time_ms, sample) for sample in chosen]
    picks += [Pick(int((index + 0.5) / missing * duration_s * 1000)) for index in range(missing)]
    return sorted(picks, key=lambda pick: pick.time_ms)


def _parts(samples: Sequence[FaceSample], count: int) -> list[Sequence[FaceSample]]:
    """`samples` cut into at most `count` runs of about the same length, none empty."""
    count = min(count, len(samples))
    cuts = [len(samples) * index // count for index in range(count + 1)] if count else []
    return [samples[start:end] for start, end in pairwise(cuts)]


def _spread(samples: Sequence[FaceSample], count: int) -> list[FaceSample]:
    """At most `count` of `samples`, evenly spread."""
    return [part[len(part) // 2] for part in _parts(samples, count)]


def frames_at(path: Path, times_ms: Sequence[int]) -> Iterator[Pixels | None]:
    """The frame nearest to each time: uint8 (height, width, 3), BGR; None where the file has none."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            yield from (None for _ in times_ms)
            return
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for time_ms in times_ms:
            yield _frame_at(container, stream, time_ms / 1000)


def _frame_at(container: Any, stream: Any, time_s: float) -> Pixels | None:
    """Seek to the key frame before `time_s` and decode up to the frame nearest to it."""
    origin_s = _origin_s(container)
    best, best_distance_s = None, float("inf")
    try:
        container.seek(int((time_s + origin_s) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time is None:
                continue
            distance_s = abs(frame.time - origin_s - time_s)
            if distance_s < best_distance_s:
                best, best_distance_s = frame, distance_s
            if frame.time - origin_s >= time_s:
                break
    except av.FFmpegError:  # a damaged stretch costs its tile, never the sheet
        pass
    if best is None:
        return None
    return np.ascontiguousarray(Orientation.of_frame(best).upright(best.to_ndarray(format="bgr24")))


def envelope(path: Path, duration_s: float, columns: int = CONTENT) -> Envelope:
    """Lowest and highest sample in each of `columns` equal parts of `duration_s`: float32 (columns, 2); 0 where silent.

    The file is decoded once; what lies outside `duration_s` is left out.
    """
    peaks = np.zeros((columns, 2), dtype=np.float32)
    with av.open(str(path)) as container:
        if not container.streams.audio or duration_s <= 0:
            return peaks
        origin_s = _origin_s(container)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=ENVELOPE_HZ)
        for frame in container.decode(audio=0):
            for part in resampler.resample(frame):
                samples = part.to_ndarray()[0]
                times_s = (part.time or 0.0) - origin_s + np.arange(samples.size) / ENVELOPE_HZ
                index = np.floor(times_s / duration_s * columns).astype(np.int64)
                inside = (index >= 0) & (index < columns)
                np.minimum.at(peaks[:, 0], index[inside], samples[inside])
                np.maximum.at(peaks[:, 1], index[inside], samples[inside])
    return peaks


def _origin_s(container: Any) -> float:
    """Container time of 0 ms: the first picture or the first sound, as `polylip.client.media_in` counts."""
    streams = [*container.streams.video[:1], *container.streams.audio[:1]]
    return min(float((stream.start_time or 0) * stream.time_base) for stream in streams)


def _source_spans(segments: Sequence[SegmentResult]) -> list[Span]:
    return [
        Span(number, s.start_ms, s.end_ms, s.source_text, PLAIN_SPAN if s.dub_start_ms is None else SOURCE_SPAN)
        for number, s in enumerate(segments, start=1)
    ]


def _dubbed_spans(segments: Sequence[SegmentResult]) -> list[Span]:
    return [
        Span(number, s.dub_start_ms, s.dub_end_ms, s.target_text, DUBBED_SPAN)
        for number, s in enumerate(segments, start=1)
        if s.dub_start_ms is not None and s.dub_end_ms is not None
    ]


def _header(
    title: str, segments: Sequence[SegmentResult], duration_s: float, legend: Sequence[tuple[Colour, str]]
) -> Pixels:
    """What is compared, and what the boxes mean."""
    strip = _paper(HEADER_HEIGHT)
    dubs = sum(segment.dub_start_ms is not None for segment in segments)
    facts = f"{duration_s:.1f} s, {len(segments)} segments, {dubs} dubbed"
    x = WIDTH - RIGHT - len(legend) * LEGEND_WIDTH
    put(strip, f"{fit(title, x - LEFT - FACTS_WIDTH)}   {facts}", (LEFT, 26), INK)
    for colour, meaning in legend:
        cv2.rectangle(strip, (x, 14), (x + 16, 27), colour, 2, cv2.LINE_AA)
        put(strip, meaning, (x + 24, 26), INK, SMALL_TEXT)
        x += LEGEND_WIDTH
    return strip


def _row(name: str, tiles: Sequence[Pixels]) -> Pixels:
    """Tiles of one height side by side, with the row's name in the gutter."""
    height = tiles[0].shape[0]
    strip = _paper(height + GAP)
    put(strip, name, (16, height // 2 + 5), INK)
    for column, tile in enumerate(tiles):
        x = LEFT + column * (TILE_WIDTH + GAP)
        strip[:height, x : x + TILE_WIDTH] = tile
    return strip


def _frame_tile(frame: Pixels | None, pick: Pick, height: int) -> Pixels:
    """The whole frame, fitted, with its time and the faces' boxes and ids."""
    tile = np.full((height, TILE_WIDTH, 3), TILE, dtype=np.uint8)
    if frame is not None:
        scale = min(TILE_WIDTH / frame.shape[1], height / frame.shape[0])
        size = (min(TILE_WIDTH, round(frame.shape[1] * scale)), min(height, round(frame.shape[0] * scale)))
        left, top = (TILE_WIDTH - size[0]) // 2, (height - size[1]) // 2
        tile[top : top + size[1], left : left + size[0]] = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        if pick.sample is not None:
            _draw_faces(tile, pick.sample, scale, left, top)
    missing = "no frame" if frame is None else "" if pick.sample is None else _missing(pick.sample)
    plate(tile, f"{pick.time_ms / 1000:.2f} s  {missing}".rstrip(), (0, height), INK)
    return tile


def _draw_faces(tile: Pixels, sample: FaceSample, scale: float, left: int, top: int) -> None:
    """All boxes and ids, the speaker's last: on top."""
    speaker = BOX_LIPSYNCED if sample.lipsynced else BOX_UNTOUCHED
    faces: list[tuple[Box, int | None, Colour, int]] = [(box, track, BOX_OTHER, 1) for box, track in sample.others]
    if sample.box_px is not None:
        faces.append((sample.box_px, sample.track_id, speaker, 2))
    for box, track, colour, thickness in faces:
        x1, y1, x2, y2 = (round(value * scale) for value in box)
        cv2.rectangle(tile, (x1 + left, y1 + top), (x2 + left, y2 + top), colour, thickness)
        if track is not None:
            plate(tile, f"#{track}", (x1 + left - 1, y1 + top - 1), colour)


def _missing(sample: FaceSample) -> str:
    """Why the frame has no box of the speaker, or has one whose lips may not be drawn; empty where neither is so."""
    if sample.box_px is None and sample.hidden in (None, HideReason.NOT_FOUND):
        return "speaker not found" if sample.others else "no face found"
    return sample.hidden or ""


def _mouth_tile(frame: Pixels | None, pick: Pick) -> Pixels:
    """The mouth, enlarged; an empty tile where no face is known."""
    tile = np.full((CROP_HEIGHT, TILE_WIDTH, 3), TILE, dtype=np.uint8)
    box = pick.sample.box_px if pick.sample is not None else None
    if frame is None or box is None:
        return tile
    x1, y1, x2, y2 = box
    scale = TILE_WIDTH / max(1.0, (x2 - x1) * MOUTH_WIDTH)
    centre_x, centre_y = (x1 + x2) / 2, y1 + MOUTH_CENTRE * (y2 - y1)
    matrix = np.array([[scale, 0, TILE_WIDTH / 2 - centre_x * scale], [0, scale, CROP_HEIGHT / 2 - centre_y * scale]])
    crop: Pixels = cv2.warpAffine(frame, matrix, (TILE_WIDTH, CROP_HEIGHT), flags=cv2.INTER_CUBIC, borderValue=TILE)
    return crop


def _panel(
    name: str, sound: Envelope, spans: Sequence[Span], colour: Colour, *, duration_s: float, full_scale: float
) -> Pixels:
    """One envelope over its shaded spans."""
    strip = _paper(PANEL_HEIGHT)
    top, bottom = GAP, PANEL_HEIGHT - 2
    put(strip, name, (16, PANEL_HEIGHT // 2 + 8), INK)
    for span in spans:
        x1, x2 = _x(span.start_ms / 1000, duration_s), _x(span.end_ms / 1000, duration_s)
        cv2.rectangle(strip, (x1, top), (x2, bottom), span.colour, cv2.FILLED)
        cv2.line(strip, (x1, top), (x1, bottom), FAINT, 1)
    # The text has the top of the panel to itself, the wave what is below.
    middle, reach = (top + 20 + bottom) / 2, (bottom - top - 22) / 2
    heights = middle - sound / full_scale * reach
    x = LEFT + np.arange(len(sound))
    outline = np.concatenate([np.column_stack([x, heights[:, 1]]), np.column_stack([x, heights[:, 0]])[::-1]])
    cv2.fillPoly(strip, [np.round(outline).astype(np.int32)], colour, cv2.LINE_AA)
    cv2.line(strip, (LEFT, round(middle)), (WIDTH - RIGHT, round(middle)), colour, 1)
    for span in spans:
        x1, x2 = _x(span.start_ms / 1000, duration_s), _x(span.end_ms / 1000, duration_s)
        number = str(span.number)
        text_x = x1 + 5 + text_width(f"{number} ", SMALL_TEXT)
        if text_x <= x2:  # a number is shown whole or not at all: a cut one would name another segment
            put(strip, number, (x1 + 5, top + 14), INK, SMALL_TEXT)
            put(strip, fit(span.text, x2 - text_x - 3, SMALL_TEXT), (text_x, top + 14), INK, SMALL_TEXT)
    if not sound.any():
        put(strip, "no sound", (LEFT + 8, round(middle) - 8), FAINT, SMALL_TEXT)
    return strip


def _axis(picks: Sequence[Pick], duration_s: float) -> Pixels:
    """The seconds under both panels; small triangles mark where the frames above were taken."""
    strip = _paper(AXIS_HEIGHT)
    cv2.line(strip, (LEFT, 2), (WIDTH - RIGHT, 2), INK, 1)
    step_s = next((step for step in TICK_STEPS_S if duration_s / step <= MAX_TICKS), TICK_STEPS_S[-1])
    for tick in range(int(duration_s / step_s + 1e-6) + 1):
        x = _x(tick * step_s, duration_s)
        cv2.line(strip, (x, 2), (x, 8), INK, 1)
        label = f"{tick * step_s:g}" + (" s" if tick == 0 else "")
        put(strip, label, (x - text_width(label, SMALL_TEXT) // 2, 23), INK, SMALL_TEXT)
    for pick in picks:
        x = _x(pick.time_ms / 1000, duration_s)
        colour = BOX_LIPSYNCED if pick.sample is not None and pick.sample.lipsynced else BOX_UNTOUCHED
        cv2.fillPoly(strip, [np.array([(x, 1), (x - 5, 9), (x + 5, 9)], dtype=np.int32)], colour, cv2.LINE_AA)
    return strip


def _x(time_s: float, duration_s: float) -> int:
    """Where a time lies in the panels."""
    return LEFT + round(min(1.0, max(0.0, time_s / max(duration_s, 1e-3))) * CONTENT)


def _paper(height: int) -> Pixels:
    return np.full((height, WIDTH, 3), PAPER, dtype=np.uint8)
