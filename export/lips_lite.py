"""Writes the mouth graph of the profile `lite`: mel windows and faces in, the same faces with a moved mouth out.

This is a geometric stand-in, not a lip-sync network. It has no weights and has learnt nothing: it measures how loud the
speech is at the instant of a frame, pulls the lower lip and jaw of the given picture down by that much, and darkens the
gap. It knows no vowels and never closes a mouth that is open in the picture. It exists so that the whole chain runs and
can be watched on any machine, without a download or a GPU, with the tensors of the real network.

    MEL    float32 (frames, 80, 16)      values in [-4, 4], column 0 is the instant of the frame
    FACES  uint8   (frames, 96, 96, 3)   BGR, from the forehead to the chin
    MOUTHS uint8   (frames, 96, 96, 3)   BGR; FACES itself where there is no speech
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from polylip.client.files import write_atomic

OPSET = 17  # GridSample came with 16; 17 is read by every onnxruntime since 1.13
IR_VERSION = 8  # the one that belongs to opset 17
CHECK_BATCHES = (1, 3, 16)  # one frame, a remainder, the client's usual call

SIDE = 96  # rows and columns of a crop
MEL_BANDS, MEL_COLUMNS = 80, 16

# Where the mouth is. Measured on crops of the lite detector's box: the line between closed lips lies on rows 66 to 69
# (webcam clip), the lower edge of a smile's teeth on row 73 (scikit-image's astronaut); the middle on columns 47 to 51,
# the corners 18 to 24 columns away. Opening a little below closed lips looks better than splitting a row of teeth.
MOUTH_ROW = 70
MOUTH_COLUMN = 48
NOSE_ROW = 56  # rows above this are passed through untouched
LAST_ROW = SIDE - 1  # stays where it is, so that the crop joins the picture below it

# How far it opens, in rows of the crop at full openness.
JAW_DROP = 7.0
LIP_LIFT = 1.5
MOUTH_HALF_WIDTH = 20.0  # columns from the middle to the still corners of the opening
JAW_HALF_WIDTH = 38.0  # the same at the chin, where the whole jaw moves; within the crop, so its sides stay
JAW_RIGID = 0.3  # the part of the way from mouth to chin that moves as one piece; the rest is squeezed
TAPER_POWER = 1.5  # of (1 - u^2): close to a Gaussian with sigma 0.45, but it ends

# What shows between the lips: the mean colour around the mouth, darkened, with red kept longest. A share of the
# picture's own colour rather than a fixed one, so that it is dark in a dark picture and under any white balance.
INTERIOR_SHARE_BGR = (0.16, 0.14, 0.26)
INTERIOR_ALPHA = 0.85
INTERIOR_SOFT_PX = 1.6  # width of the blend from lip to interior
COLOUR_ROWS = (NOSE_ROW, 88)
COLOUR_COLUMNS = (28, 68)

# Openness from loudness. Bands 5 to 39 are 270 to 1700 Hz, where open vowels are strong and hissing, which is spoken
# with closed teeth, is weak. Columns 0 to 2 are heard from 25 ms before the frame to 50 ms after it. In espeak-ng and
# flite speech the mean of this patch is -4 in pauses, -2.5 in consonants, -1.7 in the median, and -0.3 to 0.3 in
# stressed vowels.
LOUDNESS_BANDS = (5, 40)
LOUDNESS_COLUMNS = (0, 3)
CLOSED_AT = -2.8
OPEN_AT = 0.0

Float32 = npt.NDArray[np.float32]


def build_graph() -> onnx.ModelProto:
    """The graph, with any number of frames."""
    graph = _Graph()
    openness = _add_openness(graph)
    faces = graph.add("Slice", "FACES", *graph.slices(NOSE_ROW, SIDE, axis=1))
    pixels = graph.add("Transpose", graph.add("Cast", faces, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    moved = _add_warp(graph, pixels, openness)
    opened = _add_interior(graph, pixels, moved, openness)
    limited = graph.add("Clip", graph.add("Round", opened), graph.number(0.0), graph.number(255.0))
    lower = graph.add("Cast", graph.add("Transpose", limited, perm=[0, 2, 3, 1]), to=TensorProto.UINT8)
    upper = graph.add("Slice", "FACES", *graph.slices(0, NOSE_ROW, axis=1))
    graph.add("Concat", upper, lower, axis=1, output="MOUTHS")
    return graph.model()


def write_graph(path: Path) -> Path:
    """Write the graph to `path` once it has passed its own check. A reader sees the old file or the new, never half."""
    model = build_graph()
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    _check_runs(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, data)


def _check_runs(data: bytes) -> None:
    """Run the graph here at the batches that will be asked of it: still in silence, moving in speech."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    ramp = np.arange(SIDE * SIDE * 3).reshape(SIDE, SIDE, 3) // SIDE % 256
    for batch in CHECK_BATCHES:
        faces = np.repeat(ramp[None].astype(np.uint8), batch, axis=0)
        for value, moves in ((-4.0, False), (4.0, True)):
            mel = np.full((batch, MEL_BANDS, MEL_COLUMNS), value, np.float32)
            mouths = session.run(["MOUTHS"], {"MEL": mel, "FACES": faces})[0]
            if mouths.shape != faces.shape or mouths.dtype != np.uint8 or np.array_equal(mouths, faces) == moves:
                raise RuntimeError(
                    f"the lips graph gives wrong pictures at batch {batch} with onnxruntime {ort.__version__}"
                )


