"""The container's files, as far as they can be checked without Docker: linted, compared with the rest, measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import REPOSITORY, shared_memory_of
from docker_programs import DOCKER, program
from ruamel.yaml import YAML
from tritonclient.grpc import service_pb2_grpc

from polylip.client.wire import CHANNEL_OPTIONS, infer_request, rows
from polylip.serving import control
from polylip.serving.errors import MissingError
from polylip.serving.guard import GRACE_S, SHM
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.probe import is_ready
from polylip.serving.runtime import PYTHON, find_runtime, prepare_backends, require_backend

ROOT = Path(__file__).parents[1]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = YAML(typ="safe").load(DOCKER / "compose.yaml")
SERVICES = COMPOSE["services"]
OLDEST_RELEASE = 26.07  # the first with the server's security fixes
BIN = Path(sys.executable).parent


shm = program("shm")
entrypoint = program("entrypoint")


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "docker/Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml"],
    ],
    ids=lambda command: command[0],
)
def test_the_linter_is_content(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_images_are_of_one_release_with_security_fixes():
    images = re.findall(r"^FROM (\S+) AS (\w+)", DOCKERFILE, re.MULTILINE)
    assert {stage for _, stage in images} == {"plan", "server"}
    assert all(image.endswith(":${RELEASE}-py3") for image, _ in images)
    release = re.search(r"^ARG RELEASE=([\d.]+)$", DOCKERFILE, re.MULTILINE)
    assert release and float(release[1]) >= OLDEST_RELEASE
    assert {service["build"]["args"]["RELEASE"] for service in SERVICES.values()} == {release[1]}


def test_no_tag_is_latest_and_package_lists_are_removed():
    assert ":latest" not in DOCKERFILE + (DOCKER / "compose.yaml").read_text()
    assert all(re.fullmatch(r"[a-z-]+:\d+\.\d+\.\d+", service["image"]) for service in SERVICES.values())
    assert DOCKERFILE.count("apt-get update") == DOCKERFILE.count("rm -rf /var/lib/apt/lists/*") == 2


def test_python_packages_come_from_the_lock_and_from_extras_that_exist():
    installs = re.findall(r"pip install .*", DOCKERFILE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(installs) == 2
    for install in installs:
        assert "-c requirements.lock" in install
        assert "--no-cache-dir" in install
        named = re.search(r"'\.\[(.+)\]'", install)
        assert named and set(named[1].split(",")) <= set(extras)


def test_the_image_has_the_programs_of_the_lite_speech_engines():
    text = (DOCKER / "debian_packages.py").read_text()
    programs = re.search(r"PROGRAMS = ({.*})", text)
    assert programs
    packages = set(json.loads(programs[1]).values()) - {"flite"}  # which speaks in the demo's clip only
    assert packages
    assert all(package in DOCKERFILE for package in packages)


def test_every_copied_path_exists_and_reaches_the_build():
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {path for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]}
    assert "model_repository" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, path
    assert "*" in ignored
    assert {"**/*.onnx", "**/*.plan", "**/*.pth", "**/*.safetensors"} <= set(ignored)  # no weights in the image


def test_images_run_as_a_user_without_rights():
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["10001:10001"] * 2


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_no_more_than_it_must(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "init" not in service  # the first process is ours, and reaps
    assert service["user"].startswith("${POLYLIP_UID:-10001}")
    assert service["logging"]["options"]["max-size"]
    assert not {"privileged", "cap_add", "network", "secrets", "ipc", "pid"} & service.keys()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert name == "plan" or service["restart"] == "unless-stopped"
    assert (SERVICES["plan"]["network_mode"], SERVICES["plan"]["profiles"]) == ("none", ["plan"])


def test_only_the_services_that_need_one_reserve_a_gpu():
    with_gpu = {name for name, service in SERVICES.items() if "deploy" in service}
    assert with_gpu == {"gpu", "plan"}
    for name in with_gpu:
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_of_a_service_is_one_that_polylip_has(name):
    program, *arguments = SERVICES[name]["command"]
    given = [word for word in arguments if word.startswith("--")]
    verbs = arguments[: arguments.index(given[0])] if given else arguments[:-1]
    done = subprocess.run([BIN / program, *verbs, "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert all(option in done.stdout for option in given)
    if verbs == ["serve"]:
        for option in ("--listen", "--metrics-listen"):
            assert arguments[arguments.index(option) + 1] == "0.0.0.0"  # noqa: S104  of the container alone
        drain_s = float(arguments[arguments.index("--drain-timeout") + 1])
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain_s + 3 * GRACE_S


def test_the_health_check_is_a_program_that_exists_and_has_time():
    check = re.search(r"HEALTHCHECK .*--timeout=(\d+)s .*\\\n +CMD (.*)", DOCKERFILE)
    assert check
    program, *arguments = json.loads(check[2])
    assert (program, arguments) == ("python", ["-m", control.__name__, "--ready"])
    assert float(check[1]) > control.ASK_TIMEOUT_S


def test_the_supervisor_is_the_first_process_and_has_a_folder_it_can_write():
    assert (
        re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
        == ['["/opt/venv/bin/python", "/opt/polylip/docker/entrypoint.py"]'] * 2
    ), "which becomes the command"
    last = re.findall(r"^CMD (\[.*)$", DOCKERFILE, re.MULTILINE)[-1]
    assert json.loads(last)[:2] == ["polylip", "serve"]
    folder = re.search(rf"{control.STATE_DIR_VARIABLE}=(\S+)", DOCKERFILE)
    assert folder
    for service in (SERVICES["gpu"], SERVICES["cpu"]):
        writable = [mount.split(":")[0] for mount in service["tmpfs"]]
        assert any(Path(folder[1]).is_relative_to(place) for place in writable)


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_shared_memory_of_a_service_is_what_its_tensors_need(name):
    assert SERVICES[name]["shm_size"] == f"{shm.shm_size_mib(name)}m"


@pytest.mark.parametrize("name", ["gpu", "cpu"])
def test_the_documented_shared_memory_is_the_computed(name):
    regions_mib = sum(shm.regions_mib(name).values())
    assert (
        f"| `{name}` | {regions_mib} MiB | {shm.shm_size_mib(name)} MiB |" in (ROOT / "docs" / "docker.md").read_text()
    )


def test_a_profile_with_native_backends_needs_less_shared_memory():
    assert shm.regions_mib("gpu").keys() == shm.regions_mib("cpu").keys() - {"detect", "lips"}
    assert shm.regions_mib("gpu").keys() < shm.regions_mib("lite").keys()


def test_the_running_server_stays_below_the_computed_shared_memory(server: Server):
    frames = np.zeros((16, 360, 640, 3), np.uint8)
    mel, faces = np.zeros((32, 80, 16), np.float32), np.zeros((32, 96, 96, 3), np.uint8)
    audio = np.zeros(shm.SEGMENT_S * shm.RATE_HZ, np.float32)
    voice = np.zeros(shm.VOICE_S * shm.RATE_HZ, np.float32)
    for model, inputs in (
        ("detect", {"FRAMES": frames}),
        ("lips", {"MEL": mel, "FACES": faces}),
        ("mel", {"AUDIO": audio, "FRAME_OFFSETS_MS": np.arange(32, dtype=np.int64) * 40}),
        ("transcribe", rows({"AUDIO": audio, "SOURCE_LANGUAGE": "en", "KNOWN_TEXT": "yes"})),
        ("synthesize", rows({"TARGET_TEXT": "hola " * 10, "TARGET_LANGUAGE": "es", "VOICE": voice})),
    ):
        call(server, model, inputs, times=3)
    regions = [os.stat(SHM / name).st_size for name in shared_memory_of(server)]
    needed_mib, computed = sum(regions) / shm.MIB, shm.regions_mib("lite")
    assert len(regions) >= len(computed), "one for each instance of a model"
    assert frames.nbytes / shm.MIB < needed_mib <= sum(computed.values()) < shm.shm_size_mib("lite")


def call(server: Server, model: str, inputs: dict, times: int) -> None:
    requests = [infer_request(model, inputs, str(i), None) for i in range(times)]
    with grpc.insecure_channel(server.url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        errors = [reply.error_message for reply in stub.ModelStreamInfer(iter(requests), timeout=60)]
    assert len(errors) >= times
    assert set(errors) == {""}


def test_the_entrypoint_renews_what_the_image_brought_and_keeps_the_rest(tmp_path):
    image, volume = tmp_path / "image", tmp_path / "volume"
    shutil.copytree(REPOSITORY, image, ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    built = volume / "lips" / "1" / "wav2lip_fp16.onnx"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"graph")
    assert entrypoint.renew(image, volume) == []
    assert (volume / "speech" / "config.pbtxt").read_text() == (REPOSITORY / "speech" / "config.pbtxt").read_text()
    changed, stale = image / "mel" / "config.pbtxt", image / "mel" / "1" / "model.py"
    changed.write_text("# the next release")
    stale.unlink()
    mine = volume / "track" / "config.pbtxt"
    mine.write_text("# my own")
    for _ in range(2):
        assert entrypoint.renew(image, volume) == [mine]
        assert (volume / "mel" / "config.pbtxt").read_text() == "# the next release"
        assert not (volume / "mel" / "1" / "model.py").exists()
        assert mine.read_text() == "# my own"
        assert built.read_bytes() == b"graph"


def test_the_entrypoint_becomes_the_command(tmp_path):
    program = f"import sys; sys.path.insert(0, {str(DOCKER)!r}); import entrypoint; from pathlib import Path; "
    program += f"entrypoint.IMAGE_REPOSITORY = Path({str(REPOSITORY)!r}); entrypoint.main(['sh', '-c', 'echo $$'])"
    environment = {**os.environ, "POLYLIP_MODEL_REPOSITORY": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=30)[0] == f"{process.pid}\n"
    assert (tmp_path / "lips" / "config.pbtxt").is_file()


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A tritonserver laid out as in NVIDIA's container, from the parts of the pip-installed one."""
    wheel = find_runtime()
    root = tmp_path / "tritonserver"
    for folder in ("bin", "lib", "backends/python", "backends/tensorrt"):
        (root / folder).mkdir(parents=True)
    (root / "bin" / "tritonserver").symlink_to(wheel.binary)
    for path in (*(wheel.backends / "python").iterdir(), wheel.stub):
        target = root / "backends" / "python" / path.name
        if path.is_file() and not target.exists():
            target.symlink_to(path)
    return root


