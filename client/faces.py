"""The picture branch: analysis frames to the `faces` ensemble, chunk by chunk in one sequence, faces into the ring."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.errors import ServerError, ServerLostError
from polylip.client.media_in import MediaInfo, VideoReader
from polylip.client.ring import Face, FrameRing
from polylip.client.triton import Outputs, Pending, TritonStream
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id

UInt8 = npt.NDArray[np.uint8]

ANALYSIS_WIDTH, ANALYSIS_HEIGHT = 640, 360  # fixed, so that engines can be compiled for it
KEY_FRAME_S = Fraction(1, 6)  # distance of key frames: every fifth at 30 fps
KEY_FRAMES_PER_CHUNK = 5  # 0.8 s: boxes are there long before the segment they belong to has closed
CHUNKS_IN_FLIGHT = 2
READ_FRAMES = 10  # decoded per visit to the decoding thread
TIMEOUT_S = 30.0  # a chunk takes 0.2 s; a loaded server many times that
LOST_AFTER_MS = 1000  # the speaker keeps the lips this long after the face was last seen


@dataclass
class _Chunk:
    """Frames between two requests."""

    frames: list[UInt8]  # key frames, letterboxed BGR
    key_ms: list[int]
    query_ms: list[int]


_Waiting = asyncio.Queue[tuple[_Chunk, Pending | None] | None]


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


class SpeakerChoice:
    """Which track gets the lips: the largest face at first, then the same one until it is gone for a while."""

    def __init__(self) -> None:
        self._track: int | None = None
        self._seen_ms = 0.0

    def pick(self, boxes: npt.NDArray[np.float32], ids: Sequence[int], scores: Sequence[float], time_ms: float) -> int:
        """Column of the speaker among boxes float32 (tracks, 4); -1 when the speaker is not to be seen."""
        visible = [column for column in range(len(ids)) if scores[column] > 0]
        for column in visible:
            if ids[column] == self._track:
                self._seen_ms = time_ms
                return column
        if not visible or (self._track is not None and time_ms - self._seen_ms < LOST_AFTER_MS):
            return -1
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        best = max(visible, key=lambda column: float(areas[column]))
        self._track, self._seen_ms = int(ids[best]), time_ms
        return best


class FacesBranch:
    """Runs ahead of the output through the whole picture; a failed chunk leaves its frames without a face."""

    def __init__(self, info: MediaInfo, ring: FrameRing, stream: TritonStream) -> None:
        self._info = info
        self._ring = ring
        self._stream = stream
        self._letterbox = Letterbox(info.width, info.height)
        self._choice = SpeakerChoice()
        self._key_step = max(1, round(info.frame_rate * KEY_FRAME_S))
        self._sequence = 0  # 0: the next request starts a new one
        self._lost = False
        self.key_frames = 0
        self.failed_chunks = 0

    async def run(self) -> None:
        """Read the picture to its end."""
        reader = VideoReader(self._info)
        waiting: _Waiting = asyncio.Queue(CHUNKS_IN_FLIGHT)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._settle(waiting))
                await self._send_all(reader, waiting)
                await waiting.put(None)
        finally:
            reader.close()
            await self._end_sequence()
        self._ring.close()

    async def _end_sequence(self) -> None:
        """A job that breaks off ends its sequence too: an open one counts as work in flight when the server stops."""
        if not self._sequence or self._lost:
            return
        empty = _Chunk([np.zeros((ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), np.uint8)], [0], [0])
        with contextlib.suppress(asyncio.CancelledError):
            await self._submit(empty, end=True)

    async def _send_all(self, reader: VideoReader, waiting: _Waiting) -> None:
        """Key frames are 0 and then the last of each step, so that a chunk ends with one."""
        chunk = _Chunk([], [], [])
        held: Any = None  # the newest frame: it must be a key frame if it turns out to be the last
        while batch := await asyncio.to_thread(reader.read, READ_FRAMES):
            for time_ms, frame in batch:
                if len(chunk.frames) >= KEY_FRAMES_PER_CHUNK:
                    await waiting.put((chunk, await self._submit(chunk, end=False)))
                    chunk = _Chunk([], [], [])
                index = self._ring.added
                await self._ring.add(time_ms)
                chunk.query_ms.append(round(time_ms))
                held = frame
                if index == 0 or index % self._key_step == self._key_step - 1:
                    await self._add_key_frame(chunk, frame)
                    held = None
        if held is not None:
            await self._add_key_frame(chunk, held)
        if chunk.query_ms:
            await waiting.put((chunk, await self._submit(chunk, end=True)))

    async def _add_key_frame(self, chunk: _Chunk, frame: Any) -> None:
        chunk.frames.append(await asyncio.to_thread(self._letterbox.shrink, frame))
        chunk.key_ms.append(chunk.query_ms[-1])
        self.key_frames += 1

    async def _submit(self, chunk: _Chunk, end: bool) -> Pending | None:
        if self._lost:
            return None
        start = self._sequence == 0
        if start:
            self._sequence = new_sequence_id()
        inputs: Inputs = {
            "FRAMES": np.stack(chunk.frames),
            "KEYFRAME_MS": np.array(chunk.key_ms, np.int64),
            "QUERY_MS": np.array(chunk.query_ms, np.int64),
        }
        try:
            position = SequencePosition(self._sequence, start=start, end=end)
            if end:
                self._sequence = 0
            return await self._stream.submit("faces", inputs, TIMEOUT_S, position)
        except ServerError as error:
            self._fail(error)
            return None

    async def _settle(self, waiting: _Waiting) -> None:
        while (item := await waiting.get()) is not None:
            chunk, pending = item
            faces: list[Face | None] = [None] * len(chunk.query_ms)
            if pending is not None:
                try:
                    faces = self._choose(chunk, await pending.result())
                except ServerError as error:
                    self._fail(error)
            self._ring.settle(faces)

    def _fail(self, error: ServerError) -> None:
        """After a failure the sequence's state is unknown: the next chunk starts a new one."""
        self.failed_chunks += 1
        self._sequence = 0
        self._lost = self._lost or isinstance(error, ServerLostError)

    def _choose(self, chunk: _Chunk, outputs: Outputs) -> list[Face | None]:
        boxes, ids, scores = outputs["TRACK_BOXES"], outputs["TRACK_IDS"], outputs["TRACK_SCORES"]
        faces: list[Face | None] = []
        for row, time_ms in enumerate(chunk.query_ms):
            column = self._choice.pick(boxes[row], ids.tolist(), scores[row].tolist(), time_ms)
            if column < 0:
                faces.append(None)
                continue
            x1, y1, x2, y2 = (boxes[row, column] / self._letterbox.scale).tolist()
            faces.append(Face((x1, y1, x2, y2), int(ids[column])))
        return faces
