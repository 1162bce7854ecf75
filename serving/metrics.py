"""Our own metrics on tritonserver's metrics endpoint: what each model worked on, how long, and for how many streams.

A model has one `ModelMetrics`; each of its methods is one line in an adapter and never raises. Outside Triton's Python
backend nothing is kept. docs/observability.md has the table of all families.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from polylip.serving import logs

log = logging.getLogger(__name__)

Item = TypeVar("Item")

SHM = "/dev/shm"  # noqa: S108  where tensors travel between tritonserver and the Python models
SHM_EVERY_S = 5.0  # between two looks at it
MAX_SERIES = 64  # of one family in one process; further label values share OTHER
OTHER = "other"
_LABEL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")  # what a label's value may be: a name of ours, never text


class Kind(StrEnum):
    """As Prometheus knows them; the name of the constant in Triton's MetricFamily, in small letters."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Family:
    """One metric with its labels; `model` is one of them unless it is of the whole machine."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()  # upper ends, of a histogram


# From one mel window (0.1 ms) to a voice of full size on two busy cores.
STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LEVELS = (0.0, 1.0, 2.0, 3.0, 4.0)  # of client/ladder.py

INFO = Family(
    "polylip_model_info", Kind.GAUGE, "1 for each model that is loaded, with its engine", ("model", "version", "engine")
)
STAGE = Family("polylip_stage_seconds", Kind.HISTOGRAM, "Work of the engine in one call", buckets=STAGE_BUCKETS)
FIRST_SOUND = Family(
    "polylip_first_sound_seconds",
    Kind.HISTOGRAM,
    "From the arrival of a text at the model to its first sound",
    buckets=STAGE_BUCKETS,
)
ITEMS = Family("polylip_stage_items_total", Kind.COUNTER, "What the engine worked on: segments, key frames or frames")
AUDIO = Family("polylip_audio_seconds_total", Kind.COUNTER, "Sound that the engine was given, or made")
VIDEO = Family("polylip_video_seconds_total", Kind.COUNTER, "Video that was answered for")
SEGMENTS = Family("polylip_segments_total", Kind.COUNTER, "Segments by their status", ("model", "status"))
LIVE = Family("polylip_live_sequences", Kind.GAUGE, "Sequences that have a state now")
STARTED = Family("polylip_sequences_started_total", Kind.COUNTER, "Sequences that began")
SWEPT = Family("polylip_swept_sequences_total", Kind.COUNTER, "Sequences that were given up, as nothing more came")
SLOTS = Family("polylip_slots", Kind.GAUGE, "Streams that the server takes at once")
REFUSED = Family("polylip_refused_total", Kind.COUNTER, "Streams that were not taken, by the reason", ("model", "code"))
FACES_LOST = Family("polylip_faces_lost_total", Kind.COUNTER, "Faces that were shown and are no longer there")
KEY_FRAMES = Family("polylip_key_frames_total", Kind.COUNTER, "Key frames that were looked at")
FACELESS = Family("polylip_faceless_key_frames_total", Kind.COUNTER, "Key frames on which nobody was found")
DEGRADE = Family(
    "polylip_degrade_level",
    Kind.HISTOGRAM,
    "Level of the client's ladder, 0 (everything) to 4, that came with a request",
    buckets=LEVELS,
)
SHM_SIZE = Family("polylip_shm_size_bytes", Kind.GAUGE, "Size of /dev/shm", ())
SHM_FREE = Family("polylip_shm_available_bytes", Kind.GAUGE, "Free room in /dev/shm, looked at every 5 s of work", ())
FAMILIES = (
    INFO, STAGE, FIRST_SOUND, ITEMS, AUDIO, VIDEO, SEGMENTS, LIVE, STARTED, SWEPT, SLOTS, REFUSED, FACES_LOST,
    KEY_FRAMES, FACELESS, DEGRADE, SHM_SIZE, SHM_FREE,
)  # fmt: skip

# What an adapter starts with.
WORK = (STAGE, ITEMS)
PICTURE = (KEY_FRAMES, FACELESS, FACES_LOST, VIDEO)
STREAMS = (LIVE, STARTED, SWEPT)

DEGRADE_PARAMETER = "degrade_level"  # of a request: an integer


class ModelMetrics:
    """The metrics of one model in this process. Instances of a model share the series of its name and add up."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._sequences = 0, 0, 0  # live, started, swept
        self._counting = threading.Lock()
        self._shm_at_s = 0.0

    def start(self, version: str, engine: str, families: Iterable[Family], values: Iterable[str] = ()) -> None:
        """Say that the model is loaded, and begin these families at 0, so that the first event counts.

        `values` are those of the second label of families that have one.
        """
        _update(INFO, (self._model, version, engine), lambda series: series.set(1.0))
        for family in families:
            for labels in [(self._model,)] if len(family.labels) == 1 else [(self._model, str(v)) for v in values]:
                _update(family, labels, lambda series: None)

    @contextmanager
    def stage(self, items: int = 1, *, audio_s: float = 0.0, video_s: float = 0.0) -> Iterator[None]:
        """Around a call of the engine; one that raises, or has nothing to do, does not count."""
        started_s = time.perf_counter()
        yield
        self.worked(time.perf_counter() - started_s, items, audio_s=audio_s, video_s=video_s)

    def worked(self, seconds: float, items: int, *, audio_s: float = 0.0, video_s: float = 0.0) -> None:
        """The engine took so long for so much."""
        if not items:
            return
        self._observe(STAGE, seconds)
        self._add(ITEMS, items)
        if audio_s:
            self._add(AUDIO, audio_s)
        if video_s:
            self._add(VIDEO, video_s)
        self._look_at_shm()

    def each(self, items: Iterator[Item], audio_s: Callable[[Item], float]) -> Iterator[Item]:
        """The same items of one segment: the time in which they are made is one call of the engine.

        Starts to count when it is called; the first item with sound is the segment's first sound.
        """
        return self._each(items, audio_s, time.perf_counter())

    def _each(self, items: Iterator[Item], audio_s: Callable[[Item], float], came_s: float) -> Iterator[Item]:
        work_s = sound_s = 0.0
        try:
            while True:
                started_s = time.perf_counter()
                try:
                    item = next(items)
                except StopIteration:
                    return
                finally:
                    now_s = time.perf_counter()
                    work_s += now_s - started_s
                length_s = audio_s(item)
                if length_s and not sound_s:
                    self._observe(FIRST_SOUND, now_s - came_s)
                sound_s += length_s
                yield item
        finally:
            self.worked(work_s, bool(sound_s), audio_s=sound_s)

    def segment(self, status: str) -> None:
        """A segment left the model with this status."""
        self._add(SEGMENTS, 1, status)

    def sequences(self, live: int, started: int, swept: int) -> None:
        """This instance holds so many sequences now; since it was loaded so many began and were given up."""
        with self._counting:  # a sweeping thread and one that answers
            before, self._sequences = self._sequences, (live, started, swept)
            if live != before[0]:
                _update(LIVE, (self._model,), lambda series: series.increment(float(live - before[0])))
            self._add(STARTED, started - before[1])
            self._add(SWEPT, swept - before[2])

    def slots(self, count: int) -> None:
        """The server takes so many streams at once, all instances together."""
        _update(SLOTS, (self._model,), lambda series: series.set(float(count)))

    def refused(self, code: str) -> None:
        """A stream was not taken."""
        self._add(REFUSED, 1, code)

    def key_frames(self, count: int, faceless: int) -> None:
        """So many key frames were looked at, so many of them with nobody."""
        self._add(KEY_FRAMES, count)
        self._add(FACELESS, faceless)

    def faces_lost(self, count: int) -> None:
        """So many faces that were shown are no longer there."""
        self._add(FACES_LOST, count)

    def degraded(self, parameters: Mapping[str, Any]) -> None:
        """The parameters of a request: how much its client leaves out, if it says so."""
        level = parameters.get(DEGRADE_PARAMETER)
        if isinstance(level, int) and not isinstance(level, bool) and 0 <= level <= LEVELS[-1]:
            self._observe(DEGRADE, float(level))

    def _add(self, family: Family, amount: float, *labels: str) -> None:
        if amount > 0:
            _update(family, (self._model, *labels), lambda series: series.increment(float(amount)))

    def _observe(self, family: Family, value: float) -> None:
        _update(family, (self._model,), lambda series: series.observe(value))

    def _look_at_shm(self) -> None:
        now_s = time.monotonic()
        if now_s - self._shm_at_s < SHM_EVERY_S:
            return
        self._shm_at_s = now_s
        try:
            free = os.statvfs(SHM)
        except OSError:
            return
        _update(SHM_SIZE, (), lambda series: series.set(float(free.f_blocks * free.f_frsize)))
        _update(SHM_FREE, (), lambda series: series.set(float(free.f_bavail * free.f_frsize)))


