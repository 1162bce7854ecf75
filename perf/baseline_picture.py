"""The picture of the sequential baseline: faces of all frames, then all mouths one by one, then blending and the file.

Every part is the client's own; only the order is another one. See docs/baseline.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polylip.client.blend import FaceCut, MouthPaster, cut_face, frame_planes, to_frame
from polylip.client.faces import FacesBranch
from polylip.client.media_in import MediaInfo
from polylip.client.media_out import MediaWriter
from polylip.client.mix import AudioBed
from polylip.client.pulse import Pulse
from polylip.client.render import EDGE_MS
from polylip.client.ring import Face, FrameRing, Slot
from polylip.client.speaker import SpeakerChooser
from polylip.client.timeline import Dub, Timeline
from polylip.client.visibility import Visibility
from polylip.perf.baseline_engines import Clock, DirectFaces, Engines, Float32, Step, UInt8
from polylip.serving.lips_audio import speech_window
from polylip.serving.mel import mel_windows

WRITE_FRAMES = 16  # handed to the encoder with their sound, as the client's batches are: the file is interleaved

Picture = tuple[float, Any]  # time in ms, av.VideoFrame


@dataclass
class Painted:
    """One frame on its way to the encoder."""

    slot: Slot
    frame: Any  # av.VideoFrame, or its pixels once cut is set
    duration: int  # of the frame, in ticks of the output's clock
    dub: Dub | None = None
    face: Face | None = None
    strength: float = 0.0
    cut: FaceCut | None = None
    mel: Float32 | None = None  # (80, 16)
    mouth: UInt8 | None = None  # (96, 96, 3)
    pasted: bool = False


class _Decoded:
    """Pictures that are all there, as the picture branch reads them."""

    damaged = 0

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._rest = iter(pictures)

    def read(self, count: int) -> list[Picture]:
        return [picture for _, picture in zip(range(count), self._rest, strict=False)]


def find_faces(info: MediaInfo, pictures: Sequence[Picture], engines: Engines, clock: Clock) -> tuple[list[Slot], int]:
    """Every frame with its faces, and the number of key frames."""
    with clock.step(Step.LOOK):
        return asyncio.run(_find_faces(info, pictures, DirectFaces(engines, clock)))


async def _find_faces(info: MediaInfo, pictures: Sequence[Picture], direct: DirectFaces) -> tuple[list[Slot], int]:
    ring = FrameRing(float(info.frame_rate), Pulse())
    ring.capacity = len(pictures) + 1  # nobody takes before the end
    branch = FacesBranch(info, ring, direct)
    await branch.run(_Decoded(pictures))
    return ring.take(len(pictures), float("inf")), branch.keys.total


def plan_lips(info: MediaInfo, slots: Sequence[Slot], pictures: Sequence[Picture], timeline: Timeline) -> list[Painted]:
    """Which frame follows which dub, with which face, and how strongly."""
    chooser = SpeakerChooser(info.width, info.height, None)
    visibility = Visibility(info.width, info.height, float(info.frame_rate))
    work = [Painted(slot, frame, frame.duration) for slot, (_, frame) in zip(slots, pictures, strict=True)]
    for dub in timeline.active:
        if not dub.audible:
            continue
        segment = dub.segment
        within = [slot for slot in slots if segment.start_ms <= slot.time_ms < segment.end_ms]
        choice = chooser.choose(within, segment)
        views = visibility.views(slots, choice.face)
        for item in work:
            if timeline.lips_at(item.slot.time_ms) is dub:
                item.dub, item.face = dub, choice.face(item.slot)
                edge = _edge(dub, item.slot.time_ms, 1000 / float(info.frame_rate))
                item.strength = views[item.slot.index].strength * edge
    return work


def _edge(dub: Dub, time_ms: float, frame_ms: float) -> float:
    """Strength of the lips by the distance from both ends of their time, as the client has it."""
    return min(1.0, (time_ms - dub.lips_start_ms + frame_ms) / EDGE_MS, (dub.lips_end_ms - time_ms) / EDGE_MS)


def cut_faces(work: Sequence[Painted], pixel_format: str) -> list[Painted]:
    """The frames that get new lips, each with its face cut out."""
    for item in work:
        if item.face is not None and item.strength > 0:
            pixels, planes = frame_planes(item.frame, pixel_format)
            item.cut = cut_face(planes, item.face.box_px)
            if item.cut is not None:
                item.frame = pixels
    return [item for item in work if item.cut is not None]


def add_mels(work: Sequence[Painted]) -> None:
    """The mel window of each frame, dub by dub."""
    for dub in dict.fromkeys(item.dub for item in work):
        assert dub is not None  # noqa: S101  faces are cut under a dub alone
        own = [item for item in work if item.dub is dub]
        audio, offsets = speech_window(dub.speech, [item.slot.time_ms - (dub.start_ms or 0) for item in own])
        for item, window in zip(own, mel_windows(audio, offsets), strict=True):
            item.mel = window


def add_mouths(work: Sequence[Painted], engines: Engines) -> None:
    """One call per frame."""
    for item in work:
        assert item.mel is not None and item.cut is not None  # noqa: S101  set before
        item.mouth = engines.lips(item.mel[None], item.cut.face[None])[0]


def blend(work: Sequence[Painted]) -> None:
    """The mouths into their frames."""
    paster = MouthPaster()
    for item in work:
        assert item.mouth is not None and item.cut is not None and item.face is not None  # noqa: S101  set before
        track = item.face.track_id
        item.pasted = paster.paste(item.cut, item.mouth, item.strength, frame=item.slot.index, track=track) > 0


class Output:
    """Writes the file; knows when the first dubbed frame went to the encoder."""

    def __init__(self, path: Path, info: MediaInfo, clock: Clock) -> None:
        self._path = path
        self._format = info.planar_format
        self._clock = clock
        self._writer = MediaWriter(path, info)
        self.first_frame_s: float | None = None

    def write(self, work: Sequence[Painted], bed: AudioBed, dubs: Sequence[Dub]) -> None:
        """All pictures and all sound, to the closed file."""
        try:
            for start in range(0, len(work), WRITE_FRAMES):
                batch = work[start : start + WRITE_FRAMES]
                with self._clock.step(Step.MIX):
                    sound = bed.render(batch[-1].slot.time_ms, dubs)
                self._writer.write(self._pictures(batch), sound)
            self._writer.end_pictures()
            with self._clock.step(Step.MIX):
                rest = bed.render(max([bed.end_ms, *(dub.end_ms for dub in dubs)]), dubs)
            self._writer.write([], rest)
            self._writer.finish(self._path)
        finally:
            self._writer.discard()

    def _pictures(self, batch: Sequence[Painted]) -> Iterator[tuple[Any, float]]:
        for item in batch:
            frame = item.frame
            if item.cut is not None:
                frame = to_frame(frame, self._format)
                frame.duration = item.duration
            if item.pasted and self.first_frame_s is None:
                self.first_frame_s = self._clock.now_s
            yield frame, item.slot.time_ms
