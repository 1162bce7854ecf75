"""Small clips for the tests, good and bad, made with PyAV."""

from __future__ import annotations

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
