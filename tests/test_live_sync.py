"""Live jobs whose source has its sound too early or too late: measured, corrected, and the file tells the same."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import av
import numpy as np
import pytest
from clips import Picture, Sound, write_media
from live_run import heard
from material import HEIGHT, RATE_HZ, WIDTH, face_at, read_aloud
from two_faces import FACE, FPS, mouths

from polylip.client.drift import EARLY_MS, EVERY_MS, FAR_MS, STEP_FROM_MS, SyncCorrector, SyncState
from polylip.client.live.job import live
from polylip.client.live.options import LiveOptions
from polylip.client.live.report import LiveReport
from polylip.client.results import Status
from polylip.client.ring import Face, Slot
from polylip.client.segmentation import Segment
from polylip.client.server import ServerChoice
from polylip.client.speaker import Choice
from polylip.client.sync import SourceSync
from polylip.client.wishes import SpeechWishes
from polylip.perf.demo_clip import SENTENCES
from polylip.perf.sync import LITE_LEAD_MS, analytic_mouth
from polylip.serving.launcher import Server

pytestmark = pytest.mark.alone

LATE_SOUND_MS, EARLY_SOUND_MS, UNSEEN_MS = -240, 130, 30  # by which the picture is late

SPOKEN = (1, 2, 11, 9, 0)  # of SENTENCES: 11 s before the fourth, of which two estimates take 7 s
START_S, PAUSE_S, END_S = 0.6, 1.1, 7.0  # of silence: before the first, between two, and behind the last sentence
BEFORE_SPEECH_S = 0.3  # from an event to the next sentence: a dub has ended by then
EVENTS_BEHIND_S = (1.2, 6.5)  # the last sentence's end
TONE_HZ, TONE_S = 5000, 0.02  # too short for a segment
WINDOW = RATE_HZ // 200  # 5 ms, in which TONE_HZ has 25 periods
FLASH = slice(296, 344), slice(576, 624)  # rows and columns, away from the face
NEAR_MS = 400  # sound and picture of one event
DELAY_S = 8.0
LATE_MS = 500  # of a dub: the machine is too busy
QUICK = {"preset": "ultrafast"}
EXACT_MS = 5.0  # of what the file says: the windows of the tone, and AAC, which spreads it
MEASURED_MS = 20.0  # of an estimate over 5 s from a drawn mouth


@dataclass(frozen=True)
class Script:
    """What happens in every clip, in seconds of the picture's time."""

    speech: np.ndarray  # float32 (samples,) at 16 kHz, as long as the clip
    events_s: tuple[float, ...]  # a tone in the sound and a flash in the picture, at whole frames

    @property
    def frames(self) -> int:
        return len(self.speech) * FPS // RATE_HZ


@cache
def script(sentences: int = len(SPOKEN)) -> Script:
    parts, events_s = [np.zeros(round(START_S * RATE_HZ), np.float32)], []
    for index in SPOKEN[:sentences]:
        at_s = sum(map(len, parts)) / RATE_HZ
        events_s.append(at_s - BEFORE_SPEECH_S)
        parts += [read_aloud(SENTENCES[index]), np.zeros(round(PAUSE_S * RATE_HZ), np.float32)]
    end_s = sum(map(len, parts[:-1])) / RATE_HZ
    parts[-1] = np.zeros(round(END_S * RATE_HZ), np.float32)
    events_s += [end_s + behind_s for behind_s in EVENTS_BEHIND_S]
    return Script(np.concatenate(parts), tuple(round(at_s * FPS) / FPS for at_s in events_s))


@cache
def frames(sentences: int) -> np.ndarray:
    """uint8 (frames, 360, 640, 3) RGB: a face that speaks in time, with flashes."""
    wanted = script(sentences)
    late = np.zeros(round(LITE_LEAD_MS * RATE_HZ / 1000), np.float32)  # so much does the warp open too early
    x1, y1, x2, y2 = FACE
    film = np.repeat(face_at(100)[None], wanted.frames, axis=0)
    film[:, y1:y2, x1 + 100 : x2 + 100] = mouths(np.concatenate([late, wanted.speech]), wanted.frames)
    for at_s in wanted.events_s:
        film[round(at_s * FPS), *FLASH] = 255
    return film[..., ::-1]


