"""Weights of XTTS-v2 that are missing, damaged or malicious: refused in one line, nothing half loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from polylip.serving.engines.xtts import Xtts
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.xtts_weights import FILES, MODEL, SPEAKERS


@pytest.fixture(scope="module")
def weights(xtts_weights: Path) -> Path:
    return xtts_weights


def folder_with(weights: Path, to: Path, replaced: str, content: bytes | None) -> str:
    """The folder above a copy of the weights, of which one file is other or missing."""
    (to / "xtts-v2").mkdir()
    for name in FILES:
        (to / "xtts-v2" / name).symlink_to(weights / name)
    (to / "xtts-v2" / replaced).unlink()
    if content is not None:
        (to / "xtts-v2" / replaced).write_bytes(content)
    return str(to)


class Code:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_command(weights, tmp_path, name):
    with pytest.raises(MissingError, match=rf"lacks {name}; run: polylip fetch xtts-v2 --accept-non-commercial"):
        Xtts({}, folder_with(weights, tmp_path, name, None))


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_in_one_line(weights, tmp_path, name):
    half = (weights / name).read_bytes()[:2000]
    with pytest.raises(EngineError, match=rf"{name} .*polylip fetch xtts-v2") as error:
        Xtts({}, folder_with(weights, tmp_path, name, half))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [MODEL, SPEAKERS])
def test_code_in_a_checkpoint_is_refused_and_never_run(weights, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = folder_with(weights, tmp_path, name, b"")
    torch.save({"model": {"x": torch.zeros(1)}, "config": Code()}, tmp_path / "xtts-v2" / name)
    with pytest.raises(EngineError, match=f"{name} holds more than weights"):
        Xtts({}, folder)
    assert not (tmp_path / "hacked").exists()


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    folder = folder_with(weights, tmp_path, MODEL, b"")
    torch.save({"model": {"gpt.final_norm.weight": torch.ones(64)}}, tmp_path / "xtts-v2" / MODEL)
    with pytest.raises(EngineError, match=r"does not fit XTTS-v2: missing gpt\."):
        Xtts({}, folder)


def test_a_config_that_does_not_fit_the_weights_is_refused(weights, tmp_path):
    config = json.loads((weights / "config.json").read_text())
    config["model_args"]["decoder_input_dim"] = 32
    with pytest.raises(EngineError, match="does not fit XTTS-v2"):
        Xtts({}, folder_with(weights, tmp_path, "config.json", json.dumps(config).encode()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"device": "tpu"}, "no device 'tpu'; take cpu or cuda"),
        ({"precision": "int3"}, "no precision 'int3'; take fp32"),
        ({"threads": "many"}, "`threads` of xtts-v2 must be a whole number"),
        ({"cached_voices": "0"}, "at least 1"),
    ],
)
def test_a_wrong_parameter_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Xtts(parameters, "/nowhere")
