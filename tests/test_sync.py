"""Offsets of sound and picture: found when they are there, not when they are not, and kept by the finished file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import Picture, Sound, write_media
from hypothesis import given
from hypothesis import strategies as st
from material import RATE_HZ
from playback import play
from two_faces import BOXES, FPS, HEIGHT, WIDTH, film

from polylip.client.cuts import thumbnail
from polylip.client.drift import SyncCorrector, SyncState
from polylip.client.envelopes import (
    SMOOTH_MS,
    Curve,
    loudness,
)
from polylip.client.face_book import FaceBook
from polylip.client.job import DubOptions, DubResult, dub
from polylip.client.media_in import AudioReader, VideoReader, probe_media
from polylip.client.media_out import MediaWriter
from polylip.client.mix import AudioBed
from polylip.client.pulse import Pulse
from polylip.client.results import Status
from polylip.client.ring import Slot
from polylip.client.segmentation import Segment
from polylip.client.speaker import Choice
from polylip.client.sync import (
    MAX_OFFSET_MS,
    OffsetMeter,
    Piece,
    SourceSync,
    Spread,
    best_shift,
    built_offset_ms,
    last_of,
    measure,
    mouth_offset_ms,
    pieces,
)
from polylip.client.timeline import Dub, Timeline
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.sync import NOISES, RATES, Mouth, analytic_mouth, frame_times, injected, sound_curve, spoken, table
from polylip.serving.launcher import Server
from polylip.serving.lips_audio import HOP_MS

ROOT = Path(__file__).parents[1]
SECONDS = 30

# Estimates.


@cache
def speech() -> np.ndarray:
    return spoken(SECONDS, seed=0)


def mouth(noise: float, rate: str, seed: int) -> Mouth:
    return analytic_mouth(speech(), noise, frame_times(rate, SECONDS, seed), seed)


def windows(
    seen: Mouth,
    form: str = "dE ~ d(opening)",
    offset_ms: float = 0.0,
    skew_ppm: float = 0.0,
    sound: np.ndarray | None = None,
) -> Iterator[tuple[list[Piece], float]]:
    """Windows of 5 s, and the truth at their middle."""
    heard = loudness(speech() if sound is None else sound, 0.0, silent_around_ms=MAX_OFFSET_MS)
    curve = injected(seen.curve(form), offset_ms, skew_ppm)
    parts = pieces(sound_curve(heard, form), curve)
    for first in range(0, len(parts) - 4, 3):
        window = parts[first : first + 5]
        yield window, offset_ms + (window[0].start_ms + window[-1].end_ms) / 2 * skew_ppm / 1e6


def test_injected_offsets_are_found_within_40_ms_at_99_percent():
    errors, asked = [], 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        seen = mouth(NOISES[seed % 2], RATES[seed % 3], seed)
        for window, truth_ms in windows(seen, offset_ms=rng.uniform(-300, 300), skew_ppm=rng.choice([-200, 0, 200])):
            found = measure(window)
            asked += 1
            errors += [] if found is None else [abs(found.offset_ms - truth_ms)]
    assert asked > 150 and len(errors) > 0.95 * asked
    assert np.percentile(errors, 99) < 40 and np.mean(errors) < 10


def test_a_mouth_with_much_of_its_own_is_found_or_unclear():
    errors = []
    for seed in range(9):
        for window, truth_ms in windows(mouth(NOISES[2], RATES[seed % 3], seed), offset_ms=-120):
            found = measure(window)
            errors += [] if found is None else [abs(found.offset_ms - truth_ms)]
    assert len(errors) > 40 and np.percentile(errors, 99) < 40


def test_unrelated_speech_and_noise_are_unclear():
    """Speech backwards has the rhythm of speech; several shifts, as windows of one pair are much alike."""
    answers = [
        measure(window)
        for seed in range(9)
        for window, _ in windows(mouth(0.25, RATES[seed % 3], seed), offset_ms=997 * seed, sound=speech()[::-1])
    ]
    noise = np.random.default_rng(0)
    for _ in range(20):
        points = [(time_ms, float(noise.random())) for time_ms in np.arange(0, 5000, 40)]
        answers.append(mouth_offset_ms(speech()[: 5 * RATE_HZ], points))
    assert len(answers) > 80
    assert sum(answer is not None for answer in answers) <= 0.01 * len(answers)


def test_loudness_with_motion_taken_literally_fails_where_like_with_like_does_not():
    def mean_error(form: str) -> float:
        seen = [mouth(0.6, RATES[seed % 3], seed) for seed in range(6)]
        pairs = [pair for one in seen for pair in windows(one, form, offset_ms=100)]
        return float(np.mean([abs(best_shift(window).offset_ms - truth_ms) for window, truth_ms in pairs]))

    assert mean_error("E ~ motion") > 100
    for form in ("|dE| ~ motion", "E ~ opening", "dE ~ d(opening)"):
        assert mean_error(form) < 10


def test_a_window_of_short_pieces_with_gaps_is_as_good_as_a_whole_one():
    seen = mouth(0.6, "25 fps", 0)
    heard = loudness(speech(), 0.0, silent_around_ms=MAX_OFFSET_MS).slope()
    parts = []
    for start_ms in (1000, 7000, 13_000):
        inside = (seen.times_ms >= start_ms) & (seen.times_ms < start_ms + 1800)
        parts += pieces(heard, Curve(seen.times_ms[inside] + 80, seen.opening[inside]).slope(SMOOTH_MS))
    assert sum(part.length_ms for part in parts) < 6000
    assert measure(parts[:2]) is None, "less than 2 s tell nothing"
    assert measure(parts).offset_ms == pytest.approx(80, abs=20)


def test_a_still_mouth_silence_and_too_little_are_unclear():
    flat = [(time_ms, 1.0) for time_ms in np.arange(0, 6000, 40.0)]
    moving = [(time_ms, float(np.sin(time_ms))) for time_ms, _ in flat]
    assert mouth_offset_ms(speech()[: 6 * RATE_HZ], flat) is None
    assert mouth_offset_ms(np.zeros(6 * RATE_HZ, np.float32), moving) is None
    for points in ([], moving[:1], moving[:20]):
        assert mouth_offset_ms(speech()[: 6 * RATE_HZ], points) is None
    assert measure([]) is None and best_shift([]) is None


def test_last_pieces_make_up_at_least_what_is_asked():
    parts = next(window for window, _ in windows(mouth(0.25, "25 fps", 0)))
    assert last_of(parts, 1) == parts[-1:]
    assert last_of(parts, 10**6) == parts
    assert sum(part.length_ms for part in last_of(parts, 2500)) >= 2500


# The dubbed pair.


def dubbed(line: Timeline, index: int, start_ms: int, length_ms: int, face_id: int | None = 1) -> Dub:
    """A dub that speaks that stretch of the sound."""
    segment = Segment(index, start_ms, start_ms + length_ms, np.zeros(1, np.float32))
    made = line.add(segment)
    line.place(made)
    voice = speech()[start_ms * 16 : (start_ms + length_ms) * 16]
    line.append(made, voice, voice)
    made.result.face_id = face_id
    return made


def show(meter: OffsetMeter, made: Dub, offset_ms: float) -> None:
    """Frames at 25 fps, with a mouth that is late."""
    seen = mouth(0.25, "25 fps", 0)
    for time_ms in np.arange(made.start_ms, made.end_ms, 40.0):
        meter.add(made, time_ms, float(np.interp(time_ms - offset_ms, seen.times_ms, seen.opening)))
    meter.close(made)


def test_each_segment_and_each_window_has_an_offset():
    line, meter = Timeline(None, Pulse()), OffsetMeter()
    first, second = dubbed(line, 0, 500, 9000), dubbed(line, 1, 10_000, 6000)
    show(meter, first, 60)
    show(meter, second, 20)
    assert meter.segment_ms(first.segment.id) == pytest.approx(60, abs=10)
    assert meter.segment_ms(second.segment.id) == pytest.approx(20, abs=10)
    assert meter.segment_ms("another") is None
    assert meter.offset_ms == pytest.approx(40, abs=10)
    assert (meter.segments.count, meter.segments.measured, meter.windows.count) == (2, 2, 2)
    assert meter.segments.p99_ms == pytest.approx(60, abs=10)


def test_short_segments_of_one_face_are_measured_together():
    line, meter = Timeline(None, Pulse()), OffsetMeter()
    short = [dubbed(line, index, 500 + 2500 * index, 2000) for index in range(4)]
    for made in short:
        show(meter, made, -40)
    assert [meter.segment_ms(made.segment.id) for made in short] == pytest.approx([-40] * 4, abs=15)
    assert meter.windows.count == 1
    other = dubbed(line, 9, 12_000, 1200, face_id=2)
    show(meter, other, -40)
    assert meter.segment_ms(other.segment.id) is None, "a face of its own, seen too shortly"
    assert (meter.segments.count, meter.segments.measured) == (5, 4)


def test_a_job_without_lips_has_no_offset():
    meter = OffsetMeter()
    meter.close(dubbed(Timeline(None, Pulse()), 0, 0, 3000))
    assert meter.offset_ms is None
    assert meter.segments == meter.windows == Spread(0, 0, None, None)


# The source pair: drawn faces, as the client measures them.


@cache
def slots(offset_ms: int) -> tuple[Slot, ...]:
    """A face that speaks `speech()`, its picture late."""
    book, found = FaceBook(WIDTH, HEIGHT), []
    for index, frame in enumerate(film(speech()[: 22 * RATE_HZ], None, 22 * FPS)):
        picture = av.VideoFrame.from_ndarray(frame, "bgr24").reformat(format="yuv420p")
        time_ms = index * 1000 / FPS + offset_ms
        found.append(Slot(index, time_ms, 0, book.enter(time_ms, thumbnail(picture), {1: (BOXES[0], 0.9)})))
    return tuple(found)


def heard(start_ms: int, end_ms: int, moved_ms: int = 0) -> Segment:
    """A segment of that speech, whose sound was moved by a correction."""
    return Segment(0, start_ms + moved_ms, end_ms + moved_ms, speech()[start_ms * 16 : end_ms * 16])


CHOICE = Choice({0: (1,)})


@pytest.mark.parametrize("offset_ms", [-150, 0, 160])
def test_the_offset_of_a_source_is_found_and_corrected(offset_ms: int):
    source = SourceSync(SyncCorrector(np.random.default_rng(0)))
    for start_ms in range(500, 18_500, 6000):
        source.hear(heard(start_ms, start_ms + 6000), slots(offset_ms), CHOICE)
    assert source.windows.measured >= 5
    assert source.windows.p50_ms == pytest.approx(offset_ms, abs=25)
    corrector = source.corrector
    assert corrector.correction_ms(60_000) == pytest.approx(offset_ms, abs=25)
    assert corrector.corrections == (offset_ms != 0)


@pytest.mark.parametrize("applied", [True, False])
def test_a_correction_that_the_sound_has_already_is_taken_out_before_measuring(applied: bool):
    """The segments come with their sound moved by 160 ms, as they should be."""
    source = SourceSync(SyncCorrector(np.random.default_rng(0)), applied=applied)
    source.corrector.restart(0)
    source.corrector.observe(0, 160.0)
    assert source.corrector.correction_ms(16_000) == 160
    for start_ms in (16_100, 19_000):
        source.hear(heard(start_ms, start_ms + 2800, moved_ms=160), slots(160), CHOICE)
    assert source.windows.measured == 1
    assert source.windows.p50_ms == pytest.approx(160 if applied else 0, abs=25)


def test_a_face_that_is_not_there_gives_no_offset_and_a_new_start_forgets():
    source = SourceSync()
    source.hear(heard(500, 9000), slots(0), Choice({}))
    assert source.windows == Spread(0, 0, None, None)
    source.hear(heard(500, 4400), slots(0), CHOICE)
    source.restart(4400)
    source.hear(heard(4500, 6000), slots(0), CHOICE)
    assert source.windows.count == 0 and source.corrector.state is SyncState.RESYNCING


# The finished file.


@given(st.integers(0, 3_600_000), st.floats(0, 60_000), st.sampled_from([16_000, 44_100, 48_000]))
def test_by_construction_a_mouth_is_less_than_a_mel_column_late(start_ms: int, into_ms: float, rate_hz: int):
    sample_ms = 1000 / rate_hz
    assert -sample_ms <= built_offset_ms(start_ms, start_ms + into_ms, rate_hz) <= HOP_MS + sample_ms


def test_dubs_and_frames_lie_in_the_file_where_the_timeline_has_them(tmp_path: Path):
    """Uneven frames, a sound that starts later than the picture, and clicks for voices."""
    times_s = [Fraction(round(time_ms), 1000) for time_ms in frame_times("variable", 6, 0)]
    quiet = Sound(np.zeros((1, 5 * RATE_HZ), np.float32), start_s=Fraction(1, 2))
    clip = write_media(tmp_path / "in.mp4", Picture(times_s=times_s, rate=30, time_base=Fraction(1, 1000)), quiet)
    info, line, rate_hz = probe_media(clip), Timeline(None, Pulse()), 16_000
    bed = AudioBed(rate_hz, 1)
    bed.append(np.zeros((1, 6 * rate_hz), np.float32))
    for index, start_ms in enumerate((733, 2501, 4007)):
        voice = np.zeros(rate_hz, np.float32)
        voice[0::4000] = 0.9  # 0, 250, 500, 750 ms
        voice[1::4000] = -0.9
        made = line.add(Segment(index, start_ms, start_ms + 1000, voice))
        assert line.place(made)
        line.append(made, voice, voice)
        line.end(made, Status.DUBBED)
    writer, reader = MediaWriter(tmp_path / "out.mp4", info), VideoReader(info, info.planar_format)
    while frames := reader.read(8):
        writer.write([(frame, time_ms) for time_ms, frame in frames], bed.render(frames[-1][0], line.active))
    writer.write([], bed.render(6000, line.active))
    writer.finish(tmp_path / "out.mp4")
    reader.close()
    shown = play(tmp_path / "out.mp4")
    assert [round(float(time_s) * 1000) for time_s in shown.times_s] == [round(t * 1000) for t in times_s]
    clicks = [start_ms + at_ms for start_ms in (733, 2501, 4007) for at_ms in (0, 250, 500, 750)]
    heard_ms = [1000 * peak for peak in shown.onsets_s]
    np.testing.assert_allclose(heard_ms, clicks, atol=2)  # AAC spreads a click over a millisecond


@pytest.fixture(scope="module")
def finished(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DubResult]:
    folder = tmp_path_factory.mktemp("sync")
    clip = make_demo_clip(folder / "in.mp4", seconds=13, size=(640, 360))
    return clip, asyncio.run(dub(DubOptions(clip, folder / "out.mp4", "es", url=server.url)))


def decoded(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in ms and luma of every frame."""
    times, pictures = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.pts * frame.time_base * 1000))
            plane = frame.planes[0]
            pictures.append(np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size).copy())
    return times, pictures


