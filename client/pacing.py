"""How a job keeps time. That of a file does not: it takes as long as it takes, and leaves nothing out."""

from __future__ import annotations

import math

from polylip.client.ladder import Level, Pressure


class Pacing:
    """Of a file. A live job has its own (polylip.client.live.playout)."""

    @property
    def live(self) -> bool:
        """Whether what is not ready in time is left out."""
        return False

    @property
    def level(self) -> Level:
        """What is to be done at all."""
        return Level.FULL

    def left_s(self, time_ms: float) -> float:
        """Seconds until picture and sound of a time on the video's timeline must be ready to be sent."""
        return math.inf

    def since_ms(self, time_ms: float) -> float | None:
        """How long ago the source was at a time; None where it does not run by itself."""
        return None

    def has_floor(self, start_ms: float, end_ms: float) -> bool:
        """Whether the server may be asked about these times, as far as is known now: in a call others may speak."""
        return True

    async def passes(self, start_ms: float, end_ms: float) -> bool:
        """Whether it may not, once that is known for good: they then go out as they came."""
        return False

    def segment_closed(self, heard_ms: float) -> None:
        """A segment has closed; so much of the sound has been heard."""

    def sound_ended(self) -> None:
        """All has been heard."""

    def missed(self, pressure: Pressure, detail: str) -> None:
        """Something was not ready in time."""
