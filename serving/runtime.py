"""Where tritonserver is, in NVIDIA's container or installed by pip, and what it needs. See docs/server.md."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from polylip.serving.errors import MissingError
from polylip.serving.weights import WEIGHTS_VARIABLE, weights_root

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"
SYSTEM_LIBRARY_DIRS = ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
MODEL_REPOSITORY_VARIABLE = "POLYLIP_MODEL_REPOSITORY"
CONTAINER_SERVER = Path("/opt/tritonserver")  # in NVIDIA's container, with every backend
# Backends that a profile loads besides the Python one; the pip-installed tritonserver has none of them.
PROFILE_BACKENDS = {"gpu": "tensorrt", "onnx": "onnxruntime", "openvino": "openvino"}
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Runtime:
    """A usable tritonserver."""

    binary: Path
    library_dirs: tuple[Path, ...]  # for LD_LIBRARY_PATH
    backends: Path  # a folder per backend
    stub: Path  # triton_python_backend_stub for this interpreter

    @property
    def complete(self) -> bool:
        """Whether the Python backend can be used where it lies; the wheel's has its stubs elsewhere."""
        return self.stub.parent == self.backends / "python"


def find_runtime(container: Path = CONTAINER_SERVER) -> Runtime:
    """The tritonserver of NVIDIA's container, else that of the installed wheel. Raises MissingError with the remedy."""
    if (container / "bin" / "tritonserver").is_file():
        return _container_runtime(container)
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise MissingError("tritonserver is not installed; run: pip install 'polylip[serve]'")
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / PYTHON / STUB
    if not stub.is_file():
        have = ", ".join(sorted(p.name for p in (root / "python_backend_stubs").iterdir()))
        raise MissingError(f"tritonserver's Python backend does not support Python {PYTHON}; use one of: {have}")
    return Runtime(
        binary=root / "bin" / "tritonserver",
        library_dirs=(package.parent / "nvidia_pytriton.libs", find_libpython().parent),
        backends=root / "backends",
        stub=stub,
    )


def _container_runtime(root: Path) -> Runtime:
    """Its stub is linked with one Python, which must be the one that has polylip."""
    stub = root / "backends" / "python" / STUB
    if not stub.is_file():
        raise MissingError(f"{stub} is missing; use an image of tritonserver with the Python backend")
    if f"libpython{PYTHON}.so".encode() not in stub.read_bytes():
        raise MissingError(f"{stub} is for another Python than {PYTHON}; install polylip into the image's own python3")
    return Runtime(root / "bin" / "tritonserver", (root / "lib",), root / "backends", stub)


def require_backend(runtime: Runtime, profile: str) -> Path:
    """Folder of the backend that a profile loads. Raises MissingError when this tritonserver lacks it."""
    backend = runtime.backends / PROFILE_BACKENDS.get(profile, "python")
    if not backend.is_dir():
        raise MissingError(
            f"profile {profile} needs tritonserver's {backend.name} backend, which NVIDIA's container has; "
            "see docs/docker.md for how to run it"
        )
    return backend


def find_libpython() -> Path:
    """The shared library of this interpreter, which the Python backend links. Raises MissingError."""
    own = (sysconfig.get_config_var("LIBDIR") or "", str(Path(sys.base_prefix) / "lib"))
    for folder in (*own, *SYSTEM_LIBRARY_DIRS):
        path = Path(folder) / LIBPYTHON
        if folder and path.is_file():
            return path
    raise MissingError(
        f"{LIBPYTHON} is missing; run: apt-get install libpython{PYTHON} (or use a Python built with --enable-shared)"
    )


def prepare_backends(runtime: Runtime, folder: Path) -> Path:
    """A backend directory whose Python backend has the stub of this interpreter beside it; laid out in `folder` if
    there is none."""
    if runtime.complete:
        return runtime.backends
    python = folder / "python"
    python.mkdir(parents=True)
    for source in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / source).symlink_to(runtime.backends / "python" / source)
    stub = python / runtime.stub.name
    shutil.copyfile(runtime.stub, stub)
    stub.chmod(0o755)
    return folder


def server_environment(runtime: Runtime) -> dict[str, str]:
    """Environment of the server: its libraries first, this interpreter first on PATH, one thread per maths library.

    The embedded Python of a stub finds its standard library and this virtual environment through `python3` on PATH.
    """
    libraries = [str(d) for d in runtime.library_dirs]
    environment = dict(os.environ)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, environment.get("LD_LIBRARY_PATH", "")]).rstrip(":")
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    environment["PYTHONUNBUFFERED"] = "1"
    environment[WEIGHTS_VARIABLE] = str(weights_root())  # a stub has another working directory
    environment["HF_HUB_OFFLINE"] = "1"  # weights come from `polylip fetch`, never from inside the server
    return environment


def find_model_repository() -> Path:
    """The model repository: $POLYLIP_MODEL_REPOSITORY, or the one beside this package. Raises MissingError."""
    named = os.environ.get(MODEL_REPOSITORY_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[1] / "model_repository"
    if not (folder / "speech" / "config.pbtxt").is_file():
        raise MissingError(
            f"no model repository at {folder}; run from a checkout or set {MODEL_REPOSITORY_VARIABLE} to its folder"
        )
    return folder
