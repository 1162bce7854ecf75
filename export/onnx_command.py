"""What `polylip export onnx` does: checkpoints or generated weights in, checked graphs in the model repository out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rich.table import Table

from polylip.client.errors import InputError
from polylip.export.checkpoints import load_network
from polylip.export.gate import detect_references, lips_reference
from polylip.export.generated import generated_network
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.onnx_export import DTYPES, export_detect, export_lips
from polylip.export.sidecar import Figure, Precision, Source, read_sidecar
from polylip.serving.errors import MissingError
from polylip.serving.runtime import find_model_repository

WEIGHTS_VARIABLE = "POLYLIP_WEIGHTS"
WEIGHTS_FOLDER = "weights"
# Where `polylip fetch` puts the public checkpoints, by the name it knows them under; the first that is there is taken.
CHECKPOINTS = {
    "wav2lip": {"wav2lip-gan": "wav2lip_gan.pth", "wav2lip": "wav2lip.pth"},
    "s3fd": {"s3fd": "s3fd-619a316812.pth"},
}
NON_COMMERCIAL = ("wav2lip",)  # by upstream's README; S3FD's are under BSD 3-Clause


@dataclass(frozen=True)
class OnnxOptions:
    """The command line, checked."""

    networks: tuple[str, ...]
    checkpoint: Path | None = None
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    repository: Path | None = None
    generated: bool = False
    rgb: bool = False


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """`fp32,fp16` -> its parts. Raises InputError that lists what there is."""
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise InputError(f"--precision {text}: no {unknown[0] or 'empty'!r} precision; there are: {', '.join(DTYPES)}")
    return cast(tuple[Precision, ...], names)


def export_graphs(options: OnnxOptions, say: Callable[[str], None]) -> list[Path]:
    """Export every network in every precision; returns the graphs' paths in that order."""
    if options.checkpoint and len(options.networks) > 1:
        raise InputError("--checkpoint belongs to one network; name it")
    repository = options.repository or find_model_repository()
    written = []
    for name in options.networks:
        checkpoint = options.checkpoint or (None if options.generated else find_checkpoint(name))
        say(f"{name}: loading {checkpoint or 'generated weights'}")
        if name in NON_COMMERCIAL and not options.generated:
            say(f"{name}: the public weights are for research and personal use only, not for commercial use")
        network = load_network(name, checkpoint) if checkpoint else generated_network(name)
        source = Source.of(checkpoint, options.generated)
        say(f"{name}: running the torch network")
        if name == "wav2lip":
            generator = cast(Wav2LipGenerator, network)
            mouths = lips_reference(generator)
            for precision in options.precisions:
                written.append(export_lips(generator, repository, precision, source, mouths, say))
        else:
            detector = cast(S3FD, network)
            found = detect_references(detector, options.rgb)
            for precision in options.precisions:
                written.append(export_detect(detector, repository, precision, source, options.rgb, found, say))
    return written


def find_checkpoint(network: str) -> Path:
    """The fetched checkpoint of a network. Raises MissingError with the ways to get one."""
    folder = Path(os.environ.get(WEIGHTS_VARIABLE) or WEIGHTS_FOLDER)
    for model, name in CHECKPOINTS[network].items():
        for path in (folder / model / name, folder / name):
            if path.is_file():
                return path
    files = " or ".join(CHECKPOINTS[network].values())
    accept = " --accept-non-commercial" if network in NON_COMMERCIAL else ""
    raise MissingError(
        f"no checkpoint of {network} in {folder} ({files}); run: polylip fetch {network}{accept}, "
        "or give one with --checkpoint FILE, or --generated for weights that are only good for tests"
    )


def parity_table(graphs: Sequence[Path]) -> Table:
    """For every graph the worst value of each measure, beside its limit."""
    table = Table("graph", "measure", "worst", "limit", "on", title="difference from the torch network")
    for graph in graphs:
        worst: dict[str, Figure] = {}
        for figure in read_sidecar(graph).parity:
            known = worst.get(figure.measure)
            if known is None or (figure.value < known.value if figure.at_least else figure.value > known.value):
                worst[figure.measure] = figure
        for figure in worst.values():
            sense = ">=" if figure.at_least else "<="
            table.add_row(graph.stem, figure.measure, f"{figure.value:.5g}", f"{sense} {figure.limit:g}", figure.case)
    return table
