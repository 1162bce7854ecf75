"""Decoded frames made ready for use: upright, of one size, in one pixel format, their colours unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

UInt8 = npt.NDArray[np.uint8]


UNSPECIFIED = 2  # ITU-T H.273
CONVERTIBLE = frozenset({0, 1, 2, 4, 5, 6, 7, 9})  # matrices that swscale knows; all else it refuses


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes upright: first transposed, then mirrored."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    @classmethod
    def of_frame(cls, frame: Any) -> Orientation:
        """From the display matrix that phones write; turns other than by quarters are left alone."""
        data = next((item for item in frame.side_data if item.type is SideData.DISPLAYMATRIX), None)
        if data is None:
            return cls()
        # x' = a x + c y, y' = b x + d y
        a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32, 9).tolist()
        if a and d and not b and not c:
            return cls(False, a < 0, d < 0)
        if b and c and not a and not d:
            return cls(True, c < 0, b < 0)
        return cls()

    def upright(self, plane: UInt8) -> UInt8:
        """A turned view of one plane (h, w), or of a whole picture (h, w, channels)."""
        if self.transposed:
            plane = plane.swapaxes(0, 1)
        if self.mirrored_x:
            plane = plane[:, ::-1]
        if self.mirrored_y:
            plane = plane[::-1]
        return plane


@dataclass(frozen=True)
class Colour:
    """What the numbers of the output's pixels mean, as FFmpeg's codes: those of the input, unless that is RGB."""

    range: int
    space: int
    primaries: int
    transfer: int

    @classmethod
    def of_frame(cls, frame: Any) -> Colour:
        """RGB becomes BT.709 in limited range, which players take for granted; all else keeps its meaning."""
        if _is_rgb(frame.format):
            return cls(ColorRange.MPEG, Colorspace.ITU709, ColorPrimaries.BT709, ColorTrc.BT709)
        unsaid = ColorRange.JPEG if _is_full_by_name(frame.format) else ColorRange.UNSPECIFIED
        return cls(
            int(frame.color_range or unsaid),
            int(frame.colorspace),
            int(frame.color_primaries),
            int(frame.color_trc),
        )


def in_format(frame: Any, pixel_format: str, width: int, height: int) -> Any:
    """The frame in another pixel format and size; the frame itself when it is so already."""
    if frame.colorspace not in CONVERTIBLE:
        frame.colorspace = UNSPECIFIED  # an approximation, for the analysis; what is written keeps its numbers and tags
    if (frame.format.name, frame.width, frame.height) == (pixel_format, width, height):
        return frame
    source = frame.format
    if _is_rgb(source):
        return frame.reformat(width, height, pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG")
    # The same range and matrix on both sides: only depth and subsampling change, whatever the stream says of itself.
    full = _is_full_by_name(source) or frame.color_range == ColorRange.JPEG
    level = "JPEG" if full else "MPEG"
    return frame.reformat(
        width,
        height,
        pixel_format,
        src_colorspace="ITU709",
        dst_colorspace="ITU709",
        src_color_range=level,
        dst_color_range=level,
    )


def planar_format(width: int, height: int) -> str:
    """yuv420p plays everywhere; it cannot hold an odd width or height, yuv444p can."""
    return "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"


def turned(frame: Any, orientation: Orientation) -> Any:
    """A copy, upright, of a frame that is in its `planar_format`."""
    planes = [orientation.upright(_plane(plane)) for plane in frame.planes]
    height, width = planes[0].shape
    result = av.VideoFrame(width, height, frame.format.name)
    for target, plane in zip(result.planes, planes, strict=True):
        padded = np.zeros((target.height, target.line_size), np.uint8)
        padded[:, : target.width] = plane
        target.update(padded)
    return result


def _plane(plane: Any) -> UInt8:
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


def _is_full_by_name(pixel_format: Any) -> bool:
    """Whether FFmpeg takes the format's numbers for full range, whatever the frame says."""
    return bool(pixel_format.name.startswith(("yuvj", "gray", "ya")))


def _is_rgb(pixel_format: Any) -> bool:
    return bool(pixel_format.is_rgb or pixel_format.has_palette or pixel_format.name.startswith("mono"))
