"""Time fitting: how fast a voice must speak to fill its slot. See docs/pipeline.md."""

from __future__ import annotations

from dataclasses import dataclass

MIN_RATE = 0.85  # slower sounds drowsy
MAX_RATE = 1.2  # faster is noticed by listeners
HARD_MAX_RATE = 1.3  # beyond this words are lost


@dataclass(frozen=True)
class Slot:
    """The time that speech has: what it should fill, and what it should not exceed. None: as long as it takes."""

    fill_ms: int | None = None
    limit_ms: int | None = None

    @property
    def given(self) -> bool:
        return self.fill_ms is not None or self.limit_ms is not None


def fit_rate(natural_ms: float, slot: Slot) -> float:
    """Speaking rate for speech that lasts `natural_ms` at its normal speed.

    Stays within [MIN_RATE, MAX_RATE] to fill the slot and goes up to HARD_MAX_RATE only to respect its limit. Words
    are never cut: what still does not fit runs over.
    """
    rate = 1.0
    if slot.fill_ms is not None and slot.fill_ms > 0:
        rate = min(max(natural_ms / slot.fill_ms, MIN_RATE), MAX_RATE)
    if slot.limit_ms is not None and slot.limit_ms > 0 and natural_ms / rate > slot.limit_ms:
        rate = max(rate, min(natural_ms / slot.limit_ms, HARD_MAX_RATE))
    return rate
