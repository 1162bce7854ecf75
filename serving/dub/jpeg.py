"""What a JPEG says of itself, read from its headers without decoding anything: only plain ones are let in."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BYTES = 256 * 1024  # 640x360 at quality 95 takes some 100 KB
START_OF_IMAGE = b"\xff\xd8\xff"
# Of a frame: baseline, extended and progressive Huffman coding, which every decoder has; not lossless, not arithmetic.
FRAME_MARKERS = (0xC0, 0xC1, 0xC2)
NO_FRAME_MARKERS = (0xC4, 0xC8, 0xCC)  # tables that share the range of the frame markers
SCAN_MARKER = 0xDA


@dataclass(frozen=True)
class JpegInfo:
    """Of the one picture in the file."""

    width: int
    height: int
    components: int  # 1 grey, 3 colour


def read_header(data: bytes) -> JpegInfo:
    """Raises ValueError for anything but an 8-bit grey or colour JPEG of a plain kind, of at most MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"has {len(data)} bytes; send at most {MAX_BYTES}")
    if not data.startswith(START_OF_IMAGE):
        raise ValueError("is no JPEG")
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME_MARKERS:
            return _frame(marker, data[position + 4 : position + 2 + length])
        if marker == SCAN_MARKER or length < 2:
            break
        position += 2 + length
    raise ValueError("is a JPEG without a picture")


def _frame(marker: int, header: bytes) -> JpegInfo:
    if marker not in FRAME_MARKERS:
        raise ValueError("is a lossless or arithmetic JPEG; send a baseline or progressive one")
    if len(header) < 6:
        raise ValueError("is a JPEG that is cut off")
    height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
    if header[0] != 8 or header[5] not in (1, 3):
        raise ValueError(f"has {header[5]} components of {header[0]} bits; send grey or colour with 8 bits")
    return JpegInfo(width, height, header[5])
