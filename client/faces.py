"""The picture branch: analysis frames to the `faces` ensemble, chunk by chunk, faces into the ring.

Every shot is a sequence of its own. Questions lag behind key frames by LOOK_AHEAD_MS, so that the tracker knows what
comes when it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.cuts import CutDetector, thumbnail
from polylip.client.errors import ServerError, ServerLostError
from polylip.client.key_frames import KeyFrames
from polylip.client.media_in import MediaInfo, VideoReader
from polylip.client.results import FaceTrack
from polylip.client.ring import Box, Face, FrameRing
from polylip.client.speaker import MouthMeter
from polylip.client.triton import Outputs, Pending, TritonStream
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id

UInt8 = npt.NDArray[np.uint8]

ANALYSIS_WIDTH, ANALYSIS_HEIGHT = 640, 360  # fixed, so that engines can be compiled for it
KEY_FRAMES_PER_CHUNK = 5  # about 1 s: boxes are there long before the segment they belong to has closed
LOOK_AHEAD_MS = 400  # two key frames: what a smoother gains from knowing more is small
READ_FRAMES = 10  # decoded per visit to the decoding thread
TIMEOUT_S = 30.0  # a chunk takes 0.2 s; a loaded server many times that
USUAL_SCORE_DECAY = 0.998  # per frame: what is usual for a face follows it within some 10 s


@dataclass
class _Picture:
    """A frame on its way through the branch."""

    time_ms: float
    frame: Any  # av.VideoFrame
    thumb: UInt8


@dataclass
class _Chunk:
    """The content of one request."""

    sequence: int = 0
    starts: bool = False  # its sequence
    keys: list[UInt8] = field(default_factory=list)  # letterboxed BGR
    key_ms: list[int] = field(default_factory=list)
    queries: list[_Picture] = field(default_factory=list)  # without their frames


class Letterbox:
    """Fits pictures of one size into the analysis size, top left, and maps boxes back."""

    def __init__(self, width: int, height: int) -> None:
        self.scale = min(ANALYSIS_WIDTH / width, ANALYSIS_HEIGHT / height)
        self.width = max(2, round(width * self.scale))
        self.height = max(2, round(height * self.scale))

    def shrink(self, frame: Any) -> UInt8:
        """av.VideoFrame -> uint8 (ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3) BGR, black where there is no picture."""
        canvas = np.zeros((ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), np.uint8)
        canvas[: self.height, : self.width] = frame.to_ndarray(
            format="bgr24", width=self.width, height=self.height, interpolation="AREA"
        )
        return canvas


class FacesBranch:
    """Runs ahead of the output through the whole picture; a failed chunk leaves its frames without a face."""

    def __init__(self, info: MediaInfo, ring: FrameRing, stream: TritonStream) -> None:
        self._info = info
        self._ring = ring
        self._stream = stream
        self._letterbox = Letterbox(info.width, info.height)
        self._look_ahead = round(info.frame_rate * Fraction(LOOK_AHEAD_MS, 1000))  # frames
        self._book = FaceBook(info.width, info.height)
        self._sequence = 0  # 0: the next request starts a new one
        self._lost = False
        self._chunk = _Chunk()
        self._waiting: deque[_Picture] = deque()  # not asked for yet
        self._newest: _Picture | None = None  # unless it is a key frame
        self._under_way: tuple[_Chunk, Pending | None] | None = None
        self.keys = KeyFrames(info.frame_rate)
        self.cuts = 0
        self.failed_chunks = 0

    @property
    def tracks(self) -> list[FaceTrack]:
        """Every face of the picture."""
        return self._book.tracks

    async def run(self) -> None:
        """Read the picture to its end."""
        reader = VideoReader(self._info)
        detector = CutDetector()
        unsure: deque[_Picture] = deque()  # whether they start a shot is not yet known
        try:
            while batch := await asyncio.to_thread(self._read, reader):
                for picture in batch:
                    unsure.append(picture)
                    for is_cut in detector.push(picture.thumb):
                        await self._add(unsure.popleft(), is_cut)
            for is_cut in detector.flush():
                await self._add(unsure.popleft(), is_cut)
            await self._end_shot()
            await self._settle_under_way()
        finally:
            reader.close()
            await self._end_sequence()
        self._ring.close()

    def _read(self, reader: VideoReader) -> list[_Picture]:
        return [_Picture(time_ms, frame, thumbnail(frame)) for time_ms, frame in reader.read(READ_FRAMES)]

    async def _end_sequence(self) -> None:
        """A job that breaks off ends its sequence too: an open one counts as work in flight when the server stops."""
        if not self._sequence or self._lost:
            return
        empty = _Chunk(keys=[np.zeros((ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), np.uint8)], key_ms=[0])
        empty.queries = [_Picture(0.0, None, np.zeros((0, 0), np.uint8))]
        with contextlib.suppress(asyncio.CancelledError):
            await self._submit(empty, end=True)

    async def _add(self, picture: _Picture, is_cut: bool) -> None:
        """The next frame. What was before it is sent only now, when it is known whether it ended a shot."""
        if is_cut:
            await self._end_shot()
            self.cuts += 1
            self.keys.cut()
        elif len(self._chunk.keys) >= KEY_FRAMES_PER_CHUNK and len(self._waiting) > self._look_ahead:
            await self._send(len(self._waiting) - self._look_ahead, end=False)
        await self._ring.add(picture.time_ms, self.cuts)
        self._waiting.append(_Picture(picture.time_ms, None, picture.thumb))
        self._newest = picture
        if self.keys.next_is_key():
            await self._add_key_frame()

    async def _add_key_frame(self) -> None:
        """Of the newest frame."""
        assert self._newest is not None  # noqa: S101  called for a frame that has just come, or is held
        picture, self._newest = self._newest, None
        self._chunk.keys.append(await asyncio.to_thread(self._letterbox.shrink, picture.frame))
        self._chunk.key_ms.append(round(picture.time_ms))

    async def _end_shot(self) -> None:
        """Ask for all that is left; the last frame is a key frame, so that nothing is extrapolated."""
        if not self._waiting:
            return
        if self._newest is not None:
            self.keys.count_last()
            await self._add_key_frame()
        await self._send(len(self._waiting), end=True)

    async def _send(self, count: int, end: bool) -> None:
        """Send the chunk with the first `count` frames that wait, then take in the answer before it.

        So one request is at work while the next is prepared, and density follows from the answers alone, not from when
        they come.
        """
        chunk, self._chunk = self._chunk, _Chunk()
        chunk.queries = [self._waiting.popleft() for _ in range(count)]
        pending = await self._submit(chunk, end)
        await self._settle_under_way()
        self._under_way = chunk, pending

    async def _submit(self, chunk: _Chunk, end: bool) -> Pending | None:
        if self._lost:
            return None
        chunk.starts = self._sequence == 0
        if chunk.starts:
            self._sequence = new_sequence_id()
        chunk.sequence = self._sequence
        inputs: Inputs = {
            "FRAMES": np.stack(chunk.keys),
            "KEYFRAME_MS": np.array(chunk.key_ms, np.int64),
            "QUERY_MS": np.array([round(query.time_ms) for query in chunk.queries], np.int64),
        }
        position = SequencePosition(chunk.sequence, start=chunk.starts, end=end)
        if end:
            self._sequence = 0
        try:
            return await self._stream.submit("faces", inputs, TIMEOUT_S, position)
        except ServerError as error:
            self._fail(chunk, error)
            return None

    async def _settle_under_way(self) -> None:
        if self._under_way is None:
            return
        (chunk, pending), self._under_way = self._under_way, None
        faces: list[tuple[Face, ...]] = [()] * len(chunk.queries)
        if pending is not None:
            try:
                outputs = await pending.result()
                faces = await asyncio.to_thread(self._faces, chunk, outputs)
                self.keys.follow(outputs.get("TRACK_SURPRISE"))
            except ServerError as error:
                self._fail(chunk, error)
        self._ring.settle(faces)

    def _fail(self, chunk: _Chunk, error: ServerError) -> None:
        """After a failure the sequence's state is unknown: the next chunk starts a new one."""
        self.failed_chunks += 1
        if chunk.sequence == self._sequence:
            self._sequence = 0
        self._lost = self._lost or isinstance(error, ServerLostError)

    def _faces(self, chunk: _Chunk, outputs: Outputs) -> list[tuple[Face, ...]]:
        """The faces of each frame that was asked for, in pixels of the source picture."""
        boxes, scores = outputs["TRACK_BOXES"] / self._letterbox.scale, outputs["TRACK_SCORES"]
        ids = self._book.job_ids(outputs["TRACK_IDS"].tolist(), chunk.starts)
        found = []
        for row, query in enumerate(chunk.queries):
            there = {
                track: (_box(boxes[row, column]), float(scores[row, column]))
                for column, track in enumerate(ids)
                if scores[row, column] > 0
            }
            found.append(self._book.enter(query.time_ms, query.thumb, there))
        return found


