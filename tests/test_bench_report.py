"""The report of all experiments: what it must say of every figure, and what it makes of those that failed."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polylip.perf.catalogue import CATALOGUE
from polylip.perf.experiment import caption
from polylip.perf.report import PAGES, write_report

RESULTS = Path(__file__).parents[1] / "perf" / "results"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed results, without one of them, and with another that failed."""
    out = tmp_path_factory.mktemp("bench")
    for path in RESULTS.glob("*.json"):
        if path.name != "translation_lite.json":
            shutil.copy(path, out)
    failed = {"name": "overhead", "seconds": 3.0, "error": "error: <the server> went away"}
    (out / "bench_lite.json").write_text(json.dumps({"profile": "lite", "seconds": 3.0, "experiments": [failed]}))
    write_report(out, "lite")
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / PAGES["lite"]).read_text()


def test_every_experiment_has_a_section_or_is_named(page: str):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [entry.title for entry in CATALOGUE if entry.name not in ("overhead", "translation")]
    assert "Not in this run: IV. Translation quality." in page
    assert "overhead failed: error: &lt;the server&gt; went away" in page


def test_every_table_says_where_it_comes_from(page: str):
    for section in page.split("<section>")[1:]:
        assert re.search(r"Profile `\w+` \(.*\); \d+ cores", section), section[:200]
        assert "tritonserver 2.51.0" in section and ("stand-in" in section or "generated" in section)


def test_the_page_needs_nothing_but_itself(page: str):
    assert not re.search(r"(src|href)=['\"](?!data:image/png)", page)
    assert page.count("data:image/png;base64,") >= 6


def test_the_plots_lie_beside_it(folder: Path):
    names = {path.stem for path in folder.glob("*.png")}
    assert names >= {f"{plot}_lite" for plot in ("latency", "speed_up", "gantt", "histograms", "batches", "resources")}


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_every_experiment_runs_by_its_own_command_and_has_a_committed_result(entry):
    assert callable(importlib.import_module(entry.module).main)
    files = [path for path in RESULTS.glob(f"{entry.name}_*.json")]
    assert files
    for path in files:
        result = json.loads(path.read_text())
        assert not result["quick"], "a quick run is not for publishing"
        assert entry.markdown(result) and caption(result)


def test_the_suite_runs_an_experiment_and_writes_the_page(tmp_path: Path):
    command = [sys.executable, "-m", "polylip.perf.bench", "--only", "work", "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "bench_lite.json").read_text())
    assert [row["name"] for row in told["experiments"]] == ["work"] and told["experiments"][0]["error"] == ""
    assert "Counted work" in (tmp_path / PAGES["lite"]).read_text()


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_runs(tmp_path: Path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "polylip.perf.bench", "--out", str(tmp_path / "file")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: --out ") and done.stderr.count("\n") == 1
