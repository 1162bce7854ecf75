"""The sentence-boundary scorer: what the committed weights decide, and the command that trains them."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polylip.client.boundary import (
    ENGLISH_WEIGHTS,
    HashedScorer,
    PunctuationScorer,
    boundary_scorer,
    ends_sentence,
    load_weights,
)
from polylip.client.boundary_features import NUMBER, ORDINAL, normalised
from polylip.client.errors import InputError
from polylip.export.boundary import judged_on, main, train_weights
from polylip.export.boundary_examples import Pause
from polylip.export.boundary_report import Judged, Share
from polylip.export.boundary_text import DEV_FILES, Place, all_files, read_units, unit_of
from polylip.export.boundary_train import Settings

ENGLISH = HashedScorer()
SPOKEN = ["could", "you", "tell", "me", "what", "alarms", "i", "have", "on"]

COMPLETE = (
    "could you tell me about the hotel",
    "thank you very much",
    "thank you",
    "yes please",
    "what time does it start",
    "i would like to book a table for four people",
    "that sounds good to me",
    "where are you going",
    "it was really good",
    "we are going to the beach tomorrow",
    "do you want to come with us",
    "see you later",
)
INCOMPLETE = (
    "i went to the shop and the",
    "i can't come today because",
    "we are going to",
    "i would like a",
    "the reason is that my",
    "could you tell me what",
    "he was looking for his",
    "so i was thinking about",
    "can you please find me a restaurant which",
    "there are two of",
    "if you would",
    "she is the most",
)
# (words, the two that follow, whether a sentence ends between)
WITH_FOLLOWING = (
    ("could you tell me what alarms i have on", "i want", True),
    ("that works for me", "can you", True),
    ("how much is it", "i don't", True),
    ("we had a great time", "what about", True),
    ("i am looking for a flight", "from london", False),
    ("i want to eat", "at an", False),
    ("he said he would call", "when he", False),
    ("we met in the park", "and then", False),
    ("i need a ticket", "for the", False),
)


@pytest.mark.parametrize("text", COMPLETE)
def test_complete_sentences_and_questions_are_known(text: str) -> None:
    probability = ENGLISH.probability(text.split())
    assert probability is not None and probability >= 0.5


@pytest.mark.parametrize("text", INCOMPLETE)
def test_trailing_function_words_promise_more(text: str) -> None:
    probability = ENGLISH.probability(text.split())
    assert probability is not None and probability < 0.3


@pytest.mark.parametrize(("text", "following", "complete"), WITH_FOLLOWING)
def test_two_words_behind_the_pause_decide(text: str, following: str, complete: bool) -> None:
    probability = ENGLISH.probability(text.split(), following.split())
    assert probability is not None
    assert probability > 0.6 if complete else probability < 0.4


def test_a_later_word_is_not_looked_at() -> None:
    assert ENGLISH.probability(SPOKEN, ["i", "would"]) == ENGLISH.probability(SPOKEN, ["i", "would", "like"])


def test_recognisers_of_any_habit_are_read_alike() -> None:
    written = ["On", "the", "3rd,", "I", "paid", "$205", "for", "it.", "At", "4:30", "p.m.", "we", "left"]
    spelled_out = "on the third i paid two hundred and five dollars for it at four thirty pm we left"
    heard = spelled_out.split()
    assert normalised(written) == normalised(heard)
    assert ENGLISH.probability(written) == ENGLISH.probability(heard)
    assert ENGLISH.probability(["Thank", "you."]) == ENGLISH.probability(["thank", "you"])
    assert ENGLISH.probability(["THAT\u2019S", "it!"]) == ENGLISH.probability(["that's", "it"])


def test_numbers_become_classes_and_one_stays_a_word() -> None:
    assert normalised(["twenty", "first"]) == normalised(["21st"]) == [ORDINAL]
    assert normalised(["three", "point", "five"]) == normalised(["3.5"]) == [NUMBER]
    assert normalised(["which", "one", "is", "it"]) == ["which", "one", "is", "it"]
    assert normalised(["twenty", "one"]) == normalised(["21"]) == [NUMBER]
    assert normalised(["first", "of", "all"]) == ["first", "of", "all"]
    assert normalised(["--", "\u2026", "read(2)"]) == ["read"]


def test_nothing_said_is_no_answer() -> None:
    assert ENGLISH.probability([]) is None
    assert ENGLISH.probability(["...", "-"]) is None


def test_long_segments_and_unknown_words_have_an_answer() -> None:
    words = ["xyzzy", "frobnicated", "\u5929\u6c17", "na\u00efve"] * 50
    probability = ENGLISH.probability(words, ["plugh", "qux"])
    assert probability is not None and 0 < probability < 1


def test_calibration_rises_with_both_parts() -> None:
    assert (ENGLISH.weights.calibration[:, :2] > 0).all()
    assert np.isfinite(ENGLISH.weights.calibration).all()


def test_weight_file_is_small_names_its_sources_and_needs_no_pickle() -> None:
    assert ENGLISH_WEIGHTS.stat().st_size < 900 * 1024
    with np.load(ENGLISH_WEIGHTS, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "iufU" for name in file.files)
    about = "\n".join(ENGLISH.weights.about)
    for expected in ("schema-guided-dialogue", "UD_English-EWT", "CC BY-SA 4.0", "polylip.export.boundary", "AUC"):
        assert expected in about


def test_another_process_without_torch_finds_the_same(tmp_path: Path) -> None:
    script = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "sklearn", "scipy", "onnxruntime"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from polylip.client.boundary import boundary_scorer
scorer = boundary_scorer("en-GB")
print(json.dumps([scorer.probability(text.split()) for text in json.loads(sys.argv[1])]))
"""
    texts = json.dumps([*COMPLETE, *INCOMPLETE])
    for seed in ("0", "4242"):
        command = [sys.executable, "-c", script, texts]
        found = subprocess.run(
            command,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        )
        assert json.loads(found.stdout) == pytest.approx(
            [ENGLISH.probability(text.split()) for text in (*COMPLETE, *INCOMPLETE)], abs=1e-6
        )


