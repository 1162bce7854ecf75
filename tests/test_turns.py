"""Streams of speech in turns: nobody waits for another's whole sentence, and one stream's fault is its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from polylip.serving.turns import Turn, Turns


class Listener:
    """Takes a stream's end and notes every step in a log shared by all."""

    def __init__(self, name: str, log: list[str], steps: int, seconds: float = 1.0) -> None:
        self.name, self.log, self.ended = name, log, threading.Event()
        self.error: Exception | None = None
        self.steps, self.seconds = steps, seconds

    def turn(self, gate: threading.Event | None = None, fails_at: int | None = None, stream: str = "") -> Turn:
        return Turn(self._run(gate, fails_at), self._end, stream)

    def _run(self, gate: threading.Event | None, fails_at: int | None) -> Iterator[float]:
        for step in range(self.steps):
            if gate is not None:
                gate.wait(5)
            if step == fails_at:
                raise RuntimeError(f"{self.name} broke")
            self.log.append(self.name)
            yield self.seconds

    def _end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()


@pytest.fixture
def turns() -> Iterator[Turns]:
    opened = Turns()
    yield opened
    opened.close()


def test_a_newcomer_is_heard_before_the_others_go_on(turns):
    log: list[str] = []
    gate = threading.Event()
    first, second = Listener("first", log, 5), Listener("second", log, 2)
    turns.add(first.turn(gate))
    turns.add(second.turn())
    gate.set()
    assert first.ended.wait(5) and second.ended.wait(5)
    assert log[:2] == ["first", "second"]
    assert log.count("first") == 5 and log.count("second") == 2


def test_whoever_runs_dry_soonest_goes_on(turns):
    log: list[str] = []
    gate = threading.Event()
    long, short = Listener("long", log, 3, seconds=10), Listener("short", log, 6, seconds=0.1)
    turns.add(long.turn(gate))
    turns.add(short.turn())
    gate.set()
    assert long.ended.wait(5) and short.ended.wait(5)
    assert log == ["long"] + ["short"] * 6 + ["long"] * 2


def test_segments_of_one_stream_are_made_in_order_and_others_come_in_between(turns):
    log: list[str] = []
    gate = threading.Event()
    first, second, other = Listener("first", log, 3), Listener("second", log, 2), Listener("other", log, 1)
    turns.add(first.turn(gate, stream="a"))
    turns.add(second.turn(stream="a"))
    turns.add(other.turn(stream="b"))
    gate.set()
    assert all(listener.ended.wait(5) for listener in (first, second, other))
    assert log == ["first", "other", "first", "first", "second", "second"]


def test_a_stream_that_breaks_ends_once_with_its_error_and_the_others_go_on(turns):
    log: list[str] = []
    gate = threading.Event()
    broken, well = Listener("broken", log, 3), Listener("well", log, 3)
    turns.add(broken.turn(gate, fails_at=1))
    turns.add(well.turn())
    gate.set()
    assert broken.ended.wait(5) and well.ended.wait(5)
    assert str(broken.error) == "broken broke" and well.error is None
    assert log.count("broken") == 1 and log.count("well") == 3


def test_too_many_streams_wait_until_one_has_ended():
    turns = Turns(max_open=1)
    log: list[str] = []
    gate, added = threading.Event(), threading.Event()
    first, second = Listener("first", log, 1), Listener("second", log, 1)
    turns.add(first.turn(gate))
    waiting = threading.Thread(target=lambda: (turns.add(second.turn()), added.set()))
    waiting.start()
    assert not added.wait(0.2)
    gate.set()
    assert added.wait(5) and second.ended.wait(5)
    waiting.join()
    turns.close()
    assert log == ["first", "second"]


def test_closing_finishes_what_is_open():
    turns, log = Turns(), []
    listeners = [Listener(str(i), log, 4) for i in range(3)]
    for listener in listeners:
        turns.add(listener.turn())
    turns.close()
    assert all(listener.ended.is_set() for listener in listeners) and len(log) == 12
