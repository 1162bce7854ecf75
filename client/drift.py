"""Keeps sound and picture of a live source together: skew of their clocks, and a correction from measured offsets.

Pure arithmetic on given times: integers of nanoseconds inside, milliseconds at the surface. The correction is a time
to be *added to the sound's* timestamps, positive when the picture is late. docs/sync.md says where and why.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

# Skew.
BIN_NS = 2 * NS_PER_S  # of each, the point that came with the least delay counts: queues only ever add
KEEP_BINS = 300  # 10 minutes: clocks change their rate with temperature, and pairs grow with the square
MIN_BINS = 15
MAX_ERROR_PPM = 20.0  # of a slope that is worth having; 50 ppm are 3 ms per minute
MAX_SKEW_PPM = 1000.0  # quartzes have 100 at most: what is beyond is a wrong frame or sample rate

# Correction. Viewers notice sound that is 45 ms early or 125 ms late (ITU-R BT.1359-1).
EARLY_MS = 45.0  # sound so early, that is a picture so late, twice running ...
FAR_MS = 100.0  # ... or an offset of this size either way, twice running, is corrected ...
TWICE = 2
LASTING = 5  # ... and one beyond EARLY_MS either way for so many estimates running
MEDIAN_OF = 3
AGREE_MS = 80.0  # estimates that are further apart than this are none
EVERY_MS = 2000  # from one estimate to the next
SCATTER_OF = 30  # estimates, a minute of them, by which their scatter is known: neighbours share most of their window
MIN_SCATTER_OF = 5
FIRST_SCATTER_MS = 10.0  # taken for it until there are so many
SCATTER_GUARD = 3.0  # times the scatter is added to EARLY_MS: estimates that scatter are believed later ...
LEAST_GUARD_MS = 5.0  # ... and so much at least, which is what the best of them are off
SLEW = Fraction(1, 100)  # 10 ms per second: 17 cents of a semitone
STEP_FROM_MS = 200.0  # a correction of this size would take 20 s: it is made at once, in a pause
KEEP_MS = 120_000  # of past corrections

ATTEMPT_WINDOWS_MS = (2000, 5000, 10_000)
BACK_OFFS_MS = (50, 100, 200)
JITTER = 0.5  # of a back-off, up or down


def exact_ns(ticks: int, time_base: Fraction) -> int:
    """A timestamp of a stream in nanoseconds, rounded once. Sums of rounded frame lengths would wander off."""
    return round(ticks * time_base * NS_PER_S)


def to_ns(time_ms: float) -> int:
    return round(time_ms * NS_PER_MS)


class DriftTracker:
    """The rate of one stream's clock against another clock, from pairs of times of the same events.

    For a live source: the media time of a packet, and when it came. A Theil-Sen line through the earliest arrivals:
    half of the points may be anything.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything: the source has started anew."""
        self._bins: deque[tuple[int, int]] = deque(maxlen=KEEP_BINS)  # (media_ns, clock_ns - media_ns)
        self._bin: int | None = None  # number of the newest one
        self._origin_ns = 0
        self._fit: tuple[float, float] | None = None  # (skew, its standard error) in ppm
        self._stale = False

    def add(self, media_ns: int, clock_ns: int) -> None:
        """One event; one that is older than two seconds counts no more."""
        if not self._bins:
            self._origin_ns = clock_ns - media_ns
        point = media_ns, clock_ns - media_ns - self._origin_ns
        number = media_ns // BIN_NS
        if self._bin is None or number > self._bin:
            self._bins.append(point)
            self._bin = number
            self._stale = True
        elif number == self._bin and point[1] < self._bins[-1][1]:
            self._bins[-1] = point

    @property
    def skew_ppm(self) -> float | None:
        """How much slower than the clock the media's time runs; None while that is not known to MAX_ERROR_PPM."""
        fit = self._fitted()
        if fit is None or fit[1] > MAX_ERROR_PPM or abs(fit[0]) > MAX_SKEW_PPM:
            return None
        return fit[0]

    @property
    def error_ppm(self) -> float | None:
        """Standard error of the slope; None with too few points."""
        fit = self._fitted()
        return None if fit is None else fit[1]

    def _fitted(self) -> tuple[float, float] | None:
        """All but the newest bin, which is not complete."""
        if self._stale:
            self._stale = False
            points = np.array(self._bins, np.float64)[:-1]
            self._fit = _theil_sen(points[:, 0], points[:, 1]) if len(points) >= MIN_BINS else None
        return self._fit


def _theil_sen(x: Float64, y: Float64) -> tuple[float, float]:
    """Slope and its standard error, both in millionths."""
    first, second = np.triu_indices(len(x), 1)
    slope = float(np.median((y[second] - y[first]) / (x[second] - x[first])))
    rest = y - slope * x
    scatter = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    error = scatter / float(np.sqrt(np.sum((x - x.mean()) ** 2)))
    return slope * 1e6, error * 1e6


