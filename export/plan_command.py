"""The command `polylip export plan`: TensorRT plans for the GPU of this machine."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from polylip.serving.errors import MissingError


class PlanModel(StrEnum):
    """Models that have a plan."""

    LIPS = "lips"
    DETECT = "detect"
    ALL = "all"


def plan(
    model: Annotated[PlanModel, typer.Argument(help="Which plan to build")],
    min_batch: Annotated[int | None, typer.Option(min=1, help="Smallest batch; default 1")] = None,
    opt_batch: Annotated[int | None, typer.Option(min=1, help="The batch to be fast at; lips 16, detect 6")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Largest batch, the config's max_batch_size")] = None,
    height: Annotated[int, typer.Option(min=32, help="Rows of a frame for detect")] = 360,
    width: Annotated[int, typer.Option(min=32, help="Columns of a frame for detect")] = 640,
    workspace_mib: Annotated[int, typer.Option(min=64, help="GPU memory that a kernel may use while running")] = 4096,
    model_repository: Annotated[Path | None, typer.Option(help="By default the one of this checkout")] = None,
) -> None:
    """Build TensorRT plans from the FP16 graphs, for the GPU and TensorRT of this machine, and link them.

    Example: polylip export plan all
    """
    from polylip.export.plan import BATCHES, build_plan, default_options  # noqa: PLC0415
    from polylip.serving.runtime import find_model_repository  # noqa: PLC0415

    repository = model_repository or find_model_repository()
    for name in BATCHES if model is PlanModel.ALL else (model.value,):
        try:
            options = default_options(name, min_batch, opt_batch, max_batch)
        except ValueError as error:
            raise MissingError(f"{name}: {error}") from None
        options = replace(options, height=height, width=width, workspace_mib=workspace_mib)
        print(build_plan(name, repository, options, lambda line: typer.echo(line, err=True)))
