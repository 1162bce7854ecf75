"""The three branches of one job, wired together: the same for a file and for a live source."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from polylip.client.captioning import Captioner
from polylip.client.checkpoint import JobState, Keeper
from polylip.client.closing import Policy
from polylip.client.errors import PolylipError
from polylip.client.faces import FacesBranch
from polylip.client.lines import Line
from polylip.client.listening import SoundReader
from polylip.client.media_in import MediaInfo
from polylip.client.media_out import Writer, output_channels, output_sample_rate
from polylip.client.mix import AudioBed
from polylip.client.pacing import Pacing
from polylip.client.pictures import PictureReader
from polylip.client.pulse import Pulse
from polylip.client.render import Renderer
from polylip.client.render_state import PartEnds, PictureState
from polylip.client.ring import FrameRing
from polylip.client.segmentation import Segmenter
from polylip.client.snapshot import pack
from polylip.client.speaker import SpeakerChooser, parse_wish
from polylip.client.speculation import LIVE_TIMEOUT_S, TIMEOUT_S, Speculation
from polylip.client.speech import SpeechBranch
from polylip.client.speech_state import is_lost
from polylip.client.sync import SourceSync
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
    source_sync: SourceSync | None = None  # live: measures, and moves the sound; None measures only


class Pipeline:
    """Timeline, ring and branches of one job. `open` it, then `run` it once."""

    def __init__(
        self,
        client: TritonClient,
        plan: Plan,
        writer: Writer,
        *,
        pacing: Pacing | None = None,
        keeper: Keeper | None = None,
        on_progress: Callable[[float, int], None] = lambda position_ms, frames: None,
    ) -> None:
        info, fps = plan.info, float(plan.info.frame_rate)
        pulse, pacing = Pulse(), pacing or Pacing()
        self.trace = Trace()
        self.timeline, self.ring = Timeline(plan.duration_ms, pulse), FrameRing(fps, pulse, frames_around(fps))
        bed = AudioBed(output_sample_rate(info), output_channels(info))
        self._keeper = keeper
        earlier = self._earlier = keeper.earlier if keeper else None
        parts = PartEnds(self._save, earlier.picture.position_ms if earlier else 0.0) if keeper else None
        self._lines = [client.line(decoupled=True), *(client.line() for _ in range(3))]
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
            parts=parts,
            source_sync=plan.source_sync,
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
            journal=keeper.journal if keeper else None,
        )
        self.faces = FacesBranch(info, self.ring, faces_line, pacing=pacing, trace=self.trace)
        if keeper and earlier:
            picture = earlier.picture
            bed.begin_at(picture.position_ms)
            self.ring.begin_at(picture.counts.frames)
            self.renderer.restore(picture)
            self.faces.restore(picture.position_ms, picture.shot, picture.faces, picture.last_boxes)
            self.speech.restore(earlier.speech, keeper.journal)

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

    @property
    def counters(self) -> dict[str, int]:
        """Of this run and those before it that it goes on from."""
        counts, keys = self.renderer.counts, self.faces.keys
        own = {
            "key_frames": keys.total,
            "dense_key_frames": keys.dense,
            "failed_faces_chunks": self.faces.failed_chunks,
            "recogniser_questions": self.speculation.counts.asked,
            "server_reconnects": self.reopened,
            "retries": self.retries,
        }
        before = self._earlier.counters if self._earlier else {}
        return {name: number + before.get(name, 0) for name, number in own.items()} | {
            "cuts": self.faces.cuts,
            "lipsync_calls": counts.lips_calls,
            "lipsync_frames": counts.lips_frames,
            "failed_lipsync_calls": counts.lips_failures,
            "ring_capacity": self.ring.capacity,
            "ring_high_water": max(self.ring.high_water, before.get("ring_high_water", 0)),
            "runs": self._keeper.runs if self._keeper else 1,
        }

    async def _save(self, picture: PictureState) -> None:
        """Behind a part. What has failed for want of a server is not kept: the next run has it dubbed."""
        keeper, speech = self._keeper, self.speech.state()
        lost = any(line.lost for line in self._lines) or any(is_lost(result) for result in self.timeline.results)
        if keeper is None or speech is None or lost:
            return
        usual = self.faces.usual_scores()
        faces = {track: replace(entry, usual_score=usual.get(track, 0.0)) for track, entry in picture.faces.items()}
        picture = replace(picture, faces=faces)
        state = JobState(picture, speech, self.counters, keeper.engines, keeper.wall_s(), keeper.runs)
        await asyncio.to_thread(keeper.save, pack(state))
        keeper.journal.forget(min((dub.index for dub in speech.active), default=speech.segmenter.count))


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
