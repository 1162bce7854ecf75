"""Who has the floor: one at a time, nobody is starved, and a hand-over takes a bounded time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.client.live.floor import (
    BEHIND_MS,
    INSIST_MS,
    MAX_TURN_MS,
    RELEASE_MS,
    SETTLE_MS,
    TAKE_MS,
    Floor,
    Table,
    Turn,
)
from polylip.client.vad import HOP_MS

A, B, C = 0, 1, 2


def heard(*speech: list[tuple[int, int]], until_ms: int = 0, floor: Floor | None = None) -> Floor:
    """Each participant's speech as (from, to) in ms, heard hop by hop in step."""
    floor = floor or Floor()
    for who in range(len(speech)):
        floor.join(who)
    end_ms = until_ms or max(to for spans in speech for _, to in spans) + SETTLE_MS
    for time_ms in range(0, end_ms, HOP_MS):
        for who, spans in enumerate(speech):
            floor.hear(who, time_ms, any(start <= time_ms < end for start, end in spans))
    return floor


def test_who_speaks_gets_a_free_floor_from_the_first_word_on():
    floor = heard([(1000, 3000)], [(6000, 8000)])
    assert floor.turns == [Turn(A, 1000, 3000), Turn(B, 6000, 8000)]
    assert floor.holder is None or floor.holder == B


def test_a_click_takes_nothing():
    assert heard([(1000, 1000 + TAKE_MS - HOP_MS)], []).turns == []


def test_an_interjection_does_not_take_the_floor():
    floor = heard([(0, 5000), (5600, 9000)], [(2000, 2400), (5050, 5450)])
    assert floor.turns == [Turn(A, 0, 9000)]


def test_of_two_who_speak_at_once_the_first_keeps_it_and_the_other_has_what_comes_behind():
    floor = heard([(1000, 6000)], [(1100, 9000)])
    assert floor.turns == [Turn(A, 1000, 6000), Turn(B, 6000, 9000)]


def test_a_quick_answer_is_a_turn_though_it_is_over_when_the_floor_becomes_free():
    assert heard([(0, 3000)], [(3200, 3900)]).turns == [Turn(A, 0, 3000), Turn(B, 3200, 3900)]


def test_a_pause_within_a_turn_keeps_the_floor():
    pause_ms = RELEASE_MS - HOP_MS
    floor = heard([(0, 2000), (2000 + pause_ms, 5000)], [(2100, 2000 + pause_ms)])
    assert floor.turns == [Turn(A, 0, 5000)]


def test_nobody_who_insists_not_even_a_monologue_ends():
    long_ms = 2 * MAX_TURN_MS
    assert heard([(0, long_ms)], [(40_000, 40_500)]).turns == [Turn(A, 0, long_ms)]


def test_who_insists_gets_the_floor_after_the_longest_turn_and_the_one_before_gets_it_back():
    begins_ms = MAX_TURN_MS - 1000
    floor = heard([(0, 100_000)], [(begins_ms, 100_000)])
    first, second, third = floor.turns[:3]
    assert (first.participant, second.participant, third.participant) == (A, B, A)
    assert second.start_ms == begins_ms + INSIST_MS
    assert third.start_ms == second.start_ms + MAX_TURN_MS


def test_three_who_never_stop_have_it_in_turn():
    floor = heard([(0, 200_000)], [(100, 200_000)], [(200, 200_000)])
    assert [turn.participant for turn in floor.turns] == [A, B, C, A, B, C, A]


def test_sound_that_stalls_is_not_waited_for_and_who_has_left_neither():
    floor = Floor()
    for who in (A, B, C):
        floor.join(who)
    floor.leave(C)
    for time_ms in range(0, 5000, HOP_MS):
        floor.hear(A, time_ms, time_ms >= 1000)
    assert floor.known_ms == 5000 - BEHIND_MS
    assert floor.holder == A
    floor.hear(B, 2000, True)  # too late to count
    floor.leave(A)
    floor.leave(B)
    assert floor.turns == [Turn(A, 1000, 5000)]
    assert floor.settled_ms == float("inf")


def test_the_last_words_of_a_call_are_given_their_turns():
    floor = heard([(0, 2000)], [(1900, 2500)], until_ms=2500)
    floor.leave(A)
    floor.leave(B)
    assert floor.turns == [Turn(A, 0, 2000), Turn(B, 2000, 2500)]


spans = st.lists(st.tuples(st.integers(10, 3000), st.integers(20, 9000)), max_size=8)