def test_languages_get_their_scorer() -> None:
    assert isinstance(boundary_scorer("en"), HashedScorer)
    assert boundary_scorer("EN-us") is boundary_scorer("en")
    for language in ("es", "zh", "auto", ""):
        assert isinstance(boundary_scorer(language), PunctuationScorer)


@pytest.mark.parametrize(
    ("words", "following", "ends"),
    [
        ("Hola a todos.", "Hoy", True),
        ("Vienes ma\u00f1ana?", "Yo", True),
        ("No lo s\u00e9", "\u00bfQu\u00e9 hora", True),  # the opening mark says it
        ("\u4f60\u597d\u3002", "\u6211\u662f", True),
        ("\u0915\u0948\u0938\u0947 \u0939\u0948\u0902\u0964", "\u092e\u0948\u0902", True),
        ("Ich wei\u00df nicht\u2026", "Vielleicht morgen", True),
        ("Ich wei\u00df nicht\u2026", "ob er kommt", False),
        ("Hola, yo soy", "Juan", False),
        ("He visto al Sr.", "Garc\u00eda", False),
        ("We met, Mr.", "Smith", False),
        ("Er wohnt, z.B.", "Berlin", False),
        ("Am Montag, den 3.", "Oktober", False),
        ('"Das ist gut."', "Sie ging", True),
    ],
)
def test_marks_inside_a_hypothesis_are_believed(words: str, following: str, ends: bool) -> None:
    probability = PunctuationScorer().probability(words.split(), following.split())
    assert probability is not None
    assert (probability > 0.85) == ends and (probability < 0.15) != ends


def test_the_last_mark_of_a_hypothesis_is_not_believed() -> None:
    scorer = PunctuationScorer()
    assert scorer.probability(["Quiero", "ir", "al."]) is None
    assert scorer.probability(["Hola.", "Quiero", "ir"]) is None
    # the second following word may be the hypothesis's last: its full stop says nothing about marks being written
    assert scorer.probability(["hola", "quiero"], ["ir", "al."]) is None
    assert scorer.probability([], ["hola"]) is None


def test_lower_case_after_a_question_mark_is_a_new_sentence() -> None:
    assert ends_sentence("vienes?", "yo")
    assert not ends_sentence("vienes", "Yo")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04K\x01."])
