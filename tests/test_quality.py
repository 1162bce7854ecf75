"""The figures rise with what they are named for, and with nothing else. All material is synthetic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from polylip.client import blend
from polylip.client.blend import MouthPaster
from polylip.client.quality import MOVED_RANGE, Patch, QualityMeter, Spread, mask_seam
from polylip.perf.blending import Shot, measure, shots


@cache
def clip(face_px: int = 150) -> tuple[Shot, ...]:
    return tuple(shots(face_px, 24))


def pasted(noise: np.random.Generator | None = None) -> QualityMeter:
    """The clip's mouths blended; with `noise` the model's colours jump from frame to frame."""
    meter = QualityMeter()
    paster = MouthPaster(meter)
    for number, shot in enumerate(clip()):
        mouth = shot.mouth
        if noise is not None:
            mouth = np.clip(mouth + noise.normal(0, 12, 3), 0, 255).astype(np.uint8)
        cut = replace(shot.cut, planes=[plane.copy() for plane in shot.cut.planes])
        paster.paste(cut, mouth, 1.0, frame=number)
    return meter


def disc(size: int, feather: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.clip((size * 0.35 - np.hypot(x, y)) / feather + 0.5, 0, 1).astype(np.float32)


def texture(size: int = 120, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(128, 3, (size, size)).astype(np.float32)


def offset_patch(levels: float, feather: float) -> Patch:
    weight, source = disc(120, feather), texture()
    return Patch(source.astype(np.uint8), (source + levels * weight).astype(np.uint8), weight)


def test_an_unchanged_picture_has_no_seam_and_the_liveliness_of_the_source():
    meter = QualityMeter()
    for seed in range(4):
        luma = texture(seed=seed).astype(np.uint8)
        meter.add(Patch(luma, luma, disc(120, 10)))
    assert meter.seam == 0 and meter.flicker == 1 and meter.flicker_worst == 1


def test_a_colour_step_shows_and_more_so_the_harder_its_edge():
    soft, hard = mask_seam(offset_patch(12, 20)), mask_seam(offset_patch(12, 1))
    assert mask_seam(offset_patch(0, 1)) == 0
    assert 0 <= soft < 0.6 and hard > 2  # 12 levels over two pixels, less what the texture hides
    assert mask_seam(offset_patch(24, 1)) > 1.5 * hard


def test_the_seam_does_not_depend_on_the_size_of_the_weights():
    patch = offset_patch(12, 20)
    small = replace(patch, weight=cv2.resize(patch.weight, (60, 60), interpolation=cv2.INTER_AREA))
    assert mask_seam(small) == pytest.approx(mask_seam(patch), abs=0.1)


def test_a_rectangle_over_the_box_has_a_seam_where_blending_has_none():
    rectangle, blended = measure(clip(), rectangle=True), measure(clip())
    assert rectangle.seam > 0.8
    assert abs(blended.seam) < 0.2


def test_the_seam_rises_without_feathering_and_without_colours(monkeypatch: pytest.MonkeyPatch):
    good = pasted().seam
    monkeypatch.setattr(blend, "COLOUR_LIMIT", 0.0)
    uncoloured = pasted().seam
    monkeypatch.undo()
    monkeypatch.setattr(blend, "FEATHER_SIGMA_PX", 0.01)
    for name in ("_LIPS", "_JAW"):
        monkeypatch.setattr(blend, name, (getattr(blend, name) > 0.5).astype(np.float32))
    unfeathered = pasted().seam
    assert good < uncoloured < unfeathered


def test_flicker_rises_with_trembling_colours(monkeypatch: pytest.MonkeyPatch):
    steady = pasted().flicker
    matched = pasted(np.random.default_rng(1)).flicker
    monkeypatch.setattr(blend, "COLOUR_LIMIT", 0.0)
    trembling = pasted(np.random.default_rng(1)).flicker
    assert trembling > 1.5 * steady
    assert matched < 0.8 * trembling


def test_flicker_rises_with_a_trembling_mask():
    """An edge that jumps between two places, over a picture that changes by its own noise alone."""
    meters = QualityMeter(), QualityMeter()
    for number in range(10):
        source = texture(seed=number)
        for meter, radius in zip(meters, (0, number % 2), strict=True):
            weight = np.roll(disc(120, 10), 6 * radius, axis=1)
            luma = np.clip(source + 20 * weight, 0, 255).astype(np.uint8)
            meter.add(Patch(source.astype(np.uint8), luma, weight))
    steady, trembling = meters
    assert steady.flicker == pytest.approx(1, abs=0.1)
    assert trembling.flicker > 1.3


def test_nothing_pasted_is_no_figure():
    meter = QualityMeter()
    assert meter.seam is meter.seam_worst is meter.flicker is meter.flicker_worst is None
    luma = texture().astype(np.uint8)
    meter.add(Patch(luma, luma, np.zeros((120, 120), np.float32)))
    meter.add(Patch(luma, luma, np.zeros((120, 120), np.float32)))
    assert meter.seam is meter.flicker is None


def test_frames_on_both_sides_of_a_gap_are_not_compared():
    meter = QualityMeter()
    for seed in range(2):
        luma = texture(seed=seed).astype(np.uint8)
        meter.add(Patch(luma, luma, disc(120, 10)))
        meter.reset()
    assert meter.seam == 0 and meter.flicker is None


def test_a_spread_keeps_mean_and_quantiles_in_constant_memory():
    spread = Spread(MOVED_RANGE, 0.05)
    assert spread.mean is spread.quantile(0.5) is None
    for value in range(100):
        spread.add(value / 10)
    spread.add(1e9)
    assert spread.count == 101 and spread.quantile(0.5) == pytest.approx(5.0)
    assert spread.quantile(0.95) == pytest.approx(9.5, abs=0.051)
    assert spread.quantile(1.0) == MOVED_RANGE[1]
