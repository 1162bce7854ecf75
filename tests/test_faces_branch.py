"""The picture branch against a real server: cuts, the face that speaks, the face that the user names, hidden faces."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import Picture, Sound, write_media
from material import RATE_HZ, face_at, read_aloud
from two_faces import BOXES, FPS, film

from polylip.client.job import DubOptions, DubResult, dub
from polylip.client.key_frames import DENSE_SHARE, MAX_ALLOWANCE, SHOT_KEY_FRAMES
from polylip.client.results import FaceChoice, HideReason, Status
from polylip.perf.demo_clip import SENTENCES
from polylip.serving.launcher import Server

LEFT, RIGHT = BOXES
CODEC = {"crf": "12", "preset": "veryfast"}  # little loss: what is compared are pixels


def make_clip(path: Path, frames: np.ndarray, sound: np.ndarray) -> Path:
    """frames uint8 (n, 360, 640, 3) BGR."""
    picture = Picture(
        len(frames),
        rate=FPS,
        size=(640, 360),
        draw=lambda index: cv2.cvtColor(frames[index], cv2.COLOR_BGR2RGB),
        options=CODEC,
    )
    return write_media(path, picture, Sound(sound[None], RATE_HZ))


def run(clip: Path, output: Path, server: Server, face: str | None = None) -> DubResult:
    return asyncio.run(dub(DubOptions(clip, output, "es", url=server.url, face=face)))


def luma(path: Path) -> np.ndarray:
    """uint8 (frames, h, w)."""
    with av.open(str(path)) as container:
        return np.array([frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)])


def change(source: Path, dubbed: Path, box: tuple[int, int, int, int]) -> np.ndarray:
    """How much the mouth in a face's box differs, frame by frame: 99th percentile in grey levels."""
    x1, y1, x2, y2 = box
    mouth = np.s_[:, (y1 + y2) // 2 : y2, x1:x2]
    difference = np.abs(luma(source)[mouth].astype(np.int16) - luma(dubbed)[mouth])
    return np.percentile(difference, 99, axis=(1, 2))


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Silence, a sentence, silence."""
    spoken = read_aloud(SENTENCES[4])
    return np.concatenate([np.zeros(8000, np.float32), spoken, np.zeros(24_000, np.float32)])


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory: pytest.TempPathFactory, sound: np.ndarray) -> Path:
    """Two faces; the right one's mouth follows the sound."""
    frames = film(None, sound, len(sound) * FPS // RATE_HZ)
    return make_clip(tmp_path_factory.mktemp("dialogue") / "two.mp4", frames, sound)


def test_only_the_face_that_speaks_is_changed(dialogue: Path, server: Server, tmp_path: Path):
    result = run(dialogue, tmp_path / "o.mp4", server)
    (segment,) = result.report.segments
    assert (segment.status, segment.face_choice) == (Status.DUBBED, FaceChoice.SPEAKING)
    place = {face.id: face.place[0] for face in result.report.faces}
    assert len(place) == 2 and place[segment.face_id] > 0.5
    right, left = (change(dialogue, result.video, box) for box in (RIGHT, LEFT))
    assert left.max() < 12
    assert np.percentile(right, 90) > 15
    counters = result.report.counters
    assert np.sum(right > 15) <= result.report.frames_lipsynced <= counters["lipsync_frames"]
    # Lips are asked for all of the segment's span; beside the dub, in silence, the warp gives the picture back.
    assert segment.dub_end_ms is not None
    asked = (max(segment.end_ms, segment.dub_end_ms) - segment.start_ms) * FPS / 1000
    assert counters["lipsync_frames"] == pytest.approx(asked, abs=3)
    silent = right[int((segment.dub_end_ms + 80) * FPS / 1000) :]
    assert silent.size > 10 and silent.max() < 12


def test_the_user_names_another_face_by_place_or_number(dialogue: Path, server: Server, tmp_path: Path):
    by_place = run(dialogue, tmp_path / "place.mp4", server, face="0.2,0.25")
    (segment,) = by_place.report.segments
    assert segment.face_choice is FaceChoice.CHOSEN
    by_number = run(dialogue, tmp_path / "number.mp4", server, face=str(segment.face_id))
    assert by_number.report.segments[0].face_id == segment.face_id
    for result in (by_place, by_number):
        assert change(dialogue, result.video, RIGHT).max() < 12
        assert np.percentile(change(dialogue, result.video, LEFT), 90) > 15


def test_boxes_are_right_from_the_first_frame_of_a_shot_to_its_last(server: Server, tmp_path: Path, sound: np.ndarray):
    """Three shots of one person at other places, and a shot of nobody between them."""
    count = len(sound) * FPS // RATE_HZ
    bounds = [0, count // 4, count // 2, count // 2 + 12, count]
    rng = np.random.default_rng(0)
    nobody = cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), (640, 360), interpolation=cv2.INTER_CUBIC)
    shots = [face_at(20), face_at(250), nobody, np.ascontiguousarray(face_at(120)[:, ::-1])]
    frames = np.concatenate(
        [
            np.repeat(shot[None], end - start, axis=0)
            for shot, (start, end) in zip(shots, itertools.pairwise(bounds), strict=True)
        ]
    )
    clip = make_clip(tmp_path / "cuts.mp4", frames, sound)
    report = run(clip, tmp_path / "out" / "o.mp4", server)
    counters, faces = report.report.counters, report.report.faces
    assert counters["cuts"] == 3
    assert counters["dense_key_frames"] <= len(shots) * SHOT_KEY_FRAMES
    assert counters["failed_faces_chunks"] == 0
    assert [face.id for face in faces] == [1, 2, 3]
    edges_ms = [(start * 1000 / FPS, (end - 1) * 1000 / FPS) for start, end in itertools.pairwise(bounds)]
    expected = [edges_ms[0], edges_ms[1], edges_ms[3]]
    assert [(face.start_ms, face.end_ms) for face in faces] == [(round(a), round(b)) for a, b in expected]
    boxes = {s.frame: s.box_px for s in report.face_samples}
    for start, end in (bounds[0:2], bounds[1:3], bounds[3:5]):
        held = np.array([boxes[index] for index in range(start, end)])
        assert np.ptp(held, axis=0).max() < 6
    assert all(boxes[index] is None for index in range(bounds[2], bounds[3]))
    assert report.report.frames_without_face == bounds[3] - bounds[2]
    (hidden,) = report.report.face_spans_hidden
    assert hidden.reason is HideReason.NOT_FOUND
    assert hidden.start_ms == pytest.approx(edges_ms[2][0], abs=1)


def test_lips_fade_before_the_face_is_covered_and_the_report_says_so(server: Server, tmp_path: Path):
    spoken = read_aloud(SENTENCES[1])
    sound = np.concatenate([np.zeros(8000, np.float32), spoken, np.zeros(16_000, np.float32)])
    count = len(sound) * FPS // RATE_HZ
    frames = np.repeat(face_at(140)[None], count, axis=0)
    first, last = 30, 55
    frames[first:last, 30:200, 240:350] = 90
    result = run(make_clip(tmp_path / "hand.mp4", frames, sound), tmp_path / "out" / "o.mp4", server)
    spans = result.report.face_spans_hidden
    assert len(spans) == 1 and spans[0].reason is HideReason.COVERED
    assert first * 40 - 200 <= spans[0].start_ms <= first * 40 and last * 40 <= spans[0].end_ms <= last * 40 + 400
    covered = np.abs(luma(tmp_path / "hand.mp4")[first:last].astype(np.int16) - luma(result.video)[first:last])
    assert covered.max() < 25  # encoder loss: nothing is painted on the hand


def test_a_face_that_moves_fast_gets_more_key_frames_within_the_allowance(server: Server, tmp_path: Path):
    """80 px to each side once a second, a face of 85 px. Nobody speaks, and the user names a face that is not there."""
    count = 5 * FPS
    frames = np.array([face_at(140 + round(80 * np.sin(2 * np.pi * index / FPS))) for index in range(count)])
    clip = make_clip(tmp_path / "fast.mp4", frames, np.zeros(5 * RATE_HZ, np.float32))
    report = run(clip, tmp_path / "out" / "o.mp4", server, face="9").report
    dense = report.counters["dense_key_frames"]
    assert report.counters["cuts"] == 0
    assert dense > SHOT_KEY_FRAMES + 10
    assert dense <= DENSE_SHARE * (report.counters["key_frames"] - dense) + MAX_ALLOWANCE
    assert any(warning.startswith("--face 9: no face has this number") for warning in report.warnings)


def test_a_bad_face_is_refused_with_one_line(dialogue: Path, tmp_path: Path):
    command = [sys.executable, "-m", "polylip.client.cli", "dub", str(dialogue), "--to", "es", "--face", "left"]
    done = subprocess.run([*command, "-o", str(tmp_path / "o.mp4")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--face 'left' is neither a face's number nor a place" in done.stderr
    assert list(tmp_path.iterdir()) == []
