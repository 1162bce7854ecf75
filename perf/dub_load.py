"""Paced streams of `dub`, each a client of its own, whose answers show whose they are: by their words and colours.

A segment is due by the clock and sent then, whatever became of the ones before; its latency counts from that instant.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.dub_stream import DubAnswer, DubSegment, DubStream
from polylip.client.errors import ServerError
from polylip.serving.dub.codes import DubStatus, read_refusal
from polylip.serving.dub.request import ANALYSIS_HEIGHT, ANALYSIS_WIDTH

UInt8 = npt.NDArray[np.uint8]

PERIOD_S = 4.0  # from one segment of a stream to its next
FRAMES, FRAME_MS = 8, 200  # of a segment; a live client sends five times as many, which costs five times the decoding
ANSWER_S = 30.0  # within which an answer counts as one
STAGGER_S = 0.02  # between the first segments of two streams
COLOUR_LEVELS = 12.0  # by which a mouth may differ from its stream's colour: JPEG's own error
SHADES = 6  # of each of three colours: 216 streams can be told apart


@dataclass(frozen=True)
class DubLoad:
    """So many streams for so long."""

    url: str
    streams: int
    seconds: float
    period_s: float = PERIOD_S  # a multiple of FRAME_MS where segments overlap: times must not go back
    answer_s: float = ANSWER_S
    name: str = "dub"

    @property
    def segments(self) -> int:
        """Of one stream."""
        return max(1, round(self.seconds / self.period_s))


@dataclass
class DubLedger:
    """How every segment ended."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # of answers
    errors: Counter[str] = field(default_factory=Counter)  # of segments without one, by code
    refused_s: list[float] = field(default_factory=list)  # until a stream that got no slot knew it
    crossed: list[str] = field(default_factory=list)  # answers with another stream's words or picture
    broken: set[str] = field(default_factory=set)  # streams with a segment that was not answered well
    latencies_s: list[float] = field(default_factory=list)
    links: int = 0  # tries to reach a server, the first of each stream included
    resent: int = 0  # tries to send a segment again

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    @property
    def ended_once(self) -> bool:
        """Whether each segment ended as one answer or one error."""
        return self.sent == self.answered + sum(self.errors.values())


async def play(load: DubLoad, stop: asyncio.Event | None = None) -> DubLedger:
    """Until all segments have ended; after `stop` no further ones are sent."""
    ledger, stop = DubLedger(), stop or asyncio.Event()
    starts_at = time.monotonic() + STAGGER_S * load.streams
    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(_Speaker(load, number, ledger, starts_at, stop).run())
            await asyncio.sleep(STAGGER_S)
    return ledger


async def play_during(load: DubLoad, trouble: Awaitable[None]) -> DubLedger:
    """As `play`, until the trouble is over, and after it has failed too."""
    stop = asyncio.Event()

    async def watched() -> None:
        try:
            await trouble
        finally:
            stop.set()

    async with asyncio.TaskGroup() as group:
        playing = group.create_task(play(load, stop))
        group.create_task(watched())
    return playing.result()


class _Speaker:
    """One stream."""

    def __init__(
        self,
        load: DubLoad,
        number: int,
        ledger: DubLedger,
        starts_at: float,
        stop: asyncio.Event,
    ) -> None:
        self._load, self._number, self._ledger, self._stop = load, number, ledger, stop
        self._first_at = starts_at + number * load.period_s / load.streams
        self._colour = colour(number)
        self._frame = cv2.imencode(".jpg", picture(self._colour))[1].tobytes()
        self._name = f"{load.name}-{number}"

    async def run(self) -> None:
        async with DubStream(
            self._load.url, "en", "es", stream_id=self._name, timeout_s=self._load.answer_s, waits_for_slot=False
        ) as stream:
            sent: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._send_all(stream, sent))
                    group.create_task(self._read_all(stream, sent))
            except* _NoSlotError:
                pass
        self._ledger.links += stream.links
        self._ledger.resent += stream.resent

    async def _send_all(self, stream: DubStream, sent: asyncio.Queue[tuple[int, float] | None]) -> None:
        for index in range(self._load.segments):
            due_at = self._first_at + index * self._load.period_s
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            if self._stop.is_set():
                break
            self._ledger.sent += 1
            await sent.put((index, due_at))
            await stream.send(self._segment(index))
        await sent.put(None)

    async def _read_all(self, stream: DubStream, sent: asyncio.Queue[tuple[int, float] | None]) -> None:
        while (segment := await sent.get()) is not None:
            index, due_at = segment
            try:
                answer = await stream.answer()
            except ServerError as error:
                self._fail(error, index, time.monotonic() - due_at)
                continue
            self._ledger.latencies_s.append(time.monotonic() - due_at)
            self._check(answer, index)

    def _fail(self, error: ServerError, index: int, seconds: float) -> None:
        code = read_refusal(str(error))[0] or str(error.code)
        self._ledger.errors[code] += 1
        self._ledger.broken.add(self._name)
        if index == 0 and code == "full":
            self._ledger.refused_s.append(seconds)
            raise _NoSlotError

    def _segment(self, index: int) -> DubSegment:
        start_ms = round(index * self._load.period_s * 1000)
        times = start_ms + np.arange(FRAMES, dtype=np.int64) * FRAME_MS
        options = {"KNOWN_TEXT": self._text(index), "MOUTH_FORMAT": "raw"}
        return DubSegment(np.zeros(0, np.float32), [self._frame] * FRAMES, times, start_ms, options)

    def _text(self, index: int) -> str:
        return f"stream {self._name} segment {index}"

    def _check(self, answer: DubAnswer, index: int) -> None:
        self._ledger.statuses[answer.status] += 1
        if answer.status is not DubStatus.OK or not len(answer.outputs["MOUTHS"]):
            self._ledger.broken.add(self._name)
            return
        said = {str(answer.outputs[name][0]) for name in ("SOURCE_TEXT", "TARGET_TEXT")}
        seen = answer.outputs["MOUTHS"].reshape(-1, 3).mean(axis=0)
        if said != {self._text(index)} or np.abs(seen - self._colour).max() > COLOUR_LEVELS:
            self._ledger.crossed.append(f"{self._name}, segment {index}: {sorted(said)}, {seen.round().tolist()}")


class _NoSlotError(Exception):
    """The stream was not let in, and goes away."""


def colour(number: int) -> npt.NDArray[np.float64]:
    """Of a stream's picture: float64 (3,) BGR, another one for each of SHADES ** 3 streams."""
    shades = np.array([number % SHADES, number // SHADES % SHADES, number // SHADES**2 % SHADES])
    return 30.0 + shades * 190.0 / (SHADES - 1)


def picture(bgr: npt.NDArray[np.float64]) -> UInt8:
    """One colour all over."""
    return np.full((ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), bgr.round(), np.uint8)
