"""Captions in frames: legible, inside the picture, nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from polylip.client.captions import MAX_LINES, caption_mask, draw_caption


def planes(width: int, height: int, chroma: int, luma: int = 120) -> list[np.ndarray]:
    small = (height // chroma, width // chroma)
    return [np.full((height, width), luma, np.uint8), np.full(small, 90, np.uint8), np.full(small, 160, np.uint8)]


@pytest.mark.parametrize("chroma", [1, 2], ids=["yuv444p", "yuv420p"])
@pytest.mark.parametrize("size", [(960, 540), (640, 360), (406, 720), (64, 48)])
def test_a_caption_is_white_on_a_dark_plate_at_the_bottom_and_leaves_the_rest_alone(size: tuple[int, int], chroma: int):
    before, after = planes(*size, chroma), planes(*size, chroma)
    draw_caption(after, "¿Qué tal está usted hoy, señora Muñoz?")
    changed = after[0] != before[0]
    rows = np.flatnonzero(changed.any(axis=1))
    assert after[0].max() > 200 and after[0].min() < 60
    assert rows[-1] < size[1] and (size[1] < 100 or rows[0] > size[1] // 2)
    assert (after[1] != before[1]).any() and abs(int(after[1].max()) - 128) <= 38
    if chroma == 2 and size[0] >= 400:
        assert not (after[1] != before[1])[: rows[0] // 2 - 1].any()


def test_a_long_text_is_cut_to_a_few_lines_that_fit():
    mask = caption_mask("una frase muy larga que no termina nunca " * 10, 640, 360)
    line = caption_mask("una frase", 640, 360)
    assert mask.shape[1] <= 640
    assert mask.shape[0] <= (MAX_LINES + 1) * line.shape[0]


def test_letters_with_accents_and_other_scripts_differ():
    shown = [caption_mask(text, 640, 360) for text in ("senor", "señor", "Привет")]
    assert all(mask.max() > 200 for mask in shown)
    assert shown[0].shape != shown[1].shape or (shown[0] != shown[1]).any()


def test_no_text_changes_nothing():
    for text in ("", "   "):
        before, after = planes(320, 180, 2), planes(320, 180, 2)
        draw_caption(after, text)
        assert all((a == b).all() for a, b in zip(before, after, strict=True))
