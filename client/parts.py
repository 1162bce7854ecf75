"""Writes the dub part by part into a folder beside the output, so that a killed job can go on from its last part.

Pictures are kept as they were encoded, and the sound as it was mixed; at the end both go into the output, where only
the sound is still to be encoded. See docs/client.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

import av
import numpy as np

from polylip.client.media_out import (
    GLOBAL_HEADER,
    X264_OPTIONS,
    Encoders,
    Float32,
    MediaWriter,
    check_output,
    output_channels,
    output_sample_rate,
    refused_by_the_disk,
)
from polylip.client.media_probe import MediaInfo
from polylip.client.workplace import Marks, Workplace

HEADER = struct.Struct("<qqqII")  # of a packet: pts, dts, duration, flags, bytes
KEY_FRAME = 1
SAMPLE_BYTES = 4  # float32
SOUND_STEP_S = 0.5  # of sound encoded between packets


class PartsWriter:
    """Keeps what it is given in the workplace; `finish` makes the output of it, `discard` ends without.

    One thread writes while another may discard: a cancelled job's thread cannot be stopped, only waited for.
    """

    def __init__(
        self, path: Path, info: MediaInfo, workplace: Workplace, tags: Mapping[str, str] | None = None
    ) -> None:
        self._path = path
        self._info = info
        self._workplace = workplace
        self._busy = Lock()
        self._closed = False
        self._ended = False  # no picture comes any more
        check_output(path)
        with refused_by_the_disk(path):
            workplace.enter()
            try:
                self._final = MediaWriter(path, info, tags, workplace.folder)
                self._pictures = _opened(workplace.pictures, workplace.marks.picture_bytes)
                self._sound = _opened(workplace.sound, workplace.marks.sound_bytes)
            except BaseException:
                workplace.leave()
                raise
        self._begin_part(workplace.marks.last_pts)

    def begin(self, engines: dict[str, str]) -> None:
        """The server's engines are known: from now on dubs that come whole are kept for a later run."""
        with self._busy, refused_by_the_disk(self._path):
            if not self._closed:
                self._workplace.begin(engines)

    def write(self, pictures: Iterable[tuple[Any, float]], pcm: Float32) -> None:
        """Pictures (av.VideoFrame, time_ms) and the sound float32 (channels, n) that follows on the last call's."""
        with self._busy:
            if self._closed:
                return
            with refused_by_the_disk(self._path):
                for frame, time_ms in pictures:
                    self._keep(self._encoders.picture(frame, time_ms))
                self._sound.write(np.ascontiguousarray(pcm.T, np.float32).tobytes())

    def end_pictures(self) -> None:
        """No picture comes any more."""
        with self._busy, refused_by_the_disk(self._path):
            if not self._closed and not self._ended:
                self._ended = True
                self._keep(self._encoders.video.encode())

    def end_part(self, state: bytes) -> None:
        """All that was written is to survive: `state` says what it is, and what goes on behind it."""
        with self._busy, refused_by_the_disk(self._path):
            if self._closed or self._ended:
                return
            self._keep(self._encoders.video.encode())
            for file in (self._pictures, self._sound):
                file.flush()
                os.fsync(file.fileno())
            last_pts = self._encoders.last_pts
            self._workplace.save(Marks(self._pictures.tell(), self._sound.tell(), last_pts), state)
            self._template.close()
            self._begin_part(last_pts)

    def finish(self, path: Path) -> None:
        """Write the output and move it to `path`; nothing after `discard`, as when the job was cancelled meanwhile."""
        self.end_pictures()
        with refused_by_the_disk(self._path):
            self._pictures.flush()
            self._sound.flush()
        sound = self._mixed()
        heard_s = 0.0
        for packet in self._encoded():
            shown_s = float(packet.dts * packet.time_base)
            pieces = []
            while heard_s <= shown_s and (piece := next(sound, None)) is not None:
                heard_s += piece.shape[1] / output_sample_rate(self._info)
                pieces.append(piece)
            self._final.write_packet(packet, pieces)
            if self._closed:
                return
        for piece in sound:
            self._final.write([], piece)
        is_there = self._final.finish(path)
        self._workplace.done = is_there and path == self._path  # what the server failed to dub can still be dubbed

    def discard(self) -> None:
        """Leave nothing behind but what a job can go on from. Safe after `finish`."""
        with self._busy:
            self._closed = True
            self._final.discard()
            with suppress(av.FFmpegError, OSError):
                self._template.close()
            for file in (self._pictures, self._sound):
                with suppress(OSError):
                    file.close()
            self._workplace.leave()

    def _begin_part(self, last_pts: int | None) -> None:
        # The encoders stand in a container that is never written.
        self._template = av.open("-", "w", format="null")
        self._encoders = Encoders(self._template, self._info, X264_OPTIONS, flags=GLOBAL_HEADER)
        self._encoders.last_pts = last_pts

    def _keep(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            content = bytes(packet)
            flags = KEY_FRAME if packet.is_keyframe else 0
            self._pictures.write(HEADER.pack(packet.pts, packet.dts, packet.duration or 0, flags, len(content)))
            self._pictures.write(content)

    def _encoded(self) -> Iterator[Any]:
        """All packets, in order; where one part follows another, decoding times must still rise."""
        last_dts: int | None = None
        with self._workplace.pictures.open("rb") as file:
            while header := file.read(HEADER.size):
                pts, dts, duration, flags, size = HEADER.unpack(header)
                packet = av.Packet(file.read(size))
                last_dts = dts if last_dts is None else max(dts, last_dts + 1)
                packet.time_base = self._info.video_time_base
                packet.pts, packet.dts, packet.duration = pts, last_dts, duration
                packet.is_keyframe = bool(flags & KEY_FRAME)
                yield packet

    def _mixed(self) -> Iterator[Float32]:
        channels = output_channels(self._info)
        step = round(SOUND_STEP_S * output_sample_rate(self._info)) * channels * SAMPLE_BYTES
        with self._workplace.sound.open("rb") as file:
            while content := file.read(step):
                yield np.frombuffer(content, np.float32).reshape(-1, channels).T


def _opened(path: Path, length: int) -> IO[bytes]:
    """For writing behind what is known to be whole."""
    file = path.open("r+b" if length else "wb")
    file.truncate(length)
    file.seek(length)
    return file
