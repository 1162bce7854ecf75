"""Reads media with PyAV: decoded frames in order, upright, and the sound as float PCM. See docs/pipeline.md.

Times are milliseconds since the earlier of the first picture and the first sound, so that the offset between the two
streams of the file survives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt

from polylip.client.errors import InputError
from polylip.client.media_probe import SAMPLE_RATES_HZ, MediaInfo, first_streams, open_media, probe_media, reason
from polylip.client.media_whole import packets
from polylip.client.pixels import Orientation, in_format, turned
from polylip.client.segmentation import SPEECH_RATE_HZ

__all__ = ["SPEECH_RATE_HZ", "AudioReader", "Frames", "MediaInfo", "Silence", "VideoReader", "probe_media"]

Float32 = npt.NDArray[np.float32]

RESYNC_MS = 100  # a jump of the sound's own timestamps beyond this is a gap or an overlap (docs/pipeline.md)
SHIFT_MS = 30  # and so is a smaller one that lasts; viewers notice sound that is 45 ms early (ITU-R BT.1359)
SHIFT_WINDOW_S = 0.25  # what jitters about its right time for less than this is left alone
MAX_JUMP_S = 600  # a longer hole in picture or sound is a broken timestamp ...
MAX_BACK_S = 10  # ... and so is a longer step back, as between recordings that were strung together
STRANGE_TIMES = 10  # so many in a row are no damage but another clock
SILENCE_PIECE_S = 1  # a long gap is filled in pieces


class Frames(Protocol):
    """The decoded frames of one stream in order, wherever they come from."""

    damaged: int  # packets skipped so far
    trusted: bool  # its times need no check

    def __iter__(self) -> Iterator[Any]:
        """av frames; None where a damaged packet was skipped, `Silence` where no sound will come."""

    def at_hand(self) -> bool:
        """Whether the next one can be had without waiting for a sender."""

    def end(self) -> tuple[int, Fraction] | None:
        """Where the picture ends, (pts, time base), where the container says so."""

    def interrupt(self) -> None:
        """Wake a thread that waits for the next frame; there is none any more."""

    def close(self) -> None:
        """Not while another thread reads."""


@dataclass(frozen=True)
class Silence:
    """No sound comes before this time of the container."""

    until_s: Fraction


class FileFrames:
    """The frames of one stream of a file."""

    trusted = False

    def __init__(self, info: MediaInfo, kind: str, near_s: Fraction | None = None) -> None:
        """From the beginning, or from a key frame before a time of the container. Raises av.FFmpegError."""
        self._path = Path(info.path)
        self._container = open_media(self._path)
        video, audio = first_streams(self._container, self._path)
        self._stream = video if kind == "video" else audio
        if kind == "video":
            self._stream.thread_type = "AUTO"
        if near_s is not None:
            self._container.seek(int(near_s / self._stream.time_base), stream=self._stream)
        self.damaged = 0

    def __iter__(self) -> Iterator[Any]:
        """Any two readers of a file skip the same packets."""
        try:
            for packet in packets(self._container, self._stream):
                try:
                    frames = packet.decode()
                except av.EOFError:
                    continue
                except av.FFmpegError:
                    self.damaged += 1
                    frames = [None]
                yield from frames
        except av.FFmpegError as error:
            raise InputError(f"{self._path}: is damaged ({reason(error)}); copy or convert it again") from None

    def at_hand(self) -> bool:
        return True

    def end(self) -> tuple[int, Fraction] | None:
        """As an MP4 says; elsewhere the last frame itself says how long it lasts."""
        stream = self._stream
        if stream.duration is None or "mov" not in self._container.format.name:
            return None
        return (stream.start_time or 0) + stream.duration, stream.time_base

    def interrupt(self) -> None:
        """A file never waits."""

    def close(self) -> None:
        self._container.close()


class _Reader:
    """Frames that one thread reads while another may close them: a cancelled job's thread cannot be stopped."""

    def __init__(self, info: MediaInfo, frames: Frames) -> None:
        self._info = info
        self._source = frames
        self._busy = Lock()
        self._closed = False
        self._strange_times = 0  # in a row
        self._unmixable = 0  # pieces of sound
        self.damaged = 0  # packets skipped up to the last read

    def close(self) -> None:
        """Waits for a read that is under way, which ends at once. Safe to call twice."""
        self._source.interrupt()
        with self._busy:
            self._closed = True
            self._source.close()

    def _believable(self, what: str, jump_s: Fraction) -> bool:
        """Whether a timestamp can be taken; one broken one is passed over, many in a row are refused."""
        if self._source.trusted or -MAX_BACK_S <= jump_s <= MAX_JUMP_S:
            self._strange_times = 0
            return True
        self._strange_times += 1
        if self._strange_times > STRANGE_TIMES:
            path = self._info.path
            raise InputError(f"{path}: the time of its {what} jumps by {float(jump_s):.0f} s; convert it again")
        return False


