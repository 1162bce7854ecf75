"""The mouth goes into the frame and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import av
import cv2
import numpy as np
import pytest

from polylip.client.blend import (
    FaceCut,
    MouthPaster,
    change_mask,
    cut_face,
    frame_planes,
    paste_mouth,
    to_frame,
)
from polylip.client.quality import QualityMeter
from polylip.perf.blending import Shot, measure, shots
from polylip.serving.crops import FACE_SIZE

BOX = (200.0, 100.0, 400.0, 340.0)


@pytest.fixture(params=["yuv420p", "yuv444p"])
def pixel_format(request: pytest.FixtureRequest) -> str:
    return request.param


def picture(pixel_format: str, width: int = 640, height: int = 480) -> av.VideoFrame:
    """Fine texture on smooth colour."""
    y, x = np.mgrid[:height, :width]
    bgr = np.stack([x * 255 // width, y * 255 // height, 120 + 40 * ((x // 3 + y // 3) % 2)], axis=-1).astype(np.uint8)
    return av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format=pixel_format)


def opened(face: np.ndarray) -> np.ndarray:
    mouth = face.copy()
    cv2.ellipse(mouth, (48, 72), (14, 8), 0, 0, 360, (20, 10, 40), -1)
    return mouth


@cache
def clip(face_px: int, *, network: bool = True) -> tuple[Shot, ...]:
    """Synthetic: a network that redraws the whole crop, or a warp that leaves what it does not move."""
    return tuple(shots(face_px, 16, network=network))


def fresh(shot: Shot) -> FaceCut:
    return replace(shot.cut, planes=[plane.copy() for plane in shot.cut.planes])


def off_colour(face: np.ndarray) -> np.ndarray:
    return np.clip(np.add(face, (6, -4, -6)), 0, 255).astype(np.uint8)


def test_an_unchanged_mouth_changes_no_pixel(pixel_format: str):
    frame = picture(pixel_format)
    pixels, planes = frame_planes(frame, pixel_format)
    before = pixels.copy()
    cut = cut_face(planes, BOX)
    assert paste_mouth(cut, cut.face.copy(), 1.0) == 0.0
    assert np.array_equal(pixels, before)


def test_only_the_neighbourhood_of_the_mouth_changes(pixel_format: str):
    frame = picture(pixel_format)
    _, planes = frame_planes(frame, pixel_format)
    before = planes[0].copy()
    cut = cut_face(planes, BOX)
    assert paste_mouth(cut, opened(cut.face), 1.0) > 0
    rows, columns = np.nonzero(planes[0] != before)
    scale_x, scale_y = (cut.x2 - cut.x1) / FACE_SIZE, (cut.y2 - cut.y1) / FACE_SIZE
    reach = 14  # pixels of the crop: growth plus three sigmas of feather
    assert (
        columns.min() >= cut.x1 + (48 - 14 - reach) * scale_x and columns.max() <= cut.x1 + (48 + 14 + reach) * scale_x
    )
    assert rows.min() >= cut.y1 + (72 - 8 - reach) * scale_y and rows.max() <= cut.y1 + (72 + 8 + reach) * scale_y
    centre = planes[0][round(cut.y1 + 72 * scale_y), round(cut.x1 + 48 * scale_x)]
    assert centre < 50  # dark inside


def test_no_edge_of_a_box_can_show():
    """A model that changes the whole crop still leaves its border and its upper half alone."""
    mask = change_mask(np.full((FACE_SIZE, FACE_SIZE), 100.0, np.float32))
    assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0
    assert mask[:40].max() == 0
    assert np.abs(np.diff(mask, axis=0)).max() < 0.15 and np.abs(np.diff(mask, axis=1)).max() < 0.15


def test_strength_fades_the_mouth_in(pixel_format: str):
    changes = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        pixels, planes = frame_planes(picture(pixel_format), pixel_format)
        before = pixels.astype(np.int16)
        cut = cut_face(planes, BOX)
        paste_mouth(cut, opened(cut.face), strength)
        changes.append(np.abs(pixels - before).sum())
    assert changes[0] == 0
    assert changes == sorted(changes) and len(set(changes)) == 4


def test_the_cut_shows_what_the_picture_shows(pixel_format: str):
    bgr = np.full((480, 640, 3), (40, 90, 200), np.uint8)
    frame = av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format=pixel_format)
    face = cut_face(frame_planes(frame, pixel_format)[1], BOX).face
    assert face.shape == (FACE_SIZE, FACE_SIZE, 3)
    assert np.abs(face.astype(int) - (40, 90, 200)).max() <= 3


@pytest.mark.parametrize(
    "box",
    [(-80.0, -50.0, 60.0, 90.0), (600.0, 400.0, 720.0, 560.0), (0.0, 0.0, 640.0, 480.0), (101.3, 77.7, 203.9, 209.1)],
)
def test_a_box_over_the_edge_is_cut_to_the_picture(box, pixel_format: str):
    pixels, planes = frame_planes(picture(pixel_format), pixel_format)
    cut = cut_face(planes, box)
    assert 0 <= cut.x1 < cut.x2 <= 640 and 0 <= cut.y1 < cut.y2 <= 480
    paste_mouth(cut, opened(cut.face), 1.0)
    paste_mouth(cut, off_colour(opened(cut.face)), 1.0)
    assert to_frame(pixels, pixel_format).width == 640


@pytest.mark.parametrize("box", [(700.0, 100.0, 800.0, 200.0), (10.0, 10.0, 20.0, 22.0), (50.0, 50.0, 40.0, 40.0)])
def test_a_box_without_a_usable_face_is_no_face(box):
    assert cut_face(frame_planes(picture("yuv420p"), "yuv420p")[1], box) is None


@pytest.mark.parametrize("face_px", [60, 150, 500])
def test_a_redrawn_mouth_comes_close_to_the_truth_at_native_resolution(face_px: int):
    rectangle, blended = measure(clip(face_px), rectangle=True), measure(clip(face_px))
    assert blended.psnr_db > rectangle.psnr_db + 7
    assert 0.9 < blended.jaw_detail < 1.05
    assert blended.lips_detail > 1.5 * rectangle.lips_detail
    assert blended.trembling < 0.5 * rectangle.trembling


def test_a_warped_mouth_comes_close_to_the_truth():
    blended = measure(clip(250, network=False))
    assert blended.psnr_db > 42
    assert 0.9 < blended.jaw_detail < 1.05


@pytest.mark.parametrize("face_px", [60, 150, 500])
def test_a_redrawn_crop_changes_not_one_bit_outside_the_jaw(face_px: int):
    """Neither with a likely mouth nor with one that is different everywhere."""
    paster = MouthPaster()
    for shot, mouth in [
        *((shot, shot.mouth) for shot in clip(face_px)),
        (clip(face_px)[0], 255 - clip(face_px)[0].mouth),
    ]:
        cut = fresh(shot)
        paster.paste(cut, mouth, 1.0)
        height, width = cut.y2 - cut.y1, cut.x2 - cut.x1
        for plane, before in zip(cut.planes, shot.cut.planes, strict=True):
            half = before.shape[0] * 2 // cut.planes[0].shape[0]  # 2 for luma, 1 for chroma
            rows, columns = (np.nonzero(plane != before)[axis] * 2 / half for axis in (0, 1))
            row = (rows - cut.y1) * FACE_SIZE / height
            column = (columns - cut.x1) * FACE_SIZE / width
            assert row.min() > 37 and row.max() < FACE_SIZE
            assert np.hypot((row - 66) / 37, (column - 48) / 45).max() < 1  # the jaw's ellipse and 3 px


def test_nothing_changes_where_the_warp_changed_nothing():
    for shot in clip(250, network=False):
        cut = fresh(shot)
        paste_mouth(cut, shot.mouth, 1.0)
        moved = (shot.mouth != shot.cut.face).any(axis=2).astype(np.uint8)
        near = cv2.dilate(moved, np.ones((27, 27), np.uint8))  # growth, three sigmas of feather and interpolation
        height, width = cut.y2 - cut.y1, cut.x2 - cut.x1
        far = cv2.resize(near, (width, height), interpolation=cv2.INTER_NEAREST) == 0
        area = np.s_[cut.y1 : cut.y2, cut.x1 : cut.x2]
        assert np.array_equal(cut.planes[0][area][far], shot.cut.planes[0][area][far])


def test_a_colour_cast_alone_hardly_shows():
    """A model that gives the picture back in other colours: the skin keeps the source's."""
    cut = fresh(clip(250)[0])
    before = cut.planes[0].copy()
    casting = off_colour(cut.face)
    paste_mouth(cut, casting, 1.0)
    assert np.abs(cut.planes[0].astype(int) - before).max() <= 6
    assert np.abs(cut.planes[0].astype(int) - before).mean() < 0.05


