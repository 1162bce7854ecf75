"""What `polylip dub` is told about the voice: how it fits, whose it is, which terms it keeps, how it is marked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polylip.client.job import DubOptions, DubResult, dub
from polylip.client.reference import ENOUGH_S, VoiceReference
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.isochrony import RANGES, Fit
from polylip.serving.launcher import Server

POLYLIP = Path(sys.executable).parent / "polylip"


def polylip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([POLYLIP, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_clip(tmp_path_factory.mktemp("short") / "talk.mp4", seconds=5.0)


@pytest.fixture(scope="module")
def hurried(short_clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> DubResult:
    output = tmp_path_factory.mktemp("hurried") / "o.mp4"
    return asyncio.run(dub(DubOptions(short_clip, output, "es", url=server.url, fit=Fit.STRICT, voice_consent=True)))


def test_the_report_tells_the_plan_and_the_outcome_of_each_segment(hurried):
    allowed = RANGES[Fit.STRICT]
    for segment in hurried.report.segments:
        fit = segment.fit
        assert 0 < fit.slot_ms <= fit.limit_ms
        assert fit.spoken_ms == pytest.approx(segment.dub_end_ms - segment.dub_start_ms, abs=40)
        assert fit.natural_ms == pytest.approx(fit.estimate_ms, rel=0.1), "espeak-ng's estimate is a silent pass"
        assert fit.engine_rate * fit.stretch == pytest.approx(segment.rate, rel=0.01)
        assert fit.natural_ms / fit.spoken_ms == pytest.approx(segment.rate, rel=0.01)
        assert fit.over_ms == pytest.approx(fit.spoken_ms - fit.slot_ms)
        assert allowed.slowest - 0.01 <= segment.rate <= allowed.hard_max + 0.01
    written = json.loads(hurried.files[0].read_text())["segments"][0]["fit"]
    assert set(written) == {
        "slot_ms", "limit_ms", "estimate_ms", "natural_ms", "spoken_ms", "engine_rate", "stretch", "over_ms",
    }  # fmt: skip


def test_a_voice_that_cannot_clone_is_named_though_there_is_consent(hurried):
    assert {segment.voice for segment in hurried.report.segments} == {"stock"}
    assert any("stock voice" in warning for warning in hurried.report.warnings)
    assert hurried.report.engines == {
        "transcribe": "pocketsphinx",
        "translate": "apertium",
        "synthesize": "espeak-ng",
        "detect": "cascade",
        "lips": "onnxruntime",
    }


def test_a_dub_is_marked_unless_told_otherwise(hurried, short_clip, server, tmp_path):
    verdict = polylip("verify", hurried.video, "--json")
    assert verdict.returncode == 0 and json.loads(verdict.stdout)["state"] == "intact"
    plain = tmp_path / "o.mp4"
    done = polylip("dub", short_clip, "--to", "es", "-o", plain, "--url", server.url, "--no-mark")
    assert done.returncode == 0
    assert polylip("verify", plain).returncode == 4


@pytest.mark.parametrize(
    ("content", "told"),
    [("Polylip\n", "apertium takes no glossary"), ("Polylip\na = b = c\n", "line 2"), (b"\xff\xfe\xff", "UTF-8")],
)
def test_a_glossary_that_cannot_be_used_is_one_line_and_nothing_is_written(content, told, short_clip, server, tmp_path):
    glossary = tmp_path / "terms.txt"
    glossary.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "out"
    out.mkdir()
    done = polylip("dub", short_clip, "--to", "es", "-o", out / "o.mp4", "--url", server.url, "--glossary", glossary)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert list(out.iterdir()) == []


def test_reference_speech_grows_to_what_a_voice_needs_and_then_stays_the_same():
    reference, second = VoiceReference(), np.ones(16_000, np.float32)
    reference.add(second[:8000])
    assert reference.audio is None
    for _ in range(20):
        reference.add(second)
    whole = reference.audio
    assert whole is not None and len(whole) == ENOUGH_S * 16_000
    reference.add(0.5 * second)
    assert reference.audio is whole
