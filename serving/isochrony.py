"""Time fitting: how fast a voice must speak to fill its slot, and how that is shared out. See docs/isochrony.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MIN_RATE = 0.85  # slower sounds drowsy
MAX_RATE = 1.2  # faster is noticed by listeners
HARD_MAX_RATE = 1.3  # beyond this words are lost


class Fit(StrEnum):
    """How strictly speech keeps to its slot."""

    NATURAL = "natural"  # the voice first: runs over into the pause rather than hurry
    TIGHT = "tight"  # the range that listeners accept; faster only where it would not fit at all
    STRICT = "strict"  # the slot first: as fast as words survive


@dataclass(frozen=True)
class Range:
    """Speaking rates, 1 = the normal speed of the voice."""

    slowest: float  # to fill the slot
    fastest: float  # to fill the slot
    hard_max: float  # to respect the limit


RANGES = {
    Fit.NATURAL: Range(0.95, 1.1, MAX_RATE),
    Fit.TIGHT: Range(MIN_RATE, MAX_RATE, HARD_MAX_RATE),
    Fit.STRICT: Range(MIN_RATE, HARD_MAX_RATE, HARD_MAX_RATE),
}


@dataclass(frozen=True)
class Slot:
    """The time that speech has: what it should fill, and what it should not exceed. None: as long as it takes."""

    fill_ms: int | None = None
    limit_ms: int | None = None
    fit: Fit = Fit.TIGHT

    def less(self, spent_ms: float) -> Slot:
        """What is left of it; at least a moment, so that late speech hurries."""
        fill, limit = (None if ms is None else max(1, ms - round(spent_ms)) for ms in (self.fill_ms, self.limit_ms))
        return Slot(fill, limit, self.fit)


ANY_LENGTH = Slot()


def parse_fit(name: str) -> Fit:
    """The preset of this name; an empty one is the default. Raises ValueError listing them."""
    try:
        return Fit(name) if name else Fit.TIGHT
    except ValueError:
        raise ValueError(f"FIT {name!r} is unknown; send one of: {', '.join(Fit)}") from None


def fit_rate(natural_ms: float, slot: Slot) -> float:
    """Speaking rate for speech that lasts `natural_ms` at its normal speed.

    Stays within the preset's range to fill the slot and goes up to its hard maximum only to respect the limit. Words
    are never cut: what still does not fit runs over.
    """
    allowed = RANGES[slot.fit]
    rate = 1.0
    if slot.fill_ms is not None and slot.fill_ms > 0:
        rate = min(max(natural_ms / slot.fill_ms, allowed.slowest), allowed.fastest)
    if slot.limit_ms is not None and slot.limit_ms > 0 and natural_ms / rate > slot.limit_ms:
        rate = max(rate, min(natural_ms / slot.limit_ms, allowed.hard_max))
    return rate


def share(rate: float, speeds: tuple[float, float]) -> tuple[float, float]:
    """(the engine's own speed, the stretch of its sound) whose product is `rate`; the engine does what it can."""
    speed = min(max(rate, speeds[0]), speeds[1])
    return speed, rate / speed
