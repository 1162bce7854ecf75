"""Text on pictures, in the letters that OpenCV's fonts have: measured, cut to a width, and drawn."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
from numpy.typing import NDArray

FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT, SMALL_TEXT = 0.5, 0.42  # font scales: capitals 11 and 9 pixels high
WHITE = (252, 252, 252)
PLATE_HEIGHT, PLATE_MARGIN = 16, 4  # pixels
PLAIN_LETTERS = str.maketrans(
    "\u2018\u2019\u201c\u201d\u2013\u2014ßæøłđ", "''\"\"--saold"
)  # quotes, dashes and letters that have no decomposition

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]  # BGR


def plate(image: Pixels, text: str, corner: tuple[int, int], colour: Colour) -> None:
    """White text on a plate of `colour`, its lower left at `corner`, kept inside the picture and cut to its width."""
    text = fit(text, image.shape[1] - 2 * PLATE_MARGIN, SMALL_TEXT)
    width = text_width(text, SMALL_TEXT) + 2 * PLATE_MARGIN
    x = min(max(0, corner[0]), image.shape[1] - width)
    y = min(max(PLATE_HEIGHT, corner[1]), image.shape[0])
    cv2.rectangle(image, (x, y - PLATE_HEIGHT), (x + width, y - 1), colour, cv2.FILLED)
    put(image, text, (x + PLATE_MARGIN, y - PLATE_MARGIN), WHITE, SMALL_TEXT)


def put(image: Pixels, text: str, at: tuple[int, int], colour: Colour, scale: float = TEXT) -> None:
    """Draw `text` with its baseline at `at`."""
    cv2.putText(image, _ascii(text), at, FONT, scale, colour, 1, cv2.LINE_AA)


def fit(text: str, width: int, scale: float = TEXT) -> str:
    """`text`, cut to `width` pixels; empty when not even one letter fits."""
    text = _ascii(text)
    if text_width(text, scale) <= width:
        return text
    while text and text_width(f"{text}..", scale) > width:
        text = text[:-1].rstrip()
    return f"{text}.." if text else ""


def text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(_ascii(text), FONT, scale, 1)[0][0])


def _ascii(text: str) -> str:
    """`text` in the letters that OpenCV's fonts have: accents folded, the rest dropped."""
    return unicodedata.normalize("NFKD", text.translate(PLAIN_LETTERS)).encode("ascii", "ignore").decode()
