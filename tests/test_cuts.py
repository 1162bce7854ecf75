"""Hard cuts: found between any two pictures and nowhere else. Pictures of scikit-image, seen by a moving camera."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data

from polylip.client.cuts import CONTEXT, MIN_SHOT, CutDetector, thumbnail
from polylip.client.key_frames import DENSE_SURPRISE, MAX_ALLOWANCE, SHOT_KEY_FRAMES, KeyFrames

PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "retina", "camera", "coins", "brick", "page")
MOTIONS = ("still", "sway", "pan", "whip", "zoom", "flash", "long flash", "fade", "exposure", "passer-by")


@functools.cache
def picture(name: str) -> np.ndarray:
    """Float32 grey, at least 480 x 270."""
    path = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    scale = 1.5 * max(480 / grey.shape[1], 270 / grey.shape[0], 1)
    return cv2.blur(cv2.resize(grey, None, fx=scale, fy=scale).astype(np.float32), (3, 3))


def seen(grey: np.ndarray, x: float, y: float, zoom: float) -> np.ndarray:
    """A view of 320 x 180 at a place from 0 to 1 in both directions; zoom 1 shows as much as fits."""
    height, width = grey.shape
    scale = min(width / 320, height / 180) / zoom
    left, top = x * (width - 320 * scale), y * (height - 180 * scale)
    matrix = np.array([[1 / scale, 0, -left / scale], [0, 1 / scale, -top / scale]])
    return cv2.warpAffine(grey, matrix, (320, 180), borderMode=cv2.BORDER_REFLECT)


def shot(name: str, motion: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 (count, 180, 320)."""
    x, y = rng.uniform(0.2, 0.8, 2)
    zoom, speed, middle = rng.uniform(1.1, 2), rng.uniform(0.01, 0.03), count // 2
    steps = np.arange(count)
    views = {
        "sway": [(x + 0.02 * np.sin(i / 8), y + 0.02 * np.cos(i / 9), zoom) for i in steps],
        "pan": [(abs((i * speed) % 2 - 1), y, 2.0) for i in steps],
        "whip": [(0.05 + min(0.9, max(0, i - middle) * 0.12), y, 2.0) for i in steps],
        "zoom": [(x, y, 1.1 * 3 ** (i / count)) for i in steps],
    }.get(motion, [(x, y, zoom)] * count)
    grey = picture(name)
    frames = np.array([seen(grey, *view) for view in views])
    flash = {"flash": slice(middle, middle + 1), "long flash": slice(middle, middle + 3)}.get(motion, slice(0))
    frames[flash] = frames[flash] * rng.uniform(1.3, 2.5) + rng.uniform(30, 200)
    if motion == "fade":
        frames *= np.abs(np.linspace(-1, 1, count))[:, None, None]
    if motion == "exposure":
        frames[middle:] = frames[middle:] * 1.4 + 15
    if motion == "passer-by":
        for i in steps:
            left = int(i / count * 420) - 100
            frames[i, 40:, max(0, left) : max(0, left + 100)] = 200
    return frames


def filmed(frames: np.ndarray, rng: np.random.Generator, noise: float = 3.0) -> np.ndarray:
    """uint8, with a sensor's noise."""
    grain = rng.standard_normal((4, *frames.shape[1:]), np.float32) * noise
    return np.clip(frames + grain[rng.integers(0, 4, len(frames))], 0, 255).astype(np.uint8)


def cuts(frames: Iterable[np.ndarray]) -> list[int]:
    detector = CutDetector()
    answers = [answer for frame in frames for answer in detector.push(frame)]
    answers += detector.flush()
    return [index for index, is_cut in enumerate(answers) if is_cut]


def test_precision_and_recall_over_every_motion():
    """At least 0.98 each, over 125 cuts between shots of every kind."""
    rng = np.random.default_rng(0)
    found, false, missed = 0, [], []
    for _ in range(25):
        names = rng.permutation(PICTURES)[:6]
        motions = rng.choice(MOTIONS, 6)
        lengths = rng.integers(16, 32, 6)
        frames = np.concatenate(
            [shot(n, m, k, rng) for n, m, k in zip(names, motions, lengths, strict=True)],
        )
        true = np.cumsum(lengths)[:-1].tolist()
        got = cuts(filmed(frames, rng, noise=rng.uniform(1, 5)))
        kinds = np.repeat(motions, lengths)
        found += len(set(got) & set(true))
        false += [str(kinds[index]) for index in set(got) - set(true)]
        missed += [(str(kinds[index - 1]), str(kinds[index])) for index in set(true) - set(got)]
    assert found / (found + len(false)) >= 0.98, false
    assert found / (found + len(missed)) >= 0.98, missed


