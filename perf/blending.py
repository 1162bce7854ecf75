"""Synthetic talking faces for which the right picture is known, and what blending makes of them.

`python -m polylip.perf.blending` prints a table. The face is `skimage.data.astronaut()` (NASA, public domain) enlarged,
with invented skin texture; its mouth is moved by a warp at native size. So one motion gives the source, another the
truth, and the truth at 96 px, made soft and off-colour as Wav2Lip's output is, gives the mouths. No network takes part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from unittest.mock import patch

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from polylip.client import blend
from polylip.client.blend import (
    BGR_TO_YUV,
    YUV_OFFSET,
    FaceCut,
    MouthPaster,
    cut_face,
    face_regions,
    frame_planes,
)
from polylip.client.quality import Patch, QualityMeter
from polylip.perf.demo_clip import FACE_PX, _astronaut
from polylip.serving.crops import FACE_SIZE

SIZES_PX = (60, 100, 150, 250, 500)
FRAMES = 50
FORMAT = "yuv420p"
MARGIN = 0.35  # of the face: background around it
TEXTURE_LEVELS, TEXTURE_SIGMA_PX = 4.0, 0.7  # of the invented skin texture, at native size
JAW_DROP, LIP_LIFT = 7.0, 1.5  # rows of the crop at full openness
MOUTH_ROW, MOUTH_COLUMN, NOSE_ROW = 76.0, 48.0, 56.0
MOUTH_HALF_WIDTH, JAW_HALF_WIDTH = 19.0, 38.0  # columns of the crop
SOFT_SIGMA_PX = 0.8  # blur of the imitated network at 96 px
CAST_LEVELS = (6.0, -4.0, -6.0)  # B, G, R: its colour cast
SHADING_LEVELS = 3.0  # its slow change of brightness across the crop
DETAIL_SIGMA_PX = 1.2  # detail is what this blur takes away
JITTER_LEVELS, NOISE_LEVELS = 0.6, 1.0  # standard deviation per frame, and per pixel

PARTS: dict[str, tuple[str, object]] = {
    "colours": ("COLOUR_LIMIT", 0.0),
    "sharpening": ("SHARPEN_LIMIT", 0.0),
    "detail": ("DETAIL_LEVELS", (-2.0, -1.0)),  # the source's goes wherever the mask is
    "feather": ("FEATHER_SIGMA_PX", 0.01),
}  # what can be left out, by the constant of `client.blend` that does so

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]


@dataclass
class Shot:
    """One frame of synthetic material."""

    pixels: UInt8  # the source frame's pixels as av wants them
    truth: list[UInt8]  # Y, U, V of the frame with the mouth that is asked for
    cut: FaceCut
    mouth: UInt8  # (96, 96, 3) BGR as the imitated network would give it


def shots(face_px: int, frames: int = FRAMES, *, network: bool = True, seed: int = 0) -> Iterator[Shot]:
    """A face of `face_px` before a slowly moving camera, speaking; without `network` the mouths are the truth itself.

    Source and truth move their mouths at different times, and the box trembles by half a pixel.
    """
    random = np.random.default_rng(seed)
    head = _head(face_px, random)
    side = head.shape[0]
    shading = _shading()
    for number in range(frames):
        camera = np.array([[1, 0, 1.7 * np.sin(number / 9)], [0, 1, 1.2 * np.sin(number / 7 + 1)]], np.float32)
        first = round(MARGIN * face_px) + camera[:, 2]
        x1, y1, x2, y2 = np.concatenate([first, first + face_px]) + random.normal(0, 0.3, 4)
        box = float(x1), float(y1), float(x2), float(y2)
        source, wanted = (
            cv2.warpAffine(_speak(head, face_px, openness), camera, (side, side), borderMode=cv2.BORDER_REPLICATE)
            for openness in (_openness(number, 0.55), _openness(number, 0.83))
        )
        pixels, planes = frame_planes(_frame(source), FORMAT)
        cut = cut_face(planes, box)
        _, truth = frame_planes(_frame(wanted), FORMAT)
        wanted_cut = cut_face(truth, box)
        assert cut is not None and wanted_cut is not None  # noqa: S101  the face is well inside
        mouth = wanted_cut.face
        if network:
            mouth = _regenerate(mouth, shading * np.cos(number / 15), random)
        else:
            # Like the warp of profile lite: not one bit changes away from the mouth.
            mouth = np.where(_moves()[..., None], mouth, cut.face)
        yield Shot(pixels, truth, cut, mouth)


def paste_rectangle(cut: FaceCut, mouth: UInt8) -> None:
    """What Wav2Lip's own script does: the whole crop, resized, over the box."""
    planes = cv2.split(cv2.transform(mouth.astype(np.float32), BGR_TO_YUV) + YUV_OFFSET)
    for region, plane in zip(face_regions(cut.planes, cut.x1, cut.y1, cut.x2, cut.y2), planes, strict=True):
        new = cv2.resize(plane, region.shape[::-1], interpolation=cv2.INTER_LINEAR)
        region[:] = np.clip(np.rint(new), 0, 255).astype(np.uint8)


