"""The sequential baseline beside the served pipeline: the same words in the same places, a video that plays."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from playback import play

from polylip.client.closing import Policy
from polylip.client.job import DubOptions, dub
from polylip.client.media_in import probe_media
from polylip.client.results import Report, Status
from polylip.perf import baseline as command
from polylip.perf.baseline import Baseline, BaselineRun
from polylip.perf.baseline_engines import Clock, Step, full_precision
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.launcher import Server

SECONDS, SIZE = 7.5, (640, 360)
FRAME_MS = 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sentences."""
    return make_demo_clip(tmp_path_factory.mktemp("baseline") / "talk.mp4", SECONDS, SIZE)


@pytest.fixture(scope="module")
def output(clip: Path) -> Path:
    return clip.with_name("sequential.mp4")


@pytest.fixture(scope="module")
def run(clip: Path, output: Path) -> BaselineRun:
    return Baseline().dub(clip, output, source="en", target="es")


@pytest.fixture(scope="module")
def served(clip: Path, server: Server) -> Report:
    options = DubOptions(clip, clip.with_name("served.mp4"), "es", "en", url=server.url, segmentation=Policy.SILENCE)
    return asyncio.run(dub(options)).report


def test_it_says_the_same_words_in_the_same_places_as_the_pipeline(run: BaselineRun, served: Report):
    assert len(run.segments) == 2
    assert [(s.start_ms, s.end_ms, s.source_text, s.target_text, s.status) for s in run.segments] == [
        (s.start_ms, s.end_ms, s.source_text, s.target_text, str(s.status)) for s in served.segments
    ]
    assert all(segment.status == Status.DUBBED and segment.target_text for segment in run.segments)
    for own, other in zip(run.segments, served.segments, strict=True):
        assert own.dub_start_ms == other.dub_start_ms
        assert own.dub_end_ms == pytest.approx(other.dub_end_ms, abs=FRAME_MS)


def test_it_looks_at_the_key_frames_and_moves_the_lips_that_the_pipeline_does(run: BaselineRun, served: Report):
    assert run.key_frames == served.counters["key_frames"]
    assert run.frames_lipsynced == pytest.approx(served.frames_lipsynced, abs=2)
    assert run.frames_lipsynced > 50


def test_every_network_gets_one_frame_at_a_time(run: BaselineRun, served: Report):
    assert run.calls["detect"] == run.key_frames
    assert run.calls["lips"] == pytest.approx(served.counters["lipsync_frames"], abs=2)
    assert served.counters["lipsync_calls"] < run.calls["lips"] / 4
    assert {model: run.calls[model] for model in ("transcribe", "translate", "synthesize")} == {
        "transcribe": 2,
        "translate": 2,
        "synthesize": 2,
    }


def test_its_video_plays_with_the_frames_and_the_length_of_the_source(run: BaselineRun, clip: Path, output: Path):
    before, after = play(clip), play(output)
    assert len(after.times_s) == len(before.times_s) == run.frames
    assert after.times_s == before.times_s
    assert probe_media(output).duration_s == pytest.approx(probe_media(clip).duration_s, abs=0.05)
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


def test_the_steps_are_the_whole_time_and_never_overlap(run: BaselineRun):
    assert sum(run.stages_s.values()) == pytest.approx(run.total_s, rel=0.03)
    assert [step for step in Step if run.stages_s[step] == 0] == [Step.WAIT]  # the clip is at hand
    assert all(one.end_s <= other.start_s for one, other in zip(run.spans, run.spans[1:], strict=False))
    assert run.first_frame_s is not None
    last_lips = max(span.end_s for span in run.spans if span.step is Step.LIPS)
    assert last_lips < run.first_frame_s < run.total_s  # no frame leaves before the last mouth is made


def test_an_inner_step_stops_the_one_around_it():
    clock = Clock()
    with clock.step(Step.ENCODE), clock.step(Step.MIX):
        pass
    assert [span.step for span in clock.spans] == [Step.ENCODE, Step.MIX, Step.ENCODE]
    assert sum(clock.seconds.values()) <= clock.now_s


def test_networks_compute_in_fp32_whatever_the_profile_says():
    assert full_precision({"engine": "s3fd", "precision": "auto", "threads": "0"}) == {
        "engine": "s3fd",
        "precision": "fp32",
        "threads": "0",
    }
    assert full_precision({"compute_type": "int8"}) == {"compute_type": "float32"}


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main([str(tmp_path / "none.mp4"), "-o", str(tmp_path / "out.mp4"), "--to", "es"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "none.mp4" in error and error.count("\n") == 1


def test_the_clip_itself_is_no_output(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own, link = tmp_path / "talk.mp4", tmp_path / "link.mp4"
    shutil.copy(clip, own)
    link.symlink_to(own)
    before = own.read_bytes()
    for output in (own, link):
        assert command.main([str(own), "-o", str(output), "--to", "es"]) == 1
        assert "the same file" in capsys.readouterr().err
    assert own.read_bytes() == before