def test_the_opening_does_not_count_colours(pixel_format: str):
    openings = []
    for colour in (np.copy, off_colour):
        cut = cut_face(frame_planes(picture(pixel_format), pixel_format)[1], BOX)
        openings.append(paste_mouth(cut, colour(opened(cut.face)), 1.0))
    assert openings[1] == pytest.approx(openings[0], rel=0.15)


def test_an_unchanged_mouth_changes_no_pixel_whatever_came_before():
    paster = MouthPaster()
    for shot in clip(150):
        paster.paste(fresh(shot), shot.mouth, 1.0)
        cut = fresh(shot)
        assert paster.paste(cut, cut.face.copy(), 1.0) == 0.0
        assert all(np.array_equal(a, b) for a, b in zip(cut.planes, shot.cut.planes, strict=True))


@pytest.mark.parametrize(
    "then", [{"frame": 5, "track": 1}, {"frame": 1, "track": 2}], ids=["after a gap", "another face"]
)
def test_the_last_frame_counts_only_in_an_unbroken_run(then: dict[str, int]):
    wide, closed = clip(150)[2], clip(150)[0]

    def after(**place: int) -> np.ndarray:
        paster = MouthPaster()
        paster.paste(fresh(wide), off_colour(opened(wide.cut.face)), 1.0, frame=0, track=1)
        cut = fresh(closed)
        paster.paste(cut, closed.mouth, 1.0, **place)
        return cut.planes[0]

    alone = fresh(closed)
    paste_mouth(alone, closed.mouth, 1.0)
    assert np.array_equal(after(**then), alone.planes[0])
    assert not np.array_equal(after(frame=1, track=1), alone.planes[0])


