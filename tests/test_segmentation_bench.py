"""The evaluation of segmentation: texts and streams whose truth is right, figures by heart, a run end to end."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from polylip.client.closing import Asked, Policy
from polylip.client.vad import VadChoice
from polylip.perf import segmentation
from polylip.perf.segmentation_metrics import Hearing, Run, Sent, area, boundary, metrics, scorer_figures, share
from polylip.perf.segmentation_report import confusions, examples, markdown
from polylip.perf.segmentation_runs import Told
from polylip.perf.segmentation_streams import (
    BASE_RATE,
    LEAD_MS,
    TAIL_MS,
    PauseKind,
    Script,
    Stream,
    TruePause,
    TrueWord,
    scripts,
    speak,
)
from polylip.perf.segmentation_texts import DEV, TEST, speakable, written_turns
from polylip.perf.segmentation_voices import Espeak, Flite, Part, bare, speech_edges_ms

ROOT = Path(__file__).parent.parent
RATE_PER_MS = 16

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed: apt-get install flite")


class Buzz:
    """Speaks every word as 200 ms of noise, without gaps."""

    name = "buzz"

    def say(self, tokens):
        count = len(tokens)
        audio = np.random.default_rng(count).uniform(-0.3, 0.3, 200 * RATE_PER_MS * count).astype(np.float32)
        return Part(audio, tuple((200.0 * i, 200.0 * (i + 1)) for i in range(count)))


def test_the_written_texts_are_large_enough_and_in_the_recognisers_dictionary():
    test, dev = written_turns("en", TEST), written_turns("en", DEV)
    sentences = [sentence for turn in test for sentence in turn.sentences]
    assert len(test) >= 60 and len(sentences) >= 250 and len(dev) >= 10
    assert not {turn.sentences for turn in test} & {turn.sentences for turn in dev}
    assert len(set(sentences)) > 0.95 * len(sentences)
    assert all(sentence[-1] in ".?!" for sentence in sentences)
    dictionary = Path(find_spec("pocketsphinx").origin).parent / "model" / "en-us" / "cmudict-en-us.dict"
    known = {line.split(maxsplit=1)[0] for line in dictionary.read_text().splitlines()}
    assert {bare(token) for sentence in sentences for token in sentence.split()} <= known
    assert sum(len(turn.sentences) for turn in written_turns("es", TEST)) >= 60


def test_only_what_a_voice_reads_as_written_is_sampled():
    assert speakable("I am here. It costs $4. Come in. Sit down.") == ("Come in.", "Sit down.")
    assert speakable("Mr. Smith left the U.S. on 4 May") == ()
    assert speakable("Would you like that? Yes, please!") == ("Would you like that?", "Yes, please!")


def test_hesitations_are_drawn_within_sentences_at_the_rate_of_the_paper():
    turns = written_turns("en", TEST)
    found = scripts(turns, "en", seed=4)
    assert [s for script in found for s in script.sentences] == [tuple(s.split()) for t in turns for s in t.sentences]
    for script in found:
        for sentence, token in script.hesitations:
            assert 2 <= token <= len(script.sentences[sentence]) - 2
            assert (sentence, token + 1) not in script.hesitations
    streams = [speak(script, Buzz(), seed) for seed, script in enumerate(found)]
    long = [pause.kind for stream in streams for pause in stream.pauses if pause.length_ms >= 500]
    assert long.count(PauseKind.END) / len(long) == pytest.approx(BASE_RATE, abs=0.06)
    kinds = Counter(kind for script in found for kind in script.hesitations.values())
    assert kinds[PauseKind.PHRASE] / kinds.total() == pytest.approx(0.25, abs=0.01)


def test_a_stream_is_silent_in_its_pauses_and_nowhere_else():
    script = scripts(written_turns("en", TEST), "en", seed=4)[0]
    stream = speak(script, Buzz(), seed=1)
    loud = np.abs(stream.audio[: stream.audio.size // RATE_PER_MS * RATE_PER_MS].reshape(-1, RATE_PER_MS)).max(1) > 0.02
    expected = np.zeros(len(loud), bool)
    for word in stream.words:
        expected[round(word.start_ms) : round(word.end_ms)] = True
    assert (loud != expected).mean() < 0.002
    assert stream.words[0].start_ms == LEAD_MS and len(loud) - stream.words[-1].end_ms == pytest.approx(TAIL_MS, abs=1)
    ends = [pause for pause in stream.pauses if pause.kind is PauseKind.END]
    assert [pause.after for pause in ends] == stream.ends[:-1] and len(stream.ends) == len(script.sentences)
    again = speak(script, Buzz(), seed=1)
    assert np.array_equal(again.audio, stream.audio) and again.pauses == stream.pauses


@needs_flite
def test_flites_words_lie_where_its_sound_is():
    tokens = ["However,", "nobody", "noticed", "it,", "because", "the", "dog", "did", "not", "bark."]
    part = Flite("kal16", tokens).say(tokens)
    assert len(part.spans_ms) == len(tokens)
    assert all(start < end for start, end in part.spans_ms)
    gaps = [(a[1], b[0]) for a, b in zip(part.spans_ms, part.spans_ms[1:], strict=False) if b[0] - a[1] > 1]
    assert len(gaps) == 2  # flite pauses at commas
    levels = [np.abs(part.audio[round(a * 16) + 480 : round(b * 16) - 480]).max() for a, b in gaps]
    assert max(levels) < 0.05 * np.abs(part.audio).max()
    assert len(Flite("kal16", ["Yes."]).say(["Yes."]).spans_ms) == 1
    assert speech_edges_ms(part.audio) == pytest.approx((part.spans_ms[0][0], part.spans_ms[-1][1]), abs=60)


def made(lengths_ms=(700, 700, 700, 700), sentences=3):
    """Sentences of two words of 1 s each, with a hesitation of the same length between them."""
    words, pauses, at = [], [], 500.0
    for s in range(sentences):
        for w in range(2):
            words.append(TrueWord(f"w{s}{w}" + "." * w, at, at + 1000, bool(w)))
            at += 1000
            if (s, w) != (sentences - 1, 1):
                length = lengths_ms[(2 * s + w) % len(lengths_ms)]
                kind = PauseKind.END if w else PauseKind.CLAUSE
                pauses.append(TruePause(len(words) - 1, at, at + length, kind))
                at += length
    return Stream("made", np.zeros(0, np.float32), tuple(words), tuple(pauses))


def sent(stream, first, last, late_ms=500.0):
    start, end = stream.words[first].start_ms, stream.words[last].end_ms
    return Sent(start, end, end + late_ms, end + late_ms + 100, "silence", False)


def test_perfect_cuts_score_one():
    stream = made()
    run = Run(stream, tuple(sent(stream, i, i + 1) for i in (0, 2, 4)))
    found = metrics([run], [run])
    assert [
        found[k] for k in ("accuracy", "precision", "recall", "f1", "completion_rate", "strict_completion_rate")
    ] == [1.0] * 6
    assert found["accuracy_of"] == 2  # the two ends; hesitations come after one second of the segment
    assert found["accuracy_all_long_pauses_of"] == 5 and found["accuracy_all_long_pauses"] == 1.0
    assert found["added_latency_ms"] == 0 and found["dispatch_delay_ms"]["mean"] == 500
    assert found["words_delay_ms"]["p90"] == 600


def test_always_cutting_scores_the_base_rate():
    stream = made()
    run = Run(stream, tuple(sent(stream, i, i) for i in range(6)))
    found = metrics([run], [run])
    assert found["accuracy_all_long_pauses"] == pytest.approx(2 / 5)
    assert (found["recall"], found["precision"], found["completion_rate"]) == (1.0, 0.5, 0.5)
    assert found["strict_completion_rate"] == 0.0
    assert found["accuracy"] is None  # no segment is long enough before its pause


def test_never_cutting_keeps_hesitations_and_misses_ends():
    stream = made()
    baseline = Run(stream, tuple(sent(stream, i, i + 1) for i in (0, 2, 4)))
    run = Run(stream, (replace(sent(stream, 0, 5), closed_by="forced", forced=True),))
    found = metrics([run], [baseline])
    assert found["accuracy_all_long_pauses"] == pytest.approx(3 / 5)
    assert found["accuracy"] == pytest.approx(0.5) and found["accuracy_of"] == 4  # the first comes after one second
    assert (found["recall"], found["precision"], found["forced_share"]) == (pytest.approx(1 / 3, abs=1e-4), 1.0, 1.0)
    assert found["added_latency_ms"] == pytest.approx((6800 + 3400) / 3, abs=0.1)  # the others wait for the last
    cases = confusions([run])
    assert len(cases["missed"]) == 2 and cases["cut_wrongly"] == []
    assert {case["text"] for case in cases["missed"]} == {"w00 w01.", "w00 w01. w10 w11."}


def test_a_sentence_that_no_segment_ends_is_lost_and_not_fast():
    stream = made()
    run = Run(stream, (sent(stream, 0, 1),))
    found = metrics([run], [Run(stream, tuple(sent(stream, i, i + 1) for i in (0, 2, 4)))])
    assert (found["sentences"], found["lost_sentences"], found["added_latency_ms"]) == (3, 2, 0.0)


def test_a_cut_belongs_to_the_nearest_gap():
    stream = made()
    assert boundary(stream, 1600) == (0, 0.0)
    assert boundary(stream, 1300) == (0, 200.0)
    assert boundary(stream, 2300) == (0, 100.0)
    assert boundary(stream, 99_000) == (5, 0.0)
    assert Run(stream, (Sent(500, 2750, 3000, 3000, "forced", True),)).cuts == []  # amid a word


def test_scores_of_the_scorer():
    assert area(np.array([0.9, 0.8]), np.array([0.1, 0.8])) == pytest.approx(0.875)
    figures = scorer_figures([(0.95, True), (0.6, False), (0.6, True), (0.1, False)])
    assert figures["at"]["0.5"] == {"precision": 0.6667, "recall": 1.0, "accuracy": 0.75}
    assert figures["at"]["0.9"] == {"precision": 1.0, "recall": 0.5, "accuracy": 0.75}
    assert figures["base_rate"] == 0.5 and figures["auc"] == 0.875
    stream = made()
    hearings = [
        Hearing(Asked.PAUSE, 1500, 900, 100, "w00", 1.0, 0.2),
        Hearing(Asked.PAUSE, 3200, 900, 100, "w00 w01", 1.0, 0.8),
        Hearing(Asked.SECOND_LOOK, 1500, 900, 300, "w01", 1.0, 0.9),
    ]
    run = Run(stream, tuple(sent(stream, i, i + 1) for i in (0, 2, 4)), tuple(hearings))
    found = metrics([run], [run])
    assert found["scorer"]["pauses"] == 2 and found["scorer"]["auc"] == 1.0
    assert found["questions_per_segment"] == 1.0 and found["recogniser_ms"]["p50"] == 100


def test_wilson_interval():
    assert share(45, 50) == {"value": 0.9, "of": 50, "low": 0.7864, "high": 0.9565}


def test_a_simulated_recogniser_is_told_the_words_and_closes_with_a_full_stop():
    turn = scripts(written_turns("es", TEST), "es", seed=1)[0]
    stream = speak(Script(turn.sentences[:2], {}), Buzz(), seed=1)
    end = round(stream.words[2].end_ms)
    answer, taken_ms = Told(stream, "es").hear(np.zeros((end - LEAD_MS) * RATE_PER_MS, np.float32), LEAD_MS)
    assert answer.text == "Hola, ¿me oyes." and answer.language == "es" and taken_ms > 0
    assert answer.words[1].start_ms == round(stream.words[1].start_ms)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_speaks_spanish_at_the_recognisers_rate():
    part = Espeak("es").say(["¿Qué", "tal?"])
    assert 300 < len(part.audio) / RATE_PER_MS < 1500
    assert part.spans_ms[-1][1] == pytest.approx(len(part.audio) / RATE_PER_MS, abs=61)


@needs_flite
def test_a_few_sentences_end_to_end():
    turns = written_turns("en", TEST)[:1]
    script = scripts(turns, "en", seed=9)[0]
    script = Script(script.sentences[:3], {place: kind for place, kind in script.hesitations.items() if place[0] < 3})
    job = segmentation.Job("en", segmentation.WRITTEN, "kal16", script, 9, -70.0, VadChoice.ENERGY, segmentation.ALL)
    outcome = segmentation.perform(job)
    assert set(outcome.runs) == set(Policy) and not outcome.runs[Policy.SILENCE].heard
    semantic = outcome.runs[Policy.SEMANTIC]
    assert len(semantic.heard) >= 3 and "joining" in " ".join(hearing.words for hearing in semantic.heard)
    assert semantic.stream.audio.size == 0
    for run in outcome.runs.values():
        assert run.sent[-1].end_ms == pytest.approx(run.stream.words[-1].end_ms, abs=100)
        assert all(s.words_ms >= s.sent_ms >= s.end_ms for s in run.sent)
    result = segmentation.summary([outcome])
    for policy in Policy:
        assert result["languages"]["en"][policy]["sentences"] == 3
        assert result["languages"]["en"][policy]["lost_sentences"] == 0
    assert "| semantic |" in markdown(result) and json.dumps(result)


def test_the_page_shows_the_committed_results():
    result = json.loads((ROOT / "perf" / "results" / "segmentation.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "segmentation-results.md").read_text(encoding="utf-8")
    assert markdown(result) in page and examples(result) in page
    assert {policy: result[policy] for policy in Policy} == segmentation.headlines(result["languages"])
    for policy in ("silence", "semantic"):
        for language in ("en", "es"):
            row = result["languages"][language][policy]
            assert {"accuracy", "precision", "recall", "f1", "completion_rate", "added_latency_ms"} <= set(row)
    english = result["languages"]["en"]["semantic"]
    assert english["sentences"] >= 590 and set(english["voices"]) == {"slt", "awb", "kal16"}
    assert english["lost_sentences"] == 0
