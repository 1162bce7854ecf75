"""Curves of sound and mouth: values at their own times, whatever the frame rate, and nothing over a gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import RATE_HZ

from polylip.client.envelopes import MAX_GAP_MS, SMOOTH_MS, STEP_MS, Curve, frames_in_window, loudness, motion

RISING = st.lists(st.floats(1.0, 140.0), min_size=2, max_size=40).map(np.cumsum)


@given(RISING, st.floats(-5, 5), st.floats(-100, 100))
def test_values_sit_at_their_own_times_whatever_the_frame_rate(times: np.ndarray, rate: float, start: float):
    """A straight line comes out of uneven frames as it went in, and so does its slope."""
    line = Curve(times, start + rate * times)
    grid = np.arange(times[0], times[-1], 7.0)
    values, known = line.sampled(grid)
    assert known.all()
    np.testing.assert_allclose(values, start + rate * grid, atol=1e-6)
    slope = line.slope(SMOOTH_MS)
    np.testing.assert_allclose(slope.values, rate * 1000, atol=1e-6)
    assert (slope.times_ms >= times[0] + SMOOTH_MS / 2).all() and (slope.times_ms <= times[-1] - SMOOTH_MS / 2).all()


@given(RISING, st.floats(MAX_GAP_MS + 1, 5000))
def test_nothing_is_known_in_a_gap(times: np.ndarray, gap_ms: float):
    with_gap = np.concatenate([times, times + times[-1] + gap_ms])
    _, known = Curve(with_gap, np.ones(len(with_gap))).sampled(with_gap[len(times) - 1] + np.array([1.0, gap_ms / 2]))
    assert not known.any()


@given(RISING)
def test_a_frame_difference_belongs_between_its_frames(times: np.ndarray):
    """What moves ever faster moves at a mid-point as fast as its difference says, over whatever time."""
    place = 3e-4 * times**2
    moved = motion(times.tolist(), [None, *np.diff(place).tolist()])
    np.testing.assert_allclose(moved.times_ms, (times[1:] + times[:-1]) / 2)
    np.testing.assert_allclose(moved.values, 6e-4 * moved.times_ms * 1000, rtol=1e-6)


def test_a_click_is_loud_where_it_is():
    for at_ms in (200, 205, 333):
        audio = np.zeros(RATE_HZ, np.float32)
        audio[at_ms * 16 - 40 : at_ms * 16 + 40] = 0.5
        curve = loudness(audio, 1000.0, silent_around_ms=100)
        middle = np.sum(curve.times_ms * curve.values) / curve.values.sum()
        assert middle == pytest.approx(1000 + at_ms, abs=STEP_MS / 2)
        assert curve.times_ms[0] == 905 and len(curve.times_ms) == 120


@given(st.lists(st.integers(0, 2000), max_size=60), st.integers(0, 1500), st.integers(0, 600))
def test_the_window_of_frames_has_exact_edges(times: list[int], start_ms: int, length_ms: int):
    times.sort()
    end_ms = start_ms + length_ms
    inside = [i for i, time_ms in enumerate(times) if start_ms - 50 <= time_ms <= end_ms + 50]
    assert list(frames_in_window(times, start_ms, end_ms)) == inside


@given(RISING, st.floats(-50, 50))
def test_a_curve_moves_as_a_whole_and_one_that_folds_back_loses_the_fold(times: np.ndarray, shift_ms: float):
    line = Curve(times, times)
    np.testing.assert_allclose(line.moved(shift_ms).times_ms, times + shift_ms)
    folded = line.moved(np.where(times > times[0], -300.0, 0.0)).times_ms
    assert (np.diff(folded) > 0).all() and folded[0] == times[0]
