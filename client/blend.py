"""Cuts 96x96 faces out of video frames and blends new mouths back in, on the YUV planes, touching nothing else.

Only what the lips model says anew is pasted, in the colours of the skin around it and under the source's own fine
detail: everything else keeps its native pixels, and no box can show. docs/blending.md has the reasons and the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.quality import Patch, QualityMeter
from polylip.client.ring import Box
from polylip.serving.crops import FACE_SIZE, crop_box

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

# The mask. Lengths are pixels of the 96x96 crop, differences are grey levels.
UNCHANGED_LEVELS = 4.0  # differences up to this are rounding and resampling ...
CHANGED_LEVELS = 14.0  # ... from this on they are the new mouth
GROW_PX = 7  # the mask reaches this far around a changed pixel, so that its edge lies in unchanged skin
FEATHER_SIGMA_PX = 2.5
BORDER_PX = 8  # the mask is 0 at the crop's edge and whole this far inside
UPPER_ROWS = (40, 54)  # the mask is 0 above the first row and whole below the second: the model owns the lower half
JAW_CENTRE, JAW_RADII, JAW_FEATHER = (66.0, 48.0), (34.0, 42.0), 0.35  # ellipse; rows and columns; share of the radius
LIPS_CENTRE, LIPS_RADII, LIPS_FEATHER = (71.0, 48.0), (15.0, 25.0), 0.5  # always the model's own, if it redraws all
RELEASE = 0.75  # of the mask that stays from one frame to the next: it comes at once and goes within some 6 frames

# Models that redraw the whole crop give it other colours and less sharpness; both are measured where nothing moved.
GRID = 24  # cells a side on which colours are compared
GRID_ROWS, GRID_COLUMNS = (9, 23), (2, 22)  # cells of the face around mouth and jaw
REDRAWN_SHARE = 0.4  # of the crop's pixels that differ; a moved mouth and jaw alone make 0.2
MATCH_LEVELS = 6.0  # cells that differ by more from what their neighbours say have moved
COLOUR_LIMIT = 24.0  # levels; a larger offset is no colour cast
SPREAD_CELLS = 2.5  # sigma: colours are carried this far into the mouth
COLOUR_KEEP = 0.5  # of the last frame's offsets
COMPARE_SIGMA_PX = 1.5  # differences are looked at below this blur, which hides the model's own
SHARPEN_SIGMA_PX, SHARPEN_LIMIT = 1.0, 1.0  # unsharp mask, and its largest gain
SHARPEN_KEEP = 0.8  # of the last frame's gain
DETAIL_LEVELS = (10.0, 30.0)  # up to the first the source's fine detail stays on, from the second on it goes
SCENE_LEVELS = 40.0  # mean change of the crop from one frame to the next that means another picture


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
    crop = crop_box(box, width, height)
    if crop is None:
        return None
    left, top, right, bottom = crop
    small = [_resize(region, FACE_SIZE, FACE_SIZE) for region in face_regions(planes, left, top, right, bottom)]
    return FaceCut(planes, left, top, right, bottom, _to_bgr(small))


def paste_mouth(cut: FaceCut, mouth: UInt8, strength: float) -> float:
    """Blend `mouth` into a single frame; for the frames of a video keep one `MouthPaster`."""
    return MouthPaster().paste(cut, mouth, strength)


class MouthPaster:
    """Blends mouths into the frames of one video, in order, with colours and mask that do not tremble."""

    def __init__(self, meter: QualityMeter | None = None) -> None:
        self._meter = meter
        self.reset()

    def reset(self) -> None:
        """Forget the last frame: what comes next is another face or another scene."""
        self._track: int | None = None
        self._frame: int | None = None
        self._face: UInt8 | None = None
        self._mask: Float32 | None = None
        self._offsets: Float32 | None = None
        self._gain: float | None = None
        if self._meter is not None:
            self._meter.reset()

    def paste(
        self, cut: FaceCut, mouth: UInt8, strength: float, *, frame: int | None = None, track: int | None = None
    ) -> float:
        """Blend `mouth` uint8 (96, 96, 3) BGR into the frame, in place; `strength` 0 to 1 fades it in and out.

        A gap in the numbers of the frames, another track or a cut starts anew. Returns how much of the face changed:
        mean absolute difference in grey levels over the crop, colour casts left aside.
        """
        if self._is_other_scene(cut.face, frame, track):
            self.reset()
        self._track, self._frame, self._face = track, frame, cut.face
        if strength <= 0 or np.array_equal(mouth, cut.face):
            return self._nothing()
        difference = cv2.subtract(mouth, cut.face, dtype=cv2.CV_32F)
        redrawn = _is_redrawn(difference)
        if redrawn:
            difference = self._matched(difference, cut.face)
        mask, detail = self._masks(difference, redrawn)
        if not mask.any():
            return self._nothing()
        self._write(cut, difference, mask * np.float32(strength), detail * np.float32(strength))
        return float(cv2.mean(_largest(difference) * mask)[0])

    def _nothing(self) -> float:
        """No pixel changes in this frame; the meter must not compare the next one with the last."""
        if self._meter is not None:
            self._meter.reset()
        return 0.0

    def _is_other_scene(self, face: UInt8, frame: int | None, track: int | None) -> bool:
        if self._face is None:
            return False
        if track != self._track or (frame is not None and self._frame is not None and frame != self._frame + 1):
            return True
        return cv2.norm(face, self._face, cv2.NORM_L1) > SCENE_LEVELS * face.size

    def _matched(self, difference: Float32, face: UInt8) -> Float32:
        """What remains of `difference` once the mouth has the colours and the sharpness of the skin around it."""
        offsets, still = _colour_offsets(difference)
        if self._offsets is not None:
            offsets += COLOUR_KEEP * (self._offsets - offsets)
        self._offsets = offsets
        difference = difference - cv2.resize(offsets, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
        mouth = cv2.add(difference, face, dtype=cv2.CV_32F)
        fine = mouth - cv2.GaussianBlur(mouth, (0, 0), SHARPEN_SIGMA_PX)
        gain = _sharpening(difference, fine, still)
        if self._gain is not None:
            gain += SHARPEN_KEEP * (self._gain - gain)
        self._gain = gain
        return np.asarray(cv2.addWeighted(difference, 1.0, fine, gain, 0.0), np.float32)

    def _masks(self, difference: Float32, redrawn: bool) -> tuple[Float32, Float32]:
        """Weights float32 (96, 96) of the new pixels, and of the source's detail that has to go for them."""
        if not redrawn:
            change = _largest(difference)
            mask = change_mask(change)
            return mask, np.minimum(mask, _spread(change, *DETAIL_LEVELS))
        change = _largest(cv2.GaussianBlur(difference, (0, 0), COMPARE_SIGMA_PX))
        changed = change_mask(change)
        mask = np.maximum(changed * _JAW, _LIPS)
        if self._mask is not None:
            mask = np.maximum(mask, RELEASE * self._mask)
        self._mask = mask
        # Between lips and teeth even a small difference is another shape, and the source's lines would shine through.
        detail = np.maximum(_spread(change, *DETAIL_LEVELS), _LIPS * changed)
        return mask, np.minimum(mask, detail)

    def _write(self, cut: FaceCut, difference: Float32, mask: Float32, detail: Float32) -> None:
        """pasted = source + mask * difference - detail * (source - the crop, enlarged), plane by plane."""
        # The last two join: source * (1 - detail) + what is enlarged from 96 px. Zero stays exactly zero on the way.
        shares, faces = cv2.merge([mask] * 3), cv2.merge([detail] * 3)
        paste = cv2.add(cv2.multiply(shares, difference), cv2.multiply(faces, cut.face, dtype=cv2.CV_32F))
        planes = cv2.split(cv2.transform(paste, BGR_TO_YUV) + faces * YUV_OFFSET)
        rows = np.flatnonzero(mask.any(axis=1))
        first, last = max(0, rows[0] - 2), min(FACE_SIZE, rows[-1] + 3)  # the reach of cubic interpolation
        regions = face_regions(cut.planes, cut.x1, cut.y1, cut.x2, cut.y2)
        lower = regions[0][UPPER_ROWS[0] * regions[0].shape[0] // FACE_SIZE :]
        source = lower.copy() if self._meter is not None else None
        for region, plane in zip(regions, planes, strict=True):
            height, width = region.shape
            band = slice(first * height // FACE_SIZE, -(-last * height // FACE_SIZE))
            new = cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC)[band]
            weight = cv2.resize(detail, (width, height), interpolation=cv2.INTER_LINEAR)[band]
            new -= cv2.multiply(region[band], weight, dtype=cv2.CV_32F)
            region[band] = cv2.add(region[band], new, dtype=cv2.CV_8U)
        if self._meter is not None and source is not None:
            self._meter.add(Patch(source, lower, mask[UPPER_ROWS[0] :]))


def change_mask(difference: Float32) -> Float32:
    """Weights float32 (96, 96) in [0, 1] from the largest difference per pixel in grey levels."""
    return _spread(difference, UNCHANGED_LEVELS, CHANGED_LEVELS) * _WINDOW


def _spread(difference: Float32, unchanged: float, changed: float) -> Float32:
    """0 up to `unchanged` levels, 1 from `changed` on; grown and feathered."""
    ramp = np.clip((difference - np.float32(unchanged)) * np.float32(1 / (changed - unchanged)), 0.0, 1.0)
    return np.asarray(cv2.GaussianBlur(cv2.dilate(ramp, _GROW), (0, 0), FEATHER_SIGMA_PX), np.float32)


def _largest(difference: Float32) -> Float32:
    """Over the channels: float32 (96, 96, 3) -> (96, 96)."""
    blue, green, red = cv2.split(cv2.absdiff(difference, 0.0))
    return np.asarray(cv2.max(cv2.max(blue, green), red), np.float32)


def _is_redrawn(difference: Float32) -> bool:
    """Whether the model gave the whole face anew, rather than the picture itself with another mouth."""
    return cv2.countNonZero(_largest(difference)) > REDRAWN_SHARE * FACE_SIZE**2


def _colour_offsets(difference: Float32) -> tuple[Float32, Float32]:
    """The mouth's colour offset from its surroundings, float32 (24, 24, 3), and which cells (24, 24) are still.

    Cells in which lips or jaw have moved do not count: what they should be is told by the still ones around them.
    """
    cells = cv2.resize(difference, (GRID, GRID), interpolation=cv2.INTER_AREA)
    rows, columns = slice(*GRID_ROWS), slice(*GRID_COLUMNS)
    offsets = np.empty_like(cells)
    offsets[:] = np.median(cells[rows, columns].reshape(-1, 3), axis=0)
    still = np.zeros((GRID, GRID), np.float32)
    for _ in range(3):
        away = np.abs(cells - offsets).max(axis=2)
        still[rows, columns] = np.clip(2.0 - away[rows, columns] / MATCH_LEVELS, 0.0, 1.0)
        weight = cv2.GaussianBlur(still, (0, 0), SPREAD_CELLS, borderType=cv2.BORDER_CONSTANT)
        carried = cv2.GaussianBlur(
            still[..., None] * (cells - offsets), (0, 0), SPREAD_CELLS, borderType=cv2.BORDER_CONSTANT
        )
        offsets = offsets + carried / (weight[..., None] + np.float32(0.05))
    return np.clip(offsets, -COLOUR_LIMIT, COLOUR_LIMIT), still


def _sharpening(difference: Float32, fine: Float32, still: Float32) -> float:
    """The gain of the unsharp mask that brings the still parts of the mouth nearest to the source."""
    weight = cv2.resize(still, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_NEAREST)
    green = np.ascontiguousarray(fine[..., 1])
    weighted = green * weight
    energy = float(weighted.ravel() @ green.ravel())
    missing = -float(weighted.ravel() @ difference[..., 1].ravel())
    return min(SHARPEN_LIMIT, max(0.0, missing / energy)) if energy > 0 else 0.0


def _window() -> Float32:
    """Where the mask may be at all: inside the border and below the nose."""
    edge = np.minimum(np.arange(FACE_SIZE), np.arange(FACE_SIZE)[::-1])
    inside = np.clip(edge / BORDER_PX, 0.0, 1.0)
    first, whole = UPPER_ROWS
    lower = np.clip((np.arange(FACE_SIZE) - first) / (whole - first), 0.0, 1.0)
    return np.asarray((inside * lower)[:, None] * inside[None, :], np.float32)


def _ellipse(centre: tuple[float, float], radii: tuple[float, float], feather: float) -> Float32:
    """1 inside, falling to 0 at the radii (rows, columns) over the last `feather` of them."""
    rows, columns = ((np.arange(FACE_SIZE) - centre[axis]) / radii[axis] for axis in (0, 1))
    inside = np.clip((1.0 - np.hypot(rows[:, None], columns[None, :])) / feather, 0.0, 1.0)
    return np.asarray(inside * inside * (3.0 - 2.0 * inside), np.float32)


_GROW = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (GROW_PX, GROW_PX))
_WINDOW = _window()
_JAW = _ellipse(JAW_CENTRE, JAW_RADII, JAW_FEATHER)
_LIPS = _ellipse(LIPS_CENTRE, LIPS_RADII, LIPS_FEATHER) * _WINDOW


def face_regions(planes: list[UInt8], x1: int, y1: int, x2: int, y2: int) -> list[UInt8]:
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
BGR_TO_YUV = np.ascontiguousarray(_TO_YUV[:, ::-1])
YUV_OFFSET = np.array([16, 128, 128], np.float32)


def _to_bgr(planes: list[UInt8]) -> UInt8:
    """Y, U, V planes of one size -> uint8 (h, w, 3) BGR."""
    rgb = (np.stack(planes, axis=-1).astype(np.float32) - YUV_OFFSET) @ _TO_RGB.T
    return np.ascontiguousarray(np.clip(np.rint(rgb[..., ::-1]), 0, 255).astype(np.uint8))
