"""The JSON file beside each exported graph: what it was made from, what it takes and gives, how exact it is.

Written by the exporter and read by whoever serves or builds the graph; importing this needs neither torch nor onnx.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from polylip.client.files import write_atomic
from polylip.serving.errors import MissingError

Precision = Literal["fp32", "fp16"]
ChannelOrder = Literal["BGR", "RGB"]

FORMAT = 1  # of the JSON; a reader refuses others
HASH_CHUNK_BYTES = 1 << 20

# Where the graphs lie in the model repository, by network and precision.
GRAPH_FILES: dict[str, dict[Precision, str]] = {
    "wav2lip": {
        "fp32": "lips/1/wav2lip_fp32.onnx",
        "fp16": "lips/1/wav2lip_fp16.onnx",
    },
    "s3fd": {"fp32": "detect/1/s3fd_fp32.onnx", "fp16": "detect/1/s3fd_fp16.onnx"},
}


@dataclass(frozen=True)
class Source:
    """Where the weights came from. Generated weights are random: right for timing, meaningless as pictures."""

    weights: Literal["checkpoint", "generated"]
    file: str | None = None  # name of the checkpoint, without its folder
    sha256: str | None = None  # of the checkpoint

    @staticmethod
    def of(checkpoint: Path | None, generated: bool) -> Source:
        """`checkpoint`: the file that holds the weights, be they learnt or generated."""
        weights: Literal["checkpoint", "generated"] = "generated" if generated else "checkpoint"
        return Source(weights) if checkpoint is None else Source(weights, checkpoint.name, file_sha256(checkpoint))


@dataclass(frozen=True)
class Tensor:
    """One input or output; a named dimension may have any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Figure:
    """One measured difference between a graph and its torch network, with the limit that it had to keep."""

    case: str  # the input it was measured on
    measure: str
    value: float
    limit: float
    at_least: bool = False  # whether the limit is a lower one

    @property
    def passed(self) -> bool:
        """False for NaN, whichever way the limit points."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sense = "at least" if self.at_least else "at most"
        return f"{self.measure} is {self.value:.6g}, must be {sense} {self.limit:g} ({self.case})"


@dataclass(frozen=True)
class Sidecar:
    """Everything that is known of one graph."""

    network: str
    precision: Precision
    source: Source
    channel_order: ChannelOrder  # in which the network sees the picture; the tensors are always BGR
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    opset: int
    torch: str
    onnx: str
    onnxruntime: str
    parity: tuple[Figure, ...]
    graph: str  # file name of the graph
    graph_sha256: str


def sidecar_path(graph: Path) -> Path:
    """`wav2lip_fp16.onnx` -> `wav2lip_fp16.json`, in the same folder."""
    return graph.with_suffix(".json")


def write_sidecar(graph: Path, sidecar: Sidecar) -> Path:
    """Write the sidecar of `graph` beside it."""
    text = json.dumps({"format": FORMAT, **asdict(sidecar)}, indent=1, allow_nan=False)
    return write_atomic(sidecar_path(graph), f"{text}\n".encode())


def read_sidecar(graph: Path) -> Sidecar:
    """The sidecar of a graph, given the graph's path or its own. Raises MissingError with the remedy."""
    path = sidecar_path(graph)
    remedy = "run: polylip export onnx"
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"{path} is missing; {remedy}") from None
    except (ValueError, OSError) as error:
        raise MissingError(f"{path} cannot be read ({error}); {remedy}") from None
    try:
        return _parse(fields)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise MissingError(f"{path} is not a sidecar of this version; {remedy}") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _parse(fields: dict[str, Any]) -> Sidecar:
    if fields.pop("format") != FORMAT:
        raise ValueError("another format")
    fields["source"] = Source(**fields["source"])
    for side in ("inputs", "outputs"):
        fields[side] = tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in fields[side])
    fields["parity"] = tuple(Figure(**figure) for figure in fields["parity"])
    return Sidecar(**fields)
