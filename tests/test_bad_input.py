"""Bad input ends with one clear line and exit code 2, and leaves nothing behind. Runs the real command."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip, noise

from polylip.serving.launcher import Server

POLYLIP = [sys.executable, "-m", "polylip.client.cli"]


def run_dub(clip: Path, output: Path, *options: str, to: str = "es") -> subprocess.CompletedProcess[str]:
    command = [*POLYLIP, "dub", str(clip), "--to", to, "-o", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], cause: str, folder: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert cause in done.stderr
    assert list(folder.iterdir()) == []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def good_clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "good.mp4", sound=noise(3))


def test_the_command_tells_its_version_and_exit_codes():
    told = [subprocess.check_output([*POLYLIP, option], text=True) for option in ("--version", "--help")]
    assert told[0] == f"polylip {metadata.version('polylip')}\n"
    assert "--version" in told[1] and all(name in told[1] for name in ("`serve`: 4", "`drain`: 5", "`probe`: 1"))


def test_a_missing_file_is_refused(tmp_path: Path, out: Path):
    assert_refused(run_dub(tmp_path / "none.mp4", out / "o.mp4"), "no such file", out)


def test_a_text_file_is_refused(tmp_path: Path, out: Path):
    clip = tmp_path / "notes.mp4"
    clip.write_text("Dear diary, this is no video.\n" * 50)
    assert_refused(run_dub(clip, out / "o.mp4"), "cut off, damaged or no video", out)


def test_an_empty_file_is_refused(tmp_path: Path, out: Path):
    clip = tmp_path / "empty.mp4"
    clip.touch()
    assert_refused(run_dub(clip, out / "o.mp4"), "is empty (0 bytes)", out)


def test_a_folder_is_refused(tmp_path: Path, out: Path):
    assert_refused(run_dub(tmp_path, out / "o.mp4"), "is a folder", out)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_video_with_its_index_in_front_is_refused(tmp_path: Path, out: Path, kept: float):
    whole = make_clip(tmp_path / "whole.mp4", seconds=20, sound=noise(20))
    clip = tmp_path / "cut.mp4"
    clip.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * kept)])
    assert_refused(run_dub(clip, out / "o.mp4"), "is truncated", out)


def test_a_truncated_video_with_its_index_at_the_end_is_refused(tmp_path: Path, out: Path):
    whole = make_clip(tmp_path / "whole.mov", sound=noise(3))
    clip = tmp_path / "cut.mov"
    clip.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert_refused(run_dub(clip, out / "o.mp4"), "is cut off", out)


def test_a_video_without_sound_is_refused(tmp_path: Path, out: Path):
    assert_refused(run_dub(make_clip(tmp_path / "mute.mp4"), out / "o.mp4"), "has no sound", out)


def test_sound_without_a_picture_is_refused(tmp_path: Path, out: Path):
    clip = make_clip(tmp_path / "radio.mp4", picture=False, sound=noise(3))
    assert_refused(run_dub(clip, out / "o.mp4"), "has no video stream", out)


def test_sound_that_holds_nan_is_refused(tmp_path: Path, out: Path, server: Server):
    sound = noise(3)
    sound[24_000] = np.nan
    clip = make_clip(tmp_path / "nan.mkv", sound=sound, audio_codec="pcm_f32le")
    assert_refused(run_dub(clip, out / "o.mp4", "--url", server.url), "NaN", out)


def test_an_unsupported_pair_is_refused_with_the_supported_ones(good_clip: Path, out: Path, server: Server):
    done = run_dub(good_clip, out / "o.mp4", "--url", server.url, to="fi")
    assert_refused(done, "en->fi is not supported", out)
    assert "en->es" in done.stderr


def test_an_unsupported_source_language_is_refused(good_clip: Path, out: Path, server: Server):
    done = run_dub(good_clip, out / "o.mp4", "--url", server.url, "--from", "fi")
    assert_refused(done, "supported: en", out)


@pytest.mark.parametrize("url", ["127.0.0.1", "http://127.0.0.1:8001", "localhost:"])
def test_an_address_that_is_none_is_refused(good_clip: Path, out: Path, url: str):
    assert_refused(run_dub(good_clip, out / "o.mp4", "--url", url), "is not host:port", out)


@pytest.mark.parametrize("language", ["Spanisch", "jp", "auto", ""])
def test_a_language_that_is_no_code_is_refused_before_a_server_starts(good_clip: Path, out: Path, language: str):
    assert_refused(run_dub(good_clip, out / "o.mp4", to=language), "for example: es", out)


def test_a_server_that_is_not_there_is_named(good_clip: Path, out: Path):
    done = run_dub(good_clip, out / "o.mp4", "--url", "127.0.0.1:9")
    assert_refused(done, "no tritonserver answers at 127.0.0.1:9", out)


def test_an_output_path_that_cannot_be_written_is_named(good_clip: Path, out: Path):
    assert_refused(run_dub(good_clip, Path("/proc/nowhere/o.mp4")), "cannot be written", out)


def test_an_unknown_output_type_is_refused(good_clip: Path, out: Path):
    assert_refused(run_dub(good_clip, out / "o.txt"), "unknown output type", out)


def test_the_input_is_never_overwritten(good_clip: Path, out: Path):
    before = good_clip.read_bytes()
    assert_refused(run_dub(good_clip, good_clip), "same file", out)
    assert good_clip.read_bytes() == before


def test_silence_is_copied_through_and_said(tmp_path: Path, out: Path, server: Server):
    clip = make_clip(tmp_path / "silent.mp4", sound=noise(3, level=0.0))
    done = run_dub(clip, out / "o.mp4", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert "no speech found: picture and sound pass through unchanged" in done.stdout
    assert (out / "o.mp4").exists()


def test_a_picture_without_a_face_passes_and_is_said(tmp_path: Path, out: Path, server: Server):
    clip = make_clip(tmp_path / "faceless.mp4", sound=noise(3))
    # Noise is speech to the energy alone.
    done = run_dub(clip, out / "o.mp4", "--url", server.url, "--vad", "energy")
    assert done.returncode == 0, done.stderr
    assert "no face found" in done.stdout
    assert (out / "o.mp4").exists()


@pytest.mark.parametrize("size", [(321, 240), (320, 241), (17, 16)])
def test_odd_and_tiny_pictures_pass(tmp_path: Path, out: Path, server: Server, size: tuple[int, int]):
    clip = make_clip(tmp_path / "odd.mp4", sound=noise(3, level=0.0), size=size)
    done = run_dub(clip, out / "o.mp4", "--url", server.url)
    assert done.returncode == 0, done.stderr
