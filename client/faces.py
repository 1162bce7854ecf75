"""The picture branch: analysis frames to the `faces` ensemble, chunk by chunk, faces into the ring.

Every shot is a sequence of its own. Questions lag behind key frames by LOOK_AHEAD_MS, so that the tracker knows what
comes when it answers. A sequence that is lost goes on as a new one, from the first frame without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.cuts import CutDetector, thumbnail
from polylip.client.error_codes import ErrorCode
from polylip.client.errors import ServerError
from polylip.client.face_book import FaceBook, FaceEntry
from polylip.client.key_frames import KeyFrames
from polylip.client.ladder import Level
from polylip.client.media_in import MediaInfo
from polylip.client.pacing import Pacing
from polylip.client.pending import Outputs, Pending
from polylip.client.pictures import PictureReader
from polylip.client.results import FaceTrack
from polylip.client.retry import retrying
from polylip.client.ring import Box, Face, FrameRing
from polylip.client.timeline import SPILL_MS
from polylip.client.trace import Stage, Trace
from polylip.client.triton import Stream
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id
from polylip.serving.dub.request import ANALYSIS_HEIGHT, ANALYSIS_WIDTH

UInt8 = npt.NDArray[np.uint8]

KEY_FRAMES_PER_CHUNK = 5  # about 1 s: boxes are there long before the segment they belong to has closed
LOOK_AHEAD_MS = 400  # two key frames: what a smoother gains from knowing more is small
READ_FRAMES = 10  # decoded per visit to the decoding thread
MAX_KEY_FRAMES = 16  # in a request: the largest batch of `detect`
MIN_TIMEOUT_S = 0.2  # for the faces of live frames that are nearly due
TIMEOUT_S = 30.0  # a chunk takes 0.2 s; a loaded server many times that
BEFORE_MS, AFTER_MS = 400, SPILL_MS  # faces around a turn in a call: a VAD may be late, and a dub end after its segment
END_TIMEOUT_S = 2.0  # to send the end of a sequence when a job breaks off


@dataclass
class _Picture:
    """A frame on its way through the branch."""

    time_ms: float
    frame: Any  # av.VideoFrame
    thumb: UInt8


@dataclass
class _Chunk:
    """The content of one request, held until it is answered."""

    sequence: int = 0
    starts: bool = False  # its sequence
    ends: bool = False  # its sequence: the last of its shot
    keys: list[UInt8] = field(default_factory=list)  # letterboxed BGR
    key_ms: list[int] = field(default_factory=list)
    queries: list[_Picture] = field(default_factory=list)  # without their frames
    # Of its shot, from chunks before it: the key frames around its first queries. A sequence that starts with it needs
    # them too.
    lead: list[tuple[UInt8, int]] = field(default_factory=list)
    deadline: float = 0.0  # event-loop time, of all tries together
    tries: int = 0
    sent_at: float = 0.0  # time.monotonic(), of the last try
    sent: Pending | ServerError | None = None  # the error of a request that could not be sent

    @property
    def lost(self) -> bool:
        """Whether it is already known that no answer comes."""
        return isinstance(self.sent, ServerError) or (self.sent is not None and self.sent.failed)

    def cut_short(self) -> None:
        """Down to the first key frame: enough to end a sequence."""
        self.keys, self.key_ms = self.keys[:1], self.key_ms[:1]
        self.queries = [q for q in self.queries if round(q.time_ms) <= self.key_ms[0]] or self.queries[:1]

    def inputs(self) -> Inputs:
        """As the place in its sequence now asks for."""
        room = MAX_KEY_FRAMES - len(self.keys) if self.starts else 0
        lead = self.lead[max(0, len(self.lead) - room) :] if room > 0 else []
        return {
            "FRAMES": np.stack([*(key for key, _ in lead), *self.keys]),
            "KEYFRAME_MS": np.array([*(time_ms for _, time_ms in lead), *self.key_ms], np.int64),
            "QUERY_MS": np.array([round(query.time_ms) for query in self.queries], np.int64),
        }


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
    """Runs ahead of the output through the whole picture; a chunk that fails for good leaves its frames without a face.

    `stream` is best a Line: what was lost with a connection is then sent again.
    """

    def __init__(
        self,
        info: MediaInfo,
        ring: FrameRing,
        stream: Stream,
        *,
        pacing: Pacing | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._pacing = pacing or Pacing()
        self._trace = trace or Trace()
        self._ring = ring
        self._stream = stream
        self._letterbox = Letterbox(info.width, info.height)
        self._look_ahead = round(info.frame_rate * Fraction(LOOK_AHEAD_MS, 1000))  # frames
        self._book = FaceBook(info.width, info.height)
        self._sequence = 0  # 0: the next request starts a new one
        self._begun_ms = -math.inf  # of a job that goes on: frames up to here are written, and are only looked at
        self._goes_on = False  # the next sequence has the faces of the frame before it, though none was sent
        self._chunk = _Chunk()
        self._shot_keys: deque[tuple[UInt8, int]] = deque(maxlen=MAX_KEY_FRAMES)  # of the chunks sent, the newest ones
        self._waiting: deque[_Picture] = deque()  # not asked for yet
        self._newest: _Picture | None = None  # unless it is a key frame
        self._unanswered: deque[_Chunk] = deque()  # in order, at most two
        self.keys = KeyFrames(info.frame_rate)
        self.cuts = 0
        self.failed_chunks = 0
        self.retries = 0
        self.requests = 0
        self.passed = 0  # frames that nobody was asked about, as somebody else had the floor

    @property
    def tracks(self) -> list[FaceTrack]:
        """Every face of the picture."""
        return self._book.tracks

    @property
    def is_asking(self) -> bool:
        """Whether the server still owes an answer."""
        return any(isinstance(chunk.sent, Pending) and not chunk.sent.last_at for chunk in self._unanswered)

    async def run(self, reader: PictureReader) -> None:
        """Read the picture to its end."""
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
            while self._unanswered:
                await self._settle_oldest()
        finally:
            await self._end_sequence()
        self._ring.close()

    def restore(self, position_ms: float, shot: int, entries: Mapping[int, FaceEntry], last: Mapping[int, Box]) -> None:
        """Of a job that goes on behind the frame at a time, in the middle of a shot."""
        self._begun_ms, self.cuts, self._goes_on = position_ms, shot, True
        self._book.restore(entries, last)

    def usual_scores(self) -> dict[int, float]:
        """What the tracker usually says of each face."""
        return self._book.usual_scores()

    def _read(self, reader: PictureReader) -> list[_Picture]:
        return [_Picture(time_ms, frame, thumbnail(frame)) for time_ms, frame in reader.read(READ_FRAMES)]

    async def _end_sequence(self) -> None:
        """A job that breaks off ends its sequence too: an open one counts as work in flight when the server stops."""
        if not self._sequence or self._stream.lost is not None:
            return
        empty = _Chunk(self._sequence, ends=True, key_ms=[0])
        empty.keys = [np.zeros((ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), np.uint8)]
        empty.queries = [_Picture(0.0, None, np.zeros((0, 0), np.uint8))]
        with contextlib.suppress(asyncio.CancelledError):
            await self._submit(empty, END_TIMEOUT_S)

    async def _add(self, picture: _Picture, is_cut: bool) -> None:
        """The next frame. What was before it is sent only now, when it is known whether it ended a shot."""
        if picture.time_ms <= self._begun_ms:
            return
        if is_cut:
            self._goes_on = False
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
        self._shot_keys.clear()

    async def _send(self, count: int, end: bool) -> None:
        """Send the chunk with the first `count` frames that wait, then take in the answer before it.

        So one request is at work while the next is prepared, and density follows from the answers alone, not from when
        they come.
        """
        chunk, self._chunk = self._chunk, _Chunk()
        chunk.queries = [self._waiting.popleft() for _ in range(count)]
        chunk.lead = _around(self._shot_keys, chunk.queries[0].time_ms)
        self._shot_keys.extend(zip(chunk.keys, chunk.key_ms, strict=True))
        if self._unanswered and self._unanswered[0].lost:
            await self._settle_oldest()
        start_ms, end_ms = chunk.queries[0].time_ms - AFTER_MS, chunk.queries[-1].time_ms + BEFORE_MS
        if self._pacing.level < Level.CAPTIONS and not await self._pacing.passes(start_ms, end_ms):
            await self._ask(chunk, end)
            return
        if self._sequence:
            chunk.cut_short()
            await self._ask(chunk, end=True)
            count -= len(chunk.queries)
        await self._pass(count)

    async def _ask(self, chunk: _Chunk, end: bool) -> None:
        chunk.starts, chunk.ends = self._sequence == 0, end
        chunk.sequence = self._sequence or new_sequence_id()
        self._sequence = 0 if end else chunk.sequence
        timeout_s = min(TIMEOUT_S, max(MIN_TIMEOUT_S, self._pacing.left_s(chunk.queries[0].time_ms)))
        chunk.deadline = asyncio.get_running_loop().time() + timeout_s
        await self._submit(chunk, timeout_s)
        self._unanswered.append(chunk)
        if len(self._unanswered) > 1:
            await self._settle_oldest()

    async def _pass(self, frames: int) -> None:
        """The next ones go out as they came."""
        while self._unanswered:
            await self._settle_oldest()
        self.passed += frames
        self._ring.settle([()] * frames)

    async def _submit(self, chunk: _Chunk, timeout_s: float) -> None:
        position = SequencePosition(chunk.sequence, chunk.starts, chunk.ends)
        chunk.sent_at = time.monotonic()
        try:
            chunk.sent = await self._stream.submit("faces", chunk.inputs(), timeout_s, position)
            self.requests += 1
        except ServerError as error:
            chunk.sent = error

    async def _settle_oldest(self) -> None:
        """Wait for its answer, and give its frames their faces."""
        chunk = self._unanswered[0]
        faces: list[tuple[Face, ...]] = [()] * len(chunk.queries)
        try:
            outputs = await retrying(
                self._oldest_answer, deadline=chunk.deadline, on_retry=self._count, also=[ErrorCode.SEQUENCE_LOST]
            )
            faces = await asyncio.to_thread(self._faces, chunk, outputs)
            self.keys.follow(outputs.get("TRACK_SURPRISE"))
        except ServerError:
            self.failed_chunks += 1
            if chunk.sequence == self._sequence:
                self._sequence = 0  # its state is unknown: the next chunk starts a new one
        self._unanswered.popleft()
        self._ring.settle(faces)
        if isinstance(chunk.sent, Pending) and chunk.sent.last_at:
            start_ms, end_ms = chunk.queries[0].time_ms, chunk.queries[-1].time_ms
            self._trace.span(
                None, Stage.FACES, chunk.sent_at, chunk.sent.last_at, media_start_ms=start_ms, media_end_ms=end_ms
            )

    async def _oldest_answer(self) -> Outputs:
        chunk = self._unanswered[0]
        chunk.tries += 1
        if chunk.tries > 1:
            await self._replay()
        if not isinstance(chunk.sent, Pending):
            raise chunk.sent or ServerError("faces: not sent")
        return await chunk.sent.result()

    async def _replay(self) -> None:
        """Send all that is unanswered of the oldest chunk's sequence once more, as a new sequence."""
        lost, anew = self._unanswered[0].sequence, new_sequence_id()
        if self._sequence == lost:
            self._sequence = anew
        for chunk in [chunk for chunk in self._unanswered if chunk.sequence == lost]:
            chunk.sequence, chunk.starts = anew, chunk is self._unanswered[0]
            await self._submit(chunk, chunk.deadline - asyncio.get_running_loop().time())

    def _count(self) -> None:
        self.retries += 1

    def _faces(self, chunk: _Chunk, outputs: Outputs) -> list[tuple[Face, ...]]:
        """The faces of each frame that was asked for, in pixels of the source picture."""
        boxes, scores = outputs["TRACK_BOXES"] / self._letterbox.scale, outputs["TRACK_SCORES"]
        first = {
            track: _box(boxes[0, column])
            for column, track in enumerate(outputs["TRACK_IDS"].tolist())
            if chunk.starts and (chunk.lead or self._goes_on) and scores[0, column] > 0
        }
        self._goes_on = False
        ids = self._book.job_ids(outputs["TRACK_IDS"].tolist(), chunk.starts, first)
        found = []
        for row, query in enumerate(chunk.queries):
            there = {
                track: (_box(boxes[row, column]), float(scores[row, column]))
                for column, track in enumerate(ids)
                if scores[row, column] > 0
            }
            found.append(self._book.enter(query.time_ms, query.thumb, there))
        return found


def _around(keys: Iterable[tuple[UInt8, int]], time_ms: float) -> list[tuple[UInt8, int]]:
    """Those behind a time, and the last one before it."""
    held = list(keys)
    before = sum(key_ms <= time_ms for _, key_ms in held)
    return held[max(0, before - 1) :]


def _box(corners: npt.NDArray[np.float32]) -> Box:
    x1, y1, x2, y2 = corners.tolist()
    return x1, y1, x2, y2
