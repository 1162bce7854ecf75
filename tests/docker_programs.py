"""The programs of docker/, which is no package, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

DOCKER = Path(__file__).parents[1] / "docker"


def program(name: str) -> ModuleType:
    """`name`: of its file in docker/, without `.py`; with its folders, where it is further down."""
    spec = importlib.util.spec_from_file_location(f"docker_{Path(name).name}", DOCKER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
