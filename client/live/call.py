"""A call: several live jobs at once, of which only the one whose speaker has the floor asks the server for anything.

Each participant has a source, a sink and a pipeline of its own; all share one server and one delay. See docs/calls.md.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.text import Text

from polylip.client.errors import InputError, PolylipError
from polylip.client.live.floor import SETTLE_MS, Table
from polylip.client.live.formats import place
from polylip.client.live.job import STATUS_S, Engines, LiveJob, running_source, served_engines
from polylip.client.live.options import WORK_S, LiveOptions, check_live_options, same_file
from polylip.client.live.report import LiveReport
from polylip.client.live.status import LiveStatus
from polylip.client.named_log import log
from polylip.client.options import check_languages
from polylip.client.segmentation import MIN_SEGMENT_MS
from polylip.client.server import running_client
from polylip.client.triton import TritonClient

THREADS_EACH = 6  # sound and analysis wait for their source nearly always; lips, decoder, encoder and sink now and then
# A chunk of faces is 1 s of frames and asks 0.4 s later; who has the floor is known SETTLE_MS behind it.
MIN_DELAY_S = WORK_S + (MIN_SEGMENT_MS + SETTLE_MS) / 1000
NAME = re.compile(r"[\w.-]{1,40}")


@dataclass(frozen=True)
class CallStatus(LiveStatus):
    """One look at a call: the sums over its participants, the worst lag, and each of them."""

    floor: str = ""  # who has it
    participants: dict[str, LiveStatus] = field(default_factory=dict)

    def line(self) -> Text:
        """For a terminal."""
        if not self.participants:
            return Text(self.state)
        return Text(f"floor: {self.floor or '-'}  ").append_text(super().line())


@dataclass
class CallReport:
    """What a call leaves behind."""

    delay_s: float
    turns: list[dict[str, Any]]  # who had the floor when, in seconds since the first participant's media time 0
    participants: dict[str, LiveReport]
    asked: dict[str, dict[str, int]]  # requests to the server, by participant and what for
    cpu_s: float  # of this client, all participants together
    errors: dict[str, str] = field(default_factory=dict)  # whose part ended early, and why

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


OnStatus = Callable[[CallStatus], None]


def check_call(participants: Mapping[str, LiveOptions]) -> None:
    """What can be seen without opening anything. Raises InputError."""
    if not participants:
        raise InputError("a call needs participants; give --in and --out for each")
    jobs = list(participants.values())
    for name, options in participants.items():
        if not NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name for a participant; use up to 40 letters, digits, '.', '-' and '_'")
        check_live_options(options)
        if options.delay_s < MIN_DELAY_S:
            raise InputError(
                f"a delay of {options.delay_s:g} s is too short for a call: who has the floor is known "
                f"{SETTLE_MS / 1000:g} s late; give {MIN_DELAY_S:.1f} or more"
            )
    if any((options.server, options.delay_s) != (jobs[0].server, jobs[0].delay_s) for options in jobs):
        raise InputError("the participants of a call share one server and one delay")
    _check_own_ends(jobs)


def _check_own_ends(jobs: list[LiveOptions]) -> None:
    """That nobody writes where another one reads or writes. Raises InputError."""
    for what, urls in (("source", [job.source for job in jobs]), ("sink", [job.sink for job in jobs])):
        twice = next((url for url in urls if urls.count(url) > 1), None)
        if twice is not None and (what == "sink" or twice == "-"):
            raise InputError(f"{place(twice).label}: two participants have the same {what}; give each its own")
    sources, sinks = [place(job.source) for job in jobs], [place(job.sink) for job in jobs]
    for number, sink in enumerate(sinks):
        if any(same_file(source, sink) for source in sources):
            raise InputError(f"{sink.label}: an output and an input are the same file; choose another output")
        if any(same_file(other, sink) for other in sinks[:number]):
            raise InputError(f"{sink.label}: two participants have the same sink; give each its own")


async def call(
    participants: Mapping[str, LiveOptions],
    on_status: OnStatus = lambda status: None,
    stop: asyncio.Event | None = None,
) -> CallReport:
    """Until every source has ended, or `stop` is set. Who fails leaves the call; raises what the last one failed of."""
    check_call(participants)
    began_cpu_s = time.process_time()
    first = next(iter(participants.values()))
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS_EACH * len(participants), "call"))
    async with running_client(
        first.server, lambda stage: on_status(CallStatus(stage, delay_s=first.delay_s))
    ) as client:
        for wishes in dict.fromkeys(options.wishes for options in participants.values()):
            await check_languages(client, wishes)
        engines = await served_engines(client)
        running = Call(participants, client, engines)
        await running.run(on_status, stop or asyncio.Event())
        return running.report(time.process_time() - began_cpu_s)


class Call:
    """The participants, until the last one has gone."""

    def __init__(self, participants: Mapping[str, LiveOptions], client: TritonClient, engines: Engines) -> None:
        self._participants = {name: replace(options, name=name) for name, options in participants.items()}
        self._names = list(participants)
        self._client = client
        self._engines = engines
        self._table = Table()
        self._statuses: dict[str, LiveStatus] = {}
        self._reports: dict[str, LiveReport] = {}
        self._errors: dict[str, PolylipError] = {}
        self.jobs: dict[str, LiveJob] = {}

    async def run(self, on_status: OnStatus, stop: asyncio.Event) -> None:
        """Raises PolylipError when nobody has got to the end."""
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch(on_status))
            parts = [group.create_task(self._take_part(name, stop)) for name in self._names]
            await asyncio.wait(parts)
            watch.cancel()
        if not self._reports:
            raise next(iter(self._errors.values()))

    async def _take_part(self, name: str, stop: asyncio.Event) -> None:
        options = self._participants[name]
        self._statuses[name] = LiveStatus("waiting for the source", delay_s=options.delay_s)
        try:
            async with running_source(options, stop) as source:
                seat = self._table.seat(self._names.index(name), lambda: source.origin_s)
                try:
                    self.jobs[name] = LiveJob(options, self._client, source, self._engines, seat)
                    self._reports[name] = await self.jobs[name].run(lambda status: self._note(name, status), stop)
                finally:
                    seat.leave()
        except PolylipError as error:
            log.warning("%s leaves the call: %s", name, error)
            self._errors[name] = error

    def _note(self, name: str, status: LiveStatus) -> None:
        self._statuses[name] = status

    async def _watch(self, on_status: OnStatus) -> None:
        while True:
            on_status(self.status())
            await asyncio.sleep(STATUS_S)

    def status(self) -> CallStatus:
        """How the call stands."""
        each = list(self._statuses.values())
        states = {status.state for status in each}
        holder = self._table.floor.holder
        return CallStatus(
            state=" / ".join(sorted(states)),
            media_s=max((status.media_s for status in each), default=0.0),
            delay_s=next(iter(self._participants.values())).delay_s,
            lag_ms=max((status.lag_ms for status in each), default=0.0),
            ready_s=min((status.ready_s for status in each), default=0.0),
            level=next((status.level for status in each if status.level != "full"), "full"),
            segments=sum(status.segments for status in each),
            dubbed=sum(status.dubbed for status in each),
            captioned=sum(status.captioned for status in each),
            passed=sum(status.passed for status in each),
            pictures_without_lips=sum(status.pictures_without_lips for status in each),
            packets_dropped=sum(status.packets_dropped for status in each),
            floor="" if holder is None else self._names[holder],
            participants=dict(self._statuses),
        )

    def report(self, cpu_s: float) -> CallReport:
        """When it has ended."""
        turns = [
            {
                "participant": self._names[turn.participant],
                "start_s": turn.start_ms / 1000,
                "end_s": turn.end_ms / 1000,
            }
            for turn in self._table.floor.turns
        ]
        return CallReport(
            delay_s=next(iter(self._participants.values())).delay_s,
            turns=turns,
            participants=self._reports,
            asked={name: asked(job) for name, job in self.jobs.items()},
            cpu_s=cpu_s,
            errors={name: str(error) for name, error in self._errors.items()},
        )


def asked(job: LiveJob) -> dict[str, int]:
    """How often a job asked the server, by what for."""
    pipeline = job.pipeline
    return {
        "faces": pipeline.faces.requests,
        "recogniser": pipeline.speculation.counts.asked + pipeline.speculation.counts.ahead,
        "speech": sum(result.fit is not None for result in pipeline.timeline.results),
        "lipsync": pipeline.renderer.counts.lips_calls,
        "frames_without_asking": pipeline.faces.passed,
    }