def test_the_tritonserver_of_the_container_is_used_as_it_is(container, tmp_path):
    runtime = find_runtime(container)
    assert runtime.binary == container / "bin" / "tritonserver"
    assert prepare_backends(runtime, tmp_path / "unused") == container / "backends"
    assert not (tmp_path / "unused").exists()
    require_backend(runtime, "gpu")
    require_backend(runtime, "lite")
    with pytest.raises(MissingError, match="profile openvino needs tritonserver's openvino backend"):
        require_backend(runtime, "openvino")


def test_a_container_for_another_python_is_refused(container):
    stub = container / "backends" / "python" / "triton_python_backend_stub"
    stub.unlink()
    stub.write_bytes(b"\x7fELF libpython3.99.so.1.0")
    with pytest.raises(MissingError, match=f"is for another Python than {re.escape(PYTHON)}"):
        find_runtime(container)


def test_the_pip_installed_server_refuses_the_profiles_of_the_container():
    for profile in ("gpu", "onnx", "openvino"):
        with pytest.raises(MissingError, match=r"which NVIDIA.s container has; see docs/docker\.md"):
            require_backend(find_runtime(), profile)


def test_a_server_listens_where_it_is_told_to(tmp_path):
    for model in ("lips", "mel", "lipsync"):
        shutil.copytree(REPOSITORY / model, tmp_path / "repository" / model)
    options = ServerOptions(model_repository=tmp_path / "repository", listen="127.0.0.2", metrics_port=None)
    server = start_server(options)
    try:
        assert server.url == f"127.0.0.2:{server.ports.grpc}"
        assert is_ready(server.url)
        assert not is_ready(f"127.0.0.1:{server.ports.grpc}")
    finally:
        server.stop()
