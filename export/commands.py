"""The commands `polylip export ...`: they make the files that the model repository serves."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Make the files that the model repository serves.")


@app.command("lite")
def export_lite() -> None:
    """Make the mouth-warp graph of profile lite and put it into the model repository.

    Example: polylip export lite
    """
    from polylip.export.lips_lite import write_graph  # noqa: PLC0415  needs the extra `serve`
    from polylip.serving.doctor import LIPS_LITE  # noqa: PLC0415
    from polylip.serving.runtime import find_model_repository  # noqa: PLC0415

    print(write_graph(find_model_repository() / LIPS_LITE))