def _add_openness(graph: _Graph) -> str:
    """MEL -> openness float32 (frames, 1, 1, 1), 0 closed to 1 wide open, without a step at either end."""
    patch = graph.add("Slice", "MEL", *graph.slices(*LOUDNESS_BANDS, axis=1))
    patch = graph.add("Slice", patch, *graph.slices(*LOUDNESS_COLUMNS, axis=2))
    loudness = graph.add("ReduceMean", patch, axes=[1, 2], keepdims=1)
    above = graph.add("Sub", loudness, graph.number(CLOSED_AT))
    share = graph.add("Div", above, graph.number(OPEN_AT - CLOSED_AT))
    share = graph.add("Clip", share, graph.number(0.0), graph.number(1.0))
    square = graph.add("Mul", share, share)
    ease = graph.add("Sub", graph.number(3.0), graph.add("Mul", share, graph.number(2.0)))
    return graph.add("Unsqueeze", graph.add("Mul", square, ease), graph.integers(3))


def _add_warp(graph: _Graph, pixels: str, openness: str) -> str:
    """Pixels float32 (frames, 3, rows, 96) with lips and jaw moved; rows count from NOSE_ROW.

    Each pixel is looked up at its own column, `shift` rows away. The shift stops at the line between the lips, so both
    lips keep their shape, rows never change their order, and the line itself is stretched over the gap.
    """
    distance = (MOUTH_ROW - _rows())[:, None] * np.ones(SIDE, np.float32)
    shift = graph.add("Mul", openness, graph.tensor(lip_shift()[None, :, :, None]))
    shift = graph.add("Min", shift, graph.tensor(np.maximum(distance, 0.0)[None, :, :, None]))
    shift = graph.add("Max", shift, graph.tensor(np.minimum(distance, 0.0)[None, :, :, None]))
    rows, columns = _rows() - NOSE_ROW, np.arange(SIDE, dtype=np.float32)
    at_rest = np.stack(np.broadcast_arrays(_unit(columns)[None, :], _unit(rows)[:, None]), axis=-1)
    down_only = np.array([0.0, 2.0 / (rows.size - 1)], np.float32)  # of (x, y): from rows to GridSample's unit
    grid = graph.add("Add", graph.add("Mul", shift, graph.tensor(down_only)), graph.tensor(at_rest[None]))
    return graph.add("GridSample", pixels, grid, mode="bilinear", padding_mode="border", align_corners=1)


