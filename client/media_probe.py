"""What a media file holds and whether it can be dubbed: one look at its header, its first picture and sound, its end.

A hostile or broken file is refused here, in one line: FFmpeg may open this one file and no other, as
one of the types below, and no picture larger than the limits is decoded.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from polylip.client.errors import InputError
from polylip.client.media_whole import packets, refuse_truncated
from polylip.client.pixels import Colour, Orientation, planar_format

MAX_SIDE_PX = 8192  # beyond 8K nothing real is recorded, and one frame would take 100 MB
MAX_FRAME_RATE = 300  # slow motion of phones is 240, give or take a little
SAMPLE_RATES_HZ = range(4_000, 768_001)  # telephones to studios; others come from damaged headers
NOMINAL_FRAME_RATE = Fraction(25)  # where a file says nothing usable: each frame has its own time anyway
COARSEST_TICK_S = Fraction(1, 1000)  # AVI counts time in frames: the offset of the sound needs more
FINEST_TICK_S = Fraction(1, 1_000_000)  # nanoseconds would overflow the times of an MP4
OTHER_TICK_S = Fraction(1, 90_000)  # then the clock of MPEG

# FFmpeg's names of the demuxers that open nothing but the file itself: no playlist, no pattern of image files. The
# last row has no pictures, so that it is told apart from files that are no media at all.
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,asf,mxf,ogg,nut,rm,dv",
    "mp3,wav,flac,aac,aiff",
)
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(FORMATS),
    "max_pixels": str(MAX_SIDE_PX * MAX_SIDE_PX),  # a stream can change its size after the header was checked
}


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. Sizes are those of the upright picture."""

    path: Path | str  # what messages call it; a string where it is no file
    width: int
    height: int
    orientation: Orientation  # how the stored picture has to be turned
    sample_aspect_ratio: Fraction
    colour: Colour
    frame_rate: Fraction  # nominal, the average where it varies
    video_time_base: Fraction  # seconds per tick of the picture's clock, here and in the output
    sample_rate_hz: int
    channels: int
    start_s: Fraction  # container time of 0 ms: the first picture or the first sound, whichever comes first
    duration_s: float | None  # None when the container does not say

    @property
    def label(self) -> str:
        """What messages and reports call it."""
        return str(self.path)

    @property
    def planar_format(self) -> str:
        """The pixel format of the output, and of every picture that had to be turned."""
        return planar_format(self.width, self.height)


def probe_media(path: Path) -> MediaInfo:
    """Look at a file without decoding more than its beginning. Raises InputError when it cannot be dubbed."""
    with closing(open_media(path)) as container:
        streams = first_streams(container, path)
        check_size(streams[0], path)
        refuse_truncated(container, streams, path)
    with closing(open_media(path)) as container:
        video, audio = first_streams(container, path)
        picture, sound = _first_frames(container, video, audio, path)
        return describe(
            path,
            picture,
            sound,
            frame_rate=nominal_frame_rate(video, path),
            time_base=Fraction(video.time_base),
            aspect=Fraction(video.sample_aspect_ratio or 1),
            start_s=min(_time_s(picture, video), _time_s(sound, audio)),
            duration_s=container.duration / av.time_base if container.duration else None,
        )


def describe(
    path: Path | str,
    picture: Any,
    sound: Any,
    *,
    frame_rate: Fraction,
    time_base: Fraction,
    aspect: Fraction,
    start_s: Fraction,
    duration_s: float | None = None,
) -> MediaInfo:
    """What a first picture and a first sound say of their source. Raises InputError."""
    if sound.sample_rate not in SAMPLE_RATES_HZ:
        raise InputError(f"{path}: {sound.sample_rate} Hz is no usable sample rate; convert its sound to 48000 Hz")
    orientation = Orientation.of_frame(picture)
    sides = (picture.width, picture.height)
    return MediaInfo(
        path=path,
        width=sides[orientation.transposed],
        height=sides[not orientation.transposed],
        orientation=orientation,
        sample_aspect_ratio=1 / aspect if orientation.transposed else aspect,
        colour=Colour.of_frame(picture),
        frame_rate=frame_rate,
        video_time_base=_tick_s(time_base),
        sample_rate_hz=sound.sample_rate,
        channels=sound.layout.nb_channels,
        start_s=start_s,
        duration_s=duration_s,
    )


