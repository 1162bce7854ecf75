"""The translation experiment: a test set that fits, scores that fall with quality, a quick run on a real server."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from polylip.client.errors import InputError
from polylip.perf import experiment, translation
from polylip.perf.segmentation_streams import PauseKind, scripts
from polylip.perf.segmentation_texts import Turn
from polylip.perf.segmentation_voices import bare
from polylip.perf.translation_runs import without_marks
from polylip.perf.translation_scores import (
    SEED_VARIABLE,
    check_comet,
    comet_scores,
    scored,
    talk_scores,
    word_errors,
)
from polylip.perf.translation_texts import talks

GOOD = ["El tren sale a las nueve y tarda dos horas.", "Mi hermana nos espera en la estación con su coche."]
WORSE = ["El tren sale en nueve y toma dos horas.", "Mi hermana nos espera a la estación y coche."]
WORST = ["Tren las hojas nueve.", "Hermana cumple allí nosotros."]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A quick run on a real server."""
    setup = replace(experiment.Setup(), quick=True, out=tmp_path_factory.mktemp("out"))
    return translation.run(setup)


def test_the_talks_are_whole_sentences_in_the_recognisers_dictionary():
    found = talks()
    sentences = [sentence for talk in found for sentence in talk.source]
    references = [sentence for talk in found for sentence in talk.reference]
    assert len(found) == 10 and 40 <= len(sentences) <= 60 and len(references) == len(sentences)
    assert len(set(sentences)) == len(sentences) and len(set(references)) == len(references)
    assert all(sentence.endswith(".") for sentence in (*sentences, *references))
    dictionary = Path(find_spec("pocketsphinx").origin).parent / "model" / "en-us" / "cmudict-en-us.dict"
    known = {line.split(maxsplit=1)[0] for line in dictionary.read_text().splitlines()}
    assert {bare(token) for sentence in sentences for token in sentence.split()} <= known


def test_every_talk_has_hesitations_within_sentences():
    for number, talk in enumerate(talks()):
        [script] = scripts([Turn("talk", talk.source)], "en", number)
        assert len(script.hesitations) == 3 and PauseKind.PHRASE in script.hesitations.values()


def test_a_worse_translation_scores_lower_in_both_metrics_and_the_same_scores_100():
    found = scored({"same": GOOD, "worse": WORSE, "worst": WORST}, GOOD, seed=1)
    assert set(found) == {"bleu", "chrf"}
    for scores in found.values():
        same, worse, worst = (scores["systems"][name]["score"] for name in ("same", "worse", "worst"))
        assert same == pytest.approx(100) and same > worse > worst >= 0
        assert scores["systems"]["same"]["p_value"] is None and 0 < scores["systems"]["worst"]["p_value"] <= 1
    again = scored({"a": WORSE, "same again": list(WORSE)}, GOOD, seed=1)
    assert again["bleu"]["systems"]["same again"]["p_value"] == again["chrf"]["systems"]["same again"]["p_value"] == 1
    assert all(talk_scores(GOOD[0], GOOD[0])[m] > talk_scores(WORSE[0], GOOD[0])[m] for m in ("bleu", "chrf"))