def _add_interior(graph: _Graph, pixels: str, moved: str, openness: str) -> str:
    """The moved pixels with the gap darkened, float32 (frames, 3, rows, 96)."""
    width = _taper(_columns_from_middle() / MOUTH_HALF_WIDTH)
    half_gap = (JAW_DROP + LIP_LIFT) / 2 * width
    centre = (JAW_DROP - LIP_LIFT) / 2 * width
    half = graph.add("Mul", openness, graph.tensor(half_gap[None, None, None, :]))
    middle = graph.add("Mul", openness, graph.tensor(centre[None, None, None, :]))
    below_line = graph.tensor((_rows() - MOUTH_ROW)[None, None, :, None])
    away = graph.add("Sub", below_line, middle)
    inside = graph.add("Sub", graph.add("Mul", half, half), graph.add("Mul", away, away))
    soft = graph.add("Add", half, graph.number(INTERIOR_SOFT_PX))
    cover = graph.add("Div", inside, graph.add("Mul", soft, graph.number(INTERIOR_SOFT_PX)))
    cover = graph.add("Clip", cover, graph.number(0.0), graph.number(1.0))
    alpha = graph.add("Mul", cover, graph.number(INTERIOR_ALPHA))
    first_row, end_row = COLOUR_ROWS
    around = graph.add("Slice", pixels, *graph.slices(first_row - NOSE_ROW, end_row - NOSE_ROW, axis=2))
    around = graph.add("Slice", around, *graph.slices(*COLOUR_COLUMNS, axis=3))
    skin = graph.add("ReduceMean", around, axes=[2, 3], keepdims=1)
    dark = graph.add("Mul", skin, graph.tensor(np.array(INTERIOR_SHARE_BGR, np.float32)[None, :, None, None]))
    return graph.add("Add", moved, graph.add("Mul", alpha, graph.add("Sub", dark, moved)))


def lip_shift() -> Float32:
    """At full openness, how many rows above (-) or below (+) itself each pixel is looked up: float32 (rows, 96).

    Rows count from NOSE_ROW. What lies below the mouth comes down, the more the nearer to the lip; what lies above goes
    up a little. Zero in the first and last row and at both sides.
    """
    rows, away = _rows()[:, None], _columns_from_middle()[None, :]
    to_chin = np.clip((rows - MOUTH_ROW) / (LAST_ROW - MOUTH_ROW), 0.0, 1.0)
    half_width = MOUTH_HALF_WIDTH + (JAW_HALF_WIDTH - MOUTH_HALF_WIDTH) * to_chin
    jaw = JAW_DROP * _taper(away / half_width) * _ease(np.minimum(1.0, (1.0 - to_chin) / (1.0 - JAW_RIGID)))
    to_lip = np.clip((rows - NOSE_ROW) / (MOUTH_ROW - NOSE_ROW), 0.0, 1.0)
    lift = LIP_LIFT * _taper(away / MOUTH_HALF_WIDTH) * _ease(to_lip)
    return np.where(rows >= MOUTH_ROW, -jaw, lift).astype(np.float32)


def _rows() -> Float32:
    return np.arange(NOSE_ROW, SIDE, dtype=np.float32)


def _columns_from_middle() -> Float32:
    return np.arange(SIDE, dtype=np.float32) - MOUTH_COLUMN


def _taper(u: Float32) -> Float32:
    """1 in the middle, 0 from |u| = 1 on."""
    return np.maximum(0.0, 1.0 - u * u) ** TAPER_POWER


def _ease(t: Float32) -> Float32:
    """0 to 1 with level ends."""
    return t * t * (3.0 - 2.0 * t)


def _unit(positions: Float32) -> Float32:
    """Pixel positions 0..n-1 to GridSample's [-1, 1]."""
    return 2.0 * positions / (positions.size - 1) - 1.0


class _Graph:
    """Nodes and constants as they are added; each call gives the name of what it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def tensor(self, values: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float) -> str:
        return self.tensor(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        return self.tensor(np.array(values, np.int64))

    def slices(self, start: int, end: int, axis: int) -> tuple[str, str, str]:
        return self.integers(start), self.integers(end), self.integers(axis)

    def model(self) -> onnx.ModelProto:
        picture = ["frames", SIDE, SIDE, 3]
        inputs = [
            helper.make_tensor_value_info("MEL", TensorProto.FLOAT, ["frames", MEL_BANDS, MEL_COLUMNS]),
            helper.make_tensor_value_info("FACES", TensorProto.UINT8, picture),
        ]
        outputs = [helper.make_tensor_value_info("MOUTHS", TensorProto.UINT8, picture)]
        graph = helper.make_graph(self._nodes, "lips_lite", inputs, outputs, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="polylip")
