"""Small parts of the client: the ring, the lips' speech windows, the offset meter, rates, the letterbox."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polylip.client.faces import Letterbox
from polylip.client.pulse import Pulse
from polylip.client.ring import MIN_SLOTS, Face, FrameRing
from polylip.client.sync import mouth_offset_ms
from polylip.serving.isochrony import HARD_MAX_RATE, MAX_RATE, MIN_RATE, Slot, fit_rate
from polylip.serving.lips_audio import speech_window
from polylip.serving.mel import mel_windows

RATE = 16_000
FACE = Face((0.0, 0.0, 10.0, 10.0), 1)


async def test_a_full_ring_holds_the_reader_back():
    ring = FrameRing(30.0, Pulse())
    for index in range(ring.capacity):
        await ring.add(index * 33.3)
    waiting = asyncio.create_task(ring.add(1e6))
    await asyncio.sleep(0)
    assert not waiting.done()
    ring.settle([(FACE,)] * ring.capacity)
    assert len(ring.take(1, 1e9)) == 1
    await waiting
    assert ring.high_water == ring.capacity == MIN_SLOTS


def test_the_ring_holds_twenty_seconds_at_any_frame_rate():
    assert FrameRing(60.0, Pulse()).capacity == 1200


async def test_the_ring_gives_frames_in_order_once_their_faces_are_known_and_their_time_is_safe():
    ring = FrameRing(30.0, Pulse())
    for index in range(5):
        await ring.add(index * 100.0)
    assert ring.take(5, 1e9) == []
    ring.settle([(), (FACE,), ()])
    assert [slot.index for slot in ring.take(5, 150.0)] == [0, 1]
    assert ring.settled_to(200.0) and not ring.settled_to(300.0)
    ring.settle([(), (FACE,)])
    assert [slot.index for slot in ring.settled()] == [2, 3, 4]
    taken = ring.take(5, 1e9)
    assert [slot.index for slot in taken] == [2, 3, 4]
    assert [slot.faces for slot in taken] == [(), (), (FACE,)]
    ring.close()
    assert ring.finished


async def test_the_ring_holds_frames_back_until_what_follows_them_is_known():
    ring = FrameRing(30.0, Pulse(), ahead_frames=2)
    for index in range(4):
        await ring.add(index * 100.0, shot=index // 2)
    ring.settle([()] * 3)
    assert [slot.index for slot in ring.take(5, 1e9)] == [0]
    ring.settle([()])
    assert [(slot.index, slot.shot) for slot in ring.take(5, 1e9)] == [(1, 0)]
    ring.close()
    assert [(slot.index, slot.shot) for slot in ring.take(5, 1e9)] == [(2, 1), (3, 1)]


async def test_nobody_waits_for_faces_behind_a_full_ring():
    ring = FrameRing(30.0, Pulse())
    for index in range(ring.capacity):
        await ring.add(index * 1.0)
    ring.settle([()] * 100)
    assert ring.full and ring.settled_to(1e9)
    ring.take(1, 1e9)
    assert not ring.settled_to(1e9)


@given(
    st.integers(1, 60),
    st.integers(0, 150),
    st.integers(1, 16),
    st.sampled_from([23.976, 25.0, 29.97, 30.0, 50.0, 60.0]),
)
def test_windows_of_a_cut_equal_those_of_the_whole_speech(seed: int, first: int, count: int, fps: float):
    speech = (np.random.default_rng(seed).standard_normal(8 * RATE) * 0.1).astype(np.float32)
    offsets_ms = [(first + i) * 1000 / fps for i in range(count)]
    cut, offsets = speech_window(speech, offsets_ms)
    columns = np.ceil([int(o / 12.5) * 12.5 for o in offsets_ms]).astype(np.int64)
    assert np.allclose(mel_windows(cut, offsets), mel_windows(speech, columns), atol=1e-5)


def test_windows_past_the_end_of_the_speech_hear_silence():
    speech = (np.random.default_rng(0).standard_normal(RATE) * 0.1).astype(np.float32)
    cut, offsets = speech_window(speech, [900.0, 960.0])
    windows = mel_windows(cut, offsets)
    assert windows.shape == (2, 80, 16)
    assert windows[1, :, -6:].max() == -4.0


def test_windows_before_the_speech_hear_silence_and_then_its_start():
    speech = (np.random.default_rng(0).standard_normal(RATE) * 0.1).astype(np.float32)
    led = np.concatenate([np.zeros(RATE, np.float32), speech])
    times_ms = [-600.0, -560.0, -520.0, -200.0, -40.0, 0.0]
    cut, offsets = speech_window(speech, times_ms)
    windows = mel_windows(cut, offsets)
    assert windows[0].max() == -4.0
    assert windows[3, :, :8].max() == -4.0 and windows[3, :, -1].max() > -2.0
    columns = np.ceil([int((1000 + time) / 12.5) * 12.5 for time in times_ms]).astype(np.int64)
    assert np.allclose(windows, mel_windows(led, columns), atol=1e-5)


@pytest.mark.parametrize("shift_ms", [-200, -60, 0, 40, 150])
def test_an_injected_offset_is_measured(shift_ms: int):
    """Syllables as loudness, a mouth that follows them `shift_ms` later; 30 fps, 5 s."""
    rng = np.random.default_rng(1)
    envelope = np.interp(np.arange(6 * RATE), np.arange(0, 6 * RATE, RATE // 8), rng.random(48) ** 2)
    speech = (envelope * rng.standard_normal(6 * RATE) * 0.3).astype(np.float32)
    frames = np.arange(15, 165) * 1000 / 30
    openings = np.interp((frames - shift_ms) * RATE / 1000, np.arange(6 * RATE), envelope)
    measured = mouth_offset_ms(speech, list(zip(frames, openings, strict=True)))
    assert measured == pytest.approx(shift_ms, abs=20)


def test_a_still_mouth_has_no_offset():
    speech = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    assert mouth_offset_ms(speech, [(i * 33.3, 1.0) for i in range(90)]) is None
    assert mouth_offset_ms(speech, [(0.0, 1.0)]) is None


@given(st.floats(100, 20_000), st.integers(1, 20_000), st.integers(1, 20_000))
def test_rates_stay_within_their_bounds(natural_ms: float, fill_ms: int, limit_ms: int):
    rate = fit_rate(natural_ms, Slot(fill_ms, limit_ms))
    assert MIN_RATE <= rate <= HARD_MAX_RATE
    if natural_ms / MAX_RATE <= limit_ms:
        assert rate <= MAX_RATE
        assert natural_ms / rate <= limit_ms + 1e-6 or rate == pytest.approx(MIN_RATE)


@pytest.mark.parametrize(
    ("natural", "slot", "rate"),
    [
        (3000, Slot(), 1.0),
        (3000, Slot(3000, 4500), 1.0),
        (2000, Slot(3000, 4500), MIN_RATE),
        (3300, Slot(3000, 4500), 1.1),
        (5000, Slot(3000, 4500), MAX_RATE),
        (5700, Slot(3000, 4500), 5700 / 4500),
        (9000, Slot(3000, 4500), HARD_MAX_RATE),
    ],
)
def test_rates_for_typical_slots(natural: int, slot: Slot, rate: float):
    assert fit_rate(natural, slot) == pytest.approx(rate)


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (320, 240), (640, 360), (17, 16)])
def test_a_letterbox_fits_any_picture(size: tuple[int, int]):
    box = Letterbox(*size)
    assert box.width <= 640 and box.height <= 360
    assert box.width == 640 or box.height == 360
