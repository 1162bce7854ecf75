"""Cuts 96x96 faces out of video frames and blends new mouths back in, on the YUV planes, touching nothing else.

Only the pixels that the lips model changed are replaced, through a feathered mask: skin, beard and background keep the
native resolution, and no box can show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.ring import Box

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

FACE_SIZE = 96  # what Wav2Lip takes (specification of the network)
PAD_BOTTOM = 0.04  # of the box height: detectors end at the chin, an open mouth pushes it down
MIN_BOX_PX = 24  # a smaller face has no mouth to speak of

UNCHANGED_LEVELS = 4.0  # differences up to this are rounding and resampling ...
CHANGED_LEVELS = 14.0  # ... from this on they are the new mouth
GROW_PX = 7  # the mask reaches this far around a changed pixel, so that its edge lies in unchanged skin
FEATHER_SIGMA_PX = 2.5
BORDER_PX = 8  # the mask is 0 at the crop's edge and whole this far inside
UPPER_ROWS = (
    40,
    54,
)  # the mask is 0 above the first row and whole below the second: the lips model owns the lower half


@dataclass
class FaceCut:
    """A face taken out of a frame, and where it came from."""

    planes: list[UInt8]  # the frame's Y, U, V, writable copies
    x1: int
    y1: int
    x2: int
    y2: int
    face: UInt8  # (96, 96, 3) BGR


def frame_planes(frame: Any, pixel_format: str) -> tuple[UInt8, list[UInt8]]:
    """A writable copy of a frame's pixels as av wants it back, and its Y, U, V as views into it."""
    pixels = frame.to_ndarray(format=pixel_format)
    height, width = frame.height, frame.width
    if pixel_format == "yuv444p":
        return pixels, [pixels[0], pixels[1], pixels[2]]
    flat = pixels.reshape(-1)
    luma, chroma = height * width, (height // 2) * (width // 2)
    planes = [
        flat[:luma].reshape(height, width),
        flat[luma : luma + chroma].reshape(height // 2, width // 2),
        flat[luma + chroma : luma + 2 * chroma].reshape(height // 2, width // 2),
    ]
    return pixels, planes


def to_frame(pixels: UInt8, pixel_format: str) -> Any:
    """The av.VideoFrame of pixels from `frame_planes`."""
    return av.VideoFrame.from_ndarray(pixels, format=pixel_format)


def cut_face(planes: list[UInt8], box: Box) -> FaceCut | None:
    """The face in `box`, or None when it lies outside the picture or is too small."""
    height, width = planes[0].shape
    x1, y1, x2, y2 = box
    y2 += PAD_BOTTOM * (y2 - y1)
    # Even edges: chroma has half the resolution.
    left, top = max(0, int(x1) // 2 * 2), max(0, int(y1) // 2 * 2)
    right, bottom = min(width, -(-int(x2) // 2) * 2) // 2 * 2, min(height, -(-int(y2) // 2) * 2) // 2 * 2
    if right - left < MIN_BOX_PX or bottom - top < MIN_BOX_PX:
        return None
    small = [_resize(region, FACE_SIZE, FACE_SIZE) for region in _regions(planes, left, top, right, bottom)]
    return FaceCut(planes, left, top, right, bottom, _to_bgr(small))


def paste_mouth(cut: FaceCut, mouth: UInt8, strength: float) -> float:
    """Blend `mouth` uint8 (96, 96, 3) BGR into the frame, in place; `strength` 0 to 1 fades it in and out.

    Returns how much of the face changed: mean absolute difference in grey levels over the crop.
    """
    difference = np.abs(mouth.astype(np.int16) - cut.face.astype(np.int16)).max(axis=2).astype(np.float32)
    mask = change_mask(difference) * np.float32(strength)
    if not mask.any():
        return 0.0
    # Only the rows and columns that the mask reaches are touched.
    for region, plane in zip(_regions(cut.planes, cut.x1, cut.y1, cut.x2, cut.y2), _to_yuv(mouth), strict=True):
        height, width = region.shape
        weight = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
        new = cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC)
        blended = region + weight * (new - region)
        region[:] = np.where(weight > 0, np.clip(np.rint(blended), 0, 255), region).astype(np.uint8)
    return float(difference.mean())


def change_mask(difference: Float32) -> Float32:
    """Weights float32 (96, 96) in [0, 1] from the largest difference per pixel in grey levels."""
    changed = np.clip((difference - UNCHANGED_LEVELS) / (CHANGED_LEVELS - UNCHANGED_LEVELS), 0.0, 1.0)
    grown = cv2.dilate(changed, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (GROW_PX, GROW_PX)))
    feathered = cv2.GaussianBlur(grown, (0, 0), FEATHER_SIGMA_PX)
    return np.asarray(feathered * _WINDOW, np.float32)


def _window() -> Float32:
    """Where the mask may be at all: inside the border and below the nose."""
    edge = np.minimum(np.arange(FACE_SIZE), np.arange(FACE_SIZE)[::-1])
    inside = np.clip(edge / BORDER_PX, 0.0, 1.0)
    first, whole = UPPER_ROWS
    lower = np.clip((np.arange(FACE_SIZE) - first) / (whole - first), 0.0, 1.0)
    return np.asarray((inside * lower)[:, None] * inside[None, :], np.float32)


_WINDOW = _window()


def _regions(planes: list[UInt8], x1: int, y1: int, x2: int, y2: int) -> list[UInt8]:
    """Views of the Y, U and V planes at a region given in luma pixels with even edges."""
    regions = []
    for plane in planes:
        half = 1 if plane.shape == planes[0].shape else 2
        regions.append(plane[y1 // half : y2 // half, x1 // half : x2 // half])
    return regions


def _resize(plane: UInt8, width: int, height: int) -> UInt8:
    """Down by averaging (no aliasing), up by interpolation."""
    shrinks = plane.shape[0] >= height and plane.shape[1] >= width
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)  # type: ignore[no-any-return]


# BT.601 limited range. A source in BT.709 gets slightly other colours on the way to the lips model and back, and the
# same inverse: what the model leaves alone comes back unchanged.
_TO_RGB = np.array([[1.164, 0.0, 1.596], [1.164, -0.392, -0.813], [1.164, 2.017, 0.0]], np.float32)
_TO_YUV = np.linalg.inv(_TO_RGB.astype(np.float64)).astype(np.float32)
_OFFSET = np.array([16, 128, 128], np.float32)


def _to_bgr(planes: list[UInt8]) -> UInt8:
    """Y, U, V planes of one size -> uint8 (h, w, 3) BGR."""
    rgb = (np.stack(planes, axis=-1).astype(np.float32) - _OFFSET) @ _TO_RGB.T
    return np.ascontiguousarray(np.clip(np.rint(rgb[..., ::-1]), 0, 255).astype(np.uint8))


def _to_yuv(bgr: UInt8) -> list[Float32]:
    """Uint8 (h, w, 3) BGR -> Y, U, V as float32 planes."""
    yuv = bgr[..., ::-1].astype(np.float32) @ _TO_YUV.T + _OFFSET
    return [np.ascontiguousarray(yuv[..., i]) for i in range(3)]