def test_a_damaged_weight_file_gives_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a file of boundary weights.*polylip\.export\.boundary") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_or_format_are_refused(tmp_path: Path) -> None:
    with np.load(ENGLISH_WEIGHTS) as file:
        held = {name: file[name] for name in file.files}
    for name, value in (("heads", held["heads"][:-1]), ("format", np.int32(99)), ("ngrams", held["ngrams"][:, :-1])):
        np.savez(tmp_path / "weights.npz", **{**held, name: value})
        with pytest.raises(InputError, match="boundary weights"):
            HashedScorer(tmp_path / "weights.npz").probability(["hello"])


def test_written_text_becomes_places() -> None:
    unit = unit_of("Well, Mr. Smith came at 5 p.m. and left.He paid $20 - I think. Why? e.g. because")
    assert unit is not None
    found = [(word, Place(place)) for word, place in zip(unit.tokens, unit.places, strict=True) if place != Place.GAP]
    assert found == [
        ("well", Place.COMMA),
        ("came", Place.JOINT),
        ("pm", Place.JOINT),
        ("left", Place.END),
        ("dollars", Place.COMMA),
        ("think", Place.END),
        ("why", Place.END),
        ("eg", Place.JOINT),
        ("because", Place.END),
    ]
    assert unit_of("*** --") is None


def test_wilson_interval_and_auc() -> None:
    low, high = Share(92, 100).interval
    assert low == pytest.approx(0.850, abs=0.001) and high == pytest.approx(0.959, abs=0.001)
    pauses = [Pause(("a",), (), Place.END, "end")] * 2 + [Pause(("a",), (), Place.GAP, "gap")] * 2
    judged = Judged(pauses, np.array([0.9, 0.4, 0.4, 0.1]), 0.0)
    assert judged.auc == pytest.approx(0.875)
    assert judged.accuracy().value == 0.75 and judged.precision(0.5).value == 1 and judged.recall(0.5).value == 0.5


def _generated(folder: Path) -> Path:
    """Both kinds of text by a small grammar: sentences end in nouns, and go on behind articles and commas."""
    chosen = random.Random(5)  # noqa: S311
    nouns, verbs = ["dog", "cat", "bird", "house", "garden", "river", "train"], ["sees", "finds", "likes", "follows"]

    def sentence() -> str:
        text = f"the {chosen.choice(nouns)} {chosen.choice(verbs)} a {chosen.choice(nouns)}"
        if chosen.random() < 0.3:
            text = f"today, {text}"
        return text.capitalize() + "."

    for name in all_files():
        lines = [" ".join(sentence() for _ in range(chosen.randint(1, 4))) for _ in range(120)]
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write("\n".join(lines))
    return folder


def test_the_trainer_learns_a_small_language_and_repeats_itself(tmp_path: Path) -> None:
    data = _generated(tmp_path)
    small = Settings(units=16, embedding=8, epochs=2, ngram_epochs=1, batch=32)
    lines: list[str] = []
    for name in ("one.npz", "two.npz"):
        train_weights(data, tmp_path / name, small, lines.append)
    one, two = (HashedScorer(tmp_path / name) for name in ("one.npz", "two.npz"))
    assert one.weights.about == two.weights.about and (one.weights.ngrams == two.weights.ngrams).all()
    assert (one.weights.embedding == two.weights.embedding).all()
    found = judged_on(one, {"web": read_units(data / DEV_FILES["web"])})["web"]
    assert found[2].auc > 0.9 and found[0].auc > 0.7
    assert one.probability(["the", "dog", "sees", "a"]) < 0.5  # type: ignore[operator]


def test_the_command_evaluates_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert main(["--data", str(tmp_path)]) == 2
    (tmp_path / DEV_FILES["dialogue"]).write_bytes(b"plain text")
    assert main(["--data", str(tmp_path), "--evaluate"]) == 2
    missing, absent, plain = capsys.readouterr().err.strip().split("\n")
    assert "no such folder" in missing and "no such file" in absent and "en_web_dev.txt.gz" in absent
    assert "not gzip-compressed" in plain
    assert main(["--data", str(_generated(tmp_path)), "--evaluate", "--confusions"]) == 0
    shown = capsys.readouterr().out
    assert "base rate" in shown and "| dialogue, 2 |" in shown and "taken for complete" in shown
