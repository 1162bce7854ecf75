"""A live job: a source that runs in real time, the three branches, and a sink that shows all a fixed delay later.

The delay never grows: what is not ready when its time comes is left out, and a ladder leaves out more while the server
is slow (docs/live.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version

from polylip.client.errors import InputError
from polylip.client.ladder import Ladder
from polylip.client.live.floor import Seat
from polylip.client.live.leave import leave_report
from polylip.client.live.options import LiveOptions, check_live_options
from polylip.client.live.playout import Keeper, Playout
from polylip.client.live.report import LagMeter, LiveReport, spread, status_counts
from polylip.client.live.sink import LiveSink
from polylip.client.live.source import LiveSource
from polylip.client.live.status import LiveStatus
from polylip.client.live.synced import LiveSync, SyncedSound
from polylip.client.marking import container_tags
from polylip.client.media_out import output_channels, output_sample_rate
from polylip.client.named_log import NamedLog
from polylip.client.options import check_languages
from polylip.client.pipeline import ENGINE_MODELS, Pipeline, Plan, first_cause
from polylip.client.results import SegmentResult, Status
from polylip.client.segmentation import Segmenter
from polylip.client.server import running_client
from polylip.client.triton import TritonClient
from polylip.client.vad import make_vad

STATUS_S = 0.5  # between two looks at the job
DUBBED, CAPTIONED = Status.DUBBED, Status.CAPTIONED

OnStatus = Callable[[LiveStatus], None]


async def live(
    options: LiveOptions, on_status: OnStatus = lambda status: None, stop: asyncio.Event | None = None
) -> LiveReport:
    """Dub until the source ends, or `stop` is set: what has come by then is still shown. Raises InputError.

    A cancelled job ends at once.
    """
    check_live_options(options)
    async with running_client(
        options.server, lambda stage: on_status(LiveStatus(stage, delay_s=options.delay_s))
    ) as client:
        await check_languages(client, options.wishes)
        engines = await served_engines(client)
        on_status(LiveStatus("waiting for the source", delay_s=options.delay_s))
        stop = stop or asyncio.Event()
        async with running_source(options, stop) as source:
            return await LiveJob(options, client, source, engines).run(on_status, stop)


@dataclass(frozen=True)
class Engines:
    """What the server runs; asked for at the start, as it may be lost later."""

    names: dict[str, str]  # by model
    incremental: bool  # the recogniser gains from sound that is sent ahead


async def served_engines(client: TritonClient) -> Engines:
    """Raises ServerError."""
    names = {model: await client.engine(model) for model in ENGINE_MODELS}
    return Engines(names, await client.parameter("transcribe", "incremental") == "true")


@contextlib.asynccontextmanager
async def running_source(options: LiveOptions, stop: asyncio.Event) -> AsyncIterator[LiveSource]:
    """The job's source, once something comes from it. Raises InputError."""
    source = LiveSource(
        options.source, paced=_paced(options), listen=options.listen, sound=options.sound_device, name=options.name
    )
    try:
        await _started(source, stop)
        yield source
    finally:
        await asyncio.to_thread(source.close)


async def _started(source: LiveSource, stop: asyncio.Event) -> None:
    """Wait for the sender, but not longer than the user does. Raises InputError."""
    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(asyncio.to_thread(source.start))
    try:
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await asyncio.to_thread(source.close)
            await asyncio.wait([starting])
            starting.exception()
            raise InputError(f"{source.label}: stopped before anything came")
        await starting
    finally:
        stopped.cancel()


def _paced(options: LiveOptions) -> bool | None:
    """A file is a camera here: it plays in real time."""
    is_file = "://" not in options.source and not options.source.startswith(("-", "/dev/", "pipe:"))
    return True if options.paced is None and is_file else options.paced