class Repeat:
    """Does something every so often in a thread of its own, until stopped: what must not wait for a request."""

    def __init__(self, every_s: float, work: Callable[[], object]) -> None:
        self._every_s = every_s
        self._work = work
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="repeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for what is under way, then no more. To be called from `finalize`."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._work()
            except Exception as error:  # the next round may do better
                log.warning("what is repeated failed: %s", logs.cause(error))


def span_s(times_ms: npt.NDArray[np.int64]) -> float:
    """How much video frames at these instants are, the last one's own time included; 0 for a single one."""
    count = len(times_ms)
    return float(times_ms[-1] - times_ms[0]) / 1000 * count / (count - 1) if count > 1 else 0.0


def markdown() -> str:
    """The table of all families, for docs/observability.md."""
    lines = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines)


# One thread at a time talks to the server about metrics: tritonserver 2.51 crashes when two change the same one.
_LOCK = threading.Lock()
_families: dict[str, Any] = {}  # kept for good: a series dies with its family
_series: dict[tuple[str, tuple[str, ...]], Any] = {}
_broken: set[str] = set()  # families that failed once: said once, then left alone


def _update(family: Family, values: tuple[str, ...], change: Callable[[Any], object]) -> None:
    """Apply `change` to the series with these label values. Never raises."""
    backend = _backend()
    if backend is None or family.name in _broken:
        return
    try:
        with _LOCK:
            change(_find(backend, family, tuple(map(_bounded, values))))
    except Exception as error:  # a request must not fail of its metrics
        _broken.add(family.name)
        log.warning("the metric %s is no longer kept: %s", family.name, " ".join(str(error).split()))


