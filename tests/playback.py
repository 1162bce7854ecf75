"""What a player shows and plays of a file, found with av alone; and a file sent through our readers and the writer."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import MediaWriter, output_channels, output_sample_rate


@dataclass(frozen=True)
class Playback:
    """Times count from the first picture or sound on."""

    times_s: list[Fraction]  # of the frames
    greys: list[float]  # mean luma of the frames, 0 to 255
    pcm: np.ndarray  # float32 mono (samples,), each piece where its timestamp says
    rate_hz: int

    @property
    def onsets_s(self) -> list[float]:
        return onsets(self.pcm, self.rate_hz)


def play(path: Path) -> Playback:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        pieces = list(container.decode(audio=0))
    times = [frame.pts * Fraction(frame.time_base) for frame in frames]
    sound_times = [piece.pts * Fraction(piece.time_base) for piece in pieces]
    start = min(times[0], sound_times[0])
    rate_hz = pieces[0].sample_rate
    firsts = [round((time - start) * rate_hz) for time in sound_times]
    pcm = np.zeros(max(first + piece.samples for first, piece in zip(firsts, pieces, strict=True)), np.float32)
    resampler = av.AudioResampler("fltp", "mono")
    for first, piece in zip(firsts, pieces, strict=True):
        pcm[first : first + piece.samples] = resampler.resample(piece)[0].to_ndarray()[0]
    return Playback([time - start for time in times], [mean_luma(frame) for frame in frames], pcm, rate_hz)


def mean_luma(frame) -> float:
    """As the numbers of the picture are stored, scaled to 8 bits; what RGB becomes in limited-range BT.709."""
    if frame.format.is_rgb or frame.format.has_palette:
        red, green, blue = frame.to_ndarray(format="rgb24").reshape(-1, 3).mean(axis=0)
        return float(16 + (0.2126 * red + 0.7152 * green + 0.0722 * blue) * 219 / 255)
    plane = frame.planes[0]
    deep = frame.format.components[0].bits > 8
    rows = np.frombuffer(plane, "<u2" if deep else np.uint8).reshape(plane.height, -1)[:, : plane.width]
    return float(rows.mean() / 2 ** (frame.format.components[0].bits - 8))


def onsets(pcm: np.ndarray, rate_hz: int) -> list[float]:
    """Seconds at which each of the `clips.clicks` in float32 (samples,) begins."""
    loud = np.flatnonzero(np.abs(pcm) > 0.15)
    return [loud[0] / rate_hz, *(loud[1:][np.diff(loud) > 0.05 * rate_hz] / rate_hz)] if loud.size else []


def pass_through(clip: Path, output: Path) -> MediaInfo:
    """What a job does to a clip without speech."""
    info = probe_media(clip)
    writer = MediaWriter(output, info)
    video = VideoReader(info, info.planar_format)
    audio = AudioReader(info, output_sample_rate(info), output_channels(info))
    nothing = np.zeros((output_channels(info), 0), np.float32)
    try:
        while True:
            frames, piece = video.read(8), audio.read(0.3)
            if not frames and piece is None:
                break
            writer.write([(frame, time_ms) for time_ms, frame in frames], nothing if piece is None else piece[0])
        writer.finish(output)
    finally:
        writer.discard()
        video.close()
        audio.close()
    return info


def listen(clip: Path, sample_rate_hz: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """All that an `AudioReader` gives: (channels, samples) at the rate, (samples,) at 16 kHz."""
    reader = AudioReader(probe_media(clip), sample_rate_hz, channels)
    pieces = []
    while (piece := reader.read(0.7)) is not None:
        pieces.append(piece)
    reader.close()
    return np.concatenate([a for a, _ in pieces], axis=1), np.concatenate([b for _, b in pieces])


def watch(clip: Path, pixel_format: str | None = None) -> list[tuple[float, object]]:
    """All that a `VideoReader` gives."""
    reader = VideoReader(probe_media(clip), pixel_format)
    frames = []
    while batch := reader.read(8):
        frames += batch
    reader.close()
    return frames
