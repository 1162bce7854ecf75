"""Skew of clocks, and the correction of offsets: when, how fast, how far, and what is left alone."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.client.drift import (
    ATTEMPT_WINDOWS_MS,
    BACK_OFFS_MS,
    EARLY_MS,
    EVERY_MS,
    JITTER,
    MAX_ERROR_PPM,
    NS_PER_S,
    SLEW,
    DriftTracker,
    SyncCorrector,
    SyncState,
    exact_ns,
    relative_skew_ppm,
)
from polylip.client.sound_mover import SoundMover

TIME_BASES = st.sampled_from([Fraction(1, 90_000), Fraction(1001, 30_000), Fraction(1, 15_360), Fraction(1, 44_100)])


@given(st.integers(0, 10**10), TIME_BASES)
def test_a_timestamp_is_rounded_once_to_the_nanosecond(ticks: int, time_base: Fraction):
    assert abs(exact_ns(ticks, time_base) - ticks * time_base * NS_PER_S) <= Fraction(1, 2)


def test_an_hour_of_ntsc_frames_ends_where_it_should():
    frames, time_base = 107_892, Fraction(1001, 30_000)
    assert exact_ns(frames, time_base) == round(frames * 1001 / 30_000 * NS_PER_S)
    wandered_ms = sum([33] * frames) - exact_ns(frames, time_base) / 1e6
    assert abs(wandered_ms) > 35_000


def arrivals(skew_ppm: float, minutes: float, seed: int, step_s: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """(media, arrived) in ns: jitter, and for each tenth packet a queue of up to half a second."""
    rng = np.random.default_rng(seed)
    media_s = np.arange(round(minutes * 60 / step_s)) * step_s
    late_s = np.abs(rng.normal(0, 0.003, len(media_s))) + rng.exponential(0.008, len(media_s))
    late_s += (rng.random(len(media_s)) < 0.1) * rng.uniform(0.05, 0.5, len(media_s))
    return (media_s * NS_PER_S).astype(np.int64), ((media_s * (1 + skew_ppm / 1e6) + late_s) * NS_PER_S).astype(
        np.int64
    )


def tracked(media: np.ndarray, arrived: np.ndarray) -> DriftTracker:
    tracker = DriftTracker()
    for pair in zip(media.tolist(), arrived.tolist(), strict=True):
        tracker.add(*pair)
    return tracker


@pytest.mark.parametrize("skew_ppm", [-200, -50, 0, 50, 200])
def test_a_skew_is_known_within_20_ppm_after_five_minutes(skew_ppm: int):
    for seed in range(2):
        tracker = tracked(*arrivals(skew_ppm, 5, seed))
        assert tracker.skew_ppm == pytest.approx(skew_ppm, abs=20)
        assert tracker.error_ppm is not None and tracker.error_ppm < MAX_ERROR_PPM


def test_frames_that_come_rarely_do_too():
    assert tracked(*arrivals(50, 5, 0, step_s=0.2)).skew_ppm == pytest.approx(50, abs=20)


def test_a_skew_is_not_known_too_soon_nor_from_jumping_clocks():
    assert DriftTracker().skew_ppm is None
    assert tracked(*arrivals(50, 0.3, 0)).skew_ppm is None
    media, _ = arrivals(0, 5, 0)
    jumping = media + np.random.default_rng(0).integers(-NS_PER_S, NS_PER_S, len(media))
    assert tracked(media[::100], jumping[::100]).skew_ppm is None


def test_a_wrong_sample_rate_is_no_skew():
    assert tracked(*arrivals(2000, 2, 0)).skew_ppm is None


def test_a_restart_forgets_and_packets_out_of_order_do_no_harm():
    media, arrived = arrivals(50, 3, 0)
    order = np.argsort(media + np.random.default_rng(0).normal(0, 4 * NS_PER_S, len(media)))
    tracker = tracked(media[order], arrived[order])
    assert tracker.skew_ppm == pytest.approx(50, abs=20)
    tracker.restart()
    assert tracker.skew_ppm is None and tracker.error_ppm is None


def test_what_the_way_does_to_both_streams_cancels():
    """A route that takes 60 ms more from the middle on."""
    (media, heard), (frames, seen) = arrivals(70, 5, 0), arrivals(-30, 5, 1, step_s=0.04)
    longer = 60_000_000
    heard, seen = (np.where(media > media[-1] // 2, at + longer, at) for media, at in ((media, heard), (frames, seen)))
    sound, picture = tracked(media, heard), tracked(frames, seen)
    assert sound.skew_ppm is None or sound.skew_ppm > 120
    skew = relative_skew_ppm(sound, picture)
    assert skew is None or skew == pytest.approx(100, abs=20)


class Source:
    """A live source with an offset, measured every two seconds over windows that overlap."""

    def __init__(self, offset_ms: float, noise_ms: float = 4.0, seed: int = 0, skew_ppm: float = 0.0) -> None:
        self.offset_ms, self.skew_ppm = offset_ms, skew_ppm
        self.corrector = SyncCorrector(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        self._noise = np.convolve(rng.standard_normal(2000), np.ones(4) / 2, "valid") * noise_ms
        self._random = rng

    def truth_ms(self, at_ms: float) -> float:
        return self.offset_ms + at_ms * self.skew_ppm / 1e6

    def run(self, seconds: float, pauses: bool = True, unclear: float = 0.1, step_ms: int = 100) -> list[float]:
        """What is left of the offset, every so often."""
        rest = []
        for number, at_ms in enumerate(range(5000, round(seconds * 1000), EVERY_MS)):
            measured = self.truth_ms(at_ms - 2500) + self._noise[number]
            self.corrector.observe(at_ms, None if self._random.random() < unclear else measured)
            if pauses:
                self.corrector.pause(at_ms, at_ms + 300)
            times = range(at_ms, at_ms + EVERY_MS, step_ms)
            rest += [self.truth_ms(time_ms) - self.corrector.correction_ms(time_ms) for time_ms in times]
        return rest


@pytest.mark.parametrize("offset_ms", [150, -80, 80, 120, -150, 190])
def test_an_offset_is_brought_back_slowly_and_without_overshoot(offset_ms: int):
    for seed in range(5):
        source = Source(offset_ms, seed=seed)
        rest = source.run(60)
        assert abs(rest[-1]) < EARLY_MS
        assert all(abs(left) < EARLY_MS for left in rest[450:])  # from 50 s on
        overshoot = min(rest) if offset_ms > 0 else -max(rest)
        assert overshoot > -15  # the noise of the estimate
        assert max(abs(a - b) for a, b in pairwise(rest)) <= 100 * float(SLEW) + 1  # ms, at the surface
        assert source.corrector.steps == 0
        assert source.corrector.state is SyncState.SYNCED


@pytest.mark.parametrize("offset_ms", [400, -300])
def test_a_large_offset_is_corrected_at_once_in_a_pause(offset_ms: int):
    source = Source(offset_ms)
    assert max(map(abs, source.run(20, pauses=False))) == abs(offset_ms)
    assert source.corrector.state is SyncState.WAITING
    source.corrector.pause(22_000, 22_300)
    assert source.corrector.correction_ms(22_000) == pytest.approx(offset_ms, abs=15)
    assert (source.corrector.steps, source.corrector.corrections) == (1, 1)


def test_a_pause_that_is_already_written_is_no_pause():
    source = Source(400)
    source.run(20, pauses=False)
    source.corrector.pause(10_000, 10_300)
    assert source.corrector.correction_ms(30_000) == 0


@pytest.mark.parametrize("offset_ms", [-45, -40, -20, 0, 20, 40])
def test_what_nobody_notices_is_left_alone(offset_ms: int):
    """Ten runs of ten minutes; of twice that noise, too. Only the very edge may be crossed, rarely."""
    for noise_ms in (3.0, 8.0):
        moved = 0
        for seed in range(10):
            source = Source(offset_ms, noise_ms, seed)
            source.run(600, step_ms=EVERY_MS)
            moved += source.corrector.corrections > 0
        assert moved <= (2 if abs(offset_ms) > 40 else 0)


def test_exact_estimates_are_judged_by_the_two_thresholds():
    for offset_ms, corrected in ((44, False), (55, True), (-44, False), (-99, True), (101, True), (-101, True)):
        corrector = SyncCorrector()
        for number in range(8):
            corrector.observe(5000 + number * EVERY_MS, offset_ms)
        assert (corrector.corrections == 1) is corrected, offset_ms


def test_one_estimate_moves_nothing():
    corrector = SyncCorrector()
    for at_ms, offset_ms in ((5000, 0), (7000, 400), (9000, 0), (11_000, -400), (13_000, 0)):
        corrector.observe(at_ms, offset_ms)
    assert corrector.corrections == corrector.resyncs == 0


def test_an_hour_with_50_ppm_stays_within_40_ms():
    """The skew from a tracker of both clocks, the rest from the estimates."""
    sound, picture = tracked(*arrivals(60, 5, 0)), tracked(*arrivals(10, 5, 1, step_s=0.04))
    skew_ppm = relative_skew_ppm(sound, picture)
    assert skew_ppm is not None
    source = Source(0.0, skew_ppm=50)
    source.corrector.skew(60_000, skew_ppm)
    rest = np.abs(source.run(3600, step_ms=500))
    assert np.percentile(rest, 99) < 40 and rest.max() < EARLY_MS
    assert source.truth_ms(3_600_000) == 180


def test_an_hour_with_50_ppm_and_no_known_clock_is_corrected_on_the_way():
    source = Source(0.0, skew_ppm=50)
    rest = np.abs(source.run(3600, step_ms=500))
    assert rest.max() < 75 and source.corrector.corrections >= 2


def test_a_new_start_is_tried_three_times_on_longer_windows_and_then_given_up():
    corrector, at_ms, windows, waits = SyncCorrector(np.random.default_rng(1)), 60_000.0, [], []
    corrector.restart(at_ms)
    known_ms, failed_ms = 0.0, None
    while corrector.state is SyncState.RESYNCING:
        window_ms = corrector.due(at_ms, known_ms)
        if window_ms is not None:
            if failed_ms is not None and known_ms >= max(ATTEMPT_WINDOWS_MS):
                waits.append(at_ms - failed_ms)
            windows.append(window_ms)
            corrector.observe(at_ms, None)
            failed_ms, known_ms = at_ms, max(ATTEMPT_WINDOWS_MS)  # from here on only the back-off counts
        at_ms, known_ms = at_ms + 1, known_ms + 1
    assert tuple(windows) == ATTEMPT_WINDOWS_MS
    for waited, back_off_ms in zip(waits, BACK_OFFS_MS, strict=False):
        assert back_off_ms * (1 - JITTER) <= waited <= back_off_ms * (1 + JITTER) + 1
    assert corrector.state is SyncState.UNSYNCED
    assert corrector.correction_ms(at_ms) == 0 and corrector.given_up == 1
    assert corrector.due(at_ms + EVERY_MS, 10_000) == max(ATTEMPT_WINDOWS_MS), "it goes on listening"
    corrector.observe(at_ms + EVERY_MS, 3.0)
    assert corrector.state is SyncState.SYNCED


def test_a_new_start_is_corrected_from_its_first_clear_window():
    corrector = SyncCorrector(np.random.default_rng(0))
    corrector.restart(60_000)
    assert corrector.due(61_000, 1000) is None
    assert corrector.due(62_000, 2000) == 2000
    corrector.observe(62_000, 120.0)
    assert corrector.state is SyncState.MOVING
    assert corrector.correction_ms(80_000) == 120
    assert corrector.state is SyncState.SYNCED


def test_estimates_that_contradict_each_other_start_a_new_search():
    corrector = SyncCorrector(np.random.default_rng(0))
    for number, offset_ms in enumerate((300, -250, 280, 300, -200, 310)):
        corrector.observe(5000 + number * EVERY_MS, offset_ms)
        if corrector.state is SyncState.RESYNCING:
            break
    assert corrector.resyncs == 1 and corrector.corrections == 0


EVENTS = st.lists(st.tuples(st.sampled_from(["offset", "pause", "skew", "restart"]), st.floats(-190, 190)), max_size=60)


@settings(max_examples=60)
@given(EVENTS)
def test_whatever_happens_an_answer_is_never_revised_and_slews_are_slow(events: list[tuple[str, float]]):
    corrector, given_ns = SyncCorrector(np.random.default_rng(0)), {}
    for number, (event, value) in enumerate(events):
        at_ms = 5000 + number * 1000
        steps = corrector.steps
        if event == "offset":
            corrector.observe(at_ms, value)
        elif event == "pause":
            corrector.pause(at_ms, at_ms + 500)
        elif event == "skew":
            corrector.skew(at_ms, value)
        else:
            corrector.restart(at_ms)
        before_ns = None
        for time_ns in range(at_ms * 1_000_000, (at_ms + 1000) * 1_000_000, 250_000_000):
            now_ns = given_ns[time_ns] = corrector.correction_ns(time_ns)
            if before_ns is not None and corrector.steps == steps:
                assert abs(now_ns - before_ns) <= 250_000_000 * (float(SLEW) + 200e-6) + 2
            before_ns = now_ns
    kept = [time_ns for time_ns in given_ns if time_ns > (len(events) - 55) * 1_000_000_000]
    assert all(corrector.correction_ns(time_ns) == given_ns[time_ns] for time_ns in kept)


def moved_by(corrector: SyncCorrector, pcm: np.ndarray, rate_hz: int) -> np.ndarray:
    """In pieces of an odd size."""
    mover = SoundMover(corrector, rate_hz, len(pcm))
    parts = [mover.push(pcm[:, first : first + 1037]) for first in range(0, pcm.shape[1], 1037)]
    return np.concatenate([*parts, mover.flush()], axis=1)


def tone(seconds: float, rate_hz: int) -> np.ndarray:
    """float32 (2, n): a rising tone, from 200 Hz on."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = np.sin(2 * np.pi * (200 * times + 20 * times**2))
    return np.stack([wave, -wave]).astype(np.float32)