def make_clip(path: Path, offset_ms: float, sentences: int) -> Path:
    """The script with its picture late by `offset_ms`, that is its sound early."""
    wanted, film = script(sentences), frames(sentences)
    sound = wanted.speech + np.random.default_rng(0).standard_normal(len(wanted.speech)).astype(np.float32) * 3e-4
    tone = 0.4 * np.sin(2 * np.pi * TONE_HZ * np.arange(round(TONE_S * RATE_HZ)) / RATE_HZ)
    for at_s in wanted.events_s:
        first = round(at_s * RATE_HZ)
        sound[first : first + len(tone)] += tone.astype(np.float32)
    early = round(offset_ms * RATE_HZ / 1000)
    moved = np.pad(sound, (max(0, -early), max(0, early)))[max(0, early) :][: len(sound)]
    picture = Picture(
        frames=wanted.frames, rate=FPS, size=(WIDTH, HEIGHT), draw=lambda index: film[index], options=QUICK
    )
    return write_media(path, picture, Sound(moved[None], codec="flac"))


def offsets_ms(path: Path) -> list[float]:
    """How much later than its tone the flash of an event is, for each of which both are found."""
    tones_ms, found = _tones_ms(heard(path)), []
    for flash_ms in _flashes_ms(path):
        offset_ms = min((flash_ms - tone_ms for tone_ms in tones_ms), key=abs, default=NEAR_MS)
        found += [offset_ms] if abs(offset_ms) < NEAR_MS else []
    return found


def _flashes_ms(path: Path) -> Iterator[float]:
    """From the first sound on."""
    with av.open(str(path)) as container:
        start_s = next(frame.time for frame in container.decode(audio=0))
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.to_ndarray(format="gray")[FLASH].mean() > 150:
                yield (frame.time - start_s) * 1000