def test_signatures_say_how_it_was_scored_and_the_seed_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv(SEED_VARIABLE, "77")
    found = scored({"a": WORSE, "b": WORST}, GOOD, seed=5)
    assert os.environ[SEED_VARIABLE] == "77"
    assert found["bleu"]["signature"].startswith("BLEU|nrefs:1|bs:1000|seed:5|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert found["chrf"]["signature"].startswith("chrF2++|") and "|nw:2|" in found["chrf"]["signature"]
    assert scored({"a": WORSE, "b": WORST}, GOOD, seed=5) == found
    monkeypatch.delenv(SEED_VARIABLE)
    scored({"a": WORSE, "b": WORST}, GOOD, seed=5)
    assert SEED_VARIABLE not in os.environ


def test_words_are_compared_without_marks_and_case():
    assert word_errors("my sister who lives there", "My sister, who lives there.") == 0
    assert word_errors("my sister lives here too", "My sister, who lives there.") == 3
    assert word_errors("", "One two.") == 2 and word_errors("one two three", "") == 3


def test_marks_go_and_names_stay():
    assert without_marks(["if", "I", "go", "on", "Sunday,", "I", "win."]) == "If I go on Sunday I win"
    assert without_marks([]) == ""


def test_comet_without_its_weights_or_its_package_is_an_error_before_any_work(tmp_path):
    check_comet(None)
    with pytest.raises(InputError, match=r"model\.ckpt"):
        check_comet(tmp_path / "model.ckpt")
    if find_spec("comet") is None:
        (tmp_path / "model.ckpt").write_bytes(b"weights")
        with pytest.raises(InputError, match="pip install unbabel-comet"):
            check_comet(tmp_path / "model.ckpt")


# Calls as unbabel-comet 2.2 takes them; the score is the share of the reference's words that are there.
COMET_STAND_IN = """
from types import SimpleNamespace

class Model:
    def predict(self, samples, batch_size=16, gpus=1, progress_bar=True):
        assert batch_size and gpus == 0 and not progress_bar
        both = [(set(s["mt"].split()), set(s["ref"].split())) for s in samples if s["src"]]
        return SimpleNamespace(scores=[len(mt & ref) / len(ref) for mt, ref in both])

def load_from_checkpoint(path, local_files_only=False):
    assert local_files_only and path.endswith("model.ckpt")
    return Model()
"""


def test_comet_is_asked_for_every_talk_of_every_system_and_its_file_may_hold_no_code(tmp_path, monkeypatch):
    if find_spec("comet") is not None:
        pytest.skip("the real package is installed")
    (tmp_path / "comet.py").write_text(COMET_STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, checkpoint)
    check_comet(checkpoint)
    found = comet_scores(checkpoint, ["one", "two"], {"same": GOOD, "worst": WORST}, GOOD)
    assert found["same"] == [1.0, 1.0] and all(score < 0.5 for score in found["worst"])
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "code": Path("x").exists}, checkpoint)
    with pytest.raises(InputError, match="could run code"):
        check_comet(checkpoint)
    sys.modules.pop("comet", None)


def test_a_quick_run_counts_every_segment_and_hears_the_talks(result):
    data = result["data"]
    assert len(data["talks"]) == translation.QUICK_TALKS and data["sentences"] == 6 and data["hesitations"] == 4
    for policy in ("silence", "semantic"):
        row, segments = data["systems"][policy], [s for talk in data["talks"] for s in talk["segments"][policy]]
        assert row["segments"] == len(segments) == row["cuts_within_sentences"] + row["sentence_ends_met"]
        assert row["cuts_within_sentences"] == sum(segment["within"] is not None for segment in segments)
        assert row["word_error_rate"] < 0.25 and row["unanswered"] == 0
        for talk in data["talks"]:
            said = " ".join(segment["true_text"] for segment in talk["segments"][policy])
            assert word_errors(said, talk["source"]) == 0
    assert data["systems"]["silence"]["questions"] == 0 < data["systems"]["semantic"]["questions"]


def test_silence_cuts_within_sentences_and_meaning_meets_more_of_their_ends(result):
    silence, semantic = (result["data"]["systems"][policy] for policy in ("silence", "semantic"))
    assert silence["cuts_within_sentences"] >= 2
    assert semantic["sentence_ends_met"] > silence["sentence_ends_met"]
    shares = [row["cuts_within_sentences"] / row["segments"] for row in (silence, semantic)]
    assert shares[1] < shares[0]


def test_true_sentences_are_translated_best_and_the_table_names_what_was_not_run(result):
    systems = result["data"]["systems"]
    ceiling = systems["sentences"]["chrf"]["score"]
    assert all(ceiling > systems[name]["chrf"]["score"] for name in ("silence", "semantic", "unmarked"))
    assert 20 < ceiling < 90  # no machine's output is the reference
    text = translation.markdown(result)
    assert text.count("not run: weights absent") == len(systems) + 1 and "BLEU|nrefs:1" in text
    assert text == translation.markdown(json.loads(json.dumps(result)))
    assert result["repetitions"] == 1  # nothing is timed
