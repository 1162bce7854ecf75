"""The benchmark of the speech line: its figures and tables, one engine of profile lite measured, words by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polylip.perf import speech, speech_gpu
from polylip.perf.speech import ALLOWED_MS, figures, jobs, markdown, measure
from polylip.perf.speech_triton import engine_parameters
from polylip.perf.speech_worker import Job, Timing, Worker, peak_mib
from polylip.serving.runtime import find_model_repository

MACHINE = {"cpu": "a processor", "cores": 2, "python": "3.11", "instruction_sets": []}


def pairs(own_s: float, served_s: float, count: int = 5) -> list[tuple[Timing, Timing]]:
    return [(Timing(own_s, 0.1, 2.0, "a b c"), Timing(served_s, 0.2, 2.0, "a b c"))] * count


def test_triton_may_cost_ten_milliseconds_or_a_twentieth():
    job = Job("synthesize", text="x")
    assert figures(job, pairs(0.010, 0.019))["met"]
    assert not figures(job, pairs(0.010, 0.021))["met"]
    assert figures(job, pairs(1.90, 1.99))["met"]
    slow = figures(job, pairs(1.80, 2.00))
    assert not slow["met"]
    assert slow["triton_costs_ms"] == pytest.approx(200)
    assert slow["triton_costs_first_ms"] == pytest.approx(100)
    assert slow["triton_share"] == pytest.approx(0.1)
    assert slow["allowed_ms"] == pytest.approx(100) and ALLOWED_MS == 10


def test_a_busy_moment_that_hits_one_pair_changes_little():
    disturbed = [*pairs(1.0, 1.005, 4), *pairs(1.0, 3.0, 1)]
    assert figures(Job("translate", text="x"), disturbed)["triton_costs_ms"] == pytest.approx(5)


def test_rates_and_factors():
    voice = figures(Job("synthesize", text="x"), pairs(1.0, 4.0))
    assert voice["in_process"]["real_time_factor"] == 0.5 and voice["triton"]["real_time_factor"] == 2.0
    assert (voice["in_process"]["first_p50_ms"], voice["triton"]["first_p50_ms"]) == (100, 200)
    heard = figures(Job("transcribe", audio=np.zeros(32_000, np.float32)), pairs(1.0, 4.0))
    assert heard["heard_s"] == 2 and heard["in_process"]["real_time_factor"] == 0.5
    texts = figures(Job("translate", text="x", batch=8), pairs(1.0, 2.0))
    assert texts["in_process"]["words_per_s"] == 24 and texts["triton"]["words_per_s"] == 12


def test_jobs_are_those_of_the_steps_asked_for():
    assert [job.model for job in jobs("lite", ("translate",))] == ["translate"]
    every = jobs("cpu", ("transcribe", "translate", "synthesize"))
    assert [job.batch for job in every if job.model == "translate"] == [1, 8, 32]
    assert every[-1].model == "speech"


def test_parameters_come_from_the_profile():
    repository = find_model_repository()
    assert engine_parameters(repository, "lite", "translate") == {"engine": "apertium"}
    assert engine_parameters(repository, "gpu", "translate")["device"] == "cuda"


def test_the_voice_of_lite_is_measured_both_ways(tmp_path: Path):
    rows = measure("lite", 3, tmp_path, steps=("synthesize",))
    assert [(row["model"], row["engine"], row["rounds"]) for row in rows] == [("synthesize", "espeak-ng", 3)]
    for side in ("in_process", "triton"):
        assert 0 < rows[0][side]["first_p50_ms"] <= rows[0][side]["p50_ms"] <= rows[0][side]["p95_ms"]
        assert 0 < rows[0][side]["real_time_factor"] < 1
        assert rows[0][f"{side}_peak_mib"] > 20
    assert rows[0]["spoken_s"] > 1
    result = {"machine": MACHINE, "threads": "1", "allowed": {"share": 0.05, "ms": 10.0}, "rows": rows}
    assert "| `synthesize`, 1 | espeak-ng |" in markdown(json.loads(json.dumps(result)))


def test_a_worker_says_what_went_wrong():
    with Worker("synthesize", {"engine": "espeak-ng"}, Path()) as worker:
        assert worker.peak_mib > 20
        with pytest.raises(RuntimeError, match="ended as unsupported"):
            worker.run(Job("synthesize", text="x", target="xx"))
        assert worker.run(Job("synthesize", text="Hola.")).spoken_s > 0.1
    with pytest.raises(RuntimeError, match="has no engine"), Worker("synthesize", {"engine": "none"}, Path()):
        pass
    assert peak_mib(1) > 0


def test_tables_of_other_results():
    row = figures(Job("translate", text="x"), pairs(0.01, 0.05))
    label = {"profile": "lite", "engine": "apertium", "weights": "its own"}
    rows = [{**label, **row, "in_process_peak_mib": 1, "triton_peak_mib": 2}]
    shown = markdown({"machine": MACHINE, "threads": "1", "allowed": {"share": 0.05, "ms": 10.0}, "rows": rows})
    assert "Profile `lite` (its own weights)" in shown
    assert "| +40.0 (10.0) **missed** |" in shown and "60 words/s" in shown


def test_the_table_of_a_gpu_names_its_targets():
    spread = {"mean": 500.0, "sd": 1.0, "p50": 500.0, "p95": 510.0}
    row = {"model": "speech", "batch": 1, "heard_s": 7.0, "spoken_s": 4.0, "words": 6, "ms": spread, "first_ms": spread}
    result = {
        "weights": "generated, full",
        "device": "a GPU",
        "runs": 20,
        "warm_ups": 3,
        "targets": speech_gpu.TARGETS,
        "rows": [{**row, "real_time_factor": 0.4, "words_per_s": 12.0}],
        "met": {"first_audio_s": True, "real_time_factor": False},
    }
    shown = speech_gpu.markdown(result)
    assert "First audio 0.50 s after the end of a segment (target on an H100: 0.6 s, met)" in shown
    assert "real-time factor of the line 0.40 (target on an H100: 0.3, missed)" in shown
    assert "not measured on a GPU" in speech_gpu.markdown({**result, "met": {}})


def test_a_random_translator_says_what_it_learnt_by_heart(tmp_path: Path):
    pytest.importorskip("ctranslate2")
    from polylip.export.generated_marian import make_marian  # noqa: PLC0415  torch takes 2 s to import
    from polylip.export.opus_mt import convert_opus_mt  # noqa: PLC0415
    from polylip.perf.speech_weights import SPANISH, learn_marian  # noqa: PLC0415
    from polylip.serving.engines import Passage  # noqa: PLC0415
    from polylip.serving.engines.opus_mt import OpusMt  # noqa: PLC0415

    folder = convert_opus_mt(make_marian(tmp_path / "checkpoint"), tmp_path / "en-es", generated=True)
    learn_marian(folder)
    engine = OpusMt({"compute_type": "int8"}, str(tmp_path))
    texts = ["We are leaving tomorrow at seven.", "She reads a book in the garden."]
    said = engine.translate([Passage(text, "en", "es") for text in texts])
    assert [translation.text for translation in said] == [SPANISH, SPANISH]


def test_both_programs_say_the_same_sentences():
    assert speech.LONG == speech_gpu.SPANISH
