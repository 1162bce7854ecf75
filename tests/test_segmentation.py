"""Where speech is cut: by silence, by what was said, by length; and what the horizon and a known text promise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polylip.client.closing import Asked, wait_ms
from polylip.client.segmentation import (
    HOP,
    HOP_MS,
    MAX_SEGMENT_MS,
    SPEECH_RATE_HZ,
    Answer,
    Closing,
    Policy,
    Question,
    Segment,
    Segmenter,
    Word,
)
from polylip.client.vad import EnergyVad

SPEECH, SILENCE, ROOM = 0.1, 0.0, 0.0015  # ROOM: -56 dBFS, within 35 dB of the speech


def sound(*parts: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Noise of (seconds, level) pieces, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    pieces = [rng.standard_normal(round(seconds * SPEECH_RATE_HZ)) * level for seconds, level in parts]
    return np.concatenate(pieces).astype(np.float32)


def cut(audio: np.ndarray, step: int = 8000) -> list[Segment]:
    """By silence alone."""
    segmenter = Segmenter(policy=Policy.SILENCE)
    segments = [s for i in range(0, len(audio), step) for s in segmenter.push(audio[i : i + step])]
    return [*segments, *segmenter.flush()]


def spans(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(s.start_ms, s.end_ms) for s in segments]


def test_half_a_second_of_silence_closes_a_segment():
    segments = cut(sound((1, SILENCE), (2, SPEECH), (0.6, SILENCE), (2, SPEECH), (1, SILENCE)))
    assert spans(segments) == [(1000, 3000), (3600, 5600)]
    assert not any(s.forced for s in segments)


def test_a_shorter_pause_does_not():
    assert spans(cut(sound((1, SILENCE), (2, SPEECH), (0.4, SILENCE), (2, SPEECH), (1, SILENCE)))) == [(1000, 5400)]


def test_a_short_word_waits_for_more_speech_but_not_for_ever():
    assert spans(cut(sound((1, SILENCE), (0.5, SPEECH), (0.7, SILENCE), (2, SPEECH), (1, SILENCE)))) == [(1000, 4200)]
    assert spans(cut(sound((1, SILENCE), (0.5, SPEECH), (1.3, SILENCE), (2, SPEECH), (1, SILENCE)))) == [
        (1000, 1500),
        (2800, 4800),
    ]


def test_a_click_is_no_segment():
    assert cut(sound((1, SILENCE), (0.04, SPEECH), (2, SILENCE))) == []
    assert cut(sound((1, SILENCE), (0.1, SPEECH), (2, SILENCE))) == []


def test_long_speech_is_split_at_its_longest_pause():
    segments = cut(sound((0.5, SILENCE), (5, SPEECH), (0.3, SILENCE), (3, SPEECH), (0.2, SILENCE), (4, SPEECH)))
    assert spans(segments)[0] == (500, 5500)
    assert segments[0].forced
    assert segments[1].start_ms == 5800


def test_speech_without_a_pause_is_split_at_its_quietest_hop():
    audio = sound((20, SPEECH))
    audio[9 * SPEECH_RATE_HZ : 9 * SPEECH_RATE_HZ + HOP] *= 0.3
    first = cut(audio)[0]
    assert first.forced
    assert first.end_ms == 9000


def test_room_noise_within_35_db_of_the_voice_is_not_speech():
    segments = cut(sound((3, ROOM), (2, SPEECH), (1, ROOM), (2, SPEECH), (1, ROOM)))
    assert spans(segments) == [(3000, 5000), (6000, 8000)]


def test_the_end_of_the_sound_closes_what_is_open():
    assert spans(cut(sound((1, SILENCE), (2, SPEECH)))) == [(1000, 3000)]


def test_the_recogniser_gets_a_little_more_than_the_segment():
    segment = cut(sound((1, SILENCE), (2, SPEECH), (1, SILENCE)))[0]
    assert len(segment.audio) == round(2.5 * SPEECH_RATE_HZ)  # 0.3 s before, 0.2 s behind


def place_of(audio: np.ndarray, segment: Segment) -> float:
    """Where in the whole sound, in ms, a segment's audio lies: every piece of noise is found only once."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, 400)
    voiced = int(np.flatnonzero(segment.audio)[0])
    (found,) = np.flatnonzero((windows == segment.audio[voiced : voiced + 400]).all(axis=1))
    return (int(found) - voiced) * 1000 / SPEECH_RATE_HZ


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(1, SILENCE), (2, SPEECH), (1, SILENCE)], id="closed-by-silence"),
        pytest.param([(1, SILENCE), (2, SPEECH)], id="sound-ends-with-the-last-word"),
        pytest.param([(1, SILENCE), (2, SPEECH), (0.1, SILENCE)], id="sound-ends-within-the-post-roll"),
        pytest.param([(0.1, SILENCE), (2, SPEECH), (1, SILENCE)], id="speech-begins-within-the-pre-roll"),
        pytest.param([(2, SPEECH), (0.6, SILENCE), (2, SPEECH), (0.61, SILENCE)], id="two"),
        pytest.param([(0.5, SILENCE), (5, SPEECH), (0.3, SILENCE), (3, SPEECH), (0.2, SILENCE), (4, SPEECH)], id="cut"),
    ],
)
def test_a_segment_knows_where_its_audio_begins(parts: list[tuple[float, float]]):
    audio = sound(*parts)
    segments = cut(audio)
    assert segments
    for segment in segments:
        assert segment.audio_start_ms == place_of(audio, segment)
        assert segment.audio_start_ms <= segment.start_ms


