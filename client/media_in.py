"""Reads media with PyAV: what a file holds, its decoded frames in order, its sound as float PCM.

Times are milliseconds since the earlier of the first picture and the first sound, so that the offset between the two
streams of the file survives. Limits keep a hostile or broken file from taking the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from polylip.client.errors import InputError

Float32 = npt.NDArray[np.float32]

MAX_SIDE_PX = 8192  # beyond 8K nothing real is recorded, and one frame would take 100 MB
MAX_FRAME_RATE = 240
SPEECH_RATE_HZ = 16_000  # what the recogniser and the mel front end take
RESYNC_MS = 100  # a jump of the sound's own timestamps beyond this is a gap or an overlap (design section 4)
MAX_GAP_S = 600  # a longer hole in the sound is a broken timestamp
TRUNCATION_SLACK_S = 1.0  # containers round their duration, and streams end apart by up to a GOP
TAIL_WINDOW_S = 12.0  # seek this far before the declared end: the longest usual distance between key frames


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds."""

    path: Path
    width: int
    height: int
    frame_rate: Fraction
    video_time_base: Fraction
    pixel_format: str
    sample_rate_hz: int
    channels: int
    start_s: Fraction  # container time of 0 ms
    duration_s: float | None  # None when the container does not say


def probe_media(path: Path) -> MediaInfo:
    """Look at a file without decoding it. Raises InputError when it cannot be dubbed."""
    with closing(_open(path)) as container:
        video, audio = _streams(container, path)
        context = video.codec_context
        if context is None or not context.width or not context.height:
            raise InputError(f"{path}: the video stream has no picture size; the file is damaged, or not a video")
        if max(context.width, context.height) > MAX_SIDE_PX:
            raise InputError(f"{path}: {context.width}x{context.height} is too large; at most {MAX_SIDE_PX} px a side")
        rate = video.average_rate or video.guessed_rate or video.base_rate
        if not rate or rate > MAX_FRAME_RATE:
            raise InputError(
                f"{path}: frame rate {rate or 'unknown'} is not usable; at most {MAX_FRAME_RATE} per second"
            )
        info = MediaInfo(
            path=path,
            width=context.width,
            height=context.height,
            frame_rate=Fraction(rate),
            video_time_base=Fraction(video.time_base),
            pixel_format=context.pix_fmt or "yuv420p",
            sample_rate_hz=audio.codec_context.sample_rate,
            channels=audio.codec_context.channels,
            start_s=min(_start_s(video), _start_s(audio)),
            duration_s=container.duration / av.time_base if container.duration else None,
        )
    _refuse_truncated(info)
    return info


class _Reader:
    """An open file that one thread reads while another may close it: a cancelled job's thread cannot be stopped."""

    def __init__(self, info: MediaInfo) -> None:
        self._container = _open(info.path)
        self._busy = Lock()
        self._closed = False

    def close(self) -> None:
        """Waits for a read that is under way. Safe to call twice."""
        with self._busy:
            self._closed = True
            self._container.close()


class VideoReader(_Reader):
    """Decoded pictures of a file in presentation order, each with its time."""

    def __init__(self, info: MediaInfo) -> None:
        super().__init__(info)
        self._stream, _ = _streams(self._container, info.path)
        self._stream.thread_type = "AUTO"
        self._info = info
        self._frames = self._decode()

    def read(self, count: int) -> list[tuple[float, Any]]:
        """Up to `count` further (time_ms, av.VideoFrame); fewer only at the end."""
        with self._busy:
            return [] if self._closed else list(islice(self._frames, count))

    def _decode(self) -> Iterator[tuple[float, Any]]:
        last_ms = -1.0
        step_ms = float(1000 / self._info.frame_rate)
        for frame in _decoded(self._container, self._stream):
            if frame.pts is None:
                time_ms = last_ms + step_ms if last_ms >= 0 else 0.0
            else:
                time_ms = float((frame.pts * Fraction(frame.time_base) - self._info.start_s) * 1000)
            last_ms = time_ms
            yield time_ms, frame


