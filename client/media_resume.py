"""Reads a file from where an earlier run was: behind a picture, and behind so much sound.

Pictures are sought, as decoding them is dear; the sound is decoded from its beginning, some 200 times as fast as it is
heard, so that every sample is the one that the earlier run would have read.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av

from polylip.client.media_in import AudioReader, FileFrames, MediaInfo, VideoReader
from polylip.client.mix import Float32

SEEK_BACK_S = 1  # before the picture: files are indexed by when to decode, which is earlier than when to show
SKIP_S = 10.0  # of sound decoded at once


class PicturesFrom:
    """The pictures behind the one at `last_ms`, of which there are `written` up to it; before them its last `lead`."""

    def __init__(
        self, info: MediaInfo, pixel_format: str | None, last_ms: float, written: int, *, lead: int = 0
    ) -> None:
        self._info, self._format = info, pixel_format
        self._last_ms, self._written = last_ms, written
        self._held: deque[tuple[float, Any]] = deque(maxlen=lead)
        self._reader: VideoReader | None = None
        self._closed = False
        self.damaged = 0

    def read(self, count: int) -> list[tuple[float, Any]]:
        """As of a VideoReader."""
        if self._closed:
            return []
        if self._reader is None:
            self._reader = self._sought() or self._counted()
        lead = [self._held.popleft() for _ in range(min(count, len(self._held)))]
        pictures = lead or self._reader.read(count)
        self.damaged = self._reader.damaged
        return pictures

    def close(self) -> None:
        self._closed = True
        if self._reader is not None:
            self._reader.close()

    def _sought(self) -> VideoReader | None:
        """None where the file cannot be sought in, or has no picture at exactly that time any more when it is."""
        near_s = self._info.start_s + Fraction(self._last_ms) / 1000 - SEEK_BACK_S
        reader = None
        with suppress(av.FFmpegError):
            frames = FileFrames(self._info, "video", near_s)
            reader = VideoReader(self._info, self._format, frames, midway=True)
        while reader is not None and not self._closed and (pictures := reader.read(1)):
            self._held.extend(pictures)
            if pictures[0][0] == self._last_ms:
                return reader
            if pictures[0][0] > self._last_ms:
                break
        if reader is not None:
            reader.close()
        self._held.clear()
        return None

    def _counted(self) -> VideoReader:
        reader = VideoReader(self._info, self._format)
        for _ in range(self._written):
            if self._closed:
                break
            self._held.extend(reader.read(1))
        return reader


class SoundFrom:
    """The sound behind so many samples at the output's rate, and behind so many at 16 kHz."""

    def __init__(self, reader: AudioReader, native: int, mono: int) -> None:
        self._reader = reader
        self._native, self._mono = native, mono
        self.damaged = 0

    def read(self, seconds: float) -> tuple[Float32, Float32] | None:
        """As of an AudioReader; the second part is empty while the first catches up with it."""
        while (piece := self._reader.read(SKIP_S if self._native else seconds)) is not None:
            self.damaged = self._reader.damaged
            native, mono = piece
            native, self._native = native[:, self._native :], max(0, self._native - native.shape[1])
            mono, self._mono = mono[self._mono :], max(0, self._mono - len(mono))
            if native.shape[1]:
                return native, mono
        return None

    def close(self) -> None:
        self._reader.close()