@pytest.mark.parametrize("step", [1, 7, 320, 5000])
def test_the_size_of_the_pieces_does_not_matter(step: int):
    audio = sound((0.3, SILENCE), (1.7, SPEECH), (0.6, SILENCE), (0.2, SPEECH), (0.2, SILENCE))[
        : 30_000 if step == 1 else None
    ]
    assert spans(cut(audio, step)) == spans(cut(audio))


# What was said


WORD_MS, STEP_MS = 280, 300  # of speech, and from word to word


class Talk:
    """Words of noise with given pauses, and a recogniser that knows them: it cuts a word that has not ended."""

    def __init__(self, *parts: str | float, fluent: bool = False) -> None:
        """`parts` are words and pauses in seconds; fluent words touch and only become softer between each other."""
        rng, pieces, self.words = np.random.default_rng(0), [np.zeros(SPEECH_RATE_HZ)], []
        at_ms = 1000
        for part in parts:
            if isinstance(part, float):
                pieces.append(np.zeros(round(part * SPEECH_RATE_HZ)))
                at_ms += round(part * 1000)
                continue
            for text in part.split():
                noise = rng.standard_normal(STEP_MS * 16) * SPEECH
                noise[WORD_MS * 16 :] *= 0.3
                if not fluent:
                    noise[WORD_MS * 16 :] = rng.standard_normal((STEP_MS - WORD_MS) * 16) * SPEECH
                self.words.append(Word(text, at_ms, at_ms + WORD_MS))
                pieces.append(noise)
                at_ms += STEP_MS
        self.audio = np.concatenate([*pieces, np.zeros(SPEECH_RATE_HZ * 2)]).astype(np.float32)

    def recognise(self, question: Question) -> Answer:
        end_ms = question.audio_start_ms + len(question.audio) // 16
        heard = [w for w in self.words if w.start_ms >= question.audio_start_ms and w.start_ms + 100 < end_ms]
        words = tuple(w if w.end_ms <= end_ms else Word(w.text[:2], w.start_ms, end_ms) for w in heard)
        return Answer(words, " ".join(w.text for w in words).capitalize(), "en")


