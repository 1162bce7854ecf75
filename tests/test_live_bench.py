"""The committed live runs: what docs/live.md shows is what was measured, and it keeps what is asked of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polylip.perf.live import markdown, sentence, trend_mib

ROOT = Path(__file__).parents[1]
RUNS = {"live_lite.json": 300, "live_slow_lite.json": 600}  # seconds of each
MAX_SLOPE_MS_PER_MIN = 1.0  # of the lag; what noise makes of a delay that stays

MAX_TREND_MIB, MAX_TREND = 1.0, 0.02  # by which a process may seem to grow in a run


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "perf" / "results" / name).read_text())


@pytest.mark.parametrize("name", RUNS)
def test_the_page_shows_the_run(name: str):
    assert markdown(result(name)) in (ROOT / "docs" / "live.md").read_text()


def test_the_readme_says_what_was_measured():
    words = (ROOT / "README.md").read_text().split()
    assert " ".join(sentence(result("live_lite.json")).split()) in " ".join(words)


@pytest.mark.parametrize(("name", "seconds"), RUNS.items())
def test_the_delay_does_not_grow(name: str, seconds: int):
    run = result(name)
    assert run["duration_s"] >= seconds - 1
    assert run["lag"]["slope_ms_per_min"] < MAX_SLOPE_MS_PER_MIN
    assert run["player"]["slope_ms_per_min"] < MAX_SLOPE_MS_PER_MIN
    assert sum(run["statuses"].values()) == run["segments"]


def test_the_quiet_run_is_in_time_in_sync_and_flat_in_memory():
    run = result("live_lite.json")
    assert run["first_frame_after_last_word_ms"]["p50"] <= 1000
    assert run["av_offset_ms"]["p99"] <= 40
    for process in run["memory"]["processes"].values():
        assert trend_mib(process, run["duration_s"]) < max(MAX_TREND_MIB, MAX_TREND * process["highest_mib"])
