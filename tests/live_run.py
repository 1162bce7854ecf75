"""A live job with faults in the middle, and what its viewers and its report must show all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import psutil

from polylip.client.live.job import live
from polylip.client.live.options import LiveOptions
from polylip.client.live.report import LiveReport
from polylip.client.live.status import LiveStatus
from polylip.client.results import SegmentResult, Status
from polylip.client.server import ServerChoice
from polylip.client.wishes import SpeechWishes
from polylip.perf.slow_models import slow_repository
from polylip.perf.supervised import arguments_of
from polylip.serving.launcher import Server, ServerOptions, start_server

REPOSITORY = Path(__file__).parents[1] / "model_repository"
RATE_HZ = 16_000
END_S = 12.0  # for a job to end behind its last picture: a frozen server is asked to close four lines, 2 s each
MAX_LAG_MS = 500.0  # what is rendered ahead of its time (LEAD_S); more and a player would stutter
MAX_GROWTH_MS = 250.0  # of the lag over a whole run, as its slope says
PASSED = (Status.ERROR, Status.TOO_LATE, Status.PASSED, Status.CAPTIONED, Status.NO_SPEECH)  # the original is heard


@dataclass
class LiveRun:
    """One job that has ended."""

    clip: Path
    output: Path
    delay_s: float
    report: LiveReport
    statuses: list[LiveStatus]
    ended_after_s: float  # from its first look at the running source to its end

    @property
    def segments(self) -> list[SegmentResult]:
        return self.report.segments

    def after(self, media_s: float) -> list[SegmentResult]:
        """Segments spoken from then on."""
        return [segment for segment in self.segments if segment.start_ms >= media_s * 1000]

    def of(self, *statuses: Status) -> list[SegmentResult]:
        return [segment for segment in self.segments if segment.status in statuses]


class Stage:
    """The source's clock, for what is done to the job in its middle."""

    def __init__(self) -> None:
        self.statuses: list[LiveStatus] = []
        self.began_s = 0.0  # time.monotonic() at media time 0, about
        self.ended = asyncio.Event()  # the job
        self._began = asyncio.Event()

    def show(self, status: LiveStatus) -> None:
        self.statuses.append(status)
        if status.state == "live" and not self._began.is_set():
            self.began_s = time.monotonic() - status.media_s
            self._began.set()

    async def at(self, media_s: float) -> None:
        """Wait until the source has come so far."""
        await self._began.wait()
        await asyncio.sleep(max(0.0, self.began_s + media_s - time.monotonic()))


Script = Callable[[Stage], Coroutine[None, None, None]]


async def run_live(url: str, clip: Path, output: Path, script: Script, *, delay_s: float = 8.0) -> LiveRun:
    """Dub `clip` as if it came from a camera, while `script` breaks something."""
    options = LiveOptions(
        str(clip),
        str(output),
        SpeechWishes("en", "es"),
        ServerChoice(url, reconnect_s=float("inf")),
        delay_s=delay_s,
    )
    stage = Stage()
    async with asyncio.TaskGroup() as group:
        group.create_task(script(stage))
        report = await live(options, stage.show)
        ended_after_s = time.monotonic() - stage.began_s
        stage.ended.set()
    return LiveRun(clip, output, delay_s, report, stage.statuses, ended_after_s)


def slow_server(folder: Path, model: str, factor: float) -> tuple[Server, Path]:
    """A server one of whose models takes `factor` times as long while the file is there."""
    repository, flag = slow_repository(REPOSITORY, folder, {model: factor})
    options = ServerOptions(model_repository=repository, log_path=folder / "server.log")
    return start_server(options), flag


def processes(server: Server) -> list[psutil.Process]:
    """tritonserver first, then its Python models."""
    return psutil.Process(server.guard_pid).children(recursive=True)


def stub(server: Server, model: str) -> psutil.Process:
    """The process of one of its Python models."""
    [process] = [process for process in processes(server) if f"{model}_0_0" in arguments_of(process)]
    return process


def assert_whole(run: LiveRun) -> None:
    """Every segment ended once, the output plays as the source did, and it was on time."""
    assert_ended_once(run)
    assert_plays(run)
    assert_on_time(run)


