"""The demo's own input: a public-domain face before a slowly moving camera, speaking English with pauses.

`python -m polylip.perf.demo_clip OUT [--seconds N]` writes an H.264 and AAC file. The picture is
`skimage.data.astronaut()` (NASA, public domain), the voice flite's `rms`, which pocketsphinx reads without error. The
mouth does not move: moving it is polylip's job. Nothing is random but a seeded noise floor, and media are made one
second at a time, so a clip of any length needs the memory of a short one.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from polylip.client.errors import PolylipError

SENTENCES = (
    "The old bridge is the most famous place in the city.",
    "The people of the town are very friendly and the food is excellent.",
    "The music was beautiful and the people were very happy.",
    "The computer can translate my voice in real time.",
    "My brother has two children.",
    "The red car is faster than the blue car.",
    "The old man walked slowly along the beach.",
    "The sun is very strong today.",
    "We want to travel to another country next year.",
    "The doctor told him to drink more water every day.",
    "We are very happy today.",
    "It was very cold last week and the children stayed at home.",
)  # pocketsphinx reads each word for word, whatever the silence around it; apertium eng-spa translates each well
DEFAULT_SENTENCES = 4  # spoken when no duration is asked for: about 19 s

START_S, END_S = 0.6, 1.0  # silence before the first and after the last sentence
PAUSES_S = (0.9, 1.1, 1.0, 1.2)  # between sentences, in turn
SPEECH_DB = -45.0  # below a sentence's loudest 10 ms: where flite's own padding begins
FADE_MARGIN_S = 0.03  # kept around the trimmed speech, so that soft consonants stay whole
VOICE, VOICE_HZ = "rms", 16_000  # of flite
AUDIO_HZ = 48_000
NOISE_DB = -70.0  # RMS re full scale of the noise floor: digital silence is unlike any microphone
AUDIO_BIT_RATE = 96_000

SIZE, FPS = (960, 540), 25
FACE_PX = (225.0, 115.0, 97.0)  # centre x, centre y and height of the face in the 512 x 512 picture, by Haar cascade
ANALYSIS_SIZE = (640, 360)  # what polylip's detectors see of any video
MIN_FACE_PX = 90.0  # height of the face at analysis size; detectors are sure of it from about 80
ZOOM, ZOOM_SWING, ZOOM_PERIOD_S = 1.07, 0.03, 14.0  # times the scale that just fills the frame
CAMERA_PX = (252.0, 142.0)  # mean centre of view in the picture: the whole head, with air above it
PAN_PX, PAN_PERIODS_S = (5.0, 3.0), (11.0, 8.5)  # swing of the centre; periods that do not repeat together
CODEC_THREADS = 2  # fixed: the bytes that x264 writes depend on it
# Macroblock tree off: with it, x264 gave other bytes from one run to the next at this width.
VIDEO_OPTIONS = {"preset": "veryfast", "crf": "20", "mbtree": "0"}

Samples = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class DemoClipError(PolylipError):
    """The clip cannot be made; the message names the remedy."""


def make_demo_clip(out: Path, seconds: float | None = None, size: tuple[int, int] = SIZE, fps: int = FPS) -> Path:
    """Write the clip to `out` (its suffix names the container) and return the path.

    Without `seconds` it speaks the first four sentences. With it the clip is that long, to the nearest frame:
    sentences come in turn, over and over, and one that no longer fits gives way to the next that does.
    """
    if size[0] % 2 or size[1] % 2:
        raise DemoClipError(f"size {size[0]}x{size[1]}: H.264 in 4:2:0 needs even width and height")
    schedule = _default_schedule() if seconds is None else _schedule(seconds)
    if seconds is None:
        start_s, index = schedule[-1]
        seconds = start_s + _duration_s(index) + END_S
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix}")
    try:
        _write(partial, schedule, round(seconds * fps), size, fps)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _default_schedule() -> list[tuple[float, int]]:
    """The first sentences: [(start in seconds, index into SENTENCES)]."""
    schedule, at_s = [], START_S
    for index in range(DEFAULT_SENTENCES):
        schedule.append((at_s, index))
        at_s += _duration_s(index) + PAUSES_S[index % len(PAUSES_S)]
    return schedule


def _schedule(seconds: float) -> list[tuple[float, int]]:
    """What fills `seconds`: [(start in seconds, index into SENTENCES)]."""
    if not math.isfinite(seconds):
        raise DemoClipError("the length must be a finite number of seconds")
    schedule: list[tuple[float, int]] = []
    at_s, following = START_S, 0
    for turn in count():
        candidates = ((following + step) % len(SENTENCES) for step in range(len(SENTENCES)))
        index = next((i for i in candidates if at_s + _duration_s(i) + END_S <= seconds), None)
        if index is None:
            break
        schedule.append((at_s, index))
        at_s += _duration_s(index) + PAUSES_S[turn % len(PAUSES_S)]
        following = index + 1
    if not schedule:
        shortest = START_S + END_S + min(map(_duration_s, range(len(SENTENCES))))
        raise DemoClipError(f"{seconds:g} s is too short for one sentence: ask for at least {shortest:.1f} s")
    return schedule


def _write(path: Path, schedule: list[tuple[float, int]], frames: int, size: tuple[int, int], fps: int) -> None:
    """Encode `frames` pictures and as much sound, one second of each in turn."""
    camera = Camera(size)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options=VIDEO_OPTIONS)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.gop_size = 2 * fps
        video.codec_context.thread_count = CODEC_THREADS
        audio = container.add_stream("aac", rate=AUDIO_HZ, layout="mono", bit_rate=AUDIO_BIT_RATE)
        sound = _sound(schedule, round(frames / fps * AUDIO_HZ))
        written = 0
        for second in range(math.ceil(frames / fps)):
            for number in range(second * fps, min(frames, (second + 1) * fps)):
                picture = av.VideoFrame.from_ndarray(camera.frame(number / fps), "bgr24")
                picture.pts = number
                container.mux(video.encode(picture))
            block = next(sound)
            samples = av.AudioFrame.from_ndarray(block[None], "fltp", "mono")
            samples.sample_rate, samples.pts = AUDIO_HZ, written
            written += block.size
            container.mux(audio.encode(samples))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


class Camera:
    """Frames of the still picture as a slowly panning and zooming camera sees it; it never leaves the picture."""

    def __init__(self, size: tuple[int, int]) -> None:
        picture = _astronaut()
        self.size = size
        self.side = picture.shape[0]
        fill = max(size) / self.side
        fit = min(ANALYSIS_SIZE[0] / size[0], ANALYSIS_SIZE[1] / size[1])
        self.scale = max(fill, MIN_FACE_PX / (FACE_PX[2] * fit))
        # Enlarged once with a good filter; each frame then moves it by fractions of a pixel with a fast one.
        self.enlarged = self.scale * ZOOM
        self.canvas: Pixels = cv2.resize(
            picture, None, fx=self.enlarged, fy=self.enlarged, interpolation=cv2.INTER_LANCZOS4
        )

    def frame(self, time_s: float) -> Pixels:
        """The view at `time_s`: uint8 (height, width, 3), BGR."""
        width, height = self.size
        scale = self.scale * (ZOOM + ZOOM_SWING * _swing(time_s, ZOOM_PERIOD_S))
        x, y = (
            min(max(mean + pan * _swing(time_s, period), half), self.side - half)
            for mean, pan, period, half in zip(
                CAMERA_PX, PAN_PX, PAN_PERIODS_S, (width / 2 / scale, height / 2 / scale), strict=True
            )
        )
        ratio = scale / self.enlarged
        # Pixel centres lie at half-integers, in the canvas as in the frame.
        matrix = np.array(
            [
                [ratio, 0, (width + ratio - 1) / 2 - x * scale],
                [0, ratio, (height + ratio - 1) / 2 - y * scale],
            ]
        )
        view: Pixels = cv2.warpAffine(
            self.canvas, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return view


def _swing(time_s: float, period_s: float) -> float:
    return math.sin(2 * math.pi * time_s / period_s)


def _astronaut() -> Pixels:
    """The picture: uint8 (512, 512, 3), BGR. Read as a file: importing scikit-image wants scipy, 140 MB for a PNG."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise DemoClipError("the demo's face is in scikit-image; run: pip install --no-deps scikit-image")
    path = Path(package.origin).parent / "data" / "astronaut.png"
    with av.open(str(path)) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="bgr24"), np.uint8)