class Sentences:
    """A scorer that has been told: sentences and their probabilities, which may say what follows: `a b | c d`."""

    def __init__(self, **probabilities: float | None) -> None:
        self.known = {text.replace("_", " "): p for text, p in probabilities.items()}
        self.asked: list[str] = []

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        assert words and len(following) <= 2
        text = " ".join(words) + ("" if not following else " | " + " ".join(following))
        self.asked.append(text)
        return self.known.get(text, 0.05)


def hold(
    talk: Talk,
    known: dict[str, float | None],
    policy: Policy = Policy.SEMANTIC,
    recognise: Callable[[Question], Answer | None] | None = None,
) -> tuple[list[Segment], list[Question]]:
    """Segments and questions of a talk whose sentences are known."""
    scorer = Sentences()
    scorer.known = known
    segmenter = Segmenter(policy=policy, scorer=lambda language: scorer)
    segments: list[Segment] = []
    questions: list[Question] = []

    def take(items):
        for item in items:
            if isinstance(item, Segment):
                segments.append(item)
            else:
                questions.append(item)
                segmenter.answer(item, (recognise or talk.recognise)(item))

    for i in range(0, len(talk.audio), 1600):
        take(segmenter.push(talk.audio[i : i + 1600]))
    take(segmenter.flush())
    return segments, questions


LONG = "the old bridge is very famous"  # 1.8 s


@pytest.mark.parametrize(
    ("probability", "waits_ms", "closed_by"),
    [
        (0.95, 300, Closing.SENTENCE),
        (0.75, 500, Closing.SENTENCE),
        (0.55, 800, Closing.SENTENCE),
        (0.1, 1200, Closing.SILENCE),
        (None, 500, Closing.SILENCE),
    ],
)
def test_the_surer_a_sentence_is_the_sooner_it_closes(probability, waits_ms, closed_by):
    [segment], [question] = hold(Talk(LONG), {LONG: probability})
    assert segment.decided_ms - segment.end_ms == waits_ms
    assert segment.closed_by is closed_by
    assert segment.confidence == probability
    assert (segment.known_text, segment.known_language) == (LONG.capitalize(), "en")
    assert question.asked is Asked.PAUSE
    assert np.array_equal(question.audio, segment.audio), "what was recognised is the segment, no more and no less"
    assert question.audio_start_ms == segment.audio_start_ms


def test_a_hesitation_within_a_sentence_does_not_cut_it():
    segments, _ = hold(Talk(LONG, 0.8, "because of its age"), {LONG + " because of its age": 0.95})
    assert [s.closed_by for s in segments] == [Closing.SENTENCE]
    assert segments[0].known_text == (LONG + " because of its age").capitalize()
    by_silence, _ = hold(Talk(LONG, 0.8, "because of its age"), {}, Policy.SILENCE)
    assert len(by_silence) == 2


@pytest.mark.parametrize(("probability", "waits_ms"), [(0.95, 300), (0.8, 1200), (0.1, 1200), (None, 1200)])
def test_a_short_sentence_closes_at_once_only_when_it_is_sure(probability, waits_ms):
    [segment], _ = hold(Talk("thank you"), {"thank you": probability})
    assert segment.decided_ms - segment.end_ms == waits_ms


@pytest.mark.parametrize("policy", [Policy.SEMANTIC, Policy.PAPER])
def test_without_answers_silence_decides(policy):
    talk = Talk(LONG, 0.4, LONG, 0.6, LONG)
    segments, questions = hold(talk, {}, policy, recognise=lambda question: None)
    by_silence, none = hold(talk, {}, Policy.SILENCE)
    assert spans(segments) == spans(by_silence)
    assert all(s.known_text == "" and s.confidence is None for s in segments)
    assert questions and not none


def test_an_answer_to_an_older_question_is_ignored():
    talk, scorer, questions = Talk(LONG, 0.3, LONG), Sentences(), []
    segmenter = Segmenter(scorer=lambda language: scorer)
    for item in segmenter.push(talk.audio):
        if isinstance(item, Question):
            questions.append(item)
            if len(questions) > 1:
                segmenter.answer(questions[0], talk.recognise(questions[0]))
    assert len(questions) == 2
    assert not scorer.asked


