"""The client of `dub`: segments of one speaker in, their voices and mouths out, over servers that come and go.

The wire contract is docs/protocol.md. Segments may be on their way while others are sent; answers come in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import DeadlineError, InputError, ServerError
from polylip.client.pending import Outputs, Pending
from polylip.client.tls import Tls
from polylip.client.triton import TritonClient, TritonStream
from polylip.client.wire import Inputs, Keepalive, SequencePosition, new_sequence_id
from polylip.serving.dub.codes import DubStatus, Refusal, read_refusal

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

TIMEOUT_S = 30.0  # of a segment, all tries together; one takes 1 to 3 s on two cores
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0  # between tries to get in, doubling
END_TIMEOUT_S = 2.0  # to say goodbye
# Another server, or the same one later, may well take what one has given up.
AGAIN = frozenset(
    {
        ErrorCode.SERVER_LOST,
        ErrorCode.FROZEN,
        ErrorCode.UNAVAILABLE,
        ErrorCode.PYTHON_MODEL_DIED,
        ErrorCode.SEQUENCE_LOST,
    }
)
REFUSED_AGAIN = frozenset({Refusal.FULL, Refusal.DRAINING, Refusal.SEQUENCE_LOST})


@dataclass(frozen=True)
class DubSegment:
    """What somebody said, and the picture of it."""

    audio: Float32  # (samples,), mono, 16 kHz, [-1, 1]
    frames: Sequence[bytes] = ()  # JPEG, 640x360
    frame_ms: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # (frames,) on the stream's clock
    audio_ms: int | None = None  # of the first sample; the first frame's unless given
    options: Mapping[str, Any] = field(default_factory=dict)  # further inputs, by tensor name

    def inputs(self, source_language: str, target_language: str) -> Inputs:
        """The tensors of its request."""
        inputs: dict[str, Any] = {
            "AUDIO": self.audio,
            "SOURCE_LANGUAGE": source_language,
            "TARGET_LANGUAGE": target_language,
            "FRAMES": np.array(list(self.frames), np.object_),
            "FRAME_MS": np.asarray(self.frame_ms, np.int64),
        }
        if self.audio_ms is not None:
            inputs["AUDIO_MS"] = np.array([self.audio_ms], np.int64)
        return inputs | dict(self.options)


@dataclass(frozen=True)
class DubAnswer:
    """What came back for a segment."""

    status: DubStatus
    message: str
    outputs: Outputs  # by tensor name, as in docs/protocol.md

    @classmethod
    def of(cls, outputs: Outputs) -> DubAnswer:
        """What these tensors say."""
        return cls(DubStatus(str(outputs["STATUS"][0])), str(outputs["MESSAGE"][0]), outputs)

    @property
    def audio(self) -> Float32:
        return np.asarray(self.outputs["AUDIO_OUT"])

    @property
    def rate_hz(self) -> int:
        return int(self.outputs["SAMPLE_RATE_HZ"][0])


@dataclass
class _Link:
    """A sequence on a server."""

    id: int
    stream: TritonStream
    parts: AsyncExitStack
    started: bool = False
    leaving: bool = False  # the server wants it gone


@dataclass
class _Sent:
    """A segment without an answer."""

    segment: DubSegment
    deadline: float  # event-loop time
    link: _Link | None = None
    pending: Pending | None = None
    error: ServerError | None = None  # of a request that could not be sent


class DubStream:
    """One speaker. Use as an async context manager; `send` and `answer` may run side by side, each in one task."""

    def __init__(
        self,
        url: str,
        source_language: str,
        target_language: str,
        *,
        tls: Tls | None = None,
        stream_id: str = "",
        timeout_s: float = TIMEOUT_S,
        waits_for_slot: bool = True,
    ) -> None:
        """`timeout_s`: of a segment, all tries together. Without `waits_for_slot` a server that is full is an error."""
        self._url, self._tls = url, tls
        self._languages = source_language, target_language
        self._stream_id = stream_id or uuid.uuid4().hex
        self._timeout_s = timeout_s
        self._refused_again = REFUSED_AGAIN if waits_for_slot else REFUSED_AGAIN - {Refusal.FULL}
        self._link: _Link | None = None
        self._open: list[_Link] = []
        self._unanswered: deque[_Sent] = deque()
        self._last_id = 0  # of the sequence that was lost or left: its slot is given back
        self._changing = asyncio.Lock()
        self.links = 0  # tries to reach a server, the first one included
        self.resent = 0  # tries to send a segment again

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End what is open. A server that is gone is not waited for."""
        for link in list(self._open):
            await self._close(link)

    async def send(self, segment: DubSegment) -> None:
        """Send the next segment; its deadline runs from now. A failure is told by `answer`."""
        sent = _Sent(segment, asyncio.get_running_loop().time() + self._timeout_s)
        self._unanswered.append(sent)
        async with self._changing:
            if self._link is not None and self._link.leaving:
                self._link = None  # closed with the answer to its last segment
            await self._submit(sent)

    async def answer(self) -> DubAnswer:
        """Of the oldest segment without one. Raises ServerError, and DeadlineError when its time is up."""
        if not self._unanswered:
            raise InputError("no segment waits for an answer; send one first")
        sent, wait_s = self._unanswered[0], FIRST_WAIT_S
        try:
            while True:
                try:
                    return await self._settle(sent)
                except ServerError as error:
                    wait_s = await self._wait(sent, error, wait_s)
                    await self._again(sent)
        finally:
            self._unanswered.popleft()
            await self._close_left()

    async def _settle(self, sent: _Sent) -> DubAnswer:
        async with self._changing:  # it may be on its way out
            pending = sent.pending
        if pending is None:
            raise sent.error or ServerError("not sent", ErrorCode.SERVER_LOST)
        outputs = await pending.result()
        if sent.link is not None and int(outputs["MOVE_MS"][0]) > 0:
            sent.link.leaving = True
        return DubAnswer.of(outputs)

    async def _wait(self, sent: _Sent, error: ServerError, wait_s: float) -> float:
        """Before another try; how long to wait the next time. Raises the error where another try is no use."""
        code, retry_ms = read_refusal(str(error))
        if error.code not in AGAIN and code not in self._refused_again:
            raise error
        pause_s = wait_s if retry_ms is None else retry_ms / 1000
        left_s = sent.deadline - asyncio.get_running_loop().time()
        if left_s <= pause_s:
            raise error
        await asyncio.sleep(pause_s)
        return min(2 * wait_s, LONGEST_WAIT_S)

    async def _again(self, sent: _Sent) -> None:
        """Send all that is unanswered once more, in order, as a new sequence: frames must not go back in time."""
        async with self._changing:
            if sent.link is not None:
                self._last_id = sent.link.id
            self._link = None
            for link in list(self._open):
                await self._close(link)
            for other in list(self._unanswered):
                self.resent += 1
                await self._submit(other)

    async def _submit(self, sent: _Sent) -> None:
        sent.pending = sent.error = None
        left_s = sent.deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            sent.error = DeadlineError("dub: no answer within its deadline")
            return
        try:
            if self._link is None:
                self._link = await self._begin(left_s)
            link = sent.link = self._link
            position = SequencePosition(
                link.id, not link.started, timeout_s=left_s, replaces=0 if link.started else self._last_id
            )
            link.started = True
            sent.pending = await link.stream.submit("dub", sent.segment.inputs(*self._languages), left_s, position)
        except ServerError as error:
            sent.error = error

    async def _begin(self, left_s: float) -> _Link:
        """A connection of its own, by which a proxy may choose another server. Raises ServerError."""
        self.links += 1
        stream_id = self._stream_id if self.links == 1 else f"{self._stream_id}.{self.links}"
        parts = AsyncExitStack()
        try:
            async with asyncio.timeout(left_s):
                client = TritonClient(self._url, tls=self._tls, stream_id=stream_id, keepalive=Keepalive(alone=True))
                await parts.enter_async_context(client)
                stream = await parts.enter_async_context(client.stream())
        except (InputError, TimeoutError) as error:
            await parts.aclose()
            raise ServerError(str(error) or "no server within the deadline", ErrorCode.SERVER_LOST) from None
        link = _Link(new_sequence_id(), stream, parts)
        self._open.append(link)
        return link

    async def _close_left(self) -> None:
        """The links that their server wants gone and that owe no answer."""
        for link in [link for link in self._open if link.leaving]:
            if not any(sent.link is link for sent in self._unanswered):
                if self._link is link:
                    self._link = None
                await self._close(link)

    async def _close(self, link: _Link) -> None:
        """With END, which gives its slot back at once; without, the server waits until it has been idle for long."""
        self._open.remove(link)
        with contextlib.suppress(ServerError, TimeoutError):
            if link.started and link.stream.lost is None:
                empty = DubSegment(np.zeros(0, np.float32)).inputs(*self._languages)
                async with asyncio.timeout(END_TIMEOUT_S):
                    await link.stream.call("dub", empty, END_TIMEOUT_S, SequencePosition(link.id, end=True))
        await link.parts.aclose()