def relative_skew_ppm(sound: DriftTracker, picture: DriftTracker) -> float | None:
    """How fast the picture falls behind the sound, in microseconds per second; for `SyncCorrector.skew`."""
    if sound.skew_ppm is None or picture.skew_ppm is None:
        return None
    return sound.skew_ppm - picture.skew_ppm


class SyncState(StrEnum):
    """What the corrector is at."""

    SYNCED = "synced"  # nothing to do, as far as is known
    MOVING = "moving"  # a correction is coming in, slowly
    WAITING = "waiting"  # for a pause to make a large one in
    RESYNCING = "resyncing"  # the source started anew, or its estimates contradict each other
    UNSYNCED = "unsynced"  # three attempts gave nothing: the timestamps are kept as they are


@dataclass(frozen=True)
class _Leg:
    """The correction from a time on: a part that moves to its goal by SLEW, and a part that runs with the skew."""

    from_ns: int
    start_ns: int
    goal_ns: int
    skew: Fraction

    def moving_ns(self, at_ns: int) -> int:
        reach = max(0, int((at_ns - self.from_ns) * SLEW))
        away = self.goal_ns - self.start_ns
        return self.start_ns + max(-reach, min(reach, away))

    def skewed_ns(self, at_ns: int) -> int:
        return round((at_ns - self.from_ns) * self.skew)

    def at(self, at_ns: int) -> int:
        return self.moving_ns(at_ns) + self.skewed_ns(at_ns)


