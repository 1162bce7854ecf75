"""The ladder: down at once and one step at a time, up carefully, and never further than helps."""

from __future__ import annotations

import pytest

from polylip.client.ladder import CALM_S, HOLD_S, LOWEST, MAX_CALM_S, RELAPSE_S, Ladder, Level, Pressure


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def press_down(ladder: Ladder, clock: Clock, pressure: Pressure, times: int) -> None:
    for _ in range(times):
        ladder.press(pressure, "test")
        clock.now_s += HOLD_S


def test_one_step_for_one_miss(clock: Clock):
    ladder = Ladder(clock)
    for _ in range(5):  # all of one batch
        ladder.press(Pressure.LIPS, "test")
    assert ladder.level is Level.HALF_LIPS
    assert ladder.pressures[Pressure.LIPS] == 5


@pytest.mark.parametrize("pressure", Pressure)
def test_no_kind_of_pressure_leads_further_than_helps(clock: Clock, pressure: Pressure):
    ladder = Ladder(clock)
    press_down(ladder, clock, Pressure.SPEECH if pressure is Pressure.CAPTIONS else pressure, 10)
    press_down(ladder, clock, pressure, 10)
    assert ladder.level is LOWEST[pressure]


def test_calm_leads_back_step_by_step(clock: Clock):
    ladder = Ladder(clock)
    press_down(ladder, clock, Pressure.SPEECH, 3)
    assert ladder.level is Level.CAPTIONS
    seen = []
    for _ in range(3):
        clock.now_s += CALM_S - 1.5
        before = ladder.level
        clock.now_s += 1.5
        seen.append((before, ladder.level))
    assert seen == [(Level.CAPTIONS, Level.SOUND), (Level.SOUND, Level.HALF_LIPS), (Level.HALF_LIPS, Level.FULL)]
    assert [(s.before, s.after) for s in ladder.steps][-1] == (Level.HALF_LIPS, Level.FULL)


def test_a_step_up_that_does_not_hold_is_tried_more_rarely(clock: Clock):
    """A server that stays too slow: the ladder swings, but ever more slowly, up to a bound."""
    ladder = Ladder(clock)
    press_down(ladder, clock, Pressure.LIPS, 1)
    waits = []
    for _ in range(6):
        since = clock.now_s
        while ladder.level is not Level.FULL:
            clock.now_s += 0.5
        waits.append(clock.now_s - since)
        clock.now_s += HOLD_S
        ladder.press(Pressure.LIPS, "again")
    assert waits == pytest.approx([10, 20, 40, 80, 80, 80], abs=1.5)
    assert waits[0] == pytest.approx(CALM_S, abs=1.5) and waits[-1] == pytest.approx(MAX_CALM_S, abs=1.5)


def test_pressure_long_after_a_step_up_is_no_relapse(clock: Clock):
    ladder = Ladder(clock)
    press_down(ladder, clock, Pressure.LIPS, 1)
    clock.now_s += CALM_S
    assert ladder.level is Level.FULL
    clock.now_s += RELAPSE_S + 1
    ladder.press(Pressure.LIPS, "later")
    clock.now_s += CALM_S + 0.1
    assert ladder.level is Level.FULL


def test_every_step_is_logged_and_can_be_reported(clock: Clock, caplog: pytest.LogCaptureFixture):
    ladder = Ladder(clock)
    with caplog.at_level("INFO", logger="polylip.live"):
        ladder.press(Pressure.SPEECH, "segment 3 came too late")
        clock.now_s += CALM_S
        assert ladder.level is Level.FULL
    assert "full -> half_lips (speech: segment 3 came too late)" in caplog.text
    assert "half_lips -> full" in caplog.text
    assert ladder.steps[0].to_dict() == {
        "at_s": 0.0,
        "from": "full",
        "to": "half_lips",
        "reason": "speech: segment 3 came too late",
    }