def talk(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """From (pause, speech) pairs in ms."""
    at_ms, talks = 0, []
    for pause_ms, speech_ms in pairs:
        talks.append((at_ms + pause_ms, at_ms + pause_ms + speech_ms))
        at_ms += pause_ms + speech_ms
    return talks


@settings(max_examples=40)
@given(st.lists(spans, min_size=2, max_size=4), st.data())
def test_one_holder_at_a_time_whatever_is_said_and_what_is_settled_stays(
    pairs: list[list[tuple[int, int]]], data: st.DataObject
):
    """Participants are heard in pieces that come in any order within the time for which the floor waits."""
    speech = [talk(each) for each in pairs]
    floor = Floor()
    position = [0] * len(speech)
    for who in range(len(speech)):
        floor.join(who)
    end_ms = max([to for spans in speech for _, to in spans], default=0) + 2 * SETTLE_MS
    settled: list[tuple[float, set[int]]] = []
    while min(position) < end_ms:
        slowest = min(position)
        near = [who for who in range(len(speech)) if position[who] <= slowest + 400 and position[who] < end_ms]
        who = data.draw(st.sampled_from(near)) if len(settled) < 40 else position.index(slowest)
        for time_ms in range(position[who], position[who] + 100, HOP_MS):
            floor.hear(who, time_ms, any(start <= time_ms < end for start, end in speech[who]))
        position[who] += 100
        at_ms = floor.settled_ms - HOP_MS
        settled.append((at_ms, holders(floor, at_ms)))
    for before, after in zip(floor.turns, floor.turns[1:], strict=False):
        assert before.start_ms <= before.end_ms <= after.start_ms <= after.end_ms
    for at_ms, who_had_it in settled:
        assert holders(floor, at_ms) == who_had_it
    assert floor.turns == heard(*speech, until_ms=max(position)).turns, "the order of arrival plays no part"
    assert_nobody_is_starved(floor, speech)


def holders(floor: Floor, at_ms: float) -> set[int]:
    return {who for who in range(4) if floor.held(who, at_ms, at_ms + HOP_MS)}


def assert_nobody_is_starved(floor: Floor, speech: list[list[tuple[int, int]]]) -> None:
    """Whoever talks without a break gets the floor once the others had theirs, at the latest."""
    longest_ms = (len(speech) - 1) * (MAX_TURN_MS + INSIST_MS) + SETTLE_MS
    for who, spans in enumerate(speech):
        for start_ms, end_ms in spans:
            if end_ms - start_ms >= TAKE_MS + 2 * HOP_MS:
                alone = not any(
                    a < end_ms + SETTLE_MS and start_ms - SETTLE_MS < b
                    for other, others in enumerate(speech)
                    if other != who
                    for a, b in others
                )
                assert not alone or floor.held(who, start_ms + HOP_MS, start_ms + 2 * HOP_MS)
            if end_ms - start_ms > longest_ms:
                assert floor.held(who, start_ms, end_ms)


@settings(max_examples=20)
@given(st.integers(2, 4), st.integers(0, 3), st.lists(st.integers(0, 5000), min_size=4, max_size=4))
def test_whoever_goes_on_talking_waits_no_longer_than_the_turns_of_the_others(
    count: int, last: int, begins_ms: list[int]
):
    end_ms = count * (MAX_TURN_MS + INSIST_MS) + 10_000
    begins = [begins_ms[who] // HOP_MS * HOP_MS for who in range(count)]
    floor = heard(*[[(begin, end_ms)] for begin in begins])
    order = sorted(range(count), key=lambda who: (begins[who], who))
    assert [turn.participant for turn in floor.turns[:count]] == order
    for turn in floor.turns[:-1]:
        assert turn.end_ms - turn.start_ms <= MAX_TURN_MS + INSIST_MS


async def test_a_seat_has_the_times_of_its_own_source_and_waits_until_they_are_settled():
    table = Table()
    first, second = table.seat(A, lambda: 100.0), table.seat(B, lambda: 102.0)  # B's source began 2 s later
    for time_ms in range(0, 3000, HOP_MS):
        first.hear(time_ms, time_ms < 1000)
    waiting = asyncio.create_task(second.passes(0, 800))
    for time_ms in range(0, 1000, HOP_MS):
        second.hear(time_ms, time_ms >= 500)
        await asyncio.sleep(0)
    assert not await waiting, "it spoke from 0.5 s of its time on"
    assert await first.passes(1500, 1600) is True
    assert table.floor.turns[1].start_ms == 2500
    rest = asyncio.create_task(second.passes(900, 5000))
    assert not await rest
    late = asyncio.create_task(first.passes(2500, 2900))
    await asyncio.sleep(0)
    assert not late.done()
    first.leave()
    second.leave()
    assert await late is True


@pytest.mark.parametrize("gap_ms", [HOP_MS, 200, RELEASE_MS, 5000])
def test_a_hand_over_loses_no_word_however_soon_the_other_begins(gap_ms: int):
    floor = heard([(0, 4000)], [(4000 + gap_ms, 8000 + gap_ms)])
    assert floor.turns[1] == Turn(B, 4000 + gap_ms, 8000 + gap_ms)