class VideoReader(_Reader):
    """Decoded pictures in presentation order, upright, each with its time; those of the file when `frames` is None.

    `pixel_format` (yuv420p or yuv444p) converts every one; without it they come as stored, unless they are turned.
    With `eager`, a read gives what is at hand, at least one, rather than wait for all that it was asked for. With
    `midway`, the first of `frames` may have any time.
    """

    def __init__(
        self,
        info: MediaInfo,
        pixel_format: str | None = None,
        frames: Frames | None = None,
        *,
        eager: bool = False,
        midway: bool = False,
    ) -> None:
        super().__init__(info, frames or FileFrames(info, "video"))
        self._pixel_format = pixel_format
        self._eager = eager
        self._midway = midway
        self._frames = self._decode()

    def read(self, count: int) -> list[tuple[float, Any]]:
        """Up to `count` further (time_ms, av.VideoFrame); fewer only at the end, or when eager."""
        pictures: list[tuple[float, Any]] = []
        with self._busy:
            while len(pictures) < count and not self._closed:
                if pictures and self._eager and not self._source.at_hand():
                    break
                picture = next(self._frames, None)
                if picture is None:
                    break
                pictures.append(picture)
            self.damaged = self._source.damaged
        return pictures

    def _decode(self) -> Iterator[tuple[float, Any]]:
        """Each frame lasts until the next one, the last one until the file says that the picture ends."""
        tick_s = self._info.video_time_base
        held: Any = None
        for frame in self._timed():
            if held is not None:
                held.duration = frame.pts - held.pts
                yield float(held.pts * tick_s * 1000), held
            held = frame
        if held is not None:
            stated = self._source.end()
            end = self._ticks(*stated) if stated else 0
            held.duration = end - held.pts if end > held.pts else held.duration
            yield float(held.pts * tick_s * 1000), held

    def _timed(self) -> Iterator[Any]:
        """Frames with rising times in ticks of the output's clock, whatever the file says."""
        tick_s = self._info.video_time_base
        step = max(1, round(1 / self._info.frame_rate / tick_s))
        last: int | None = None
        for frame in self._source:
            if frame is None:
                continue
            ticks = 0 if last is None else last + step
            if frame.pts is not None:
                stated = self._ticks(frame.pts, frame.time_base)
                before = (stated if self._midway else 0) if last is None else last
                if self._believable("picture", (stated - before) * tick_s):
                    ticks = stated if last is None else max(stated, last + 1)
            last = ticks
            upright = self._upright(frame)
            upright.duration = round((frame.duration or 0) * Fraction(frame.time_base or 0) / tick_s)
            upright.pts, upright.time_base = ticks, tick_s
            yield upright

    def _ticks(self, pts: int, time_base: Fraction) -> int:
        """A time of the container in ticks since 0 ms."""
        tick_s = self._info.video_time_base
        return round(pts * Fraction(time_base) / tick_s) - round(self._info.start_s / tick_s)

    def _upright(self, frame: Any) -> Any:
        """One size and orientation, even where the stream changes its own on the way."""
        info = self._info
        if info.orientation == Orientation():
            same_size = (frame.width, frame.height) == (info.width, info.height)
            kept = frame.format.name if same_size else info.planar_format
            return in_format(frame, self._pixel_format or kept, info.width, info.height)
        stored = (info.height, info.width) if info.orientation.transposed else (info.width, info.height)
        return turned(in_format(frame, info.planar_format, *stored), info.orientation)


