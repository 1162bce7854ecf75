"""Where the weights of an engine lie: beside its model.py, else in $POLYLIP_WEIGHTS, else in ./weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from polylip.serving.errors import MissingError

WEIGHTS_VARIABLE = "POLYLIP_WEIGHTS"
WEIGHTS_FOLDER = "weights"


def weights_root() -> Path:
    """The folder that `polylip fetch` fills, with a folder per model of the manifest."""
    return Path(os.environ.get(WEIGHTS_VARIABLE) or WEIGHTS_FOLDER).absolute()


def find_weights(name: str, version_dir: str, files: Iterable[str], remedy: str) -> Path:
    """The folder `name` that holds all of `files`. Raises MissingError with the command `remedy` that brings them."""
    folders = [Path(version_dir) / name, weights_root() / name]
    wanted = list(files)
    for folder in folders:
        if all((folder / file).is_file() for file in wanted):
            return folder
    there = next((folder for folder in folders if folder.is_dir()), None)
    if there is None:
        raise MissingError(f"weights {name} are neither in {folders[0]} nor in {folders[1]}; run: {remedy}")
    lacking = ", ".join(file for file in wanted if not (there / file).is_file())
    raise MissingError(f"{there} lacks {lacking}; run: {remedy}")
