"""Where speech is cut by what was said: at once, at a second look, or because a segment is too long."""

from __future__ import annotations

import math

import numpy as np
import pytest
from talking import LONG, STEP_MS, WORD_MS, Sentences, Talk, hold, spans

from polylip.client.closing import Asked, wait_ms
from polylip.client.segmentation import (
    HOP_MS,
    MAX_SEGMENT_MS,
    SPEECH_RATE_HZ,
    Answer,
    Closing,
    Policy,
    Question,
    Segmenter,
    Word,
)


@pytest.mark.parametrize(
    ("probability", "waits_ms", "closed_by"),
    [
        (0.95, 300, Closing.SENTENCE),
        (0.55, 400, Closing.SENTENCE),
        (0.1, 800, Closing.SILENCE),
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
    segments, _ = hold(Talk(LONG, 0.7, "because of its age"), {LONG + " because of its age": 0.95})
    assert [s.closed_by for s in segments] == [Closing.SENTENCE]
    assert segments[0].known_text == (LONG + " because of its age").capitalize()
    by_silence, _ = hold(Talk(LONG, 0.7, "because of its age"), {}, Policy.SILENCE)
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
    _, questions = hold(Talk(LONG, 0.3, LONG), {f"{LONG} {LONG}": 0.95})
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


def test_waits_of_the_three_policies():
    assert wait_ms(Policy.SEMANTIC, 2000, 0.9) == 300
    assert wait_ms(Policy.PAPER, 2000, 0.84) == math.inf
    assert wait_ms(Policy.PAPER, 1000, 0.99) == 1200, "the shortest segment holds for it too"
    assert {wait_ms(Policy.SILENCE, 2000, p) for p in (None, 0.0, 1.0)} == {500}