class AudioReader(_Reader):
    """The sound of a file as float32 PCM (channels, samples), continuous from 0 ms on, and mono 16 kHz beside it."""

    def __init__(self, info: MediaInfo, sample_rate_hz: int, channels: int) -> None:
        super().__init__(info)
        _, self._stream = _streams(self._container, info.path)
        self._info = info
        self._rate = sample_rate_hz
        layout = "mono" if channels == 1 else "stereo"
        self._native = av.AudioResampler("fltp", layout, sample_rate_hz)
        self._mono = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)
        self._channels = channels
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
        if not native:
            return None
        return np.concatenate(native, axis=1), np.concatenate(mono)

    def _decode(self) -> Iterator[tuple[Float32, Float32]]:
        samples = 0  # at the source's own rate
        for frame in _decoded(self._container, self._stream):
            due = samples
            if frame.pts is not None:
                due = round((frame.pts * Fraction(frame.time_base) - self._info.start_s) * frame.sample_rate)
            gap = due - samples
            if samples == 0 or abs(gap) * 1000 > RESYNC_MS * frame.sample_rate:
                if gap > MAX_GAP_S * frame.sample_rate:
                    raise InputError(f"{self._info.path}: the sound's timestamps jump by {gap // frame.sample_rate} s")
                if gap < 0:
                    continue  # an overlap: this piece has been heard
                if gap > 0:
                    samples += gap
                    yield self._convert(_silence(frame, gap))
            samples += frame.samples
            yield self._convert(frame)
        yield self._convert(None)

    def _convert(self, frame: Any) -> tuple[Float32, Float32]:
        """Both forms of one piece; None flushes what the resamplers hold."""
        if frame is not None:
            frame.pts = None  # the resamplers count samples themselves
        native = [piece.to_ndarray() for piece in self._native.resample(frame)]
        mono = [piece.to_ndarray()[0] for piece in self._mono.resample(frame)]
        pcm = np.concatenate(native, axis=1) if native else np.zeros((self._channels, 0), np.float32)
        if not np.isfinite(pcm).all():
            raise InputError(f"{self._info.path}: the sound holds NaN or infinite samples; re-encode the file")
        return pcm, np.concatenate(mono) if mono else np.zeros(0, np.float32)


def _open(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a video file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes)")
    try:
        return av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path}: is cut off, damaged or no video ({_reason(error)})") from None


def _streams(container: Any, path: Path) -> tuple[Any, Any]:
    video = next((s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic), None)
    audio = next(iter(container.streams.audio), None)
    if video is None:
        raise InputError(f"{path}: has no video stream; a clip with picture and sound is needed")
    if audio is None or not audio.codec_context.sample_rate:
        raise InputError(f"{path}: has no sound; a clip with picture and speech is needed")
    return video, audio


def _start_s(stream: Any) -> Fraction:
    return Fraction(stream.start_time or 0) * Fraction(stream.time_base)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of one stream; a damaged packet is skipped, so that two readers of a file skip the same ones."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def _silence(like: Any, samples: int) -> Any:
    frame = av.AudioFrame(format=like.format.name, layout=like.layout.name, samples=samples)
    frame.sample_rate = like.sample_rate
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return frame


def _refuse_truncated(info: MediaInfo) -> None:
    """Seek near the declared end: a file that was cut off has no packets there. Raises InputError."""
    if not info.duration_s or info.duration_s < TRUNCATION_SLACK_S:
        return
    last_s = 0.0
    with closing(_open(info.path)) as container:
        try:
            container.seek(int(max(0.0, info.duration_s - TAIL_WINDOW_S) * av.time_base))
            for packet in container.demux():
                if packet.pts is not None and not packet.is_corrupt:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    last_s = max(last_s, float(end - info.start_s))
        except av.FFmpegError:
            pass  # what was read so far decides
        declared = max(_end_s(stream) for stream in container.streams if stream.type in ("video", "audio"))
    if declared and last_s < declared - TRUNCATION_SLACK_S:
        raise InputError(
            f"{info.path}: is truncated: it says {declared:.1f} s but its data end at {last_s:.1f} s; copy it again"
        )


def _end_s(stream: Any) -> float:
    """Declared duration of one stream in seconds, 0 when the container does not say."""
    return float(stream.duration * stream.time_base) if stream.duration else 0.0


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0]