def test_two_more_words_show_that_a_short_pause_was_a_sentence_s_end():
    next_one = "we want to travel there next year"
    known = {LONG: 0.6, f"{LONG} | we want": 0.97, next_one: 0.95}
    segments, questions = hold(Talk(LONG, 0.3, next_one), known)
    assert [s.closed_by for s in segments] == [Closing.SECOND_LOOK, Closing.SENTENCE]
    assert [s.known_text for s in segments] == [LONG.capitalize(), next_one.capitalize()]
    first, second = segments
    assert (first.end_ms, second.start_ms) == (2800, 3100)
    assert first.confidence == 0.97
    assert first.decided_ms - first.end_ms < 1500, "about a second of speech is enough"
    assert [q.asked for q in questions] == [Asked.PAUSE, Asked.SECOND_LOOK, Asked.PAUSE]
    pause, look, end = questions
    assert np.array_equal(pause.audio, first.audio)
    assert look.pause_start_ms == 2800 and look.audio_start_ms >= 2800, "only the words behind the pause are heard"
    assert np.array_equal(end.audio, second.audio)
    assert second.pre_roll_ms >= 150, "half of the pause is the next one's"


def test_two_more_words_may_show_that_it_goes_on():
    sentence = f"{LONG} because it is so old"
    segments, questions = hold(Talk(LONG, 0.3, "because it is so old"), {LONG: 0.8, sentence: 0.95})
    assert [s.known_text for s in segments] == [sentence.capitalize()]
    assert [q.asked for q in questions] == [Asked.PAUSE, Asked.SECOND_LOOK, Asked.PAUSE]


def test_a_word_that_may_be_cut_off_is_not_yet_one_of_the_two():
    talk = Talk(LONG, 0.3, LONG)

    def two_words(question: Question) -> Answer:
        answer = talk.recognise(question)
        return Answer(answer.words[:2], "", "en") if question.asked is Asked.SECOND_LOOK else answer

    segments, _ = hold(talk, {LONG: 0.6, f"{LONG} | the old": 0.97}, recognise=two_words)
    assert segments[0].closed_by is Closing.SECOND_LOOK
    assert segments[0].decided_ms - segments[0].end_ms > 2000, "not before the next pause"


@pytest.mark.parametrize(("probability", "segments"), [(0.88, 1), (0.92, 2)])
def test_a_second_look_makes_a_short_segment_only_when_it_is_sure(probability, segments):
    known = {"thank you": 0.6, "thank you | the old": probability}
    assert len(hold(Talk("thank you", 0.3, LONG), known)[0]) == segments


def test_an_unlikely_pause_gets_no_second_look():
    _, questions = hold(Talk(LONG, 0.3, LONG), {LONG: 0.1, f"{LONG} {LONG}": 0.95})
    assert [q.asked for q in questions] == [Asked.PAUSE, Asked.PAUSE]


def test_what_is_heard_at_the_next_pause_is_a_second_look_too():
    known = {LONG: 0.6, f"{LONG} | we go": 0.9, "we go": 0.95}
    segments, questions = hold(Talk(LONG, 0.25, "we go"), known)
    assert [q.asked for q in questions] == [Asked.PAUSE, Asked.PAUSE], "nothing is asked twice"
    assert [s.closed_by for s in segments] == [Closing.SECOND_LOOK, Closing.SENTENCE]
    assert [s.known_text for s in segments] == [LONG.capitalize(), ""], "nobody has heard the rest by itself"
    assert segments[1].confidence == 0.95
    assert segments[1].decided_ms - segments[1].end_ms == 300


def test_the_end_of_the_sound_leaves_time_for_a_second_look():
    talk = Talk(LONG, 0.25, "we go")
    talk.audio = talk.audio[: -2 * SPEECH_RATE_HZ]
    segments, _ = hold(talk, {LONG: 0.6, f"{LONG} | we go": 0.9})
    assert [s.closed_by for s in segments] == [Closing.SECOND_LOOK, Closing.END]


