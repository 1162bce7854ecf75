"""The configs of the container's backends, given to a real tritonserver: it must lack nothing but the backend.

The pip-installed tritonserver has neither TensorRT nor ONNX Runtime nor OpenVINO, so it reads and checks these configs
and then stops. What it cannot load it does load with a Python engine of profile lite behind the same tensors, batching
and warm-up, which shows that the ensembles take them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from polylip.export.onnx_export import DETECT_INPUTS, DETECT_OUTPUTS, LIPS_INPUTS, LIPS_OUTPUTS
from polylip.serving.launcher import GPU_PROFILE
from polylip.serving.probe import is_ready, probe_models
from polylip.serving.runtime import PROFILE_BACKENDS, find_runtime, prepare_backends, server_environment

GRAPH_TENSORS = {"lips": (LIPS_INPUTS, LIPS_OUTPUTS), "detect": (DETECT_INPUTS, DETECT_OUTPUTS)}
MODELS = tuple(GRAPH_TENSORS)
LOAD_TIMEOUT_S = 60.0
PICTURE_ENSEMBLES = ("faces", "lipsync")


def command(repository: Path, profile: str, run_dir: Path, *more: str) -> list[str]:
    runtime = find_runtime()
    return [
        str(runtime.binary),
        f"--model-repository={repository}",
        *([] if profile == GPU_PROFILE else [f"--model-config-name={profile}"]),
        f"--backend-directory={prepare_backends(runtime, run_dir)}",
        f"--backend-config=python,shm-region-prefix-name={run_dir.parent.name}_{os.getpid()}_",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--allow-metrics=false",
        *more,
    ]


def load_errors(repository: Path, profile: str, model: str, run_dir: Path) -> str:
    """What a tritonserver says that is to load one model and ends because it cannot."""
    arguments = command(repository, profile, run_dir, f"--load-model={model}", "--allow-grpc=false")
    environment = server_environment(find_runtime())
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    lines = [
        line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E", "[libprotobuf", "error"))
    ]
    return "\n".join(line for line in lines if "CudaDriverHelper" not in line)  # there is no GPU, which is no error


@pytest.mark.parametrize("profile", PROFILE_BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_tritonserver_finds_no_fault_with_a_config_but_that_it_lacks_the_backend(model, profile, tmp_path):
    said = load_errors(REPOSITORY, profile, model, tmp_path / "run")
    lacking = f"unable to find backend library for backend '{PROFILE_BACKENDS[profile]}'"
    assert said
    assert all(lacking in line for line in said.splitlines()), said


@pytest.mark.parametrize("profile", PROFILE_BACKENDS)
@pytest.mark.parametrize("model", MODELS)
def test_a_config_has_the_very_shapes_of_the_exported_graph(model, profile):
    """These backends refuse an output whose dimension the graph fixes and the config leaves open, or the reverse."""
    config = served(REPOSITORY / model, profile)
    batch = [-1] if config.max_batch_size else []
    for promised, exported in zip((config.input, config.output), GRAPH_TENSORS[model], strict=True):
        of_graph = {t.name: [size if isinstance(size, int) else -1 for size in t.shape] for t in exported}
        assert {tensor.name: [*batch, *tensor.dims] for tensor in promised} == of_graph


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("preferred_batch_size: [ 16, 32 ]", "preferred_batch_size: [ 16, 64 ]", "must be <= max batch size"),
        ("preserve_ordering", "keep_ordering", 'has no field named "keep_ordering"'),
        ("dims: [ 80, 16 ] }", "dims: [ 80, 0 ] }", "must be integer >= 1"),
    ],
)
def test_tritonserver_does_find_faults(old, new, complaint, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY / "lips", repository / "lips")
    config = repository / "lips" / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    assert complaint in load_errors(repository, GPU_PROFILE, "lips", tmp_path / "run")


@pytest.mark.parametrize("profile", ["gpu", "openvino"])  # onnx has the shapes and batches of gpu
def test_the_ensembles_take_the_shapes_batches_and_warm_up_of_a_profile(profile, tmp_path):
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository)
    for model in MODELS:
        put_a_lite_engine_behind(repository / model, profile)
    with socket.socket() as held:  # shares its port with the server, so that no other program gets it first
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{held.getsockname()[1]}"
        more = [f"--load-model={name}" for name in PICTURE_ENSEMBLES]
        more += ["--grpc-address=127.0.0.1", f"--grpc-port={held.getsockname()[1]}", "--reuse-grpc-port=true"]
        arguments = command(repository, profile, tmp_path / "run", *more)
        with (tmp_path / "log").open("wb") as log:
            server = subprocess.Popen(arguments, env=server_environment(find_runtime()), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + LOAD_TIMEOUT_S
            while not is_ready(url):
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.1)
            assert probe_models(url, repository, models=PICTURE_ENSEMBLES) is None
        finally:
            server.terminate()
            server.wait(30)


def put_a_lite_engine_behind(model: Path, profile: str) -> None:
    """Keep all that a config promises and replace what runs it."""
    config, lite = served(model, profile), served(model, "lite")
    config.platform = config.default_model_filename = ""
    config.backend = "python"
    for group in config.instance_group:
        group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    config.parameters.clear()
    for key, value in lite.parameters.items():
        config.parameters[key].CopyFrom(value)
    assert config.model_warmup
    config_path(model, profile).write_text(text_format.MessageToString(config))


def served(model: Path, profile: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config_path(model, profile).read_text(), model_config_pb2.ModelConfig())


def config_path(model: Path, profile: str) -> Path:
    path = model / "configs" / f"{profile}.pbtxt"
    return path if path.is_file() else model / "config.pbtxt"
