"""Keeps a live source's sound with its picture, by what mouth and voice and the clocks of both say (docs/sync.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from polylip.client.drift import SyncCorrector, SyncState, relative_skew_ppm
from polylip.client.listening import SoundReader
from polylip.client.live.source import LiveSource
from polylip.client.mix import Float32
from polylip.client.sound_mover import SoundMover
from polylip.client.sync import SourceSync
from polylip.client.vad import SPEECH_RATE_HZ

SKEW_S = 10.0  # between two looks at the clocks
UNKNOWN = "unknown"  # nothing was measured, so nothing says whether sound and picture agree
PAUSE_MS = 1000.0  # behind a closed segment in which a step is not heard


class SyncedSound:
    """A sound reader whose times are those of the picture."""

    def __init__(self, reader: SoundReader, corrector: SyncCorrector, sample_rate_hz: int, channels: int) -> None:
        self._reader = reader
        self._native = SoundMover(corrector, sample_rate_hz, channels)
        self._mono = SoundMover(corrector, SPEECH_RATE_HZ, 1)
        self._ended = False

    @property
    def damaged(self) -> int:
        return self._reader.damaged

    def read(self, seconds: float) -> tuple[Float32, Float32] | None:
        """As of the reader; a little of the sound stays back until the next call."""
        piece = self._reader.read(seconds)
        if piece is not None:
            return self._native.push(piece[0]), self._mono.push(piece[1][None])[0]
        if self._ended:
            return None
        self._ended = True
        return self._native.flush(), self._mono.flush()[0]


class LiveSync:
    """What a live job does about sound and picture of its source."""

    def __init__(self, source: LiveSource) -> None:
        self._source = source
        self.measured = SourceSync(applied=True)
        self._reconnects = 0
        self._looked_s = 0.0
        self.skew_ppm: float | None = None

    @property
    def corrector(self) -> SyncCorrector:
        return self.measured.corrector

    def paused(self, heard_ms: float) -> None:
        """A segment has closed: nobody speaks now."""
        self.corrector.pause(heard_ms, heard_ms + PAUSE_MS)

    def look(self, now_s: float) -> None:
        """At the clocks, every now and then; and whether the source came back with new ones."""
        head_ms = self._source.newest_ms
        if self._source.counts.reconnects > self._reconnects:
            self._reconnects = self._source.counts.reconnects
            self.measured.restart(head_ms)
        if now_s - self._looked_s < SKEW_S:
            return
        self._looked_s = now_s
        self.skew_ppm = relative_skew_ppm(self._source.clocks["audio"], self._source.clocks["video"])
        if self.skew_ppm is not None:
            self.corrector.skew(head_ms, self.skew_ppm)

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        corrector, windows = self.corrector, self.measured.windows
        unknown = corrector.state is SyncState.SYNCED and not windows.measured
        return {
            "windows": asdict(windows),
            "state": UNKNOWN if unknown else str(corrector.state),
            "correction_ms": corrector.correction_ms(self._source.newest_ms),
            "corrections": corrector.corrections,
            "steps": corrector.steps,
            "resyncs": corrector.resyncs,
            "skew_ppm": self.skew_ppm,
        }
