"""The exported picture networks do what their torch networks do, at any size, and a graph that does not is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from polylip.client.cli import app
from polylip.client.errors import InputError
from polylip.export import gate, onnx_command
from polylip.export.gate import DetectReference, LipsReference, check_detect, check_half_detect, check_lips
from polylip.export.gate_inputs import gate_faces, gate_frames, gate_mel
from polylip.export.generated import generated_network
from polylip.export.graphs import (
    CANDIDATES,
    MIN_SCORE,
    DetectGraph,
    LipsGraph,
    detect_graph,
    fold_batch_norms,
    scale_trunk,
)
from polylip.export.networks import S3FD, Wav2LipGenerator
from polylip.export.onnx_export import export_detect, publish
from polylip.export.parity import (
    Detections,
    ParityError,
    compare_exact,
    compare_faces,
    require,
    require_contrast,
    require_spread,
    ssim,
)
from polylip.export.sidecar import GRAPH_FILES, Source, file_sha256, read_sidecar, sidecar_path
from polylip.serving.errors import MissingError

pytestmark = pytest.mark.timeout(600)  # exporting takes 10 s of one free core per graph, more of a busy one

Graphs = dict[str, Path]  # by precision


@pytest.fixture(scope="module")
def generator() -> Wav2LipGenerator:
    return generated_network("wav2lip")


@pytest.fixture(scope="module")
def detector() -> S3FD:
    """Generated weights find no face; with its face logits raised, the best boxes score above what is left out."""
    network = generated_network("s3fd")
    with torch.no_grad():
        for name, bias in network.named_parameters():
            if name.endswith("conf.bias"):
                bias[-1] += 6.0
    return network


@pytest.fixture(scope="module")
def mouths(generator: Wav2LipGenerator) -> LipsReference:
    return gate.lips_reference(generator)


@pytest.fixture(scope="module")
def small_frames(detector: S3FD) -> list[DetectReference]:
    """What the export checks, on smaller pictures, so that the tests are quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "DETECT_SIZES", (((1, 2, 3), 90, 160), ((1,), 75, 131)))
        return gate.detect_references(detector)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model_repository")


@pytest.fixture(scope="module")
def lips(generator: Wav2LipGenerator, repository: Path) -> Graphs:
    """Wav2Lip, exported by the command from a checkpoint where `polylip fetch` would have put it."""
    checkpoint = repository.parent / "weights" / "wav2lip-gan" / "wav2lip_gan.pth"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in generator.state_dict().items()}}, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYLIP_WEIGHTS", str(repository.parent / "weights"))
        with pytest.raises(SystemExit) as ended:
            app(["export", "onnx", "wav2lip", "--output-dir", str(repository)])
    assert ended.value.code == 0
    return {precision: repository / GRAPH_FILES["wav2lip"][precision] for precision in ("fp32", "fp16")}


@pytest.fixture(scope="module")
def detect(detector: S3FD, repository: Path, small_frames: list[DetectReference]) -> Graphs:
    source = Source("generated")
    return {p: export_detect(detector, repository, p, source, references=small_frames) for p in ("fp32", "fp16")}


def run(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)


