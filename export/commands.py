"""The commands `polylip export ...`: they make the files that the model repository serves."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polylip.export.opus_command import opus_mt
from polylip.export.plan_command import plan

app = typer.Typer(no_args_is_help=True, help="Make the files that the model repository serves.")
app.command("plan")(plan)
app.command("opus-mt")(opus_mt)


@app.command("lite")
def export_lite() -> None:
    """Make the mouth-warp graph of profile lite and put it into the model repository.

    Example: polylip export lite
    """
    from polylip.export.lips_lite import write_graph  # noqa: PLC0415  needs the extra `serve`
    from polylip.serving.doctor import LIPS_LITE  # noqa: PLC0415
    from polylip.serving.runtime import find_model_repository  # noqa: PLC0415

    print(write_graph(find_model_repository() / LIPS_LITE))


class OnnxNetwork(StrEnum):
    """What `polylip export onnx` can export."""

    WAV2LIP = "wav2lip"
    S3FD = "s3fd"
    ALL = "all"


@app.command("onnx")
def export_onnx(
    network: Annotated[OnnxNetwork, typer.Argument(help="wav2lip makes mouths, s3fd finds faces")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of the network; by default the fetched one in $POLYLIP_WEIGHTS or ./weights"),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 for CPUs, fp16 for GPUs, or both")] = "fp32,fp16",
    output_dir: Annotated[
        Path | None, typer.Option(help="Model repository to write into; by default this one's")
    ] = None,
    generated: Annotated[
        bool, typer.Option("--generated", help="Random weights, or those of the checkpoint are; for tests")
    ] = False,
    rgb: Annotated[bool, typer.Option("--rgb", help="Feed s3fd RGB, as Wav2Lip does; it was trained on BGR")] = False,
) -> None:
    """Export a checkpoint to ONNX: pixels in, mouths or face boxes out, any batch size.

    Every graph is run and compared with its torch network first; one that differs is not written. Beside each graph
    lies a .json with its checkpoint, tensors and measured differences. Then: polylip export plan, on the GPU machine.

    Example: polylip export onnx wav2lip --checkpoint wav2lip_gan.pth --precision fp16
    """
    from polylip.export import onnx_command  # noqa: PLC0415  needs the extra `export`

    if generated:
        _note("warning: generated weights have learnt nothing; pictures and boxes made with these graphs mean nothing")
    networks = ("wav2lip", "s3fd") if network is OnnxNetwork.ALL else (network.value,)
    precisions = onnx_command.parse_precisions(precision)
    options = onnx_command.OnnxOptions(networks, checkpoint, precisions, output_dir, generated, rgb)
    graphs = onnx_command.export_graphs(options, _note)
    Console().print(onnx_command.parity_table(graphs))
    for graph in graphs:
        print(graph)


def _note(line: str) -> None:
    """Progress, kept off standard output."""
    print(line, file=sys.stderr, flush=True)