def _tones_ms(sound: np.ndarray) -> list[float]:
    """Where a stretch begins of which nearly all is TONE_HZ: hisses have it too, but more beside it."""
    step = WINDOW // 4
    windows = np.lib.stride_tricks.sliding_window_view(sound.astype(np.float64), WINDOW)[::step]
    wave = np.exp(-2j * np.pi * TONE_HZ * np.arange(WINDOW) / RATE_HZ)
    power = 2 * np.abs(windows @ wave) ** 2 / WINDOW
    energy = (windows**2).sum(axis=1)
    hits = np.flatnonzero((power > 0.6 * energy) & (energy > WINDOW * 0.1**2))
    starts = hits[np.diff(hits, prepend=-RATE_HZ) > RATE_HZ // 10 // step]
    return [float(start * step) / RATE_HZ * 1000 for start in starts]


async def run(url: str, clip: Path) -> tuple[LiveReport, Path]:
    """The clip as if it came from a camera, dubbed."""
    output = clip.with_suffix(".mp4")
    choice = ServerChoice(url, reconnect_s=float("inf"))
    options = LiveOptions(
        str(clip),
        str(output),
        SpeechWishes("en", "es"),
        choice,
        DELAY_S,
        report=output.with_suffix(".json"),
    )
    return await live(options), output


def require_that_it_kept_up(report: LiveReport) -> None:
    """What is dubbed late is measured in part only."""
    for segment in report.segments:
        late_ms = None if segment.dub_start_ms is None else segment.dub_start_ms - segment.start_ms
        if segment.status is not Status.DUBBED or late_ms is None or late_ms > LATE_MS:
            pytest.skip(f"the machine is too busy to dub in time: {segment}")


def no_number(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def written(report: Path) -> dict[str, Any]:
    """What a strict reader of JSON makes of it."""
    return json.loads(report.read_text(), parse_constant=no_number)


# What a live job does to the corrector that a file does not: estimates come seconds behind the sound, in threads.

BEHIND_MS = 6000


@pytest.mark.parametrize("skew_ppm", [0.0, 150.0])
@pytest.mark.parametrize("offset_ms", [LATE_SOUND_MS, EARLY_SOUND_MS, 400, -150])
def test_estimates_that_come_behind_the_sound_correct_it_once(offset_ms: int, skew_ppm: float):
    """Those of sound from before a correction tell nothing new of it."""
    corrector = SyncCorrector(np.random.default_rng(0))
    corrector.skew(0, skew_ppm)
    for now_ms in range(5000, 60_000, EVERY_MS):
        corrector.correction_ms(now_ms)
        spoken_ms = now_ms - BEHIND_MS
        corrector.observe(spoken_ms, offset_ms + spoken_ms * skew_ppm / 1e6)
        corrector.pause(now_ms, now_ms + 1000)
    assert corrector.corrections == 1
    assert corrector.correction_ms(60_000) == pytest.approx(offset_ms + 60_000 * skew_ppm / 1e6, abs=1)


def test_a_new_start_forgets_the_step_that_waited_and_the_speech_before_it():
    """What was spoken before is measured when the source has long come back."""
    wanted = script()
    mouth = analytic_mouth(wanted.speech, 0.25, np.arange(0, len(wanted.speech) / 16, 40), 0)
    box = (0.0, 0.0, 100.0, 100.0)

    def slots(late_ms: float) -> list[Slot]:
        points = zip(mouth.times_ms.tolist(), mouth.opening.tolist(), strict=True)
        return [Slot(i, at + late_ms, 0, (Face(box, 1, opening=value),)) for i, (at, value) in enumerate(points)]

    def said(start_ms: int, end_ms: int) -> Segment:
        return Segment(0, start_ms, end_ms, wanted.speech[start_ms * 16 : end_ms * 16])

    source = SourceSync(SyncCorrector(np.random.default_rng(0)), applied=True)
    source.hear(said(500, 10_000), slots(400), Choice({0: (1,)}))
    assert source.corrector.state is SyncState.WAITING
    source.restart(16_000)
    source.corrector.pause(16_000, 17_000)
    assert source.corrector.steps == 0
    source.hear(said(11_000, 16_000), slots(400), Choice({0: (1,)}))
    assert source.corrector.state is SyncState.RESYNCING, "nothing of the new start was heard"
    source.hear(said(16_000, 25_000), slots(-60), Choice({0: (1,)}))
    assert source.corrector.correction_ms(60_000) == pytest.approx(-60, abs=MEASURED_MS)


def test_a_corrector_is_told_and_asked_by_several_threads():
    corrector, told = SyncCorrector(np.random.default_rng(0)), threading.Event()

    def ask() -> int:
        at_ns, given = 0, {}
        while not told.is_set():
            at_ns += 10_000_000
            given[at_ns] = corrector.correction_ns(at_ns)
            if len(given) > 50:
                oldest = next(iter(given))
                assert corrector.correction_ns(oldest) == given.pop(oldest), "revised"
        return at_ns

    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            for number in range(3000):
                corrector.skew(0, (-1) ** number * 200)
            told.set()
            assert asking.result() > 0
    finally:
        sys.setswitchinterval(before_s)


# The jobs.


async def finished(server: Server, folder: Path, offset_ms: int, sentences: int) -> tuple[dict[str, Any], list[float]]:
    """What the report says, and the offset of each event in the file, for a source with an offset."""
    clip = make_clip(folder / "clip.mkv", offset_ms, sentences)
    report, output = await run(server.url, clip)
    require_that_it_kept_up(report)
    sync = written(output.with_suffix(".json"))["source_sync"]
    assert json.loads(json.dumps(report.source_sync, allow_nan=False)).keys() == sync.keys()
    assert sync["windows"]["measured"] >= 2
    assert sync["windows"]["p50_ms"] == pytest.approx(offset_ms, abs=MEASURED_MS)
    assert (sync["resyncs"], sync["skew_ppm"]) == (0, None), "a paced file has no clock of its own"
    shown = offsets_ms(output)
    assert len(shown) >= sentences + 1, f"of {sentences + 2} events a step may fall on one"
    assert shown[0] == pytest.approx(offset_ms, abs=EXACT_MS), "nothing is known yet"
    assert shown[-1] == pytest.approx(offset_ms - sync["correction_ms"], abs=MEASURED_MS), "the report tells the truth"
    return sync, shown


@pytest.mark.timeout(90)
async def test_sound_that_is_much_too_late_is_put_right_at_once_in_a_pause(server: Server, tmp_path: Path):
    assert abs(LATE_SOUND_MS) >= STEP_FROM_MS
    sync, shown = await finished(server, tmp_path, LATE_SOUND_MS, 4)
    assert (sync["corrections"], sync["steps"], sync["state"]) == (1, 1, SyncState.SYNCED)
    assert all(abs(rest_ms) < MEASURED_MS for rest_ms in shown[-2:])
    assert all(min(abs(rest_ms), abs(rest_ms - LATE_SOUND_MS)) < MEASURED_MS for rest_ms in shown), "at once"


@pytest.mark.timeout(90)
async def test_sound_that_is_too_early_is_moved_slowly_until_nobody_notices(server: Server, tmp_path: Path):
    assert FAR_MS < EARLY_SOUND_MS < STEP_FROM_MS
    sync, shown = await finished(server, tmp_path, EARLY_SOUND_MS, 4)
    assert (sync["corrections"], sync["steps"]) == (1, 0)
    assert sync["state"] in (SyncState.MOVING, SyncState.SYNCED)
    assert all(later_ms < rest_ms + EXACT_MS for rest_ms, later_ms in pairwise(shown)), "never back"
    assert -MEASURED_MS < shown[-1] < EARLY_MS


@pytest.mark.timeout(90)
async def test_an_offset_that_nobody_notices_is_measured_and_left(server: Server, tmp_path: Path):
    assert UNSEEN_MS < EARLY_MS
    sync, shown = await finished(server, tmp_path, UNSEEN_MS, 3)
    assert (sync["corrections"], sync["state"], sync["correction_ms"]) == (0, SyncState.SYNCED, 0)
    assert shown == pytest.approx([UNSEEN_MS] * len(shown), abs=EXACT_MS)
