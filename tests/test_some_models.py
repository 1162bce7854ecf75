"""`--models`: a server with a part of the repository, for a GPU that serves the picture and another that speaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from material import read_aloud

from polylip.client.errors import ServerError
from polylip.client.triton import TritonClient
from polylip.serving.doctor import PICTURE_MODELS, run_checks
from polylip.serving.launcher import ServerOptions, running_server

POLYLIP = str(Path(sys.executable).with_name("polylip"))


async def test_only_the_named_models_are_served(tmp_path):
    options = ServerOptions(models=("mel", "lips", "lipsync"), log_path=tmp_path / "server.log")
    with running_server(options) as server:
        async with TritonClient(server.url) as client, client.stream() as stream:
            inputs = {"AUDIO": read_aloud("Yes."), "FRAME_OFFSETS_MS": np.zeros(1, np.int64)}
            assert (await stream.call("mel", inputs, 30))["MEL"].shape == (1, 80, 16)
            frames = {"FRAMES": np.zeros((1, 360, 640, 3), np.uint8)}
            with pytest.raises(ServerError, match="detect"):
                await stream.call("detect", frames, 30)


def test_the_picture_alone_needs_no_speech_engine():
    checks = {check.name: check for check in run_checks("onnx", models=PICTURE_MODELS)}
    spoken = {c.name for c in run_checks("onnx")} - checks.keys()
    assert {name.split(" ")[0] for name in spoken} == {"recogniser", "translator", "voice", "torchaudio"}


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_misspelt_model_is_named_with_the_known_ones(command):
    done = subprocess.run(
        [POLYLIP, command, "--models", "detct"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert (
        "no model detct in" in done.stdout + done.stderr and "it has: detect, dub, faces" in done.stdout + done.stderr
    )
