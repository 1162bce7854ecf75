"""The picture experiment: figures by heart, SyncNet's own arithmetic, and a quick run on a real server."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from polylip.client.errors import InputError
from polylip.export.checkpoints import load_network, save_checkpoint
from polylip.export.gate_inputs import gate_faces
from polylip.export.generated import generated_network
from polylip.export.parity import ssim
from polylip.perf import experiment, picture_quality
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.picture_quality_dub import lse, main_face
from polylip.perf.picture_quality_lse import SHIFTS, crop_face, crop_windows, judge, measure, mfcc
from polylip.perf.picture_quality_measures import AROUND_PX, likeness, outside_face, ssim_map, summary
from polylip.perf.picture_quality_networks import BRAIN, HALF, NO_GRAPH

# Of the public syncnet_v2.model: what anyone's file must have.
SYNCNET_TENSORS, SYNCNET_PARAMETERS = 102, 13_631_616
SYNCNET_SHAPES = {
    "netcnnaud.0.weight": (64, 1, 3, 3),
    "netcnnaud.18.weight": (512, 256, 5, 4),
    "netfcaud.3.weight": (1024, 512),
    "netcnnlip.0.weight": (96, 3, 5, 7, 7),
    "netcnnlip.18.weight": (512, 256, 1, 6, 6),
    "netfclip.3.weight": (1024, 512),
}


@pytest.fixture(scope="module")
def syncnet(tmp_path_factory):
    """A file in the public one's form, with generated weights."""
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    return save_checkpoint(generated_network("syncnet"), path, "bare")


def picture(seed: int = 0) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(seed).integers(0, 256, (96, 120), np.uint8), (5, 5), 2)


def noisy(clean: np.ndarray, levels: float) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, levels, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


def test_identical_pictures_have_ssim_1_and_infinite_psnr():
    same = likeness(picture(), picture())
    assert same.ssim == pytest.approx(1.0, abs=1e-12) and same.psnr_db == math.inf
    found = summary([same])
    assert found["psnr_db"] is None and found["pictures"] == 1
    json.dumps(found, allow_nan=False)


def test_figures_fall_with_noise_and_are_the_published_ones():
    clean = picture()
    little, much = likeness(clean, noisy(clean, 2)), likeness(clean, noisy(clean, 12))
    assert 1 > little.ssim > much.ssim and little.psnr_db > much.psnr_db
    off = np.minimum(clean, 250) + 5
    assert likeness(np.minimum(clean, 250), off).psnr_db == pytest.approx(10 * math.log10(255**2 / 25))
    colour = gate_faces(1)[0]
    assert ssim_map(colour, noisy(colour, 5)).mean() == pytest.approx(ssim(colour, noisy(colour, 5)))


def test_what_is_pasted_into_a_face_does_not_count_outside_it():
    before = picture()
    after = before.copy()
    after[40:60, 50:70] = 255 - after[40:60, 50:70]
    outside = outside_face(before, (50.0, 40.0, 70.0, 60.0))
    assert not outside[40 - AROUND_PX : 60 + AROUND_PX, 50 - AROUND_PX : 70 + AROUND_PX].any()
    assert likeness(before, after).ssim < 0.95
    assert likeness(before, after, outside).squared_error == 0
    assert likeness(before, after, outside).ssim == pytest.approx(1.0, abs=1e-12)
    after[2, 3] ^= 128
    assert likeness(before, after, outside).squared_error > 0 and likeness(before, after, outside).ssim < 1


def test_mfcc_are_those_of_the_published_package():
    time_s = np.arange(16_123) / 16_000
    tones = 0.3 * np.sin(2 * np.pi * 220 * time_s) + 0.1 * np.sin(2 * np.pi * 1500 * time_s)
    found = mfcc(tones.astype(np.float32))
    assert found.shape == (13, 100)
    # Column 50 by python_speech_features 0.6 with its defaults.
    expected = [19.8811, 10.4293, -13.3926, 6.4506, 36.2706, 15.1351, -35.7549, -44.7876, -8.9252, 2.7223]
    assert found[:10, 50] == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(mfcc(np.zeros(800, np.float32))).all()


def test_lse_finds_the_offset_and_knows_what_does_not_belong_together():
    random = np.random.default_rng(0)
    sound = random.normal(0, 0.25, (80, 1024)).astype(np.float32)
    for offset in (-4, 0, 3):
        lips = np.roll(sound, offset, axis=0) + random.normal(0, 0.05, sound.shape).astype(np.float32)
        found = judge(lips, sound)
        assert found.offset_frames == offset and found.windows == 80
        assert found.distance < 3.5 and found.confidence > 5
    unrelated = judge(random.normal(0, 0.25, sound.shape).astype(np.float32), sound)
    assert unrelated.distance > 8 and unrelated.confidence < 3
    assert SHIFTS == 15


