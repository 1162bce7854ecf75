"""NVIDIA's load generator `perf_analyzer` 2.51: where it is, whether it runs here, and how to get it without root.

It lies in the wheel of tritonclient 2.51.0, which need not be the version installed, and wants two libraries beside it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from polylip.serving.errors import MissingError

NAME = "perf_analyzer"
VARIABLE = "PERF_ANALYZER"  # names the binary, before all else
VERSION = "2.51.0"  # the last one that runs on glibc 2.36 and comes in a wheel
# What `pip download` is asked for, with the SHA-256 of the one file that will do.
WHEELS = {
    "tritonclient==2.51.0": "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52",
    "nvidia-cuda-runtime-cu12==12.9.79": "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
}
CUDA_LIBRARY = "libcudart.so.12"  # linked, though never called without --shared-memory cuda
MEMBERS = (f"/data/bin/{NAME}", f"/{CUDA_LIBRARY}")  # how the two files' names end in the wheels
BASE64_PACKAGE, BASE64_LIBRARY = "libb64-0d", "libb64.so.0d"  # of Debian
INSTALL = "python -m polylip.perf.analyzer --install"
DOWNLOAD_S, CHECK_S = 300.0, 10.0


@dataclass(frozen=True)
class Analyzer:
    """A perf_analyzer that runs here."""

    path: Path
    version: str
    environment: dict[str, str]  # of its process alone: where its libraries are


def find_analyzer() -> Analyzer:
    """From $PERF_ANALYZER, the PATH or the cache, in this order. Raises MissingError."""
    _require_platform()
    path = _find_binary()
    environment = _environment()
    try:
        done = subprocess.run(
            [path, "--version"], env=environment, capture_output=True, text=True, timeout=CHECK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{path} does not run ({error}); run: {INSTALL}") from None
    if done.returncode:
        raise MissingError(_explain(path, done.stderr))
    said = (done.stdout + done.stderr).split()  # Perf Analyzer Version 2.51.0 (commit unknown)
    return Analyzer(path, said[3] if len(said) > 3 else "unknown", environment)


def install(say: Callable[[str], None] = print) -> Analyzer:
    """Download the wheels, keep the binary and its library in the cache, and Debian's library too where it is missing.

    Needs no root. Raises MissingError.
    """
    _require_platform()
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for wheel in _download(Path(name)):
            for file in _unpack(wheel, folder):
                say(f"{file}: from {wheel.name}, got by pip, SHA-256 checked")
        if not _has_base64():
            package = _unpack_debian(Path(name), folder)
            say(f"{folder / BASE64_LIBRARY}: from {package}, got by apt-get, not installed")
    return find_analyzer()


def cache_folder() -> Path:
    """Where `install` puts it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polylip" / f"{NAME}-{VERSION}"


def _require_platform() -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        here = f"{platform.system()} on {platform.machine()}"
        raise MissingError(f"{NAME} {VERSION} exists for 64-bit Linux on x86 only, this is {here}; run it on such one")


def _find_binary() -> Path:
    if wanted := os.environ.get(VARIABLE):
        if not os.access(wanted, os.X_OK):
            raise MissingError(f"${VARIABLE} names {wanted}, which is no program; correct or unset it")
        return Path(wanted)
    scripts = Path(sys.executable).parent  # of an environment that is not activated
    if found := shutil.which(NAME, path=os.pathsep.join([os.environ.get("PATH", ""), str(scripts)])):
        return Path(found)
    if (kept := cache_folder() / NAME).is_file():
        return kept
    raise MissingError(f"{NAME} is not installed; run: {INSTALL} (or name it in ${VARIABLE})")


def _environment() -> dict[str, str]:
    """This process's, with the folders of the libraries."""
    folders = [str(cache_folder())]
    with_cuda = find_spec("nvidia") and find_spec("nvidia.cuda_runtime")
    if with_cuda and with_cuda.submodule_search_locations:
        folders += [str(Path(place) / "lib") for place in with_cuda.submodule_search_locations]
    before = os.environ.get("LD_LIBRARY_PATH")
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join([*folders, *([before] if before else [])])}


def _explain(path: Path, said: str) -> str:
    if BASE64_LIBRARY in said:
        return f"{path} needs {BASE64_LIBRARY}; run: apt-get install {BASE64_PACKAGE}, or without root: {INSTALL}"
    if CUDA_LIBRARY in said:
        return f"{path} needs {CUDA_LIBRARY}; run: {INSTALL}, or: pip install nvidia-cuda-runtime-cu12"
    return f"{path} does not run ({said.strip().splitlines()[-1] if said.strip() else 'no word why'}); run: {INSTALL}"


def _download(folder: Path) -> list[Path]:
    """The wheels, checked by pip against their hashes."""
    wanted = folder / "wheels.txt"
    wanted.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in WHEELS.items()))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=True)
    except subprocess.TimeoutExpired:
        raise MissingError(f"pip did not get {' and '.join(WHEELS)} within {DOWNLOAD_S:.0f} s; try again") from None
    except subprocess.CalledProcessError as error:
        cause = (error.stderr.strip().splitlines() or ["no word why"])[-1]
        raise MissingError(f"pip cannot get {' and '.join(WHEELS)} ({cause}); look at pip's index and proxy") from None
    return sorted(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> list[Path]:
    """Only the binary and the one library, each put in place when it is whole."""
    made = []
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith(MEMBERS):
                target = folder / Path(member).name
                partial = target.with_name(f".{target.name}.{os.getpid()}")
                partial.write_bytes(archive.read(member))
                partial.chmod(0o755)
                made.append(partial.replace(target))
    if not made:
        raise MissingError(f"{wheel.name} holds neither {NAME} nor {CUDA_LIBRARY}; name a {NAME} in ${VARIABLE}")
    return made


def _has_base64() -> bool:
    try:
        ctypes.CDLL(BASE64_LIBRARY)
    except OSError:
        return (cache_folder() / BASE64_LIBRARY).is_file()
    return True


def _unpack_debian(folder: Path, into: Path) -> str:
    """The library out of Debian's package, which is not installed for that; the package's file name."""
    try:
        for command in (["apt-get", "download", BASE64_PACKAGE], ["dpkg", "-x", "{package}", "tree"]):
            package = next((path.name for path in folder.glob("*.deb")), "")
            filled = [part.format(package=package) for part in command]
            subprocess.run(filled, cwd=folder, capture_output=True, timeout=DOWNLOAD_S, check=True)
        library = next(path for path in (folder / "tree").rglob(f"{BASE64_LIBRARY}*") if path.is_file())
    except (OSError, subprocess.SubprocessError, StopIteration):
        raise MissingError(
            f"{NAME} needs {BASE64_LIBRARY}, and apt-get does not hand it out; run: apt-get install {BASE64_PACKAGE}"
        ) from None
    shutil.copyfile(library, into / BASE64_LIBRARY)
    return package
