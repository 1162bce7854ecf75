"""A live output's clock: what is due is given out, whatever is missing for it."""

from __future__ import annotations

import numpy as np

from polylip.client.ladder import Ladder, Level
from polylip.client.live.playout import LEAD_S, Keeper, Playout
from polylip.client.mix import AudioBed
from polylip.client.pulse import Pulse
from polylip.client.results import Status
from polylip.client.ring import FrameRing
from polylip.client.segmentation import SPEECH_RATE_HZ, Segment
from polylip.client.timeline import MAX_LATE_MS, RAMP_MS, Dub, Timeline
from polylip.serving.lips_audio import LOOK_AHEAD_MS

DELAY_S = 6.0


class Job:
    """Timeline, ring and keeper under a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ladder = Ladder(lambda: self.now_s)
        self.playout = Playout(lambda: 100.0, DELAY_S, self.ladder, lambda: self.now_s)
        pulse = Pulse()
        self.timeline, self.ring = Timeline(None, pulse), FrameRing(25, pulse)
        self.given_up: list[tuple[int, Status]] = []
        self.keeper = Keeper(self.playout, self.timeline, self.ring, self.give_up)

    def give_up(self, dub: Dub, status: Status, message: str) -> None:
        self.given_up.append((dub.segment.index, status))
        self.timeline.end(dub, status, message)

    def at_due(self, media_ms: float) -> None:
        """Move the clock to where `media_ms` is due, and look at it."""
        self.now_s = 100.0 + media_ms / 1000 + DELAY_S - LEAD_S
        self.keeper.tick()

    def add(self, index: int, start_ms: int, end_ms: int) -> Dub:
        self.timeline.advance(start_ms)
        return self.timeline.add(Segment(index, start_ms, end_ms, np.zeros(1, np.float32)))

    def speak(self, dub: Dub, ms: int) -> None:
        voice = np.full(ms * SPEECH_RATE_HZ // 1000, 0.5, np.float32)
        self.timeline.append(dub, voice, voice)


def test_nothing_is_due_before_the_delay_is_over():
    job = Job()
    job.keeper.tick()
    assert job.timeline.committed_ms == 0
    assert job.playout.left_s(0) == DELAY_S - LEAD_S


def test_what_is_due_may_be_written_though_the_segmenter_lags():
    job = Job()
    job.timeline.advance(1000)
    job.at_due(2500)
    assert job.timeline.safe_ms == job.timeline.committed_ms >= 2499
    assert job.timeline.safe_ms < 2501


def test_a_dub_that_is_not_there_in_time_starts_later_and_the_original_sounds_till_then():
    job = Job()
    dub = job.add(0, 1000, 4000)
    job.at_due(2500)
    assert job.timeline.place(dub)
    assert dub.start_ms == dub.lips_start_ms == 2500 + RAMP_MS
    job.speak(dub, 2000)
    job.timeline.end(dub, Status.DUBBED)
    bed = AudioBed(SPEECH_RATE_HZ, 1)
    bed.append(np.full((1, 6 * SPEECH_RATE_HZ), 0.1, np.float32))
    mixed = bed.render(6000, [dub])[0]
    at = lambda ms: mixed[ms * SPEECH_RATE_HZ // 1000]  # noqa: E731
    assert at(2400) == np.float32(0.1) and at(3000) == np.float32(0.5) and at(5500) == np.float32(0.1)


def test_a_dub_that_cannot_start_in_time_any_more_is_given_up_once():
    job = Job()
    job.add(0, 1000, 4000)
    job.at_due(1000 + MAX_LATE_MS - 2 * RAMP_MS)
    assert job.given_up == []
    job.at_due(1000 + MAX_LATE_MS + 1)
    job.at_due(1000 + MAX_LATE_MS + 500)
    assert job.given_up == [(0, Status.TOO_LATE)]
    assert job.ladder.level is Level.HALF_LIPS


def test_a_voice_that_comes_too_slowly_pauses_and_loses_no_word():
    job = Job()
    dub = job.add(0, 1000, 4000)
    job.timeline.place(dub)
    job.speak(dub, 500)
    job.at_due(2000)  # 0.5 s of speech from 1000 on
    assert dub.end_ms == 2000 + LOOK_AHEAD_MS + RAMP_MS
    job.speak(dub, 700)
    job.timeline.end(dub, Status.DUBBED)
    assert np.count_nonzero(dub.speech) == 1200 * SPEECH_RATE_HZ // 1000
    assert len(dub.pcm) == len(dub.speech)
    assert job.timeline.paused_ms == 765
    assert job.ladder.level is Level.HALF_LIPS


async def test_frames_without_an_answer_pass_without_faces_and_the_late_answer_does_no_harm():
    job = Job()
    for index in range(10):
        await job.ring.add(index * 40.0)
    job.at_due(190)
    assert [slot.index for slot in job.ring.take(10, 200)] == [0, 1, 2, 3, 4]
    assert job.ring.expired == 5
    job.ring.settle([()] * 8)  # the answer for frames 0 to 7
    job.at_due(390)
    assert job.ring.expired == 7
    assert [slot.index for slot in job.ring.take(10, 1000)] == [5, 6, 7, 8, 9]


def test_a_caption_shows_in_place_of_the_dub_for_as_long_as_it_takes_to_read():
    job = Job()
    dub = job.add(0, 1000, 1500)
    job.at_due(1200)
    job.timeline.show(dub, "hola " * 10)
    job.timeline.end(dub, Status.CAPTIONED)
    assert job.timeline.caption_at(1100) == ""
    assert job.timeline.caption_at(1300).startswith("hola")
    assert job.timeline.caption_at(1200 + 700 + 60 * 49).startswith("hola")
    assert job.timeline.caption_at(1200 + 700 + 60 * 51) == ""
    assert job.timeline.written(2000) == []
    assert job.timeline.written(1e9) == [dub]
