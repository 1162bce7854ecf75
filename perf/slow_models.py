"""A model repository of which some models take a multiple of their time, to see what a client makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from polylip.client.errors import InputError

# Appended to an adapter: every pass takes so many times as long, or as long as a file is there.
SLOW = """

import pathlib as _pathlib
import time as _time

_execute = TritonPythonModel.execute


def _slowly(self, requests):
    began = _time.monotonic()
    answers = _execute(self, requests)
    until = began + {factor} * (_time.monotonic() - began)
    while _time.monotonic() < until and _pathlib.Path({flag!r}).exists():
        _time.sleep(max(0.0, min(0.05, until - _time.monotonic())))
    return answers


TritonPythonModel.execute = _slowly
"""


def slow_repository(source: Path, folder: Path, factors: Mapping[str, float]) -> tuple[Path, Path]:
    """A copy of `source` in `folder`, slow while a file is there: the copy, and the file's path.

    Raises InputError for a model that is not Python in it.
    """
    repository, flag = folder / "repository", folder / "slow"
    shutil.copytree(source, repository)
    for model, factor in factors.items():
        adapter = repository / model / "1" / "model.py"
        if not adapter.is_file():
            raise InputError(
                f"--slow {model}: only Python models can be slowed down; see model_repository/*/1/model.py"
            )
        adapter.write_text(adapter.read_text() + SLOW.format(flag=str(flag), factor=factor))
    return repository, flag