def rectangle_patch(cut: FaceCut, source: UInt8) -> Patch:
    """What a meter has to see of `paste_rectangle`: the box and a little around it; `source` is the luma before."""
    around = max(2, (cut.y2 - cut.y1) // 48)
    area = slice(cut.y1 - around, cut.y2 + around), slice(cut.x1 - around, cut.x2 + around)
    weight = np.zeros(source.shape, np.float32)
    weight[cut.y1 : cut.y2, cut.x1 : cut.x2] = 1.0
    return Patch(source[area], cut.planes[0][area], weight[area])


@dataclass
class Outcome:
    """What became of one clip."""

    psnr_db: float  # luma of the crop's lower half against the truth
    jaw_detail: float  # energy of fine detail as a share of the truth's: on chin and cheeks ...
    lips_detail: float  # ... and on the lips
    trembling: float  # grey levels: mean frame difference of the error, at the size of the crop
    seam: float | None
    flicker: float | None


def measure(clip: Sequence[Shot], *, rectangle: bool = False) -> Outcome:
    """Paste every mouth of `clip`, and compare with the truth. The clip itself stays as it is."""
    meter = QualityMeter()
    paster = MouthPaster(meter)
    squares: list[float] = []
    details: list[tuple[float, ...]] = []
    errors: list[Float32] = []
    for shot in clip:
        cut = replace(shot.cut, planes=[plane.copy() for plane in shot.cut.planes])
        if rectangle:
            paste_rectangle(cut, shot.mouth)
            meter.add(rectangle_patch(cut, shot.cut.planes[0]))
        else:
            paster.paste(cut, shot.mouth, 1.0)
        area = slice(cut.y1, cut.y2), slice(cut.x1, cut.x2)
        pasted, truth = (planes[0][area].astype(np.float32) for planes in (cut.planes, shot.truth))
        error = (pasted - truth)[pasted.shape[0] // 2 :]
        squares.append(float(np.mean(error**2)))
        errors.append(np.asarray(cv2.resize(error, (FACE_SIZE, FACE_SIZE // 2), interpolation=cv2.INTER_AREA)))
        details.append(tuple(_detail(plane, area) for area in _areas(pasted.shape) for plane in (pasted, truth)))
    jaw, jaw_truth, lips, lips_truth = np.mean(details, axis=0)
    return Outcome(
        psnr_db=float(10 * np.log10(255**2 / np.mean(squares))),
        jaw_detail=float(jaw / jaw_truth),
        lips_detail=float(lips / lips_truth),
        trembling=float(np.mean([np.abs(b - a).mean() for a, b in pairwise(errors)])),
        seam=meter.seam,
        flicker=meter.flicker,
    )


def paste_ms(clip: Sequence[Shot], meter: QualityMeter | None = None, rounds: int = 5) -> float:
    """CPU time per frame in the best of several rounds, on one core."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    times = []
    for _ in range(rounds):
        cuts = [replace(shot.cut, planes=[plane.copy() for plane in shot.cut.planes]) for shot in clip]
        paster = MouthPaster(meter)
        start = time.process_time()
        for cut, shot in zip(cuts, clip, strict=True):
            paster.paste(cut, shot.mouth, 1.0)
        times.append((time.process_time() - start) * 1000 / len(clip))
    cv2.setNumThreads(threads)
    return min(times)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.perf.blending",
        description="Blend synthetic mouths into synthetic faces and compare with the known truth.",
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES_PX)), metavar="PX,PX", help="heights of the face")
    parser.add_argument("--parts", action="store_true", help="leave out each part of the blending in turn")
    options = parser.parse_args(arguments)
    print(f"face px  mouths   {'pasted':20s} PSNR dB  jaw  lips  trembling   seam  flicker    ms  with meter")
    for size in map(int, options.sizes.split(",")):
        for network in (True, False):
            clip = list(shots(size, network=network))
            row = f"{size:7d}  {'redrawn' if network else 'warped':7s}"
            print(f"{row}  {'rectangle':20s} {_figures(measure(clip, rectangle=True))}")
            cost = f"{paste_ms(clip):5.2f} {paste_ms(clip, QualityMeter()):6.2f}"
            print(f"{row}  {'blended':20s} {_figures(measure(clip))} {cost}")
            if options.parts and network:
                for name, (constant, off) in PARTS.items():
                    with patch.object(blend, constant, off):
                        print(f"{row}  {f'without {name}':20s} {_figures(measure(clip))}")
    return 0


def _figures(outcome: Outcome) -> str:
    return (
        f"{outcome.psnr_db:7.1f}  {outcome.jaw_detail:.2f}  {outcome.lips_detail:.2f}  {outcome.trembling:9.2f}"
        f"  {_figure(outcome.seam, '+')}  {_figure(outcome.flicker)}"
    )


def _figure(value: float | None, sign: str = "") -> str:
    return "    -" if value is None else f"{value:{sign}5.2f}"


def _detail(plane: Float32, area: NDArray[np.bool_]) -> float:
    """Energy of what a small blur takes away."""
    return float(np.mean((plane - cv2.GaussianBlur(plane, (0, 0), DETAIL_SIGMA_PX))[area] ** 2))


def _areas(shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Jaw without lips, and lips, in a crop of any size."""
    rows, columns = (np.arange(length) * FACE_SIZE / length for length in shape)
    lips = np.hypot((rows[:, None] - 73) / 12, (columns[None, :] - 48) / 21) < 1
    jaw = np.hypot((rows[:, None] - 66) / 27, (columns[None, :] - 48) / 33) < 1
    return jaw & ~lips & (rows[:, None] > FACE_SIZE / 2), lips


def _head(face_px: int, random: np.random.Generator) -> UInt8:
    """The face, `face_px` high, with background around it: uint8 (side, side, 3) BGR, even side."""
    x, y, height = FACE_PX
    side = round(face_px * (1 + 2 * MARGIN)) // 2 * 2
    scale = face_px / height
    matrix = np.array([[scale, 0, side / 2 - x * scale], [0, scale, side / 2 - y * scale]])
    head = cv2.warpAffine(_smaller(_astronaut(), scale), matrix, (side, side), flags=cv2.INTER_CUBIC)
    texture = cv2.GaussianBlur(random.standard_normal((side, side)).astype(np.float32), (0, 0), TEXTURE_SIGMA_PX)
    texture *= TEXTURE_LEVELS / texture.std() * min(1.0, face_px / 250)
    return np.asarray(np.clip(head + texture[..., None], 0, 255), np.uint8)


def _smaller(picture: UInt8, scale: float) -> UInt8:
    """Without the frequencies that are lost at `scale`."""
    return cv2.GaussianBlur(picture, (0, 0), 0.5 / scale) if scale < 1 else picture


def _speak(head: UInt8, face_px: int, openness: float) -> UInt8:
    """The head with its mouth open by `openness`, 0 to 1: lower lip and jaw down, dark gap, teeth."""
    side = head.shape[0]
    first = (side - face_px) / 2
    y, x = np.mgrid[:side, :side].astype(np.float32)
    rows, columns = (y - first) * FACE_SIZE / face_px, (x - first) * FACE_SIZE / face_px
    to_chin = np.clip((rows - MOUTH_ROW) / (FACE_SIZE - 1 - MOUTH_ROW), 0.0, 1.0)
    away = columns - MOUTH_COLUMN
    half_width = MOUTH_HALF_WIDTH + (JAW_HALF_WIDTH - MOUTH_HALF_WIDTH) * to_chin
    jaw = JAW_DROP * openness * _taper(away / half_width) * np.minimum(1.0, (1.0 - to_chin) * 1.5)
    to_lip = np.clip((rows - NOSE_ROW) / (MOUTH_ROW - NOSE_ROW), 0.0, 1.0)
    lift = LIP_LIFT * openness * _taper(away / MOUTH_HALF_WIDTH) * to_lip
    distance = rows - MOUTH_ROW
    shift = np.where(distance >= 0, -np.minimum(jaw, distance), np.minimum(lift, -distance))
    moved = cv2.remap(head, x, (y + shift * face_px / FACE_SIZE).astype(np.float32), cv2.INTER_CUBIC)
    width = _taper(away / MOUTH_HALF_WIDTH) * openness
    top, bottom = MOUTH_ROW - LIP_LIFT * width, MOUTH_ROW + JAW_DROP * width
    gap = np.clip(np.minimum(rows - top, bottom - rows) / 1.2, 0.0, 1.0)[..., None]
    teeth = np.clip(top + 0.35 * JAW_DROP * width - rows, 0.0, 1.0)[..., None]
    inside = (30, 25, 55) + teeth * np.array((120, 135, 110))
    return np.asarray(np.clip(moved + gap * (inside - moved), 0, 255), np.uint8)


def _regenerate(face: UInt8, shading: Float32, random: np.random.Generator) -> UInt8:
    """`face` as a network like Wav2Lip gives it back: softer, of other colours, a little noisy."""
    soft = cv2.GaussianBlur(face.astype(np.float32), (0, 0), SOFT_SIGMA_PX)
    cast = np.array(CAST_LEVELS) + random.normal(0, JITTER_LEVELS, 3)
    noise = cv2.GaussianBlur(random.standard_normal(face.shape), (0, 0), 0.7) * (NOISE_LEVELS * 2.5)
    return np.asarray(np.clip(np.rint(soft + cast + shading[..., None] + noise), 0, 255), np.uint8)


def _shading() -> Float32:
    y, x = np.mgrid[:FACE_SIZE, :FACE_SIZE] / FACE_SIZE
    return np.asarray(SHADING_LEVELS * (np.sin(3.0 * x + 1) + np.cos(4.0 * y)) / 1.5, np.float32)


def _moves() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:FACE_SIZE, :FACE_SIZE]
    to_chin = np.clip((rows - MOUTH_ROW) / (FACE_SIZE - 1 - MOUTH_ROW), 0.0, 1.0)
    half_width = MOUTH_HALF_WIDTH + (JAW_HALF_WIDTH - MOUTH_HALF_WIDTH) * to_chin
    return np.asarray((np.abs(columns - MOUTH_COLUMN) < half_width) & (rows > NOSE_ROW), np.bool_)


def _taper(u: Float32) -> Float32:
    return np.maximum(0.0, 1.0 - u * u) ** 1.5


def _openness(number: int, speed: float) -> float:
    """Of the mouth in a frame: opening and closing some three times a second, with rests."""
    return float(max(0.0, np.sin(number * speed + 0.4)) * (0.6 + 0.4 * np.sin(number * 0.21)))


def _frame(bgr: UInt8) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(bgr, format="bgr24").reformat(format=FORMAT)


if __name__ == "__main__":
    sys.exit(main())