def assert_ended_once(run: LiveRun) -> None:
    """As a result or an explicit error; none twice, none over another."""
    report = run.report
    assert report.segments
    assert sum(report.statuses.values()) == len(report.segments)
    assert len({segment.id for segment in report.segments}) == len(report.segments)
    for segment in report.segments:
        assert segment.status in (Status.DUBBED, Status.CAPTIONED) or segment.message, segment
        assert (segment.status is Status.DUBBED) <= (segment.dub_end_ms is not None), segment
    for one, other in pairwise(report.segments):
        assert one.end_ms <= other.start_ms
    heard = [segment for segment in report.segments if segment.dub_start_ms is not None]
    for one, other in pairwise(heard):
        assert (one.dub_end_ms or 0) <= (other.dub_start_ms or 0), "two dubs sound at once"
    last = run.statuses[-1]
    assert last.segments == last.dubbed + last.captioned + last.passed == len(report.segments)


def assert_on_time(run: LiveRun) -> None:
    """The delay is what it was, to the end."""
    lag = run.report.lag
    assert lag["p99_ms"] < MAX_LAG_MS, lag
    assert lag["slope_ms_per_min"] * run.ended_after_s / 60 < MAX_GROWTH_MS, lag
    assert run.report.counters["source_packets_dropped"] == run.report.counters["sink_packets_dropped"] == 0
    assert run.ended_after_s < run.report.duration_s + run.delay_s + END_S


def assert_plays(run: LiveRun) -> None:
    """Each picture is the source's, evenly in time; sound without a hole, the source's where nothing is dubbed."""
    times_ms, pictures = seen(run.output)
    _, source = seen(run.clip)
    assert len(pictures) == len(source)
    assert {round(b - a) for a, b in pairwise(times_ms)} == {40}
    far = [index for index, (one, other) in enumerate(zip(pictures, source, strict=True)) if distance(one, other) > 6]
    assert not far, f"pictures {far} are not the source's"
    sound, original = heard(run.output), heard(run.clip)
    assert abs(len(sound) - len(pictures) * RATE_HZ // 25) < RATE_HZ // 4
    for segment in run.segments:
        span = slice(segment.start_ms * RATE_HZ // 1000, segment.end_ms * RATE_HZ // 1000)
        if segment.status in PASSED and segment.dub_start_ms is None and not _under_a_dub(segment, run):
            assert loudness_db(sound[span]) > loudness_db(original[span]) - 3, f"the original is not heard: {segment}"
        elif segment.status is Status.DUBBED:
            dub = slice((segment.dub_start_ms or 0) * RATE_HZ // 1000, (segment.dub_end_ms or 0) * RATE_HZ // 1000)
            assert loudness_db(sound[dub]) > -40, f"the dub is not heard: {segment}"


def _under_a_dub(segment: SegmentResult, run: LiveRun) -> bool:
    return any(
        other.dub_start_ms < segment.end_ms and other.dub_end_ms > segment.start_ms
        for other in run.segments
        if other.dub_start_ms is not None and other.dub_end_ms is not None
    )


def seen(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in ms from the first picture on, and the pictures, small and grey."""
    times, pictures = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.pts * frame.time_base) * 1000)
            pictures.append(frame.reformat(width=80, height=44, format="gray").to_ndarray())
    return [time_ms - times[0] for time_ms in times], pictures


def heard(path: Path) -> np.ndarray:
    """float32 (samples,) at 16 kHz; its pieces must follow on each other."""
    resampler, pieces, next_pts = av.AudioResampler("fltp", "mono", RATE_HZ), [], None
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            assert next_pts is None or abs(frame.pts - next_pts) <= 1, "the sound has a hole"
            next_pts = frame.pts + round(frame.samples / frame.sample_rate / frame.time_base)
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    return np.concatenate(pieces)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference in grey levels; captions and mouths are small."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def loudness_db(sound: np.ndarray) -> float:
    return 10 * float(np.log10(np.mean(sound.astype(np.float64) ** 2) + 1e-12))
