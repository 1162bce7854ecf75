"""Every Python model of profile lite: its process dies, the probe is red within 3 s, and a new server works."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY

from polylip.perf.supervised import is_red, supervised
from polylip.serving.supervisor import Exit

RED_S = 3.0
GROUP = 4  # models of one server: all at once would take a minute to be started so often


def python_models() -> list[str]:
    """Those that profile lite runs in Triton's Python backend."""
    folders = sorted(path.parents[1] for path in REPOSITORY.glob("*/1/model.py"))
    return [folder.name for folder in folders if 'backend: "python"' in config_of(folder)]


def config_of(folder) -> str:
    lite = folder / "configs" / "lite.pbtxt"
    return (lite if lite.is_file() else folder / "config.pbtxt").read_text()


MODELS = python_models()


def test_the_models_are_all_there():
    assert {"transcribe", "translate", "synthesize", "detect", "track", "mel", "lips"} <= set(MODELS)


@pytest.mark.alone
@pytest.mark.parametrize("models", [MODELS[i::GROUP] for i in range(GROUP)], ids=",".join)
def test_a_model_whose_process_dies_is_red_within_3_seconds_and_mended(models: list[str]):
    with supervised("--models", ",".join(models), "--restart", str(len(models) - 1)) as server:
        url = server.wait_until_ready()
        for model in models[:-1]:
            server.stubs()[model].kill()
            assert server.until(is_red, RED_S) < RED_S
            assert re.search(rf"model {model} died|starting", server.status().detail)
            assert server.wait_until_ready() == url
            assert server.said[-1].startswith(f"polylip: model {model} died: its process is gone; ")
        server.stubs()[models[-1]].kill()
        assert server.until(is_red, RED_S) < RED_S
        code, said = server.ended()
        assert code == Exit.MODEL_DIED and said[-1].startswith(f"polylip: model {models[-1]} died: ")
        assert server.left() == []
