"""The sequences that a model holds: counted for the metrics, and given up when idle, also while no request comes."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from polylip.serving.metrics import ModelMetrics, Repeat


class Held(Protocol):
    """Sequences by their ids. May be swept by another thread than the one that uses them."""

    started: int  # since ever
    swept: int  # of them, given up as nothing more came

    def __len__(self) -> int: ...

    def sweep(self, now_s: float) -> object:
        """Give up the idle ones. `now_s` is that of time.monotonic()."""
        ...


class Sweeping:
    """Looks every so often, and whenever it is told to, until stopped."""

    def __init__(self, metrics: ModelMetrics, held: Held, every_s: float) -> None:
        self._metrics, self._held = metrics, held
        self._lock = threading.Lock()
        self._repeat = Repeat(every_s, self.look)

    def look(self) -> None:
        """Sweep, and tell the metrics. Called by two threads, of which the later must not tell older figures."""
        with self._lock:
            self._held.sweep(time.monotonic())
            self._metrics.sequences(len(self._held), self._held.started, self._held.swept)

    def stop(self) -> None:
        """To be called from `finalize`."""
        self._repeat.stop()
