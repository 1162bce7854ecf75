"""The mouth goes into the frame and nothing else changes."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest

from polylip.client.blend import FACE_SIZE, change_mask, cut_face, frame_planes, paste_mouth, to_frame

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
    assert to_frame(pixels, pixel_format).width == 640


@pytest.mark.parametrize("box", [(700.0, 100.0, 800.0, 200.0), (10.0, 10.0, 20.0, 22.0), (50.0, 50.0, 40.0, 40.0)])
def test_a_box_without_a_usable_face_is_no_face(box):
    assert cut_face(frame_planes(picture("yuv420p"), "yuv420p")[1], box) is None
