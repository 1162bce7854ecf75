"""How like two pictures are, and how like two videos are outside the faces that were given new lips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.blend import frame_planes
from polylip.client.media_in import VideoReader, probe_media
from polylip.client.results import FaceSample
from polylip.client.ring import Box
from polylip.export.parity import SSIM_C1, SSIM_C2, SSIM_SIGMA, SSIM_WINDOW
from polylip.serving.crops import PAD_BOTTOM

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

PEAK = 255.0
FRAMES = 60  # of each kind that are compared at most, evenly spread: one takes 0.1 s
AROUND_PX = 16  # beyond a face's box that still counts as face: the encoder works in blocks of this side


@dataclass(frozen=True)
class Likeness:
    """Of one picture with another."""

    ssim: float
    squared_error: float  # mean, grey levels squared

    @property
    def psnr_db(self) -> float:
        """Infinite for the same picture."""
        return psnr_db(self.squared_error)


def psnr_db(squared_error: float) -> float:
    return math.inf if squared_error == 0 else 10 * math.log10(PEAK**2 / squared_error)


def ssim_map(a: UInt8, b: UInt8) -> Float64:
    """Structural similarity (Wang et al. 2004) at every pixel of uint8 pictures (rows, columns) or (..., 3).

    Windows that reach over the edge are left out: the map is smaller than the pictures by SSIM_WINDOW - 1.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure: Float64 = (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)
    return luminance * structure


def likeness(a: UInt8, b: UInt8, outside: Bool | None = None) -> Likeness:
    """Of two pictures, or of what lies `outside` (rows, columns) of both; windows that reach in are left out."""
    squares, similar = (a.astype(np.float64) - b) ** 2, ssim_map(a, b)
    if outside is None:
        return Likeness(float(similar.mean()), float(squares.mean()))
    window = np.ones((SSIM_WINDOW, SSIM_WINDOW), np.uint8)
    far = _inner(cv2.erode(outside.astype(np.uint8), window)) > 0
    return Likeness(float(similar[far].mean()), float(squares[outside].mean()))


def outside_face(picture: UInt8, box: Box) -> Bool:
    """Where nothing of a face was pasted: (rows, columns) of the picture."""
    x1, y1, x2, y2 = box
    y2 += PAD_BOTTOM * (y2 - y1)
    mask = np.ones(picture.shape[:2], np.bool_)
    top, left = max(0, int(y1) - AROUND_PX), max(0, int(x1) - AROUND_PX)
    mask[top : math.ceil(y2) + AROUND_PX, left : math.ceil(x2) + AROUND_PX] = False
    return mask


def compare_videos(source: Path, dubbed: Path, samples: Sequence[FaceSample], most: int = FRAMES) -> dict[str, Any]:
    """Luma of sampled frames: those with new lips outside the face, those without whole; at most so many of each."""
    lips, untouched = [], []
    wanted = {
        sample.frame: sample
        for kind in (True, False)
        for sample in _spread([sample for sample in samples if sample.lipsynced is kind], most)
    }
    for number, before, after in _pairs(source, dubbed, wanted):
        sample = wanted[number]
        if not sample.lipsynced:
            untouched.append(likeness(before, after))
        elif sample.box_px is not None:
            lips.append(likeness(before, after, outside_face(before, sample.box_px)))
    return {"outside_the_face": summary(lips), "untouched_frames": summary(untouched)}


def summary(found: Sequence[Likeness]) -> dict[str, Any]:
    """Mean and worst; PSNR is that of the mean squared error, None where that is 0 or there is nothing.

    SSIM is given in percent: a result file keeps three decimals.
    """
    if not found:
        empty = dict.fromkeys(("ssim_percent", "ssim_worst_percent", "psnr_db", "psnr_worst_db"))
        return {"pictures": 0, **empty, "raw": []}
    errors = [one.squared_error for one in found]
    return {
        "pictures": len(found),
        "ssim_percent": 100 * float(np.mean([one.ssim for one in found])),
        "ssim_worst_percent": 100 * min(one.ssim for one in found),
        "psnr_db": _finite(psnr_db(float(np.mean(errors)))),
        "psnr_worst_db": _finite(psnr_db(max(errors))),
        "raw": [{"ssim_percent": 100 * one.ssim, "psnr_db": _finite(one.psnr_db)} for one in found],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pairs(source: Path, dubbed: Path, wanted: Mapping[int, FaceSample]) -> Iterator[tuple[int, UInt8, UInt8]]:
    """Frame number and both lumas."""
    number = 0
    with closing(VideoReader(probe_media(source))) as first, closing(VideoReader(probe_media(dubbed))) as second:
        while (before := first.read(1)) and (after := second.read(1)):
            if number in wanted:
                yield number, luma(before[0][1]), luma(after[0][1])
            number += 1


def _spread(samples: Sequence[FaceSample], most: int) -> list[FaceSample]:
    return [samples[len(samples) * i // most] for i in range(most)] if len(samples) > most else list(samples)


def luma(frame: Any) -> UInt8:
    return frame_planes(frame, "yuv420p")[1][0]


def _windowed(picture: Float64) -> Float64:
    return _inner(cv2.GaussianBlur(picture, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA))


def _inner(picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    edge = SSIM_WINDOW // 2
    return picture[edge:-edge, edge:-edge]
