"""Prints the Debian packages that profile lite needs and this machine lacks; `bench`, `clients`, `test` name more.

Runs before anything is installed.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite", "apertium": "apertium-eng-spa"}
CLIENT_PROGRAMS = {
    "node": "nodejs",
    "npm": "npm",
    "go": "golang-go",
    "protoc": "protobuf-compiler",
    "protoc-gen-go": "protoc-gen-go",
    "protoc-gen-go-grpc": "protoc-gen-go-grpc",
}
CLIENT_FOLDERS = {"grpc": "golang-google-grpc-dev", "protobuf": "golang-google-protobuf-dev"}  # in GOCODE
GOCODE = Path("/usr/share/gocode/src/google.golang.org")
LIBRARY = f"libpython{VERSION}.so.1.0"
FOLDERS = (sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib")


def missing_for_clients() -> list[str]:
    """What the Node and Go clients need to be built and run."""
    programs = [package for program, package in CLIENT_PROGRAMS.items() if shutil.which(program) is None]
    return programs + [package for folder, package in CLIENT_FOLDERS.items() if not (GOCODE / folder).is_dir()]


def missing_for(wanted: list[str]) -> list[str]:
    """What profile lite needs, and what is wanted besides."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if not Path("/usr/share/apertium/modes/eng-spa.mode").exists() and "apertium-eng-spa" not in missing:
        missing.append("apertium-eng-spa")
    if not any((Path(folder) / LIBRARY).exists() for folder in FOLDERS if folder):
        missing.append(f"libpython{VERSION}")
    if find_spec("ensurepip") is None:
        missing.append(f"python{VERSION}-venv")
    if "bench" in wanted:
        if shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            missing.append("haproxy")  # in front of three servers
        if not any((Path(folder) / "libb64.so.0d").exists() for folder in FOLDERS if folder):
            missing.append("libb64-0d")  # perf_analyzer links it
    if "clients" in wanted:
        missing += missing_for_clients()
    if "test" in wanted and (shutil.which("promtool") is None or shutil.which("prometheus") is None):
        missing.append("prometheus")  # reads the rules and the dashboard's queries
    return missing


if __name__ == "__main__":
    print(" ".join(missing_for(sys.argv[1:])))