def check_file(path: Path) -> None:
    """What can be seen of a local file without opening it. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a video file")
    if not path.is_file():
        raise InputError(f"{path}: is a device or a pipe; name a video file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes)")


def open_media(path: Path) -> Any:
    """The av container of a local file. Raises InputError."""
    check_file(path)
    try:
        # As a URL, so that a name such as `http:clip.mp4` is a name.
        return av.open(f"file:{path.absolute()}", options=OPEN_OPTIONS, metadata_errors="replace")
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except av.error.ArgumentError:
        raise InputError(
            f"{path}: is no video file of a known kind (playlists are not); known are mp4, mov, mkv, webm, avi, ts ..."
        ) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path}: is cut off, damaged or no video ({reason(error)})") from None


def first_streams(container: Any, path: Path | str) -> tuple[Any, Any]:
    """The first video stream that is no cover picture, and the first audio stream. Raises InputError."""
    cover = av.stream.Disposition.attached_pic
    video = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    audio = next(iter(container.streams.audio), None)
    if video is None:
        raise InputError(f"{path}: has no video stream; a clip with picture and sound is needed")
    if audio is None:
        raise InputError(f"{path}: has no sound; a clip with picture and speech is needed")
    for stream in (video, audio):
        if stream.codec_context is None:
            raise InputError(f"{path}: this FFmpeg cannot decode its {stream.type} stream; convert it to mp4 first")
        stream.codec_context.options = {"max_pixels": OPEN_OPTIONS["max_pixels"]} if stream is video else {}
    return video, audio


def reason(error: Exception) -> str:
    """The cause that the system or FFmpeg gives, on one line."""
    return str(getattr(error, "strerror", None) or error).split("\n")[0]


def check_size(video: Any, path: Path | str) -> None:
    """Before anything is decoded. Raises InputError."""
    width, height = video.codec_context.width, video.codec_context.height
    if not width or not height:
        raise InputError(f"{path}: the video stream has no picture size; the file is damaged, or not a video")
    if max(width, height) > MAX_SIDE_PX:
        raise InputError(f"{path}: {width}x{height} is too large; at most {MAX_SIDE_PX} px a side")


def _first_frames(container: Any, video: Any, audio: Any, path: Path) -> tuple[Any, Any]:
    """The first decoded picture and the first decoded sound."""
    found: dict[int, Any] = {}
    try:
        for packet in packets(container, video, audio):
            if packet.stream_index in found:
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            if frames:
                found[packet.stream_index] = frames[0]
            if len(found) == 2:
                break
    except av.FFmpegError as error:
        raise InputError(f"{path}: is damaged ({reason(error)}); copy or convert it again") from None
    if video.index not in found:
        raise InputError(f"{path}: holds no picture that can be decoded")
    if audio.index not in found:
        raise InputError(f"{path}: has no sound that can be decoded; a clip with picture and speech is needed")
    return found[video.index], found[audio.index]


def _time_s(frame: Any, stream: Any) -> Fraction:
    if frame.pts is None:
        return Fraction(stream.start_time or 0) * Fraction(stream.time_base)
    return Fraction(frame.pts * frame.time_base)


def nominal_frame_rate(video: Any, path: Path | str) -> Fraction:
    """Frames per second that a stream states or its first packets suggest. Raises InputError."""
    rates = [rate for rate in (video.average_rate, video.guessed_rate, video.base_rate) if rate]
    usable = next((rate for rate in rates if rate <= MAX_FRAME_RATE), None)
    if usable is None and video.average_rate:
        raise InputError(f"{path}: {float(rates[0]):g} frames per second are too many; at most {MAX_FRAME_RATE}")
    return Fraction(usable or NOMINAL_FRAME_RATE)


def _tick_s(time_base: Fraction) -> Fraction:
    """The output's tick: the input's own, as a part of it where that is coarse."""
    if time_base < FINEST_TICK_S:
        return OTHER_TICK_S
    return time_base / -(-time_base // COARSEST_TICK_S)