def test_a_pause_too_short_to_be_asked_about_is_judged_by_the_words_around_it():
    first, second = f"{LONG} today", "we want to go"
    talk = Talk(first, 0.14, second)
    segments, questions = hold(talk, {f"{first} | we want": 0.95, second: 0.95})
    assert len(questions) == 1
    assert [s.end_ms for s in segments] == [talk.words[6].start_ms + STEP_MS, talk.words[-1].start_ms + STEP_MS]


def test_a_pause_within_a_word_is_no_end():
    talk = Talk(LONG, 0.14, LONG)
    talk.words = [Word("a", 1000, 2700), Word("stop", 2750, 3100), *talk.words[8:]]
    segments, _ = hold(talk, {"a | stop bridge": 0.99, "a stop | bridge is": 0.99})
    assert len(segments) == 1


def test_a_segment_that_is_too_long_is_cut_where_a_sentence_most_likely_ended():
    sentence = " ".join(["word"] * 12)
    talk = Talk(sentence, 0.28, sentence, 0.46, sentence)
    segments, _ = hold(talk, {sentence: 0.45, f"{sentence} | word word": 0.5})
    assert segments[0].forced and segments[0].end_ms == 1000 + 12 * STEP_MS, "not at the longer pause"
    assert segments[0].known_text == sentence.capitalize()
    assert segments[1].start_ms == segments[0].end_ms + 280
    assert not segments[1].forced


def test_fluent_speech_that_is_too_long_is_cut_between_words():
    talk = Talk(" ".join(f"w{i}" for i in range(60)), fluent=True)
    middle = talk.words[30].start_ms + WORD_MS // 2  # the quietest place of all is within a word
    talk.audio[middle * 16 : (middle + 20) * 16] *= 0.1
    ends = {" ".join(f"w{i}" for i in range(n)) + f" | w{n} w{n + 1}": p for n, p in ((25, 0.4), (31, 0.9))}
    segments, questions = hold(talk, ends)  # w32 is the last word at 10 s: it may not be whole
    assert segments[0].end_ms == segments[1].start_ms, "all of the sound is in one of them"
    assert talk.words[24].end_ms - HOP_MS <= segments[0].end_ms <= talk.words[25].start_ms
    assert questions[0].asked is Asked.SPLIT
    for segment in segments[:-1]:
        within = [w for w in talk.words if w.start_ms + HOP_MS < segment.end_ms < w.end_ms - HOP_MS]
        assert segment.forced and not within
    without, _ = hold(talk, {}, recognise=lambda question: None)
    assert without[0].forced and without[0].end_ms == middle // HOP_MS * HOP_MS


def test_the_paper_s_policy_cuts_at_085_or_hard():
    talk = Talk(LONG, 0.6, LONG, 0.6, LONG)
    segments, questions = hold(talk, {LONG: 0.85, f"{LONG} {LONG}": 0.84}, Policy.PAPER)
    assert segments[0].end_ms == 2800 and segments[0].decided_ms == 3300
    assert segments[0].closed_by is Closing.SENTENCE
    assert all(q.asked is Asked.PAUSE for q in questions)
    [first, *_], _ = hold(Talk(*[LONG, 0.6] * 5), {}, Policy.PAPER)
    assert first.forced and first.end_ms - first.start_ms == MAX_SEGMENT_MS, "in the middle of a word, if so"


class LateVad:
    """Notices speech 0.2 s after it began."""

    late_hops = 10

    def __init__(self) -> None:
        self._run = 0

    def hop(self, samples: np.ndarray) -> int:
        before, self._run = self._run, self._run + 1 if samples.any() else 0
        return 0 if self._run <= 10 else 11 if before == 10 else 1