def test_the_finished_file_keeps_sound_and_picture_together(finished: tuple[Path, DubResult]):
    """Demuxed: the same frame times as before, and a mouth that opens with the dub within 40 ms."""
    clip, result = finished
    before, sources = decoded(clip)
    after, pictures = decoded(result.video)
    assert np.abs(np.array(before) - np.array(after)).max() < 1.0
    reader = AudioReader(probe_media(result.video), 16_000, 1)
    chunks = []
    while (piece := reader.read(1.0)) is not None:
        chunks.append(piece[1])
    reader.close()
    audio = np.concatenate(chunks)
    x1, y1, x2, y2 = map(int, next(s.box_px for s in result.face_samples if s.box_px is not None))
    mouths = slice((y1 + 2 * y2) // 3, y2), slice(x1, x2)
    window = []
    for segment in result.report.segments:
        assert segment.dub_start_ms is not None and segment.dub_end_ms is not None
        start_ms, end_ms = segment.dub_start_ms, segment.dub_end_ms
        opening = Curve.of(
            (time_ms, float(np.abs(new[mouths].astype(int) - old[mouths]).mean()))
            for time_ms, new, old in zip(after, pictures, sources, strict=True)
            if start_ms <= time_ms < end_ms
        )
        sound = loudness(audio[start_ms * 16 : end_ms * 16], start_ms, silent_around_ms=MAX_OFFSET_MS)
        window += pieces(sound.slope(), opening.slope(SMOOTH_MS))
    found = measure(window)
    assert found is not None and found.length_ms >= 5000
    assert abs(found.offset_ms) < 40
    assert result.report.av_offset_ms == pytest.approx(found.offset_ms, abs=15)


# The page.


def test_the_page_shows_the_committed_figures():
    result: dict[str, Any] = json.loads((ROOT / "perf" / "results" / "sync.json").read_text())
    page = (ROOT / "docs" / "sync.md").read_text()
    for line in table(result).splitlines():
        assert line in page
    rows = {(row["mouth"], row["form"], row["window_s"]): row for row in result["offsets"]}
    for kind in ("analytic 0.25", "analytic 0.6", "rendered"):
        used = rows[kind, "dE ~ d(opening)", 5]
        assert used["clear_p99_ms"] <= 40 and used["detected"] == 1.0 and used["false_alarms"] == 0.0
    assert rows["analytic 0.6", "E ~ motion", 5]["within_40"] < 0.5
    assert all(row["worst_ppm"] < 20 for row in result["clocks"])
