"""Draws captions into frames: white text on a dark plate at the bottom, in the luma and chroma planes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

UInt8 = npt.NDArray[np.uint8]

FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "Arial.ttf")
TEXT_HEIGHT = 1 / 20  # of the picture's height: the size that broadcasters use
MIN_TEXT_PX = 12
WIDTH = 0.86  # of the picture's width, so that the plate stays in the safe area
BOTTOM = 0.94  # of the picture's height: the lower edge of the plate
MAX_LINES = 3
PLATE_DIMS = 0.35  # what is left of the picture's brightness under the plate
WHITE, NEUTRAL = 235, 128  # luma of white in video range; chroma without colour


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def caption_mask(text: str, width: int, height: int) -> UInt8:
    """uint8 (h, w): how white each pixel of the plate is; empty for an empty text or too small a picture."""
    font = _font(max(MIN_TEXT_PX, round(height * TEXT_HEIGHT)))
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    lines = _wrapped(" ".join(text.split()), round(width * WIDTH), draw, font)
    if not lines:
        return np.zeros((0, 0), np.uint8)
    shown = "\n".join(lines)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), shown, font=font, align="center")
    margin = round(height * TEXT_HEIGHT / 3)
    size = min(width, round(right - left) + 2 * margin), min(height, round(bottom - top) + 2 * margin)
    image = Image.new("L", size)
    ImageDraw.Draw(image).multiline_text((margin - left, margin - top), shown, fill=255, font=font, align="center")
    return np.asarray(image)


def _wrapped(
    text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    """Lines of at most `width` pixels, the last of MAX_LINES ends in an ellipsis where the text goes on."""
    lines: list[str] = []
    line = ""
    for word in text.split(" ") if " " in text else list(text):
        longer = f"{line} {word}".strip() if " " in text else line + word
        if line and draw.textlength(longer, font=font) > width:
            lines.append(line)
            longer = word
        line = longer
    lines += [line] if line else []
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} ..."]
    return lines


def draw_caption(planes: list[UInt8], text: str) -> None:
    """Into Y, U, V as from `frame_planes`, in place."""
    height, width = planes[0].shape
    mask = caption_mask(text, width, height)
    rows, columns = mask.shape
    top, left = max(0, round(height * BOTTOM) - rows), (width - columns) // 2
    for index, plane in enumerate(planes):
        down, across = height // plane.shape[0], width // plane.shape[1]
        ink = mask[::down, ::across].astype(np.float32) / 255
        y, x = top // down, left // across
        area = plane[y : y + ink.shape[0], x : x + ink.shape[1]]
        ink = ink[: area.shape[0], : area.shape[1]]
        shade = area * PLATE_DIMS if index == 0 else NEUTRAL + (area - float(NEUTRAL)) * PLATE_DIMS
        target = WHITE if index == 0 else NEUTRAL
        area[:] = np.round(shade * (1 - ink) + target * ink).astype(np.uint8)