def test_sound_without_correction_passes_bit_for_bit():
    pcm = tone(1.0, 44_100)
    np.testing.assert_array_equal(moved_by(SyncCorrector(), pcm, 44_100)[:, : pcm.shape[1]], pcm)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("offset_ms", [120.0, -120.0])
def test_sound_is_moved_by_what_the_corrector_says(rate_hz: int, offset_ms: float):
    """Each moment of the tone comes so much later, or earlier, as the corrector says for that time."""
    corrector = SyncCorrector()
    for at_ms in (0, 0, 0):
        corrector.observe(at_ms, offset_ms)
    pcm = tone(16.0, rate_hz)
    out = moved_by(corrector, pcm, rate_hz)
    assert out.shape[1] == pytest.approx(pcm.shape[1] + offset_ms * rate_hz / 1000, abs=rate_hz / 50)
    times = (np.arange(out.shape[1] - rate_hz // 10) / rate_hz)[rate_hz:]
    grid = times[:: rate_hz // 100]
    before = times - np.interp(times, grid, [corrector.correction_ns(int(t * NS_PER_S)) / 1e9 for t in grid])
    exact = np.sin(2 * np.pi * (200 * before + 20 * before**2))
    assert np.abs(out[0, rate_hz : rate_hz + len(times)] - exact).max() < 0.05
    np.testing.assert_array_equal(out[0], -out[1])


@pytest.mark.parametrize("offset_ms", [400.0, -400.0])
def test_a_step_is_silence_put_in_or_sound_left_out(offset_ms: float):
    corrector = SyncCorrector()
    for at_ms in (0, 0, 0):
        corrector.observe(at_ms, offset_ms)
    pcm = tone(4.0, 16_000)
    mover = SoundMover(corrector, 16_000, 2)
    first = mover.push(pcm[:, :32_000])
    head_ms = first.shape[1] / 16
    corrector.pause(head_ms, head_ms + 200)
    out = np.concatenate([first, mover.push(pcm[:, 32_000:]), mover.flush()], axis=1)
    assert out.shape[1] == pytest.approx(pcm.shape[1] + offset_ms * 16, abs=480)
    shift = round(offset_ms * 16)
    np.testing.assert_array_equal(out[:, 48_000:57_000], pcm[:, 48_000 - shift : 57_000 - shift])
    assert (out[0] == 0).sum() >= max(0, shift - 480)
