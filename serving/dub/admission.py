"""Which streams are let in: as many as there are slots, none while the server drains, no id twice.

A stream's slot is free again when it ends, or when it has been idle for longer than its budget: Triton tells a model
nothing when a sequence expires.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polylip.serving.dub.codes import Refusal, RefusedError

SLOTS_VARIABLE = "POLYLIP_SLOTS"  # of tritonserver: how many streams it takes at once
# The server drains while a file of this name is there; it holds the end of the drain, in milliseconds since 1970.
DRAIN_FILE_VARIABLE = "POLYLIP_DRAIN_FILE"
RETRY_AFTER_MS = 2000  # a slot is freed when a stream ends; asking more often only costs both sides
MOVE_MS = 20_000  # a stream on a draining server has at most so long to end its segment and begin anew elsewhere


@dataclass(frozen=True)
class Ask:
    """What the gate looks at of a request."""

    sequence: int
    start: bool = False
    end: bool = False
    timeout_us: int = 0  # of the request; 0: none
    replaces: int = 0  # the id of an earlier stream of the same client, whose slot it gives back


class Admission:
    """The live streams of one server. Times are of any monotonic clock, in seconds. May be swept by another thread."""

    def __init__(self, slots: int, idle_s: float, drain_file: Path | None = None) -> None:
        if slots < 1:
            raise ValueError(f"{slots} slots; give at least one")
        self.slots = slots
        self.started = 0  # streams let in
        self.swept = 0  # streams that ended by being idle
        self._lock = threading.Lock()
        self._idle_s = idle_s
        self._drain_file = drain_file
        self._live: dict[int, float] = {}  # id -> last use, idlest first

    @classmethod
    def of_server(cls, parameters: Mapping[str, str]) -> Admission:
        """As the environment says, else the parameters of the gate's config."""
        drain_file = os.environ.get(DRAIN_FILE_VARIABLE)
        return cls(
            int(os.environ.get(SLOTS_VARIABLE) or parameters["slots"]),
            float(parameters["idle_s"]),
            Path(drain_file) if drain_file else None,
        )

    def __len__(self) -> int:
        return len(self._live)

    @property
    def draining(self) -> bool:
        return self._drain_file is not None and self._drain_file.exists()

    @property
    def move_ms(self) -> int:
        """How long running streams have to go elsewhere; 0 while they may stay."""
        if self._drain_file is None or not self._drain_file.exists():
            return 0
        ends_ms = self._drain_file.read_text().strip()
        left_ms = float(ends_ms) - time.time() * 1000 if ends_ms.isdecimal() else MOVE_MS
        return round(min(MOVE_MS, max(1.0, left_ms)))

    def admit(self, ask: Ask, now_s: float) -> None:
        """Count the request's stream in, on, or out. Raises RefusedError, and then changes nothing."""
        self.sweep(now_s)
        with self._lock:
            if ask.sequence == 0:
                raise RefusedError(Refusal.BAD_REQUEST, "the sequence id is 0; draw a random one of 63 bits")
            if ask.start:
                self._check_start(ask)
                self._live.pop(ask.replaces, None)
                self.started += 1
            elif ask.sequence not in self._live:
                raise RefusedError(
                    Refusal.SEQUENCE_LOST,
                    f"the stream is not live here (never started, ended, or idle for over {self._idle_s:g} s); "
                    "START with a new id",
                )
            self._live.pop(ask.sequence, None)
            if not ask.end:
                self._live[ask.sequence] = now_s

    def sweep(self, now_s: float) -> None:
        """Give back the slots of streams that have been idle for too long."""
        with self._lock:
            idle = [key for key, used_s in self._live.items() if now_s - used_s > self._idle_s]
            for key in idle:
                del self._live[key]
            self.swept += len(idle)

    def _check_start(self, ask: Ask) -> None:
        if ask.timeout_us <= 0:
            raise RefusedError(
                Refusal.BAD_REQUEST,
                "START needs the request parameter `timeout` in microseconds, for instance 30000000",
            )
        if ask.sequence in self._live:
            raise RefusedError(Refusal.TAKEN, "a stream with this id is live; draw another random id")
        if self.draining:
            raise RefusedError(Refusal.DRAINING, "the server is draining; ask another one", 0)
        if len(self._live) - (ask.replaces in self._live) >= self.slots:
            raise RefusedError(Refusal.FULL, f"all {self.slots} slots are taken", RETRY_AFTER_MS)
