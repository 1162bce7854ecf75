"""Whether a file is all there: what it declares of its own size or length against what lies on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from polylip.client.errors import InputError

SLACK_S = 1.0  # where only a duration is declared: it is rounded, and streams end apart
TAIL_WINDOW_S = 12.0  # seek this far before the declared end: the longest usual distance between key frames

EBML_HEADER, MKV_SEGMENT = 0x1A45DFA3, 0x18538067


def refuse_truncated(container: Any, streams: tuple[Any, ...], path: Path) -> None:
    """Raises InputError when data that the file declares are not in it."""
    size = path.stat().st_size
    name = container.format.name
    if "matroska" in name:
        _compare_bytes(_mkv_size(path), size, path)
    elif "mov" in name:
        _compare_bytes(max(_indexed_size(stream) for stream in streams), size, path)
    elif name == "avi":
        _compare_bytes(_avi_size(path), size, path)
    elif container.duration and not name.startswith("mpeg"):  # MPEG streams declare nothing: they are cut at will
        _compare_times(container, path)


def packets(container: Any, *streams: Any) -> Iterator[Any]:
    """What av's demux gives, the packets of all streams when none is named."""
    try:
        yield from container.demux(*streams)
    except IndexError:
        return  # av stumbles over streams that appeared on the way, when all others have been flushed


def _compare_bytes(declared: int, size: int, path: Path) -> None:
    if declared > size:
        raise InputError(f"{path}: is truncated: {declared} bytes belong to it and {size} are there; copy it again")


def _indexed_size(stream: Any) -> int:
    """End of the last sample in the index of an MP4; what came in fragments behind the index is not in it."""
    return max((entry.pos + entry.size for entry in stream.index_entries[: stream.frames]), default=0)


def _avi_size(path: Path) -> int:
    """What the first chunk says, which is the whole of a file below 1 GB; recorders that crashed leave it 0."""
    with path.open("rb") as file:
        head = file.read(8)
    return int.from_bytes(head[4:8], "little") if head[:4] == b"RIFF" else 0


def _mkv_size(path: Path) -> int:
    """Size of the file as its first two elements declare it; 0 when they do not, as for recordings of browsers."""
    with path.open("rb") as file:
        head = file.read(4096)
    offset = 0
    for element in (EBML_HEADER, MKV_SEGMENT):
        if int.from_bytes(head[offset : offset + 4]) != element or len(head) < offset + 12:
            return 0
        offset += 4
        width = 9 - head[offset].bit_length()  # of the size field: its leading zeros and one
        if width > 8:
            return 0
        content = int.from_bytes(head[offset : offset + width]) - (1 << 7 * width)
        if content == (1 << 7 * width) - 1:
            return 0  # all ones: unknown
        offset += width + content
    return offset


def _compare_times(container: Any, path: Path) -> None:
    """Seek near the declared end: a file that was cut off has no packets there."""
    start_s = (container.start_time or 0) / av.time_base
    declared_s = container.duration / av.time_base
    last_s = 0.0
    try:
        if declared_s > TAIL_WINDOW_S:
            container.seek(int((start_s + declared_s - TAIL_WINDOW_S) * av.time_base))
    except av.FFmpegError:
        pass  # no index: read it all
    try:
        for packet in packets(container):
            moment = packet.pts if packet.pts is not None else packet.dts
            if moment is not None and not packet.is_corrupt:
                end_s = float((moment + (packet.duration or 0)) * packet.time_base) - start_s
                last_s = max(last_s, end_s)
    except av.FFmpegError:
        pass  # what was read so far decides
    if last_s < declared_s - SLACK_S:
        raise InputError(f"{path}: is truncated: it says {declared_s:.1f} s but ends at {last_s:.1f} s; copy it again")
