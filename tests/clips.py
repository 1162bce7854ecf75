"""Small clips for the tests, good and bad, made with PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import merge
from pathlib import Path

import av
import numpy as np

RATE_HZ = 16_000
FPS = 25


def make_clip(
    path: Path,
    *,
    seconds: float = 3.0,
    picture: bool = True,
    sound: np.ndarray | None = None,
    size: tuple[int, int] = (320, 240),
    face: np.ndarray | None = None,
    audio_codec: str = "aac",
) -> Path:
    """A clip with a plain picture, or `face` uint8 (h, w, 3) RGB in its middle; `sound` float32 mono at 16 kHz."""
    with av.open(str(path), "w", options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}) as container:
        video = audio = None
        if picture:
            video = container.add_stream("libx264", rate=FPS, options={"g": "25"})
            video.width, video.height = size
            video.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=RATE_HZ, layout="mono")
        if video is not None:
            for index in range(round(FPS * seconds)):
                container.mux(video.encode(av.VideoFrame.from_ndarray(_picture(size, index, face), format="rgb24")))
            container.mux(video.encode())
        if audio is not None and sound is not None:
            _encode(container, audio, sound, "fltp" if audio_codec == "aac" else "flt")
    return path


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    """White noise, float32 (samples,) at 16 kHz."""
    return (np.random.default_rng(0).standard_normal(round(RATE_HZ * seconds)) * level).astype(np.float32)


def grey(index: int) -> int:
    """The level that frame `index` of `write_media` has all over: neighbours differ clearly."""
    return 50 + index * 37 % 150


@dataclass(frozen=True)
class Picture:
    """The video stream of a clip from `write_media`."""

    frames: int = 50
    codec: str = "libx264"
    rate: Fraction | int = 25
    times_s: Sequence[Fraction | float] | None = None  # of each frame; None: regular ones from `start_s` on
    start_s: Fraction | float = 0
    time_base: Fraction | None = None  # None: one frame
    size: tuple[int, int] = (64, 48)
    pixel_format: str = "yuv420p"
    draw: Callable[[int], np.ndarray] | None = None  # frame index -> uint8 (h, w, 3) RGB; None: `grey`
    rotation: int = 0  # degrees counter-clockwise, in the display matrix
    options: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, object] = field(default_factory=dict)  # of the encoder: aspect, colours

    @property
    def end_s(self) -> float:
        return float(self._times()[-1] + Fraction(1) / self.rate)

    def packets(self, container) -> Iterator[tuple[float, object]]:
        """(time in seconds, packet) in order."""
        width, height = self.size
        stream = container.add_stream(self.codec, rate=self.rate, options=self.options)
        stream.width, stream.height, stream.pix_fmt = width, height, self.pixel_format
        stream.codec_context.time_base = self.time_base or Fraction(1) / self.rate
        for name, value in self.attributes.items():
            setattr(stream.codec_context, name, value)
        if self.rotation:
            stream.set_display_rotation(self.rotation)

        def encode() -> Iterator[tuple[float, object]]:
            for index, time_s in enumerate(self._times()):
                frame = self._frame(index)
                frame.time_base = stream.codec_context.time_base
                frame.pts = round(Fraction(time_s) / frame.time_base)
                yield from ((float(time_s), packet) for packet in stream.encode(frame))
            yield from ((float("inf"), packet) for packet in stream.encode())

        return encode()

    def _times(self) -> Sequence[Fraction | float]:
        return self.times_s or [self.start_s + index / Fraction(self.rate) for index in range(self.frames)]

    def _frame(self, index: int):
        if self.draw is not None:
            return av.VideoFrame.from_ndarray(self.draw(index), "rgb24").reformat(
                format=self.pixel_format, dst_colorspace="ITU709"
            )
        frame = av.VideoFrame.from_ndarray(np.full((self.size[1], self.size[0]), grey(index), np.uint8), "gray")
        full = {"src_color_range": "JPEG", "dst_color_range": "JPEG"}
        return frame.reformat(format=self.pixel_format, **full)


@dataclass(frozen=True)
class Sound:
    """The audio stream of a clip from `write_media`."""

    pcm: np.ndarray  # float32 (channels, samples)
    rate_hz: int = 16_000
    codec: str = "aac"
    start_s: Fraction | float = 0
    jumps: tuple[tuple[float, float], ...] = ()  # (from this second of the sound on, timestamps move by this)

    def packets(self, container) -> Iterator[tuple[float, object]]:
        """(time in seconds, packet) in order."""
        layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(self.pcm)]
        interleaved = (self.pcm.T * 32767).astype(np.int16)  # av cannot fill the planes of 8 channels
        stream = container.add_stream(self.codec, rate=self.rate_hz, layout=layout)

        def encode() -> Iterator[tuple[float, object]]:
            for start in range(0, self.pcm.shape[1], 1024):
                moved_s = self.start_s + sum(by for at, by in self.jumps if start >= at * self.rate_hz)
                piece = interleaved[start : start + 1024].reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(piece, "s16", layout)
                frame.sample_rate, frame.time_base = self.rate_hz, Fraction(1, self.rate_hz)
                frame.pts = start + round(moved_s * self.rate_hz)
                yield from ((frame.time, packet) for packet in stream.encode(frame))
            yield from ((float("inf"), packet) for packet in stream.encode())

        return encode()


def write_media(
    path: Path,
    picture: Picture | None,
    *sounds: Sound,
    options: dict[str, str] | None = None,
    format_name: str | None = None,
    finish: Callable[[object], None] = lambda container: None,
) -> Path:
    """A clip of any kind. `finish` may add streams to the container before the first packet is written."""
    same_bytes = {"fflags": "+bitexact"}  # else Matroska's identities are drawn anew
    with av.open(str(path), "w", format=format_name, options=same_bytes | (options or {})) as container:
        streams = [stream.packets(container) for stream in (picture, *sounds) if stream is not None]
        finish(container)
        for _, packet in merge(*streams, key=lambda item: item[0]):
            container.mux(packet)
    return path


def clicks(times_s: Sequence[float], seconds: float, rate_hz: int = 16_000, channels: int = 1) -> np.ndarray:
    """Silence with 10 ms of 1 kHz at each time, float32 (channels, samples)."""
    pcm = np.zeros((channels, round(seconds * rate_hz)), np.float32)
    burst = np.sin(2 * np.pi * 1000 * np.arange(round(0.01 * rate_hz)) / rate_hz) * 0.5
    for time_s in times_s:
        first = round(time_s * rate_hz)
        pcm[:, first : first + len(burst)] = burst
    return pcm


def _picture(size: tuple[int, int], index: int, face: np.ndarray | None) -> np.ndarray:
    width, height = size
    picture = np.full((height, width, 3), 60 + index % 100, np.uint8)
    if face is not None:
        top, left = (height - face.shape[0]) // 2, (width - face.shape[1]) // 2
        picture[top : top + face.shape[0], left : left + face.shape[1]] = face
    return picture


def _encode(container, stream, sound: np.ndarray, sample_format: str) -> None:
    for start in range(0, len(sound), 1024):
        frame = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format=sample_format, layout="mono")
        frame.sample_rate, frame.pts = RATE_HZ, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