def test_a_cut_to_another_picture_starts_anew():
    wide = clip(150)[2]
    bright = replace(wide.cut, planes=[np.clip(plane // 4 + 180, 0, 255) for plane in wide.cut.planes])
    bright = cut_face(bright.planes, (wide.cut.x1, wide.cut.y1, wide.cut.x2, wide.cut.y2))
    alone = replace(bright, planes=[plane.copy() for plane in bright.planes])
    mouth = off_colour(bright.face)
    paste_mouth(alone, mouth, 1.0)
    paster = MouthPaster()
    paster.paste(fresh(wide), wide.mouth, 1.0)
    paster.paste(bright, mouth, 1.0)
    assert np.array_equal(bright.planes[0], alone.planes[0])


def test_the_mask_of_the_last_frames_fades_away():
    """A pattern too faint for a mask of its own shows on the chin after a wide mouth, and for some frames only."""
    wide, closed = clip(150)[2], clip(150)[0]
    stripes = np.where(np.arange(FACE_SIZE) // 3 % 2, 3, -3)[:, None, None]
    faint = np.clip(off_colour(closed.cut.face) + stripes, 0, 255).astype(np.uint8)
    open_wide = off_colour(wide.cut.face)
    cv2.ellipse(open_wide, (48, 76), (24, 14), 0, 0, 360, (20, 10, 40), -1)
    pasters = MouthPaster(), MouthPaster()
    pasters[0].paste(fresh(wide), open_wide, 1.0)
    pasters[1].paste(fresh(wide), off_colour(wide.cut.face), 1.0)
    left = []
    for _ in range(16):
        cuts = fresh(closed), fresh(closed)
        for paster, cut in zip(pasters, cuts, strict=True):
            paster.paste(cut, faint, 1.0)
        left.append(np.abs(cuts[0].planes[0].astype(int) - cuts[1].planes[0]).sum())
    assert left[0] > left[4] > 20 * left[15]


def test_a_meter_sees_what_was_pasted_and_changes_nothing():
    meter = QualityMeter()
    metered, plain = MouthPaster(meter), MouthPaster()
    for shot in clip(150):
        cuts = fresh(shot), fresh(shot)
        assert metered.paste(cuts[0], shot.mouth, 1.0) == plain.paste(cuts[1], shot.mouth, 1.0)
        assert np.array_equal(cuts[0].planes[0], cuts[1].planes[0])
    assert -0.3 < meter.seam < 0.3 and 0.5 < meter.flicker < 2
    silent = QualityMeter()
    MouthPaster(silent).paste(fresh(clip(150)[0]), clip(150)[0].cut.face, 1.0)
    MouthPaster(silent).paste(fresh(clip(150)[0]), clip(150)[0].mouth, 0.0)
    assert silent.seam is silent.flicker is None


def test_a_meter_does_not_compare_over_a_frame_without_a_new_mouth():
    meter = QualityMeter()
    paster = MouthPaster(meter)
    for number, shot in enumerate(clip(150)):
        paster.paste(fresh(shot), shot.mouth if number % 2 else shot.cut.face, 1.0, frame=number)
    assert meter.seam is not None and meter.flicker is None
