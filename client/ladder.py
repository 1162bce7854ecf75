"""The ladder of a live job: what is left out, step by step, while the server is slow, and when it comes back.

A job of a file never leaves Level.FULL.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from polylip.client.named_log import NamedLog

HOLD_S = 1.0  # between two steps down: what is already under way must not count twice
CALM_S = 10.0  # without any pressure before a step up ...
MAX_CALM_S = 80.0  # ... twice as long after each step up that did not hold
RELAPSE_S = 20.0  # a step up that is taken back within this time did not hold; a segment needs so long to be missed


class Level(IntEnum):
    """What the viewers get, from everything to what came in."""

    FULL = 0
    HALF_LIPS = 1  # every second frame is re-lipped, its neighbour shows the same mouth
    SOUND = 2  # dubbed sound on the original picture
    CAPTIONS = 3  # original picture and sound, the translation as text
    ORIGINAL = 4  # nothing is asked of the server


class Pressure(StrEnum):
    """What missed its time."""

    LIPS = "lips"
    FACES = "faces"
    SPEECH = "speech"
    CAPTIONS = "captions"
    OUTPUT = "output"


# How far down each kind of pressure leads: beyond it, leaving more out would not help.
LOWEST = {
    Pressure.LIPS: Level.SOUND,
    Pressure.FACES: Level.SOUND,
    Pressure.OUTPUT: Level.SOUND,
    Pressure.SPEECH: Level.CAPTIONS,
    Pressure.CAPTIONS: Level.ORIGINAL,
}


@dataclass(frozen=True)
class Step:
    """One change of level."""

    at_s: float  # since the ladder was made
    before: Level
    after: Level
    reason: str

    def to_dict(self) -> dict[str, object]:
        """For report.json."""
        return {
            "at_s": round(self.at_s, 3),
            "from": self.before.name.lower(),
            "to": self.after.name.lower(),
            "reason": self.reason,
        }


class Ladder:
    """Goes down at once, one step at a time, and up again carefully."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, log: NamedLog | None = None) -> None:
        self._clock = clock
        self._log = log or NamedLog(None)
        self._origin_s = clock()
        self._level = Level.FULL
        self._stepped_s = -HOLD_S  # times are since the origin
        self._raised_s = -RELAPSE_S
        self._pressed_s = 0.0
        self._calm_s = CALM_S
        self.steps: list[Step] = []
        self.pressures = dict.fromkeys(Pressure, 0)

    @property
    def level(self) -> Level:
        """Now. Whoever is about to ask the server looks here first."""
        self._rise()
        return self._level

    def press(self, pressure: Pressure, detail: str) -> None:
        """Something missed its time."""
        now_s = self._now_s()
        self.pressures[pressure] += 1
        self._pressed_s = now_s
        if self._level >= LOWEST[pressure] or now_s - self._stepped_s < HOLD_S:
            return
        relapse = now_s - self._raised_s < RELAPSE_S
        self._calm_s = min(self._calm_s * 2, MAX_CALM_S) if relapse else CALM_S
        self._step(Level(self._level + 1), f"{pressure}: {detail}")

    def _rise(self) -> None:
        now_s = self._now_s()
        calm_since_s = max(self._pressed_s, self._stepped_s)
        if self._level is Level.FULL or now_s - calm_since_s < self._calm_s:
            return
        self._raised_s = now_s
        self._step(Level(self._level - 1), f"calm for {self._calm_s:.0f} s")

    def _step(self, level: Level, reason: str) -> None:
        step = Step(self._now_s(), self._level, level, reason)
        self._level = level
        self._stepped_s = step.at_s
        self.steps.append(step)
        say = self._log.warning if step.after > step.before else self._log.info
        say("%s -> %s (%s)", step.before.name.lower(), step.after.name.lower(), reason)

    def _now_s(self) -> float:
        return self._clock() - self._origin_s