def _sound(schedule: list[tuple[float, int]], total: int) -> Iterator[Samples]:
    """`total` samples of noise floor and sentences at 48 kHz, in blocks of up to a second: float32 (samples,)."""
    random = np.random.default_rng(0)
    for start in range(0, total, AUDIO_HZ):
        block = random.standard_normal(min(AUDIO_HZ, total - start), dtype=np.float32)
        block *= np.float32(10 ** (NOISE_DB / 20))
        for at_s, index in schedule:
            offset = round(at_s * AUDIO_HZ) - start
            speech = _speech(index)[max(0, -offset) : max(0, block.size - offset)]
            if speech.size:
                first = max(0, offset)
                block[first : first + speech.size] += speech
        yield block


def _duration_s(index: int) -> float:
    return _speech(index).size / AUDIO_HZ


@cache
def _speech(index: int) -> Samples:
    """Sentence `index` as float32 (samples,) at 48 kHz, without flite's padding."""
    samples = _flite(SENTENCES[index])
    hop = VOICE_HZ // 100
    loudness = np.sqrt(np.mean(samples[: samples.size // hop * hop].reshape(-1, hop) ** 2, axis=1))
    voiced = np.flatnonzero(loudness > loudness.max() * 10 ** (SPEECH_DB / 20))
    margin = round(FADE_MARGIN_S * VOICE_HZ)
    samples = samples[max(0, voiced[0] * hop - margin) : (voiced[-1] + 1) * hop + margin]

    resampler = av.AudioResampler(format="fltp", layout="mono", rate=AUDIO_HZ)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
    frame.sample_rate = VOICE_HZ
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(parts)


def _flite(text: str) -> Samples:
    """`text` spoken: float32 (samples,) at 16 kHz."""
    flite = shutil.which("flite")
    if flite is None:
        raise DemoClipError("the demo speaks with flite, which is not installed: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        script, sound = Path(folder, "text"), Path(folder, "speech.wav")
        script.write_text(text, encoding="utf-8")
        command = [flite, "-voice", VOICE, "-f", str(script), "-o", str(sound)]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if finished.returncode or not sound.exists():
            raise DemoClipError(f"flite failed ({finished.returncode}): {finished.stderr.strip()[-200:]}")
        with wave.open(str(sound)) as reader:
            if (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) != (VOICE_HZ, 1, 2):
                raise DemoClipError(f"flite's {VOICE} voice is not 16-bit mono at {VOICE_HZ} Hz here")
            pcm = np.frombuffer(reader.readframes(reader.getnframes()), dtype="<i2")
    return pcm.astype(np.float32) / 32768


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m polylip.perf.demo_clip",
        description="Make a talking-head clip to dub.",
        epilog="example: python -m polylip.perf.demo_clip demo.mp4 --seconds 60",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, such as demo.mp4")
    parser.add_argument("--seconds", type=float, metavar="N", help="length; without it, four sentences")
    options = parser.parse_args(arguments)
    try:
        print(make_demo_clip(options.out, options.seconds))
    except (DemoClipError, OSError, ValueError, av.FFmpegError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