def _find(backend: Any, family: Family, values: tuple[str, ...]) -> Any:
    """The series, made where it is missing; under the lock."""
    if (found := _series.get((family.name, values))) is not None:
        return found
    if sum(name == family.name for name, _ in _series) >= MAX_SERIES:
        values = tuple(value if label == "model" else OTHER for label, value in zip(family.labels, values, strict=True))
        if (found := _series.get((family.name, values))) is not None:
            return found
    made = _families.get(family.name)
    if made is None:
        kind = getattr(backend.MetricFamily, family.kind.upper())
        made = _families[family.name] = backend.MetricFamily(name=family.name, description=family.help, kind=kind)
    labels = dict(zip(family.labels, values, strict=True))
    buckets = {"buckets": list(family.buckets)} if family.kind is Kind.HISTOGRAM else {}
    series = _series[family.name, values] = made.Metric(labels=labels, **buckets)
    return series


def _bounded(value: str) -> str:
    return value if _LABEL.fullmatch(value) else OTHER


@functools.cache
def _backend() -> Any | None:
    """Triton's utilities for Python models; None outside of it."""
    try:
        import triton_python_backend_utils as pb_utils  # noqa: PLC0415  importable inside the server only

        return pb_utils if hasattr(pb_utils, "MetricFamily") else None
    except ImportError:
        return None