@pytest.mark.parametrize("motion", MOTIONS)
def test_no_motion_and_no_light_is_a_cut(motion: str):
    rng = np.random.default_rng(1)
    for name in PICTURES[:5]:
        assert cuts(filmed(shot(name, motion, 40, rng), rng)) == []


def test_another_framing_of_the_same_scene_is_a_cut():
    rng = np.random.default_rng(2)
    wide = np.array([seen(picture("astronaut"), 0.5, 0.5, 1.0)] * 20)
    close = np.array([seen(picture("astronaut"), 0.4, 0.1, 2.5)] * 20)
    assert cuts(filmed(np.concatenate([wide, close]), rng)) == [20]


def test_a_strobe_cannot_cut_every_frame():
    rng = np.random.default_rng(3)
    frames = np.array([seen(picture(PICTURES[i % 10]), 0.5, 0.5, 1.2) for i in range(60)])
    got = cuts(filmed(frames, rng))
    assert got and min(np.diff(got)) >= MIN_SHOT


def test_every_frame_gets_its_answer_and_the_first_is_no_cut():
    for count in range(2 * CONTEXT):
        assert cuts(np.zeros((count, 90, 160), np.uint8)) == []
    detector = CutDetector()
    answers = [len(detector.push(np.zeros((90, 160), np.uint8))) for _ in range(10)]
    assert sum(answers) + len(detector.flush()) == 10
    assert answers[CONTEXT - 1 : CONTEXT + 1] == [0, 1]


def grey_frame(luma: np.ndarray, pixel_format: str) -> av.VideoFrame:
    """Grey, uint8 (height, width), in any format; ten bits are written as they are: swscale's depend on old memory."""
    height, width = luma.shape
    if pixel_format != "yuv420p10le":
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.stack([luma] * 3, axis=2)), "rgb24")
        return frame.reformat(format=pixel_format)
    frame = av.VideoFrame(width, height, pixel_format)
    for index, plane in enumerate(frame.planes):
        values = np.full((plane.height, plane.line_size // 2), 512, "<u2")  # no colour
        if index == 0:
            values[:, :width] = luma.astype("<u2") * 4
        plane.update(values.tobytes())
    return frame


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "nv12", "gray", "rgb24", "yuv420p10le"])
@pytest.mark.parametrize("size", [(1280, 720), (360, 640), (64, 48)])
def test_a_thumbnail_shows_the_luma_of_any_format_in_the_pictures_proportions(size: tuple[int, int], pixel_format: str):
    width, height = size
    ramp = np.broadcast_to(np.linspace(40, 200, width).astype(np.uint8), (height, width))
    thumb = thumbnail(grey_frame(ramp, pixel_format))
    assert thumb.shape[1] / thumb.shape[0] == pytest.approx(width / height, rel=0.02)
    assert thumb.shape[1] <= 320 and thumb.shape[0] <= 180
    across = thumb.mean(axis=0)
    assert np.all(np.diff(across) > -1) and across[-1] - across[0] > 120
    assert thumb.std(axis=0).max() < 2


def keys(
    rate: int, frames: int, surprise: float | None = None, cut_at: int | None = None
) -> tuple[list[int], KeyFrames]:
    book, chosen = KeyFrames(Fraction(rate)), []
    for index in range(frames):
        if index == cut_at:
            book.cut()
        book.follow(None if surprise is None else np.array([1.0, surprise], np.float32))
        if book.next_is_key():
            chosen.append(index)
    return chosen, book


@pytest.mark.parametrize("rate", [15, 24, 25, 30, 50, 60, 120])
def test_five_to_six_key_frames_a_second_as_a_rule(rate: int):
    _, book = keys(rate, 60 * rate)
    assert 4.5 <= (book.total - book.dense) / 60 <= 6.1


def test_a_shot_starts_with_its_first_frame_and_dense_key_frames():
    chosen, _ = keys(25, 40, cut_at=22)
    assert chosen == [0, 1, 2, 3, 4, 9, 14, 19, 22, 23, 24, 25, 26, 31, 36]
    assert [index for index in chosen if index < SHOT_KEY_FRAMES] == list(range(SHOT_KEY_FRAMES))


def test_a_surprised_tracker_gets_every_frame_for_a_while_and_half_of_all_at_most_in_the_long_run():
    calm, _ = keys(25, 100, surprise=DENSE_SURPRISE - 0.1)
    assert calm == keys(25, 100)[0]
    chosen, book = keys(25, 1000, surprise=DENSE_SURPRISE + 1)
    assert chosen[:25] == list(range(25))
    assert book.dense <= (book.total - book.dense) + MAX_ALLOWANCE
    assert book.total == len(chosen)
