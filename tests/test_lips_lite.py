"""The lite mouth graph: still in silence, wider with louder speech, and it touches nothing but the mouth."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from polylip.export import lips_lite
from polylip.export.lips_lite import MOUTH_COLUMN, MOUTH_ROW, NOSE_ROW, SIDE, build_graph, lip_shift, write_graph
from polylip.serving.mel import MEL_BANDS, MEL_COLUMNS, mel_windows

LOUDNESS_STEPS = np.linspace(-2.6, 0.0, 9)  # from just above the floor to fully open


def run(model: bytes, mel: np.ndarray, faces: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(["MOUTHS"], {"MEL": mel, "FACES": faces})[0]


@pytest.fixture(scope="module")
def model() -> bytes:
    return build_graph().SerializeToString()


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Faces whose every pixel differs from its neighbours, so that the least shift shows."""
    return np.random.default_rng(7).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)


def flat_mel(*values: float) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.float32)[:, None, None], (len(values), MEL_BANDS, MEL_COLUMNS)).copy()


def skin(frames: int) -> np.ndarray:
    """A plain bright face: what gets dark in it is the mouth's interior."""
    return np.full((frames, SIDE, SIDE, 3), (140, 160, 200), np.uint8)


@pytest.mark.parametrize("frames", [1, 3, 16])
def test_silence_leaves_every_pixel_as_it_is(model, noise, frames):
    mouths = run(model, flat_mel(*[-4.0] * frames), noise[:frames])
    assert mouths.dtype == np.uint8
    np.testing.assert_array_equal(mouths, noise[:frames])


def test_the_mel_of_digital_silence_leaves_every_pixel_as_it_is(model, noise):
    mel = mel_windows(np.zeros(8000, np.float32), np.array([0, 40, 80], np.int64))
    np.testing.assert_array_equal(run(model, mel, noise[:3]), noise[:3])


def test_only_the_mouth_region_changes_however_loud(model, noise):
    mouths = run(model, flat_mel(*np.linspace(-3.0, 4.0, 16)), noise)
    assert (mouths[-1] != noise[-1]).any()
    np.testing.assert_array_equal(mouths[:, :NOSE_ROW], noise[:, :NOSE_ROW])
    np.testing.assert_array_equal(mouths[:, -1], noise[:, -1])
    np.testing.assert_array_equal(mouths[:, :, :4], noise[:, :, :4])
    np.testing.assert_array_equal(mouths[:, :, -4:], noise[:, :, -4:])


def test_louder_speech_opens_the_mouth_wider(model):
    faces = skin(LOUDNESS_STEPS.size)
    mouths = run(model, flat_mel(*LOUDNESS_STEPS), faces)
    dark = (mouths.max(axis=3) < 100).sum(axis=(1, 2))
    change = np.abs(mouths.astype(int) - faces).mean(axis=(1, 2, 3))
    assert (np.diff(dark) >= 0).all()
    assert (np.diff(change) > 0).all()
    assert dark[0] == 0
    assert dark[-1] > 100


def test_the_opening_is_where_the_mouth_is(model):
    mouth = run(model, flat_mel(0.0), skin(1))[0]
    rows, columns = np.nonzero(mouth.max(axis=2) < 100)
    assert abs(columns.mean() - MOUTH_COLUMN) < 1
    assert MOUTH_ROW - lips_lite.LIP_LIFT - 1 <= rows.min() <= rows.max() <= MOUTH_ROW + lips_lite.JAW_DROP + 1


def test_only_the_instant_of_the_frame_counts_not_what_follows(model, noise):
    mel = flat_mel(-4.0)
    mel[:, :, 3:] = 4.0
    np.testing.assert_array_equal(run(model, mel, noise[:1]), noise[:1])


def test_hissing_opens_less_than_a_vowel_of_the_same_level(model):
    vowel, hiss = flat_mel(-4.0), flat_mel(-4.0)
    vowel[:, 5:40] = 0.0
    hiss[:, 45:80] = 0.0
    change = [np.abs(run(model, mel, skin(1)).astype(int) - skin(1)).sum() for mel in (vowel, hiss)]
    assert change[0] > 0
    assert change[1] == 0


def test_the_interior_is_darker_than_a_dark_face(model):
    faces = skin(1) // 5
    mouth = run(model, flat_mel(0.0), faces)[0]
    at_middle = mouth[MOUTH_ROW + 3, MOUTH_COLUMN]
    assert (at_middle < faces[0, 0, 0] // 2).all()


def test_a_frame_does_not_depend_on_the_batch_it_came_in(model, noise):
    mel = flat_mel(-1.0, -4.0, 0.5)
    together = run(model, mel, noise[:3])
    for i in range(3):
        np.testing.assert_array_equal(together[i : i + 1], run(model, mel[i : i + 1], noise[i : i + 1]))


def test_rows_never_swap_so_the_picture_never_folds():
    rows = np.arange(NOSE_ROW, SIDE)[:, None]
    to_line = MOUTH_ROW - rows
    for openness in np.linspace(0.0, 1.0, 21):
        shift = np.clip(openness * lip_shift(), np.minimum(to_line, 0), np.maximum(to_line, 0))
        assert np.diff(rows + shift, axis=0).min() >= 0


def test_the_written_file_runs_and_nothing_else_is_left(tmp_path: Path, noise):
    path = tmp_path / "deep" / "lips_lite.onnx"
    assert write_graph(path) == path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert run(path.read_bytes(), flat_mel(0.0, 0.0), noise[:2]).shape == (2, SIDE, SIDE, 3)
    first = path.read_bytes()
    write_graph(path)
    assert path.read_bytes() == first


def test_a_graph_that_fails_its_check_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "lips_lite.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(lips_lite, "OPEN_AT", 100.0)
    monkeypatch.setattr(lips_lite, "CLOSED_AT", 99.0)
    with pytest.raises(RuntimeError, match="wrong pictures at batch 1"):
        write_graph(path)
    assert path.read_bytes() == b"old"
