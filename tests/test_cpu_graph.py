"""Profile cpu's way to a graph: the precision for the processor, the check of bf16, the fallback, and the errors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from polylip.export.sidecar import Figure
from polylip.serving.engines import cpu_graph
from polylip.serving.engines.cpu_graph import CpuGraph, cpu_flags
from polylip.serving.errors import MissingError

X = np.linspace(0.5, 2, 12, dtype=np.float32).reshape(3, 4)


def write_graph(folder, name="net_fp32.onnx", gain=1.001):
    """y = gain * x through a matrix product, which bf16 rounds visibly."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * np.float32(gain), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("X", "Y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["X", "w"], ["Y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / name)
    return str(folder)


@pytest.fixture
def processor(monkeypatch):
    """Choose the instruction sets that the processor seems to have."""
    return lambda *flags: monkeypatch.setattr(cpu_graph, "cpu_flags", lambda: frozenset(flags))


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (["amx_bf16", "avx512_bf16", "avx512_vnni"], "bf16"),
        (["avx512_bf16", "avx512_vnni"], "bf16"),
        (["avx512_vnni"], "fp32"),
        ([], "fp32"),
    ],
)
def test_the_precision_follows_the_processor(tmp_path, processor, flags, precision):
    processor(*flags)
    assert CpuGraph({"graph": "net", "runtime": "openvino"}, write_graph(tmp_path)).precision == precision


def test_onnxruntime_knows_no_bf16(tmp_path, processor):
    processor("amx_bf16")
    assert CpuGraph({"graph": "net", "runtime": "onnxruntime"}, write_graph(tmp_path)).precision == "fp32"


def test_a_chosen_precision_is_kept(tmp_path, processor):
    processor("amx_bf16")
    assert CpuGraph({"graph": "net", "precision": "fp32"}, write_graph(tmp_path)).precision == "fp32"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("shapes", [None, {"X": (3, 4)}])
def test_both_runtimes_answer_alike_and_keep_their_answers(tmp_path, runtime, shapes):
    graph = CpuGraph({"graph": "net", "runtime": runtime, "precision": "fp32"}, write_graph(tmp_path, gain=2.0))
    run = graph.compiled(shapes)
    first = run({"X": X})["Y"]
    run({"X": X * 0})
    np.testing.assert_allclose(first, 2 * X)


def test_bf16_that_answers_too_differently_gives_way_to_fp32(tmp_path, processor, caplog):
    processor("avx512_bf16")
    folder = write_graph(tmp_path)
    graph = CpuGraph({"graph": "net", "runtime": "openvino"}, folder)
    run = graph.checked({"X": X}, lambda exact, fast: [Figure("load", "difference", 1.0, limit=0.5)])
    assert graph.precision == "fp32" and "FP32 instead of bf16" in caplog.text
    np.testing.assert_allclose(run({"X": X})["Y"], np.float32(1.001) * X, rtol=1e-6)


def test_bf16_that_agrees_is_kept(tmp_path, processor):
    processor("avx512_bf16")
    graph = CpuGraph({"graph": "net", "runtime": "openvino"}, write_graph(tmp_path))
    seen = []

    def compare(exact, fast):
        seen.append(float(np.abs(exact["Y"] - fast["Y"]).max()))
        return [Figure("load", "difference", seen[-1], limit=0.1)]

    graph.checked({"X": X}, compare)
    assert graph.precision == "bf16" and len(seen) == 1


def test_bf16_really_computes_in_bf16(tmp_path):
    if not {"avx512_bf16", "amx_bf16"} & cpu_flags():
        pytest.skip("this processor has no bf16")
    graph = CpuGraph({"graph": "net", "runtime": "openvino", "precision": "bf16"}, write_graph(tmp_path))
    error = np.abs(graph.compiled()({"X": X})["Y"] - np.float32(1.001) * X).max()
    assert 1e-4 < error < 2e-2


def test_what_is_missing_or_misspelt_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"net_fp32.onnx is missing; run: polylip export onnx net"):
        CpuGraph({"graph": "net", "precision": "fp32"}, str(tmp_path)).compiled()
    with pytest.raises(ValueError, match="unknown precision 'fp8'; use one of: auto, bf16"):
        CpuGraph({"graph": "net", "precision": "fp8"}, str(tmp_path))
