"""A finished dub as a viewer gets it: decoded again, and its lips measured against its own sound."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.cuts import thumbnail
from polylip.client.envelopes import loudness
from polylip.client.errors import InputError
from polylip.client.faces import Letterbox
from polylip.client.job import DubOptions, DubResult, dub
from polylip.client.media_in import VideoReader, probe_media
from polylip.client.speaker import MouthMeter
from polylip.client.sync import MAX_OFFSET_MS, WINDOW_MS, Estimate, best_shift, last_of, pieces
from polylip.client.verify import verify_file
from polylip.export.networks import SyncNet
from polylip.perf.jitter import KEY_EVERY, measure_clip, one_face, track
from polylip.perf.picture_quality_lse import crop_face, crop_windows, measure
from polylip.perf.picture_quality_measures import FRAMES, compare_videos
from polylip.perf.picture_quality_networks import mono
from polylip.perf.sync import FORMS, Mouth, sound_curve
from polylip.serving.boxes import to_corners
from polylip.serving.engines.cascade import MAX_FACES, Cascade
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.tracking import LOOK_AHEAD_MS

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

TARGET = "es"
FORM = FORMS[-1]  # what the client compares itself


@dataclass(frozen=True)
class MainFace:
    """The face of a clip that is seen most, by profile lite's detector, whatever profile dubs it."""

    times_ms: Float64
    corners: Float64  # (frames, 4), pixels of the picture
    seen: Bool  # (frames,)
    width: int  # of the picture

    def mouth(self, video: Path) -> Mouth:
        """How open it is in a dub of the clip, frame by frame."""
        meter, openings, moves = MouthMeter(), [], []
        with closing(VideoReader(probe_media(video))) as reader:
            for box, seen in zip(self.corners, self.seen, strict=True):
                [(_, frame)] = reader.read(1)
                if seen:
                    thumb = thumbnail(frame)
                    place = box * thumb.shape[1] / self.width
                    opening, motion = meter.measure(thumb, {1: tuple(place.tolist())})[1]
                    openings.append(opening)
                    moves.append(motion)
        return Mouth(self.times_ms[self.seen], np.array(openings), moves)


def make_dub(clip: Path, output: Path, url: str, profile: str) -> DubResult:
    """The clip dubbed by a running server, marked and measured by the client as any other."""
    return asyncio.run(dub(DubOptions(clip, output, TARGET, "en", url=url, profile=profile)))


def measure_dub(clip: Path, done: DubResult, syncnet: SyncNet | None = None, frames: int = FRAMES) -> dict[str, Any]:
    """The client's own figures, and those that are taken from the finished file without it."""
    report, face = done.report, main_face(clip)
    return {
        "clip": {"seconds": report.duration_s, "frames": report.frames, "segments": len(report.segments)},
        "engines": report.engines,
        "share_with_lips": report.frames_lipsynced / report.frames,
        "share_without_face": report.frames_without_face / report.frames,
        "seam": report.seam,
        "seam_worst": report.seam_worst,
        "flicker": report.flicker,
        "flicker_worst": report.flicker_worst,
        "av_offset_ms": report.av_offset_ms,
        "av_offsets": report.av_offsets,
        "marked": str(verify_file(done.video).state),
        "likeness": compare_videos(clip, done.video, done.face_samples, frames),
        "measured_offset": offsets(face, done.video),
        "jitter": measure_clip(clip),
        "lse": None if syncnet is None else {"source": lse(syncnet, face, clip), "dub": lse(syncnet, face, done.video)},
    }


def main_face(clip: Path) -> MainFace:
    """Tracked from every KEY_EVERYth frame and the last one. Raises InputError where there is none."""
    info = probe_media(clip)
    letterbox, cascade = Letterbox(info.width, info.height), Cascade({}, "")
    times: list[float] = []
    boxes, scores = [], []
    with closing(VideoReader(info)) as reader:
        ahead = reader.read(1)
        while batch := ahead:
            ahead = reader.read(1)
            found = np.zeros((1, MAX_FACES, 4), np.float32), np.zeros((1, MAX_FACES), np.float32)
            if len(times) % KEY_EVERY == 0 or not ahead:
                found = cascade.detect(letterbox.shrink(batch[0][1])[None])
            times.append(batch[0][0])
            boxes.append(found[0][0])
            scores.append(found[1][0])
    times_ms = np.array(times)
    answers, _ = track(np.array(boxes), np.array(scores), np.round(times_ms).astype(np.int64), LOOK_AHEAD_MS)
    tracked, seen = one_face(answers)
    if not seen.any():
        raise InputError(f"{clip.name}: profile lite's detector finds no face to measure")
    return MainFace(times_ms, to_corners(tracked) / letterbox.scale, seen, info.width)


def offsets(face: MainFace, video: Path) -> dict[str, Any]:
    """By how much the picture trails the sound, in windows of the client's length that begin every second."""
    heard = sound_curve(loudness(mono(video), 0.0, silent_around_ms=MAX_OFFSET_MS), FORM)
    parts = pieces(heard, face.mouth(video).curve(FORM))
    ends = range(WINDOW_MS // 1000, len(parts) + 1)
    windows = [found for end in ends if (found := best_shift(last_of(parts[:end], WINDOW_MS))) is not None]
    clear = [found.offset_ms for found in windows if found.clear]
    return {
        "windows": len(windows),
        "clear": len(clear),
        "median_ms": float(np.median(clear)) if clear else None,
        "raw": [_estimate(found) for found in windows],
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    return {**asdict(found), "clear": found.clear}


def lse(network: SyncNet, face: MainFace, video: Path) -> dict[str, Any]:
    """Of the stretch of the clip, or of a dub of it, in which the face is seen."""
    first, last = np.flatnonzero(face.seen)[[0, -1]].tolist()
    windows = crop_windows(face.corners[first : last + 1])
    crops = []
    with closing(VideoReader(probe_media(video))) as reader:
        if first:
            reader.read(first)
        for window in windows:
            [(_, frame)] = reader.read(1)
            crops.append(crop_face(frame.to_ndarray(format="bgr24"), window))
    audio = mono(video)[round(face.times_ms[first] * SAMPLE_RATE_HZ / 1000) :]
    return asdict(measure(network, np.stack(crops), audio))