class SyncCorrector:
    """Decides from the source's offsets when, and by how much, its sound is to be moved against its picture.

    Offsets are those of the timestamps as they came, without any correction. A correction that was asked for is never
    revised: changes begin at the latest time that was asked for, or later. Any thread may ask or tell.
    """

    def __init__(self, jitter: np.random.Generator | None = None) -> None:
        self._random = jitter or np.random.default_rng()
        self._lock = threading.Lock()  # the sound is moved in one thread and measured in another
        self._legs: list[_Leg] = [_Leg(0, 0, 0, Fraction(0))]
        self._asked_ns = 0
        self._offsets: deque[float] = deque(maxlen=MEDIAN_OF)
        self._scatter: deque[float] = deque(maxlen=SCATTER_OF)
        self._running: dict[str, int] = {}
        self._step_ns: int | None = None  # a goal that waits for a pause
        self._attempt: int | None = None  # number of the next one, while resyncing
        self._not_before_ms = 0.0
        self._last_ms: float | None = None  # of the newest estimate, clear or not
        self._unsynced = False
        self.corrections = 0
        self.steps = 0  # of them, at once
        self.resyncs = 0
        self.given_up = 0  # of them

    def correction_ms(self, at_ms: float) -> int:
        """To be added to the sound's time at a media time of the picture, to the millisecond."""
        return round(Fraction(self.correction_ns(to_ns(at_ms)), NS_PER_MS))

    def correction_ns(self, at_ns: int) -> int:
        """The same exactly, for resamplers."""
        with self._lock:
            self._asked_ns = max(self._asked_ns, at_ns)
            return self._leg(at_ns).at(at_ns)

    @property
    def state(self) -> SyncState:
        """At the latest time that was asked for."""
        if self._unsynced:
            return SyncState.UNSYNCED
        if self._attempt is not None:
            return SyncState.RESYNCING
        if self._step_ns is not None:
            return SyncState.WAITING
        leg = self._legs[-1]
        return SyncState.SYNCED if leg.moving_ns(self._asked_ns) == leg.goal_ns else SyncState.MOVING

    @property
    def offset_ms(self) -> float | None:
        """The median of the newest estimates; None before the first."""
        return float(np.median(self._offsets)) if self._offsets else None

    def due(self, at_ms: float, known_ms: float) -> int | None:
        """The window to measure now, in ms of voiced source, of which `known_ms` are at hand; None: not now."""
        if at_ms < self._not_before_ms:
            return None
        if self._attempt is not None:
            window_ms = ATTEMPT_WINDOWS_MS[self._attempt]
            return window_ms if known_ms >= window_ms else None
        if known_ms < ATTEMPT_WINDOWS_MS[1] or (self._last_ms is not None and at_ms - self._last_ms < EVERY_MS):
            return None
        return ATTEMPT_WINDOWS_MS[-1]

    def observe(self, at_ms: float, offset_ms: float | None) -> None:
        """The window that was due, as measured at a media time; None: unclear."""
        with self._lock:
            self._last_ms = at_ms
            if self._attempt is not None:
                self._try(at_ms, offset_ms)
            elif offset_ms is not None:
                self._judge(at_ms, offset_ms)

    def restart(self, at_ms: float) -> None:
        """The source's timestamps start anew: what is known of its offset does not hold any more."""
        with self._lock:
            self._resync(at_ms)

    def pause(self, start_ms: float, end_ms: float) -> None:
        """Nobody speaks in between: a large correction may be made there, unless it was asked for already."""
        with self._lock:
            at_ns = self._free_ns(start_ms)
            if self._step_ns is not None and at_ns <= to_ns(end_ms):
                self._turn(at_ns, self._step_ns, at_once=True)
                self.steps += 1
                self._step_ns = None

    def skew(self, at_ms: float, ppm: float) -> None:
        """The picture falls behind the sound by so many microseconds per second, from a time on."""
        rate = Fraction(round(ppm * 1000), 1_000_000_000)
        with self._lock:
            at_ns = self._free_ns(at_ms)
            leg = self._leg(at_ns)
            here = leg.skewed_ns(at_ns)
            self._append(_Leg(at_ns, leg.moving_ns(at_ns) + here, leg.goal_ns + here, rate))
            if self._step_ns is not None:
                self._step_ns += here

    def _judge(self, at_ms: float, offset_ms: float) -> None:
        self._unsynced = False
        self._offsets.append(offset_ms)
        self._scatter.append(offset_ms)
        rest_ms = float(np.median(self._offsets)) - self._goal_ms(at_ms)
        early_ms = EARLY_MS + max(LEAST_GUARD_MS, SCATTER_GUARD * self._scatter_ms)
        wrong = self._count("far", abs(rest_ms) > FAR_MS) >= TWICE
        wrong |= self._count("early", rest_ms > early_ms) >= TWICE
        wrong |= self._count("lasting", abs(rest_ms) > early_ms) >= LASTING
        if not wrong:
            return
        if max(self._offsets) - min(self._offsets) > AGREE_MS:
            self._resync(at_ms)
        else:
            self._correct(at_ms, rest_ms)

    @property
    def _scatter_ms(self) -> float:
        """Standard deviation of the estimates, as if they were normal, whatever a few of them are."""
        if len(self._scatter) < MIN_SCATTER_OF:
            return FIRST_SCATTER_MS
        return float(1.4826 * np.median(np.abs(np.array(self._scatter) - np.median(self._scatter))))

    def _count(self, name: str, holds: bool) -> int:
        """How often in a row."""
        self._running[name] = self._running.get(name, 0) + 1 if holds else 0
        return self._running[name]

    def _goal_ms(self, at_ms: float) -> float:
        """The correction that is decided last, as if it held at a time: estimates come seconds behind the sound."""
        at_ns, leg = to_ns(at_ms), self._legs[-1]
        goal_ns = leg.goal_ns if self._step_ns is None else self._step_ns
        return (goal_ns + leg.skewed_ns(at_ns)) / NS_PER_MS

    def _correct(self, at_ms: float, rest_ms: float) -> None:
        self.corrections += 1
        self._running.clear()
        at_ns = self._free_ns(at_ms)
        leg = self._leg(at_ns)
        goal_ns = (leg.goal_ns if self._step_ns is None else self._step_ns) + to_ns(rest_ms)
        self._step_ns = None
        if abs(goal_ns - leg.moving_ns(at_ns)) < to_ns(STEP_FROM_MS):
            self._turn(at_ns, goal_ns)
        else:
            self._step_ns = goal_ns

    def _resync(self, at_ms: float) -> None:
        self._attempt, self._unsynced = 0, False
        self._not_before_ms = at_ms
        self._step_ns = None
        self._offsets.clear()
        self._scatter.clear()
        self._running.clear()
        self.resyncs += 1

    def _try(self, at_ms: float, offset_ms: float | None) -> None:
        """The answer to an attempt."""
        assert self._attempt is not None  # noqa: S101  only called while resyncing
        if offset_ms is not None:
            self._attempt = None
            self._offsets.append(offset_ms)
            rest_ms = offset_ms - self._goal_ms(at_ms)
            if abs(rest_ms) > EARLY_MS:
                self._correct(at_ms, rest_ms)
            return
        back_off_ms = BACK_OFFS_MS[self._attempt] * (1 + self._random.uniform(-JITTER, JITTER))
        self._not_before_ms = at_ms + back_off_ms
        self._attempt += 1
        if self._attempt == len(ATTEMPT_WINDOWS_MS):
            self._attempt, self._unsynced = None, True
            self.given_up += 1

    def _turn(self, at_ns: int, goal_ns: int, *, at_once: bool = False) -> None:
        """From a time on, move to a goal. The skew's part so far goes into the moving part."""
        leg = self._leg(at_ns)
        here = leg.skewed_ns(at_ns)
        start_ns = goal_ns if at_once else leg.moving_ns(at_ns)
        self._append(_Leg(at_ns, start_ns + here, goal_ns + here, leg.skew))

    def _free_ns(self, at_ms: float) -> int:
        """The earliest time from then on at which something may still be changed."""
        return max(to_ns(at_ms), self._asked_ns, self._legs[-1].from_ns)

    def _append(self, leg: _Leg) -> None:
        if self._legs[-1].from_ns == leg.from_ns:
            self._legs.pop()
        self._legs.append(leg)
        while len(self._legs) > 1 and self._legs[1].from_ns < leg.from_ns - to_ns(KEEP_MS):
            self._legs.pop(0)

    def _leg(self, at_ns: int) -> _Leg:
        return self._legs[max(0, bisect_right(self._legs, at_ns, key=lambda leg: leg.from_ns) - 1)]
