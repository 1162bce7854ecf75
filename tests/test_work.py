"""Counted work, which no busy machine can hide: more of it than here is a regression."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from polylip.perf.work import Work, count_work, markdown
from polylip.serving.launcher import Server

ROOT = Path(__file__).parents[1]
FPS = 25
ANALYSIS_KIB = 640 * 360 * 3 / 1024  # of a key frame, raw
FACE_KIB = 96 * 96 * 3 / 1024


@pytest.fixture(scope="module")
def work(server: Server, demo_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    return asyncio.run(count_work(demo_clip, server.url, tmp_path_factory.mktemp("work")))[0]


def test_every_sentence_of_the_clip_is_dubbed(work: Work):
    assert work.segments == 4 and work.frames_lipsynced > 0.5 * work.frames


def test_the_detector_sees_one_frame_in_five(work: Work):
    """Cuts ask for more, and this clip has none; the sequence's first chunk has one more."""
    assert work.frames / 5 / work.duration_s <= work.detector_frames_per_s <= 1.1 * FPS / 5


def test_the_pictures_of_a_chunk_are_one_batch(work: Work):
    chunks = sum(work.batches["detect"].values())
    assert chunks <= work.frames / FPS + 2, "a chunk holds a second of video"
    assert work.batches["faces"] == work.batches["track"] == {1: chunks}


def test_lips_are_asked_for_in_full_batches(work: Work):
    """What is shown, the frames in which a dub begins and ends, and nothing else."""
    frames = sum(size * passes for size, passes in work.batches["lips"].items())
    calls = work.batches["lipsync"][1]
    assert 1.0 <= work.lips_frames_per_frame <= 1.25
    assert calls <= frames / 16 + 2 * work.segments
    assert work.batches["mel"] == {1: calls}
    assert sum(work.batches["lips"].values()) <= calls, "the server joins two of them when both are there"


def test_each_segment_is_translated_and_spoken_once(work: Work):
    """Before the first one, a tiny request asks whether the languages are to be had."""
    assert work.passes_per_segment["translate"] == work.passes_per_segment["synthesize"]
    assert work.passes_per_segment["translate"] <= 1 + 1 / work.segments
    assert work.passes_per_segment["transcribe"] <= 1 + 1 / work.segments + 2, "one or two questions in its pause"


def test_only_small_pictures_and_faces_travel(work: Work):
    faces = work.lips_frames_per_frame * work.frames_lipsynced / work.duration_s
    up = work.detector_frames_per_s * ANALYSIS_KIB + faces * FACE_KIB
    assert work.sent_kib_per_s <= 1.15 * up + 70, "and the sound of segments and questions"
    assert work.received_kib_per_s <= 1.15 * faces * FACE_KIB + 100, "mouths, and speech at 22 kHz"


def test_a_picture_is_copied_out_once_and_back_once(work: Work):
    assert work.whole_copies_per_lipsynced_frame <= 2 * work.lips_frames_per_frame
    assert work.shrunk_per_key_frame == 1.0


def test_the_committed_counts_are_those_of_the_page():
    result = json.loads((ROOT / "perf" / "results" / "work_lite.json").read_text())
    assert markdown(result) in (ROOT / "docs" / "proof.md").read_text()