@torch.inference_mode()
def find_in_torch(graph: DetectGraph, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = graph(torch.from_numpy(frames))
    return boxes.numpy(), scores.numpy()


# The graphs around the networks


@torch.inference_mode()
def test_lips_graph_masks_the_lower_half_and_puts_the_reference_second(generator: Wav2LipGenerator):
    mel, faces = gate_mel(2), gate_faces(2)
    whole = faces.astype(np.float32) / 255
    masked = whole.copy()
    masked[:, 48:] = 0
    both = np.concatenate([masked, whole], axis=3).transpose(0, 3, 1, 2)
    pixels = generator(torch.from_numpy(mel[:, None]), torch.from_numpy(both)).numpy().transpose(0, 2, 3, 1)
    got = LipsGraph(generator)(torch.from_numpy(mel), torch.from_numpy(faces)).numpy()
    np.testing.assert_array_equal(got, np.rint(pixels * 255).astype(np.uint8))


@torch.inference_mode()
def test_folded_batch_norms_change_nothing(generator: Wav2LipGenerator):
    folded = fold_batch_norms(generator)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in generator.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    inputs = torch.from_numpy(gate_mel(2)[:, None]), torch.rand(2, 6, 96, 96, generator=torch.manual_seed(0))
    torch.testing.assert_close(folded(*inputs), generator(*inputs), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_scaling_the_trunk_changes_activations_and_no_output(detector: S3FD):
    images = torch.randn(1, 3, 64, 96, generator=torch.manual_seed(0)) * 60
    expected, features = detector(images), detector.features(images)
    scaled = detect_graph(detector, torch.float32).network
    scale_trunk(scaled, 1 / 16)
    for got, want in zip(scaled(images), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scaled.features(images)[5] * 16, features[5], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (75, 130)])
def test_detect_graph_decodes_as_the_published_detector(detector: S3FD, height: int, width: int, rgb: bool):
    """Cell by cell in float64; 48x48 has fewer cells than K."""
    frames = gate_frames(2, height, width)
    boxes, scores = find_in_torch(DetectGraph(detector, rgb=rgb, min_score=0.108), frames)
    assert boxes.shape == (2, CANDIDATES, 4) and scores.shape == (2, CANDIDATES)
    for i in range(2):
        want = decode_slowly(detector, frames[i], rgb, 0.108)
        assert len(want) > 3 and (scores[i] > 0).sum() == min(len(want), CANDIDATES)
        n = min(len(want), CANDIDATES)
        np.testing.assert_allclose(scores[i, :n], [score for score, _ in want[:n]], atol=1e-5)
        corners = np.array([box for _, box in want[:n]])
        distances = np.abs(boxes[i, :n, None] - corners[None]).max(axis=2)  # equal scores may come in either order
        assert distances.min(axis=1)[: n - 3].max() < 0.01 and distances.min(axis=0)[: n - 3].max() < 0.01
        assert not boxes[i, n:].any() and not scores[i, n:].any()


@torch.inference_mode()
def decode_slowly(network: S3FD, frame: np.ndarray, rgb: bool, least: float) -> list[tuple[float, list[float]]]:
    """Score and corners of every candidate of one picture, best first."""
    pixels = (frame[..., ::-1] if rgb else frame).astype(np.float32) - np.array([104, 117, 123], np.float32)
    maps = [m[0].double().numpy() for m in network(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))]
    found = []
    for head, stride in enumerate((4, 8, 16, 32, 64, 128)):
        logits, offsets = maps[2 * head], maps[2 * head + 1]
        for row, column in np.ndindex(*logits.shape[1:]):
            background, face = np.exp(logits[:, row, column])
            score = float(face / (background + face))
            dx, dy, dw, dh = offsets[:, row, column]
            side = 4 * stride
            x, y = stride / 2 + stride * column + 0.1 * dx * side, stride / 2 + stride * row + 0.1 * dy * side
            w, h = side * np.exp(0.2 * dw), side * np.exp(0.2 * dh)
            if score > least:
                found.append((score, [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
    return sorted(found, key=lambda candidate: -candidate[0])


# The exported files


def test_lips_agree_with_torch_at_a_batch_that_export_did_not_try(lips: Graphs, generator: Wav2LipGenerator):
    mel, faces = gate_mel(7), gate_faces(7)
    with torch.inference_mode():
        expected = LipsGraph(generator)(torch.from_numpy(mel), torch.from_numpy(faces)).numpy()
    exact = run(lips["fp32"], MEL=mel, FACES=faces)[0]
    assert exact.dtype == np.uint8 and np.abs(exact.astype(int) - expected).max() <= 1
    half = run(lips["fp16"], MEL=mel, FACES=faces)[0]
    assert min(ssim(a, b) for a, b in zip(expected, half, strict=True)) >= 0.995
    assert (half != exact).any()  # or it would not be float16 at all


def test_boxes_agree_with_torch_at_a_size_that_export_did_not_try(detect: Graphs, detector: S3FD):
    frames = gate_frames(2, 101, 203)
    boxes, scores = find_in_torch(DetectGraph(detector), frames)
    assert (scores[:, 9] > 2 * MIN_SCORE).all()
    expected = Detections(boxes, scores)
    exact = Detections(*run(detect["fp32"], FRAMES=frames))
    require(compare_exact(expected, exact, ""), "s3fd fp32")
    half = Detections(*run(detect["fp16"], FRAMES=frames))
    require(compare_faces(expected, half, ""), "s3fd fp16")
    assert (half.scores != exact.scores).any()


def constant(model: onnx.ModelProto, name: str) -> TensorProto:
    [found] = [tensor for tensor in model.graph.initializer if tensor.name == f"network.{name}"]
    return found


@pytest.mark.parametrize(("network", "parameters"), [("wav2lip", 36_298_035), ("s3fd", 22_459_110)])
@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("fp16", 2)])
def test_a_graph_is_one_file_with_each_weight_once(
    network: str, parameters: int, precision: str, bytes_each: int, lips: Graphs, detect: Graphs
):
    path = {"wav2lip": lips, "s3fd": detect}[network][precision]
    assert 0.99 * parameters * bytes_each < path.stat().st_size < 1.01 * parameters * bytes_each + 200_000
    assert sorted(p.suffix for p in path.parent.iterdir() if p.stem == path.stem) == [".json", ".onnx"]
    text = path.read_bytes()
    for leak in (b"site-packages", b"/export/", b"stack_trace", str(Path.cwd()).encode()):
        assert leak not in text


@pytest.mark.parametrize("network", ["wav2lip", "s3fd"])
def test_float16_graphs_keep_what_must_be_exact_in_float32(network: str, lips: Graphs, detect: Graphs):
    path = {"wav2lip": lips, "s3fd": detect}[network]["fp16"]
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    by_operator: dict[str, set[int]] = {}
    for node in model.graph.node:
        by_operator.setdefault(node.op_type, set()).update(types[name] for name in node.input[:1])
    assert by_operator["Conv"] == {TensorProto.FLOAT16}
    if network == "s3fd":
        for operator in ("ReduceSum", "Sqrt", "Sigmoid", "Exp", "TopK"):
            assert by_operator[operator] == {TensorProto.FLOAT}, operator
    # TensorRT takes uint8 only into a cast and out of one.
    pictures = [value.name for value in model.graph.input if types[value.name] == TensorProto.UINT8]
    assert {node.op_type for node in model.graph.node if set(pictures) & set(node.input)} == {"Cast"}
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    assert all(made[v.name] == "Cast" for v in model.graph.output if types[v.name] == TensorProto.UINT8)


def test_the_sidecar_says_where_a_graph_came_from(lips: Graphs, detect: Graphs, repository: Path):
    checkpoint = repository.parent / "weights" / "wav2lip-gan" / "wav2lip_gan.pth"
    for precision, path in lips.items():
        sidecar = read_sidecar(path)
        assert sidecar.source == Source("checkpoint", "wav2lip_gan.pth", file_sha256(checkpoint))
        assert (sidecar.network, sidecar.precision, sidecar.graph) == ("wav2lip", precision, path.name)
        assert sidecar.graph_sha256 == file_sha256(path)
        assert sidecar.torch == torch.__version__ and sidecar.channel_order == "BGR"
        assert {figure.case for figure in sidecar.parity} >= {"batch 1", "batch 2", "batch 5", "batch 16"}
        assert all(figure.passed for figure in sidecar.parity)
    found = read_sidecar(sidecar_path(detect["fp16"]))
    assert found.source == Source("generated") and found.outputs[0].shape == ("frames", CANDIDATES, 4)
    for path in (*lips.values(), *detect.values()):
        sidecar, session = read_sidecar(path), ort.InferenceSession(str(path))
        for tensors, real in ((sidecar.inputs, session.get_inputs()), (sidecar.outputs, session.get_outputs())):
            assert [(t.name, list(t.shape)) for t in tensors] == [(r.name, r.shape) for r in real]


def test_a_sidecar_that_is_missing_or_foreign_is_named_with_the_remedy(tmp_path: Path):
    for content, said in ((None, "is missing"), ("{", "cannot be read"), ('{"format": 9}', "not a sidecar")):
        if content is not None:
            (tmp_path / "a.json").write_text(content)
        with pytest.raises(MissingError, match=rf"{said}.*polylip export onnx"):
            read_sidecar(tmp_path / "a.onnx")


# What the gate refuses


def broken(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    model = onnx.load(path)
    tensor = constant(model, name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
    return model


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_broken_lips_graph_is_refused_and_the_old_one_stays(
    precision: str, lips: Graphs, mouths: LipsReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gate, "LIPS_BATCHES", (2,))
    model = broken(lips[precision], "face_decoder_blocks.5.1.conv_block.0.weight", lambda w: w * 0.5)
    target = tmp_path / "lips" / "graph.onnx"
    target.parent.mkdir()
    target.write_bytes(b"old")
    sidecar = read_sidecar(lips[precision])
    with pytest.raises(ParityError, match=r"must be at (most|least) .* nothing was written"):
        publish(model, target, lambda path: check_lips(path, mouths, precision), sidecar)
    assert target.read_bytes() == b"old" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("precision", "name", "change"),
    [
        ("fp32", "conv7_2_mbox_loc.bias", lambda b: b + 0.05),
        ("fp16", "conv3_2.weight", lambda w: w * 0.5),
        ("fp16", "fc7_mbox_loc.bias", lambda b: b + 2.0),
        ("fp16", "fc7_mbox_conf.bias", lambda b: b + np.array([0.0, 0.5])),
    ],
)
def test_a_broken_detector_is_refused(
    precision: str, name: str, change: Callable, detect: Graphs, small_frames: list[DetectReference], tmp_path: Path
):
    onnx.save(broken(detect[precision], name, change), tmp_path / "graph.onnx")
    with pytest.raises(ParityError, match="nothing was written"):
        require(check_detect(tmp_path / "graph.onnx", small_frames, precision), "s3fd")


def test_a_graph_that_lists_other_boxes_than_it_should_is_refused(
    detect: Graphs, small_frames: list[DetectReference], tmp_path: Path
):
    model = onnx.load(detect["fp32"])
    [lowest] = [tensor for tensor in model.graph.initializer if tensor.name == "min_score"]
    lowest.CopyFrom(numpy_helper.from_array(np.array(0.2, np.float32), "min_score"))
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(ParityError, match=r"0\.05"):
        check_detect(tmp_path / "graph.onnx", small_frames, "fp32")


def test_activations_that_float16_cannot_hold_are_refused(detector: S3FD, small_frames: list[DetectReference]):
    """L2Norm hides the size of the trunk from onnxruntime's CPU kernels, which never store float16."""
    loud = detect_graph(detector, torch.float16)
    scale_trunk(loud.network, 2.0**17)
    with pytest.raises(ParityError, match="largest activation"):
        require(check_half_detect(loud, small_frames[0]), "s3fd fp16")


def test_networks_that_cannot_show_a_fault_are_refused():
    torch.manual_seed(0)
    with pytest.raises(ParityError, match="flat"):
        require_contrast(np.full((2, 96, 96, 3), 127, np.uint8))
    alike = Detections(np.zeros((1, CANDIDATES, 4), np.float32), np.full((1, CANDIDATES), 0.5, np.float32))
    with pytest.raises(ParityError, match="alike"):
        require_spread([alike])


# The command


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"networks": ("s3fd",), "checkpoint": Path("nowhere.pth")}, Exception, "nowhere.pth"),
        ({"networks": ("s3fd",)}, MissingError, "polylip fetch s3fd"),
        ({"networks": ("wav2lip", "s3fd"), "checkpoint": Path("a.pth")}, InputError, "one network"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(
    options: dict, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("POLYLIP_WEIGHTS", str(tmp_path))
    with pytest.raises(error, match=said) as raised:
        onnx_command.export_graphs(onnx_command.OnnxOptions(**options, repository=tmp_path), print)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused_with_the_list():
    assert onnx_command.parse_precisions("fp16, fp32,fp16") == ("fp16", "fp32")
    for text in ("fp64", "", "fp16,"):
        with pytest.raises(InputError, match="fp32, fp16"):
            onnx_command.parse_precisions(text)
