"""Several streams of speech made in turns by one thread, so that no listener waits for another's whole sentence.

Whoever has heard nothing yet comes first, in order of arrival; then whoever will run dry soonest. What belongs to one
media stream is made in order: a segment cannot be heard before the one in front of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MAX_OPEN = 16  # streams in turns at once; further ones wait in Triton's queue


@dataclass(eq=False)
class Turn:
    """One stream. `steps` does the work of a chunk per item and yields its length in seconds."""

    steps: Iterator[float]
    on_end: Callable[[Exception | None], None]  # called once, with what went wrong
    stream: str = ""  # the media stream it belongs to; empty: one of its own
    started_at: float = field(default_factory=time.monotonic)
    heard_s: float = 0.0  # of sound sent so far

    @property
    def urgency(self) -> tuple[bool, float]:
        """Sorts before others: nothing heard yet, then by the moment at which its listener runs dry."""
        return self.heard_s > 0, self.started_at + self.heard_s


class Turns:
    """Runs turns in one thread until closed."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self._max_open = max_open
        self._open: list[Turn] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._thread.start()

    def add(self, turn: Turn) -> None:
        """Take a stream in; waits while there are too many."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._open) < self._max_open)
            self._open.append(turn)
            self._changed.notify_all()

    def close(self) -> None:
        """Finish what is open, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            try:
                first = turn.heard_s == 0
                turn.heard_s += next(turn.steps)
                if first:
                    turn.started_at = time.monotonic()  # its listener starts to hear now
            except StopIteration:
                self._end(turn, None)
            except Exception as error:  # one stream's fault must not end the others
                self._end(turn, error)

    def _next(self) -> Turn | None:
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._closing)
            return min(self._first_of_each_stream(), key=lambda turn: turn.urgency, default=None)

    def _first_of_each_stream(self) -> Iterator[Turn]:
        seen: set[str] = set()
        for turn in self._open:
            if turn.stream not in seen:
                yield turn
            if turn.stream:
                seen.add(turn.stream)

    def _end(self, turn: Turn, error: Exception | None) -> None:
        try:
            turn.on_end(error)
        finally:
            with self._changed:
                self._open.remove(turn)
                self._changed.notify_all()
