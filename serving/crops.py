"""Which part of a picture goes to the lips model for a face box. The same for the client and for `dub`."""

from __future__ import annotations

FACE_SIZE = 96  # what Wav2Lip takes (specification of the network)
PAD_BOTTOM = 0.04  # of the box height: detectors end at the chin, an open mouth pushes it down
MIN_BOX_PX = 24  # a smaller face has no mouth to speak of

Box = tuple[float, float, float, float]


def crop_box(box: Box, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the crop, or None when it lies outside the picture or is too small.

    Its edges are even, as chroma has half the resolution.
    """
    x1, y1, x2, y2 = box
    y2 += PAD_BOTTOM * (y2 - y1)
    left, top = max(0, int(x1) // 2 * 2), max(0, int(y1) // 2 * 2)
    right, bottom = min(width, -(-int(x2) // 2) * 2) // 2 * 2, min(height, -(-int(y2) // 2) * 2) // 2 * 2
    if right - left < MIN_BOX_PX or bottom - top < MIN_BOX_PX:
        return None
    return left, top, right, bottom
