"""The three branches of one job, wired together: the same for a file and for a live source."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from polylip.client.captioning import Captioner
from polylip.client.closing import Policy
from polylip.client.errors import PolylipError
from polylip.client.faces import FacesBranch
from polylip.client.lines import Line
from polylip.client.listening import SoundReader
from polylip.client.media_in import MediaInfo
from polylip.client.media_out import output_channels, output_sample_rate
from polylip.client.mix import AudioBed
from polylip.client.pacing import Pacing
from polylip.client.pictures import PictureReader
from polylip.client.pulse import Pulse
from polylip.client.render import Renderer, Writer
from polylip.client.ring import FrameRing
from polylip.client.segmentation import Segmenter
from polylip.client.speaker import SpeakerChooser, parse_wish
from polylip.client.speculation import LIVE_TIMEOUT_S, TIMEOUT_S, Speculation
from polylip.client.speech import SpeechBranch
from polylip.client.timeline import Timeline
from polylip.client.trace import Trace
from polylip.client.triton import TritonClient
from polylip.client.visibility import frames_around
from polylip.client.wishes import SpeechWishes

ENGINE_MODELS = ("transcribe", "translate", "synthesize", "detect", "lips")


class Source(Protocol):
    """Sound once and the pictures twice, as the branches read them. Its owner closes it."""

    @property
    def sound(self) -> SoundReader: ...

    @property
    def analysis(self) -> PictureReader: ...

    @property
    def pictures(self) -> PictureReader: ...


@dataclass
class Plan:
    """What a job hands to its pipeline."""

    info: MediaInfo
    wishes: SpeechWishes
    segmenter: Segmenter
    segmentation: Policy
    face: str | None = None  # as in DubOptions
    duration_ms: float | None = None  # None: unknown, or without end
    incremental: bool = False  # the recogniser gains from pieces that are sent ahead
    newest_ms: Callable[[], float] | None = None  # live: the newest sound that has come


class Pipeline:
    """Timeline, ring and branches of one job. `open` it, then `run` it once."""

    def __init__(
        self,
        client: TritonClient,
        plan: Plan,
        writer: Writer,
        *,
        pacing: Pacing | None = None,
        on_progress: Callable[[float, int], None] = lambda position_ms, frames: None,
    ) -> None:
        info, fps = plan.info, float(plan.info.frame_rate)
        pulse, pacing = Pulse(), pacing or Pacing()
        self.trace = Trace()
        self.timeline, self.ring = Timeline(plan.duration_ms, pulse), FrameRing(fps, pulse, frames_around(fps))
        bed = AudioBed(output_sample_rate(info), output_channels(info))
        # Every line is a stream of its own: models that answer once and in parts must not share one.
        self._lines = [client.line() for _ in range(4)]
        speech_line, recogniser_line, faces_line, lips_line = self._lines
        timeout_s = LIVE_TIMEOUT_S if pacing.live else TIMEOUT_S
        self.speculation = Speculation(
            recogniser_line,
            plan.wishes.source_language,
            timeout_s=timeout_s,
            newest_ms=plan.newest_ms,
            incremental=plan.incremental,
        )
        self.renderer = Renderer(
            info,
            ring=self.ring,
            timeline=self.timeline,
            chooser=SpeakerChooser(info.width, info.height, parse_wish(plan.face)),
            bed=bed,
            stream=lips_line,
            writer=writer,
            pulse=pulse,
            on_progress=on_progress,
            pacing=pacing,
            trace=self.trace,
        )
        self.speech = SpeechBranch(
            timeline=self.timeline,
            bed=bed,
            stream=speech_line,
            pulse=pulse,
            wishes=plan.wishes,
            output_ms=lambda: max(self.renderer.position_ms, self.renderer.next_ms),
            segmenter=plan.segmenter,
            speculation=None if plan.segmentation is Policy.SILENCE else self.speculation,
            captioner=Captioner(recogniser_line, plan.wishes),
            pacing=pacing,
            trace=self.trace,
        )
        self.faces = FacesBranch(info, self.ring, faces_line, pacing=pacing, trace=self.trace)

    async def run(self, source: Source) -> None:
        """Until picture and sound have been written to their end. The first cause of a failure is raised."""
        with first_cause():
            async with _opened(self._lines), asyncio.TaskGroup() as group:
                group.create_task(self.speech.run(source.sound))
                group.create_task(self.faces.run(source.analysis))
                group.create_task(self.renderer.run(source.pictures))

    @property
    def reopened(self) -> int:
        """How often a connection was lost and made again."""
        return sum(line.reopened for line in self._lines)

    @property
    def retries(self) -> int:
        """Requests that were sent again."""
        return self.speech.retries + self.faces.retries + self.renderer.counts.lips_retries


@contextlib.asynccontextmanager
async def _opened(lines: list[Line]) -> AsyncIterator[None]:
    """All lines; closed side by side, as each waits for a server that may be frozen."""
    await asyncio.gather(*(line.__aenter__() for line in lines))
    try:
        yield
    finally:
        await asyncio.gather(*(line.__aexit__(None, None, None) for line in lines))


@contextlib.contextmanager
def first_cause() -> Iterator[None]:
    """Task groups wrap what went wrong in groups; the caller wants the first cause."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            known = [e for e in error.exceptions if isinstance(e, (PolylipError, BaseExceptionGroup))]
            error = (known or list(error.exceptions))[0]
        raise error from None