def test_a_published_file_fits_the_network_and_gives_one_figure_for_a_clip(syncnet):
    state = torch.load(syncnet, weights_only=True)
    network = load_network("syncnet", syncnet)
    assert len(state) == SYNCNET_TENSORS and sum(p.numel() for p in network.parameters()) == SYNCNET_PARAMETERS
    assert {name: tuple(state[name].shape) for name in SYNCNET_SHAPES} == SYNCNET_SHAPES
    crops = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    found = measure(network, crops, np.random.default_rng(1).normal(0, 0.1, 8 * 640).astype(np.float32))
    assert found.windows == 3 and found.distance > 0 and math.isfinite(found.confidence)
    with pytest.raises(InputError, match="too few"):
        measure(network, crops[:5], np.zeros(16_000, np.float32))


def test_syncnet_sees_the_face_wider_than_its_box_and_grey_beyond_the_picture():
    corners = np.tile([40.0, 20.0, 60.0, 50.0], (20, 1))
    corners[7] += 200  # one bad box is outvoted
    windows = crop_windows(corners)
    assert windows.shape == (20, 3) and (windows == [15.0, 50.0, 35.0]).all()
    crop = crop_face(np.full((100, 100, 3), 255, np.uint8), windows[0])
    assert crop.shape == (224, 224, 3) and (crop == 255).all()
    assert (crop_face(np.full((100, 100, 3), 255, np.uint8), np.array([15.0, 0.0, 35.0]))[:, 0] == 110).all()


def test_lse_of_a_clip_takes_the_frames_and_the_sound_of_its_face(syncnet, tmp_path):
    clip = make_demo_clip(tmp_path / "clip.mp4", seconds=5, size=(640, 360))
    face = main_face(clip)
    assert face.seen.all() and len(face.times_ms) == 125
    middle = replace(face, seen=(np.arange(125) >= 30) & (np.arange(125) < 42))
    found = lse(load_network("syncnet", syncnet), middle, clip)
    assert found["windows"] == 12 - 5 and found["distance"] > 0


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A quick run on a real server, with an identity of its own to sign with."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        return picture_quality.run(replace(experiment.Setup(), quick=True, out=folder))


def test_a_finished_dub_is_its_source_but_for_the_mouth(result):
    dub = result["data"]["dub"]
    assert dub["clip"]["frames"] == round(picture_quality.QUICK_SECONDS * 25)
    assert dub["share_with_lips"] > 0.2 and dub["share_without_face"] == 0 and dub["marked"] == "intact"
    outside, untouched = (dub["likeness"][name] for name in ("outside_the_face", "untouched_frames"))
    assert outside["pictures"] == untouched["pictures"] == picture_quality.QUICK_FRAMES
    for row in (outside, untouched):
        assert row["ssim_worst_percent"] > 97 and row["psnr_worst_db"] > 40
    assert abs(outside["psnr_db"] - untouched["psnr_db"]) < 2
    assert dub["jitter"]["tracked"]["jitter_px"] < dub["jitter"]["raw"]["jitter_px"]
    assert dub["measured_offset"]["windows"] >= 1
    assert dub["measured_offset"]["median_ms"] is None or abs(dub["measured_offset"]["median_ms"]) < 45


def test_half_precision_changes_pictures_by_less_than_a_viewer_sees_and_bf16_by_more(result):
    half, brain, served = result["data"]["networks"]["lips"]
    assert (half["precision"], brain["precision"], served["status"]) == (HALF, BRAIN, NO_GRAPH)
    assert len(half["raw"]) == half["pictures"] == 2
    assert 100 > half["ssim_percent"] > brain["ssim_percent"] > 99
    assert half["psnr_db"] > brain["psnr_db"] and 0 < half["mean_levels"] < brain["mean_levels"]
    half, brain, _ = result["data"]["networks"]["detector"]
    assert 100 > half["best_box_iou_percent"] > 95 and 100 > brain["best_box_iou_percent"] > 90
    assert all(figure["passed"] for figure in half["figures"])


def test_the_tables_name_what_was_not_run_and_are_the_same_from_the_file(result, tmp_path):
    assert result["experiment"] == "picture_quality" and result["repetitions"] == 1  # nothing is timed
    text = picture_quality.markdown(result)
    assert "LSE-D, LSE-C | not run: weights absent" in text and "generated weights" in text
    read = json.loads(experiment.write(result, tmp_path).read_text())
    assert read["data"]["dub"]["lse"] is None and len(picture_quality.markdown(read)) == len(text)