class _Readers:
    """A live source as the pipeline reads it."""

    def __init__(self, source: LiveSource, sync: LiveSync) -> None:
        info = source.info
        rate, channels = output_sample_rate(info), output_channels(info)
        self.sound = SyncedSound(source.audio(rate, channels), sync.corrector, rate, channels)
        self.analysis = source.analysis()
        self.pictures = source.pictures(info.planar_format)


class LiveJob:
    """One source that runs, until it ends."""

    def __init__(
        self,
        options: LiveOptions,
        client: TritonClient,
        source: LiveSource,
        engines: Engines,
        seat: Seat | None = None,
    ) -> None:
        """`seat`: its place in a call."""
        self._options = options
        self._client = client
        self._source = source
        self._engines = engines
        self.ladder = Ladder(log=NamedLog(options.name))
        client.level = lambda: int(self.ladder.level)
        self.sync = LiveSync(source)
        self.playout = Playout(
            lambda: source.origin_s, options.delay_s, self.ladder, seat=seat, on_closed=self.sync.paused
        )
        vad = make_vad(options.vad) if seat is None else seat.overhears(make_vad(options.vad))
        generative = options.server.profile != "lite" or options.server.url is not None
        tags = container_tags(options.wishes.target_language, generative=generative) if options.mark else {}
        self.sink = LiveSink(
            options.sink,
            source.info,
            origin_s=lambda: source.origin_s,
            delay_s=options.delay_s,
            format=options.sink_format,
            listen=options.sink_listen,
            tags=tags,
            name=options.name,
        )
        plan = Plan(
            source.info,
            options.wishes,
            Segmenter(vad, options.segmentation, options.max_segment_ms),
            options.segmentation,
            options.face,
            incremental=engines.incremental,
            newest_ms=lambda: source.newest_ms,
            source_sync=self.sync.measured,
        )
        self.pipeline = Pipeline(client, plan, self.sink, pacing=self.playout)
        self._lag = LagMeter()

    async def run(self, on_status: OnStatus, stop: asyncio.Event) -> LiveReport:
        """Until picture and sound have left. Raises InputError when the output cannot be written any more."""
        parts = self.pipeline
        keeper = Keeper(self.playout, parts.timeline, parts.ring, parts.speech.give_up, self._waits_for_faces)
        try:
            with first_cause():
                async with asyncio.TaskGroup() as group:
                    keeping = group.create_task(keeper.run())
                    watching = group.create_task(self._watch(on_status))
                    ending = group.create_task(self._end_source(stop, time.monotonic()))
                    await self.pipeline.run(_Readers(self._source, self.sync))
                    keeping.cancel()
                    ending.cancel()
                    await asyncio.to_thread(self.sink.close)
                    watching.cancel()
        finally:
            await asyncio.to_thread(self.sink.discard)
        return await asyncio.to_thread(self._leave_report)

    def _waits_for_faces(self) -> bool:
        """Where the source stands still, frames lack those behind them, which is no fault of the server."""
        return self.pipeline.faces.is_asking and not self._source.is_interrupted

    def _leave_report(self) -> LiveReport:
        report = self._report()
        if self._options.report is not None:
            leave_report(report, self.pipeline.trace, self._options.report)
        return report

    async def _end_source(self, stop: asyncio.Event, started_s: float) -> None:
        """When asked to, or after the duration: the branches then finish what has come."""
        duration_s = self._options.duration_s
        left_s = None if duration_s is None else max(0.0, started_s + duration_s - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await stop.wait()
        await asyncio.to_thread(self._source.end)

    async def _watch(self, on_status: OnStatus) -> None:
        while True:
            self.sync.look(time.monotonic())
            status = self.status()
            if self.sink.emitted_ms:
                self._lag.add(time.monotonic(), self.sink.late_ms)
            on_status(status)
            await asyncio.sleep(STATUS_S)

    def status(self) -> LiveStatus:
        """How the job stands."""
        results = self.pipeline.timeline.results
        ended = [dub.segment.id for dub in self.pipeline.timeline.active if not dub.ended]
        done = [result for result in results if result.id not in ended]
        dubbed = sum(result.status is DUBBED for result in done)
        captioned = sum(result.status is CAPTIONED for result in done)
        return LiveStatus(
            state=self.sink.lost or self._source.lost or "live",
            media_s=self._source.newest_ms / 1000,
            delay_s=self._options.delay_s,
            lag_ms=self.sink.late_ms,
            ready_s=self.sink.buffered_ms / 1000,
            level=self.ladder.level.name.lower(),
            segments=len(results),
            dubbed=dubbed,
            captioned=captioned,
            passed=len(done) - dubbed - captioned,
            pictures_without_lips=self.pipeline.renderer.counts.lips_missed,
            packets_dropped=self._source.dropped + self.sink.dropped,
        )

    def _report(self) -> LiveReport:
        options, pipeline, sink, source = self._options, self.pipeline, self.sink, self._source
        segments = pipeline.timeline.results
        for segment in segments:
            segment.av_offset_ms = pipeline.renderer.offsets.segment_ms(segment.id)
        first_frames = [s.first_frame_after_ms for s in segments if s.first_frame_after_ms is not None]
        offsets = [abs(s.av_offset_ms) for s in segments if s.av_offset_ms is not None]
        return LiveReport(
            profile=options.server.profile,
            source=str(source.info.path),
            sink=sink.label,
            source_language=pipeline.speech.detected_language,
            target_language=options.wishes.target_language,
            delay_s=options.delay_s,
            duration_s=source.newest_ms / 1000,
            ended=source.ended or "stopped",
            lag=self._lag.to_dict(),
            first_frame_ms=spread(first_frames, 50, 90),
            av_offset_ms=spread(offsets, 50, 99),
            source_sync=self.sync.to_dict(),
            segments=segments,
            statuses=status_counts(segments),
            ladder=[step.to_dict() for step in self.ladder.steps],
            counters=self._counters(),
            engines=self._engines.names,
            versions={
                "polylip": version("polylip"),
                "python": platform.python_version(),
                "av": version("av"),
                "tritonserver": self._client.server_version,
            },
            warnings=_warnings(segments, self.ladder, self.sink.lost),
            trace=pipeline.trace.to_dict(),
        )

    def _counters(self) -> dict[str, int]:
        pipeline, sink, source = self.pipeline, self.sink, self._source
        counts = pipeline.renderer.counts
        return {
            "frames": counts.frames,
            "frames_lipsynced": counts.lipsynced,
            "frames_without_lips_in_time": counts.lips_missed,
            "frames_without_faces_in_time": pipeline.ring.expired,
            "paused_ms": round(pipeline.timeline.paused_ms),
            "source_packets_dropped": source.dropped,
            "source_reconnects": source.counts.reconnects,
            "sink_packets_dropped": sink.dropped,
            "sink_reconnects": sink.reconnects,
            "sink_bytes": sink.bytes,
            "server_reconnects": pipeline.reopened,
            "retries": pipeline.retries,
            "recogniser_questions": pipeline.speculation.counts.asked,
            "recogniser_pieces_ahead": pipeline.speculation.counts.ahead,
            "recogniser_questions_failed": pipeline.speculation.counts.failed,
            "recogniser_questions_skipped": pipeline.speculation.counts.skipped,
        }


def _warnings(segments: list[SegmentResult], ladder: Ladder, lost: str | None) -> list[str]:
    """`lost`: why the output had no receiver at the end."""
    warnings = [] if segments else ["no speech found: picture and sound passed unchanged"]
    down = sum(step.after > step.before for step in ladder.steps)
    if down:
        times = "time" if down == 1 else "times"
        warnings.append(f"the server was too slow {down} {times}: what was left out is in `ladder` and in each status")
    if lost is not None:
        warnings.append(f"the output was not received to its end: {lost}")
    return warnings
