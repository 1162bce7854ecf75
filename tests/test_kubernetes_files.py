"""Built files in a pod: what its first container does with them, done here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kubernetes_tools import ROOT, is_installed, of_kind, pod_of, render


@pytest.fixture
def link(tmp_path: Path) -> list[str]:
    """The command of the container that links built files, on folders of this test."""
    if not is_installed():
        pytest.fail("the Kubernetes tools are missing; run: python tests/kubernetes_tools.py")
    (deployment,) = of_kind(render("overlays/gpu"), "Deployment")
    (container,) = pod_of(deployment)["initContainers"]
    *shell, text = container["args"]
    assert {(m["mountPath"], m.get("readOnly", False)) for m in container["volumeMounts"]} >= {
        ("/built", True),
        ("/models", False),
    }
    for folder in ("built", "models"):
        (tmp_path / folder).mkdir()
    return [*shell, text.replace("/built", f"{tmp_path}/built").replace("/models", f"{tmp_path}/models")]


def test_built_files_are_linked_and_the_images_own_are_kept(link: list[str], tmp_path: Path):
    built, models = tmp_path / "built", tmp_path / "models"
    write(built, {"lips/1/wav2lip.plan": "plan", "lips/config.pbtxt": "old", "opus/en-es/a file": "pair"})
    (built / "lips" / "1" / "model.plan").symlink_to("wav2lip.plan")
    write(models, {"lips/config.pbtxt": "new", "mel/config.pbtxt": "new"})
    for _ in range(2):  # a pod's container may be started again
        subprocess.run(link, check=True, timeout=30)
        assert (models / "lips" / "1" / "wav2lip.plan").readlink() == built / "." / "lips" / "1" / "wav2lip.plan"
        assert (models / "lips" / "1" / "model.plan").read_text() == "plan"
        assert (models / "opus" / "en-es" / "a file").read_text() == "pair"
        assert (models / "lips" / "config.pbtxt").read_text() == (models / "mel" / "config.pbtxt").read_text() == "new"
    assert not (models / "lips" / "config.pbtxt").is_symlink()


def test_a_missing_volume_of_built_files_stops_the_start(link: list[str], tmp_path: Path):
    (tmp_path / "built").rmdir()
    assert subprocess.run(link, check=False, capture_output=True, timeout=30).returncode != 0


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_the_entry_point_starts_the_link(link: list[str], tmp_path: Path):
    """The image's configs come first, whatever lies on the volume."""
    shutil.copytree(ROOT / "model_repository" / "mel", tmp_path / "image" / "mel")
    write(tmp_path / "built", {"mel/config.pbtxt": "another release's", "mel/1/table.bin": "built"})
    program = "import sys; sys.path.insert(0, sys.argv[1]); import entrypoint; from pathlib import Path; "
    program += "entrypoint.IMAGE_REPOSITORY = Path(sys.argv[2]); entrypoint.main(sys.argv[3:])"
    subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "docker"), str(tmp_path / "image"), *link],
        env={**os.environ, "POLYLIP_MODEL_REPOSITORY": str(tmp_path / "models")},
        check=True,
        timeout=30,
    )
    mel = tmp_path / "models" / "mel"
    assert (mel / "config.pbtxt").read_text() == (ROOT / "model_repository" / "mel" / "config.pbtxt").read_text()
    assert (mel / "1" / "table.bin").read_text() == "built"
