"""Every command and every Python block of the documentation is run, as it stands, in a fresh folder with `talk.mp4`."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polylip.perf import networks, pages, picture, soak, speech
from polylip.perf.demo_clip import make_demo_clip

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Commands that set the project up or run the tests and benchmarks: this run is inside of them, or they take minutes.
NOT_HERE = ("make",)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short, as the pages dub it twenty times."""
    return make_demo_clip(tmp_path_factory.mktemp("talk") / "talk.mp4", seconds=7, size=(640, 360))


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, talk: Path, tmp_path: Path):
    shutil.copy(talk, tmp_path / "talk.mp4")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, text in blocks(page):
        lines = [line for line in text.splitlines() if not line.startswith(NOT_HERE)]
        command = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, "\n".join(lines)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if page.name == "live.md":
        assert_report_left(tmp_path / "live.json")


def assert_report_left(path: Path) -> None:
    """A live job leaves JSON, a chart, and a page that names every segment."""
    segments = json.loads(path.read_text())["segments"]
    page = path.with_suffix(".html").read_text()
    assert segments and path.with_suffix(".png").stat().st_size > 0
    for segment in segments:
        assert html.escape(segment["source_text"]) in page
        assert f"<td>{segment['start_ms'] / 1000:.2f}-{segment['end_ms'] / 1000:.2f}</td>" in page


def test_make_targets_named_in_the_docs_exist():
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z][a-z-]*)\b", _code(page))}
    have = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named and named <= have


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_figures_of_a_page_are_those_of_the_committed_results(page: Path):
    assert pages.filled(page.read_text()) == page.read_text(), "run: python -m polylip.perf.pages"


def test_no_figure_of_the_readme_lacks_a_file():
    measured = README.read_text().split("## Measured\n")[1].split("## Licence")[0]
    own = re.sub(pages.BLOCK, "", measured)
    assert len(pages.BLOCK.findall(measured)) >= 8
    assert set(re.findall(r"(?<![\w.-])\d[\d.]*", own)) <= {"1", "960", "540", "25", "1080", "720", "30"}, (
        "sizes of clips"
    )


def test_the_tables_of_profile_cpu_are_those_of_the_committed_results():
    results = ROOT / "perf" / "results"
    measured = json.loads((results / "networks_cpu.json").read_text())
    branch = json.loads((results / "picture_cpu.json").read_text())
    page = (ROOT / "docs" / "cpu.md").read_text()
    for table in (networks.runtime_table(measured), networks.triton_table(measured), picture.table(branch)):
        assert table in page


def test_the_tables_of_the_speech_line_are_those_of_the_committed_results():
    results, page = ROOT / "perf" / "results", (ROOT / "docs" / "speech.md").read_text()
    assert speech.markdown(json.loads((results / "speech_cpu.json").read_text())) in page
    assert soak.markdown(json.loads((results / "soak_lite.json").read_text())) in page


def _code(page: Path) -> str:
    """The fenced and inline code of a page."""
    text = page.read_text()
    return "\n".join([body for _, body in BLOCK.findall(text)] + re.findall(r"`([^`\n]+)`", text))
