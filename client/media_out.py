"""Writes the dubbed file: H.264 and AAC with the input's size, aspect, colours, frame rate and timestamps.

It is complete or not there at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt

from polylip.client.errors import InputError
from polylip.client.media_probe import MediaInfo, reason

Float32 = npt.NDArray[np.float32]

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".m4v": "mp4"}
X264_OPTIONS = {"preset": "veryfast", "crf": "18"}  # crf 18 is visually lossless; veryfast costs 4 ms per 720p frame
AUDIO_BIT_RATE = 160_000  # transparent for speech in stereo
AAC_RATES_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
FALLBACK_RATE_HZ = 48_000
NAME_LENGTH = 40  # characters of the output's name in the temporary one, so that a long name stays short enough

GLOBAL_HEADER = int(av.codec.context.Flags.global_header)
FRAME_DURATION = int(av.codec.context.Flags.frame_duration)  # without it the last frame's duration is guessed


class Writer(Protocol):
    """Where picture and sound go."""

    def write(self, pictures: Iterable[tuple[Any, float]], pcm: Float32) -> None:
        """Pictures (av.VideoFrame, time_ms) and the sound (channels, n) that follows on the last call's."""

    def end_pictures(self) -> None:
        """No picture comes any more."""


def output_sample_rate(info: MediaInfo) -> int:
    """The input's sample rate where AAC has it, else 48 kHz."""
    return info.sample_rate_hz if info.sample_rate_hz in AAC_RATES_HZ else FALLBACK_RATE_HZ


def output_channels(info: MediaInfo) -> int:
    """Mono stays mono; everything else becomes stereo."""
    return 1 if info.channels == 1 else 2


def check_output(path: Path) -> None:
    """What its name says. Raises InputError."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: unknown output type; end the name in one of: {', '.join(FORMATS)}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name an output file")


@contextmanager
def refused_by_the_disk(path: Path) -> Iterator[None]:
    """What cannot be written of an output is an InputError."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path}: cannot be written ({reason(error)}); make room, or choose another output path"
        ) from None


class Encoders:
    """Pictures and sound to packets, in streams of a container; whoever made that muxes them."""

    def __init__(self, container: Any, info: MediaInfo, x264_options: Mapping[str, str], *, flags: int = 0) -> None:
        self._info = info
        self._rate = output_sample_rate(info)
        self._layout = "mono" if output_channels(info) == 1 else "stereo"
        self._samples = 0
        self.last_pts: int | None = None  # of the newest picture
        self._step = max(1, round(1 / info.frame_rate / info.video_time_base))
        self.video = self._add_video(container, x264_options, flags)
        self.audio = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self.audio.bit_rate = AUDIO_BIT_RATE
        self.audio.codec_context.flags |= flags

    def picture(self, frame: Any, time_ms: float) -> list[Any]:
        """A picture's time is kept to the tick of the input's clock."""
        pts = round(Fraction(time_ms) / 1000 / self._info.video_time_base)
        if self.last_pts is not None and pts <= self.last_pts:
            pts = self.last_pts + 1  # encoders need rising timestamps; a broken source may repeat one
        self.last_pts = pts
        frame.pts = pts
        frame.time_base = self._info.video_time_base
        frame.duration = frame.duration or self._step
        frame.pict_type = 0  # the encoder decides, not the source's frame type
        return list(self.video.encode(frame))

    def sound(self, pcm: Float32) -> list[Any]:
        """The samples float32 (channels, n) that follow on the last ones."""
        if pcm.shape[1] == 0:
            return []
        limited = np.ascontiguousarray(np.clip(pcm, -1.0, 1.0), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(limited, format="fltp", layout=self._layout)
        frame.sample_rate = self._rate
        frame.time_base = Fraction(1, self._rate)
        frame.pts = self._samples
        self._samples += pcm.shape[1]
        return list(self.audio.encode(frame))

    def _add_video(self, container: Any, options: Mapping[str, str], flags: int) -> Any:
        info = self._info
        stream = container.add_stream("libx264", rate=info.frame_rate, options=dict(options))
        stream.width, stream.height = info.width, info.height
        stream.pix_fmt = info.planar_format
        encoder = stream.codec_context
        encoder.time_base = info.video_time_base
        encoder.flags |= FRAME_DURATION | flags
        encoder.sample_aspect_ratio = info.sample_aspect_ratio
        encoder.color_range, encoder.colorspace = info.colour.range, info.colour.space
        encoder.color_primaries, encoder.color_trc = info.colour.primaries, info.colour.transfer
        return stream


class MediaWriter:
    """Encodes into a temporary file, beside the output or in a folder; `finish` moves it there, `discard` removes it.

    One thread writes while another may discard: a cancelled job's thread cannot be stopped, only waited for.
    """

    def __init__(
        self, path: Path, info: MediaInfo, tags: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self._path = path
        self._info = info
        folder = folder or path.absolute().parent
        self._temporary = folder / f".{path.stem[:NAME_LENGTH]}.{os.getpid()}{path.suffix}"
        self._busy = Lock()
        self._closed = False
        self._pictures_ended = False
        self._container = self._create()
        self._container.metadata.update(tags or {})
        self._encoders = Encoders(self._container, info, X264_OPTIONS)

    def write(self, pictures: Iterable[tuple[Any, float]], pcm: Float32) -> None:
        """Pictures (av.VideoFrame, time_ms) and the sound float32 (channels, n) that follows on the last call's."""
        with self._busy:
            if self._closed:
                return
            with refused_by_the_disk(self._path):
                for frame, time_ms in pictures:
                    self._container.mux(self._encoders.picture(frame, time_ms))
                self._container.mux(self._encoders.sound(pcm))

    def write_packet(self, packet: Any, pieces: Iterable[Float32]) -> None:
        """A picture that is encoded already, in the same way, and the sound that follows on the last."""
        with self._busy, refused_by_the_disk(self._path):
            if self._closed:
                return
            for pcm in pieces:
                self._container.mux(self._encoders.sound(pcm))
            packet.stream = self._encoders.video
            self._container.mux(packet)

    def end_pictures(self) -> None:
        """No picture comes any more: those that the encoder holds back must not wait behind the sound."""
        with self._busy:
            if not self._closed and not self._pictures_ended:
                self._pictures_ended = True
                with refused_by_the_disk(self._path):
                    self._container.mux(self._encoders.video.encode())

    def finish(self, path: Path) -> bool:
        """Complete the file and move it to `path`; False after `discard`, as when the job was cancelled meanwhile."""
        self.end_pictures()
        with self._busy, refused_by_the_disk(self._path):
            if self._closed:
                return False
            self._container.mux(self._encoders.audio.encode())
            self._container.close()
            self._closed = True
            os.replace(self._temporary, path)
            return True

    def discard(self) -> None:
        """Leave nothing behind. Safe after `finish`."""
        with self._busy:
            self._closed = True
            with suppress(av.FFmpegError, OSError):  # closing writes the rest, which a full disk refuses again
                self._container.close()
            self._temporary.unlink(missing_ok=True)

    def _create(self) -> Any:
        check_output(self._path)
        with refused_by_the_disk(self._path):
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        # As a URL, so that a name with a colon is a name. A time before a track's start is kept in movie ticks.
        options = {"movflags": "+faststart", "movie_timescale": str(self._info.video_time_base.denominator)}
        format_name = FORMATS[self._path.suffix.lower()]
        return av.open(
            f"file:{self._temporary}", "w", format=format_name, options={} if format_name == "matroska" else options
        )