class AudioReader(_Reader):
    """Sound as float32 PCM (channels, samples), continuous from 0 ms on, and mono 16 kHz beside it."""

    def __init__(self, info: MediaInfo, sample_rate_hz: int, channels: int, frames: Frames | None = None) -> None:
        super().__init__(info, frames or FileFrames(info, "audio"))
        self._rate = sample_rate_hz
        self._channels = channels
        self._layout = "mono" if channels == 1 else "stereo"
        self._set_up_for: tuple[str, str, int] | None = None  # format, layout and rate that the resamplers know
        self._chunks = self._decode()

    def read(self, seconds: float) -> tuple[Float32, Float32] | None:
        """About `seconds` more: (channels, n) at the output rate and (m,) at 16 kHz; None at the end."""
        native: list[Float32] = []
        mono: list[Float32] = []
        wanted = int(seconds * self._rate)
        with self._busy:
            while wanted > 0 and not self._closed and (piece := next(self._chunks, None)) is not None:
                native.append(piece[0])
                mono.append(piece[1])
                wanted -= piece[0].shape[1]
            self.damaged = self._source.damaged + self._unmixable
        if not native:
            return None
        return np.concatenate(native, axis=1), np.concatenate(mono)

    def _decode(self) -> Iterator[tuple[Float32, Float32]]:
        heard_s = Fraction(0)  # how much sound there was so far
        shift = _Shift()
        rate = self._rate
        for frame in self._source:
            if isinstance(frame, Silence):
                for piece in self._silence(frame.until_s - self._info.start_s - heard_s):
                    heard_s += Fraction(piece.shape[1], rate)
                    yield self._convert(piece)
                continue
            if frame is None:
                shift = _Shift()
                continue
            rate = frame.sample_rate
            source = (frame.format.name, frame.layout.name, rate)
            if source != self._set_up_for:
                yield self._convert(None)
                self._set_up(source)
            pcm = self._plain_pcm(frame)
            if pcm is None:
                shift = _Shift()
                continue
            gap_s = Fraction(0)
            if frame.pts is not None:
                stated_s = frame.pts * Fraction(frame.time_base) - self._info.start_s - heard_s
                gap_s = stated_s if self._believable("sound", stated_s) else gap_s
            gap_s = shift.to_make_up(gap_s, frame.samples / rate)
            for piece in _moved(pcm, round(gap_s * rate), SILENCE_PIECE_S * rate):
                heard_s += Fraction(piece.shape[1], rate)
                yield self._convert(piece)
        yield self._convert(None)

    def _silence(self, seconds: Fraction) -> Iterator[Float32]:
        """At the source's rate; none before the first sound, which says where it begins."""
        if self._set_up_for is not None:
            rate = self._set_up_for[2]
            nothing = np.zeros((self._channels, 0), np.float32)
            yield from _moved(nothing, max(0, round(seconds * rate)), SILENCE_PIECE_S * rate)

    def _set_up(self, source: tuple[str, str, int]) -> None:
        self._set_up_for = source
        self._plain = av.AudioResampler("fltp", self._layout, source[2])
        self._native = av.AudioResampler("fltp", self._layout, self._rate)
        self._mono = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)

    def _plain_pcm(self, frame: Any) -> Float32 | None:
        """A decoded piece as (channels, samples) at its own rate; None when damage left nothing that can be mixed.

        By a resampler, as av cannot show the planes of 8 channels and more.
        """
        if frame.sample_rate not in SAMPLE_RATES_HZ:
            return None
        pts, frame.pts = frame.pts, None  # the resamplers count samples themselves
        try:
            pcm = _joined(self._plain.resample(frame), self._channels)
        except av.FFmpegError:
            self._set_up_for = None
            self._unmixable += 1
            return None
        frame.pts = pts
        if not np.isfinite(pcm).all():
            raise InputError(f"{self._info.path}: the sound holds NaN or infinite samples; re-encode the file")
        return pcm

    def _convert(self, pcm: Float32 | None) -> tuple[Float32, Float32]:
        """Both forms of one piece at the source's rate; None flushes what the resamplers hold."""
        if self._set_up_for is None:
            return np.zeros((self._channels, 0), np.float32), np.zeros(0, np.float32)
        frame = None
        if pcm is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm), "fltp", self._layout)
            frame.sample_rate = self._set_up_for[2]
        native = _joined(self._native.resample(frame), self._channels)
        return native, _joined(self._mono.resample(frame), 1)[0]


class _Shift:
    """Tells gaps and overlaps of the sound's timestamps from their jitter."""

    def __init__(self) -> None:
        self._mean_s: float | None = None  # recent mean; None: the next piece is put exactly in its place

    def to_make_up(self, gap_s: Fraction, piece_s: float) -> Fraction:
        """How much of the gap before a piece of sound is real."""
        if self._mean_s is not None and abs(gap_s) * 1000 <= RESYNC_MS:
            self._mean_s += (float(gap_s) - self._mean_s) * min(1.0, piece_s / SHIFT_WINDOW_S)
            if abs(self._mean_s) * 1000 <= SHIFT_MS:
                return Fraction(0)
        self._mean_s = None if -gap_s >= piece_s else 0.0  # an overlap may end within the next piece
        return gap_s


def _moved(pcm: Float32, gap: int, longest: int) -> Iterator[Float32]:
    """A piece behind `gap` samples of silence, or without its first samples where it overlaps what was before."""
    while gap > 0:
        silence = min(gap, longest)
        yield np.zeros((pcm.shape[0], silence), np.float32)
        gap -= silence
    if -gap < pcm.shape[1]:
        yield pcm[:, -gap:]


def _joined(frames: list[Any], channels: int) -> Float32:
    """The samples of planar float frames, (channels, samples)."""
    return np.concatenate([np.zeros((channels, 0), np.float32), *(frame.to_ndarray() for frame in frames)], axis=1)