def test_a_vad_may_notice_speech_late_without_a_start_being_lost():
    segmenter, segments = Segmenter(LateVad(), Policy.SILENCE), []
    audio = sound((1, SILENCE), (2, SPEECH), (0.6, SILENCE), (2, SPEECH), (1, SILENCE))
    for i in range(0, len(audio), HOP):
        horizon = segmenter.horizon_ms
        for segment in segmenter.push(audio[i : i + HOP]):
            segments.append(segment)
            assert segment.start_ms >= horizon
        assert segmenter.horizon_ms >= horizon
    assert spans(segments) == [(1000, 3000), (3600, 5600)]


def test_waits_of_the_three_policies():
    assert wait_ms(Policy.SEMANTIC, 2000, 0.9) == 300
    assert wait_ms(Policy.PAPER, 2000, 0.84) == math.inf
    assert wait_ms(Policy.PAPER, 1000, 0.99) == 1200, "the shortest segment holds for it too"
    assert {wait_ms(Policy.SILENCE, 2000, p) for p in (None, 0.0, 1.0)} == {500}


class Moody:
    """A recogniser and a scorer that say anything, and a VAD that changes its mind about the past."""

    late_hops = 10

    def __init__(self, seed: int) -> None:
        self._energy = EnergyVad()
        self.random = random.Random(seed)  # noqa: S311  no secret

    def hop(self, samples: np.ndarray) -> int:
        return self._energy.hop(samples) * self.random.choice([1, 1, 3, 11])

    def recognise(self, question: Question) -> Answer | None:
        end_ms = question.audio_start_ms + len(question.audio) // 16
        if self.random.random() < 0.2:
            return None
        times = sorted(self.random.randint(question.audio_start_ms, end_ms) for _ in range(self.random.randint(0, 60)))
        words = tuple(Word(f"w{i}", a, b) for i, (a, b) in enumerate(zip(times[::2], times[1::2], strict=False)))
        return Answer(words, " ".join(w.text for w in words), self.random.choice(["en", "es", ""]))

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        return self.random.choice([None, 0.0, 0.3, 0.6, 0.8, 0.9, 1.0])


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.05, 4.0), st.sampled_from([SPEECH, SILENCE, 0.02, ROOM])), min_size=1, max_size=12),
    st.sampled_from(Policy),
    st.integers(0, 2**32),
    st.sampled_from([MAX_SEGMENT_MS, 4000]),
    st.booleans(),
)
def test_segments_are_ordered_bounded_and_never_start_before_the_horizon(parts, policy, seed, longest_ms, late):
    audio, moody = sound(*parts), Moody(seed)
    segmenter = Segmenter(moody if late else None, policy, longest_ms, scorer=lambda language: moody)
    segments, heard = [], {}
    for i in range(0, len(audio) + 4000, 4000):
        horizon = segmenter.horizon_ms
        for item in segmenter.push(audio[i : i + 4000]) if i < len(audio) else segmenter.flush():
            assert segmenter.horizon_ms >= horizon
            if isinstance(item, Segment):
                assert horizon <= item.start_ms < item.end_ms <= item.decided_ms == segmenter.heard_ms
                assert item.end_ms - item.start_ms <= longest_ms
                assert item.audio_start_ms >= 0
                assert item.audio_start_ms + len(item.audio) // 16 >= item.end_ms
                segments.append(item)
            else:
                assert policy is not Policy.SILENCE
                at = item.audio_start_ms * 16
                assert np.array_equal(item.audio, audio[at : at + len(item.audio)])
                segmenter.answer(item, answer := moody.recognise(item))
                if answer is not None and answer.text:
                    heard[answer.text, item.audio.tobytes()] = answer
            horizon = segmenter.horizon_ms
    assert all(a.end_ms <= b.start_ms for a, b in pairwise(segments))
    assert all(s.audio_start_ms >= before.end_ms for before, s in pairwise(segments))
    assert [s.index for s in segments] == list(range(len(segments)))
    assert all((s.known_text, s.audio.tobytes()) in heard for s in segments if s.known_text)