def _box(corners: npt.NDArray[np.float32]) -> Box:
    x1, y1, x2, y2 = corners.tolist()
    return x1, y1, x2, y2


@dataclass
class _Entry:
    """What is known of one track so far."""

    start_ms: float
    end_ms: float = 0.0
    frames: int = 0
    sum_x: float = 0.0
    sum_y: float = 0.0
    usual_score: float = 0.0


class FaceBook:
    """Every face of the job: ids that no two sequences share, usual scores, mouth motion, where it was and when."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._entries: dict[int, _Entry] = {}
        self._highest = 0  # id so far
        self._offset = 0  # from the tracker's ids, which each sequence counts from 1, to the job's
        self._meter = MouthMeter()

    def job_ids(self, ids: list[int], starts: bool) -> list[int]:
        """The tracker's ids of one answer, unique over the job; `starts`: it is the first of its sequence."""
        if starts:
            self._offset = self._highest
        self._highest = max([self._highest, *(self._offset + track for track in ids)])
        return [self._offset + track for track in ids]

    def enter(self, time_ms: float, thumb: UInt8, found: dict[int, tuple[Box, float]]) -> tuple[Face, ...]:
        """The next frame's faces, from box and score by track."""
        scale = thumb.shape[1] / self._width
        boxes = {
            track: (scale * x1, scale * y1, scale * x2, scale * y2) for track, ((x1, y1, x2, y2), _) in found.items()
        }
        mouths = self._meter.measure(thumb, boxes)
        faces = []
        for track, (box, score) in found.items():
            entry = self._entries.setdefault(track, _Entry(time_ms))
            entry.usual_score = max(score, entry.usual_score * USUAL_SCORE_DECAY)
            entry.end_ms = time_ms
            entry.frames += 1
            entry.sum_x += (box[0] + box[2]) / 2
            entry.sum_y += (box[1] + box[3]) / 2
            faces.append(Face(box, track, score / entry.usual_score, *mouths.get(track, (0.0, None))))
        return tuple(faces)

    @property
    def tracks(self) -> list[FaceTrack]:
        return [
            FaceTrack(
                track,
                round(entry.start_ms),
                round(entry.end_ms),
                (entry.sum_x / entry.frames / self._width, entry.sum_y / entry.frames / self._height),
            )
            for track, entry in sorted(self._entries.items())
        ]
