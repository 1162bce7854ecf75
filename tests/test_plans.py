"""TensorRT plans without TensorRT: their names, which one fits, the link, and what is said when none does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import REPOSITORY
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polylip.export.plan import BATCHES, build_plan, default_options, profile_shapes
from polylip.export.sidecar import GRAPH_FILES
from polylip.serving.errors import MissingError
from polylip.serving.plans import (
    GRAPHS,
    HASH_DIGITS,
    LINK,
    NETWORKS,
    PlanName,
    find_plan,
    fitting_plans,
    graph_hash,
    link_plan,
    link_plans,
    parse_architecture,
    sidecar_path,
    tensorrt_version,
)

POLYLIP = str(Path(sys.executable).with_name("polylip"))
GRAPH = "0123456789ab"
HERE = ("sm90", "10.13.2", GRAPH)


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "lips" / "1"
    folder.mkdir(parents=True)
    return folder


def put_plan(
    version_dir: Path,
    architecture: str = "sm90",
    tensorrt: str = "10.13.2",
    graph: str = GRAPH,
    network: str = "wav2lip",
) -> Path:
    plan = version_dir / str(PlanName(network, architecture, tensorrt, graph))
    plan.write_bytes(b"plan")
    sidecar_path(plan).write_text(json.dumps({"plan_bytes": 4}))
    return plan


def test_a_plan_is_named_by_gpu_tensorrt_and_graph():
    name = PlanName("wav2lip", "sm90", "10.13.2", GRAPH)
    assert str(name) == "wav2lip-sm90-trt10.13.2-fp16-0123456789ab.plan"
    assert PlanName.parse(str(name)) == name
    assert PlanName.parse(LINK) is None


def test_the_plan_for_this_machine_is_found_among_others(version_dir):
    put_plan(version_dir, architecture="sm89")
    put_plan(version_dir, tensorrt="11.4.0")
    mine = put_plan(version_dir)
    put_plan(version_dir, graph="f" * HASH_DIGITS)
    assert find_plan(version_dir, *HERE) == mine


@pytest.mark.parametrize(
    ("made_for", "differs"),
    [
        ({"architecture": "sm89"}, "GPU sm89 and not sm90"),
        ({"tensorrt": "10.9.0"}, "TensorRT 10.9.0 and not 10.13.2"),
        ({"graph": "f" * HASH_DIGITS}, f"ONNX graph {'f' * HASH_DIGITS} and not {GRAPH}"),
        ({"architecture": "sm89", "tensorrt": "11.4.0"}, "GPU sm89 and not sm90, TensorRT 11.4.0 and not 10.13.2"),
    ],
)
def test_a_plan_for_another_machine_or_graph_is_refused_in_one_line(version_dir, made_for, differs):
    plan = put_plan(version_dir, **made_for)
    with pytest.raises(MissingError) as refusal:
        find_plan(version_dir, *HERE)
    assert str(refusal.value) == f"lips: {plan.name} is for {differs}; run: polylip export plan lips"


def test_the_refusal_names_the_plan_that_comes_nearest(version_dir):
    put_plan(version_dir, architecture="sm70", tensorrt="8.6.1", graph="f" * HASH_DIGITS)
    put_plan(version_dir, architecture="sm89")
    with pytest.raises(MissingError, match="GPU sm89 and not sm90; run"):
        find_plan(version_dir, *HERE)


def test_without_a_plan_the_command_that_builds_one_is_named(version_dir):
    (version_dir / "s3fd-sm90-trt10.13.2-fp16-0123456789ab.plan").write_bytes(b"plan")  # of another network
    with pytest.raises(MissingError, match=r"no TensorRT plan in .*; run: polylip export plan lips$"):
        find_plan(version_dir, *HERE)


def test_a_plan_whose_copy_broke_off_is_refused(version_dir):
    plan = put_plan(version_dir)
    plan.write_bytes(b"pl")
    with pytest.raises(MissingError, match="has 2 bytes and should have 4"):
        find_plan(version_dir, *HERE)
    sidecar_path(plan).unlink()
    with pytest.raises(MissingError, match="is missing or unreadable"):
        find_plan(version_dir, *HERE)


def test_where_the_graph_is_not_shipped_the_newest_plan_is_taken(version_dir):
    old, new = put_plan(version_dir, graph="a" * HASH_DIGITS), put_plan(version_dir, graph="b" * HASH_DIGITS)
    os.utime(old, (1, 1))
    assert find_plan(version_dir, "sm90", "10.13.2", None) == new


def test_the_link_is_relative_and_follows_the_plan(version_dir):
    first, second = put_plan(version_dir, graph="a" * HASH_DIGITS), put_plan(version_dir, graph="b" * HASH_DIGITS)
    for plan in (first, first, second):
        link = link_plan(plan)
        assert link == version_dir / LINK
        assert os.readlink(link) == plan.name
    moved = version_dir.rename(version_dir.with_name("2"))
    assert (moved / LINK).read_bytes() == b"plan"
    assert find_plan(moved, "sm90", "10.13.2", "b" * HASH_DIGITS).name == second.name  # the link itself is no plan


def test_a_link_that_is_right_needs_no_writable_folder(version_dir):
    plan = put_plan(version_dir)
    link = link_plan(plan)
    before = link.lstat().st_mtime_ns
    assert link_plan(plan).lstat().st_mtime_ns == before


def test_the_graph_hash_is_that_of_sha256sum(tmp_path):
    graph = tmp_path / "wav2lip_fp16.onnx"
    graph.write_bytes(os.urandom(3 << 20))
    assert graph_hash(graph) == sha256(graph.read_bytes()).hexdigest()[:HASH_DIGITS]
    graph.unlink()
    with pytest.raises(MissingError, match="run: polylip export onnx wav2lip"):
        graph_hash(graph)


def test_the_architecture_is_read_from_nvidia_smi():
    assert parse_architecture("9.0\n") == "sm90"
    assert parse_architecture("12.0\n12.0\n") == "sm120"
    with pytest.raises(MissingError, match=r"several kinds \(sm89, sm90\)"):
        parse_architecture("9.0\n8.9\n")
    with pytest.raises(MissingError, match="update the driver"):
        parse_architecture("[N/A]\n")


def test_the_tensorrt_version_is_that_of_the_library(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    for name in ("libnvinfer.so.10", "libnvinfer.so.10.13.2", "libnvinfer_plugin.so.10.13.1"):
        (tmp_path / name).touch()
    assert tensorrt_version((tmp_path,)) == "10.13.2"
    with pytest.raises(MissingError, match="no TensorRT here"):
        tensorrt_version((tmp_path / "none",))


def test_all_plans_of_a_machine_are_checked_and_linked_before_the_server_starts(tmp_path, monkeypatch):
    smi, library = tmp_path / "bin" / "nvidia-smi", tmp_path / "lib" / "libnvinfer.so.10.13.2"
    for path, text in ((smi, "#!/bin/sh\necho 9.0\n"), (library, "")):
        path.parent.mkdir()
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    plans = []
    for model, network in NETWORKS.items():
        version_dir = tmp_path / "repository" / model / "1"
        version_dir.mkdir(parents=True)
        graph = version_dir / GRAPHS[model]
        graph.write_bytes(network.encode())
        plans.append(put_plan(version_dir, graph=graph_hash(graph), network=network))
    repository = tmp_path / "repository"
    assert fitting_plans(repository) == plans
    assert [link.resolve() for link in link_plans(repository)] == plans
    (repository / "detect" / "1" / GRAPHS["detect"]).write_bytes(b"exported anew")
    with pytest.raises(MissingError, match=r"detect: s3fd-.* is for ONNX graph .*; run: polylip export plan detect"):
        link_plans(repository)


def test_without_a_gpu_other_profiles_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"no NVIDIA GPU: .* use profile cpu or lite"):
        fitting_plans(REPOSITORY)


@pytest.mark.parametrize("model", NETWORKS)
def test_plans_and_configs_agree_on_the_largest_batch(model):
    config = text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert BATCHES[model].largest == config.max_batch_size
    assert BATCHES[model].smallest == 1
    assert all(warm.batch_size <= BATCHES[model].largest for warm in config.model_warmup)


@pytest.mark.parametrize("model", NETWORKS)
def test_profiles_have_the_inputs_of_the_config_and_its_warm_up_sizes(model):
    config = text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    shapes = profile_shapes(model, default_options(model, None, None, None))
    assert shapes.keys() == {tensor.name for tensor in config.input}
    for tensor in config.input:
        for shape in shapes[tensor.name]:
            assert len(shape) == len(tensor.dims) + 1
            assert all(dim in (-1, size) for dim, size in zip(tensor.dims, shape[1:], strict=True))
    for warm in config.model_warmup:
        for name, tensor in warm.inputs.items():
            smallest, _, largest = shapes[name]
            sizes = zip(smallest, (warm.batch_size, *tensor.dims), largest, strict=True)
            assert all(low <= size <= high for low, size, high in sizes)


def test_plans_are_built_from_the_half_precision_graphs_of_the_exporter():
    for model, network in NETWORKS.items():
        assert GRAPH_FILES[network]["fp16"] == f"{model}/1/{GRAPHS[model]}"


def test_batches_that_do_not_rise_or_that_the_config_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must rise: 1, 64, 32"):
        default_options("lips", None, 64, None)
    with pytest.raises(MissingError, match="--max-batch 64 is not max_batch_size 32"):
        build_plan("lips", REPOSITORY, default_options("lips", None, None, 64), print)
    with pytest.raises(MissingError, match="--min-batch must be 1"):
        build_plan("lips", REPOSITORY, default_options("lips", 2, None, None), print)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_without_tensorrt_the_command_says_where_there_is_one():
    done = subprocess.run([POLYLIP, "export", "plan", "lips"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "polylip: TensorRT is not installed here; it is in NVIDIA's container, run: "
        "docker compose -f docker/compose.yaml run --rm plan polylip export plan lips\n"
    )
