"""What we promise of a set of Kubernetes objects beyond their schemas: pods, their rights, what they take and refer to.

A policy looks at all objects of a set and says what is wrong, one line each. What is about traffic and change is in
kubernetes_traffic.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kubernetes_tools import Object, containers, containers_of, of_kind, pods

Policy = Callable[[Sequence[Object]], Iterator[str]]

USER = 10001  # of the image
SHM = "/dev/shm"  # noqa: S108
WRITTEN = (SHM, "/models", "/tmp", "/var/lib/polylip")  # noqa: S108  by a server with a read-only file system
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}
NO_NAMESPACE = ("Namespace",)
# Whoever deploys brings these: a certificate is nobody else's, and the claim is filled by hand (docs/kubernetes.md).
YOURS = {
    ("Secret", "polylip-tls"),
    ("Secret", "polylip-gateway-tls"),
    ("Secret", "polylip-gateway-client"),
    ("ConfigMap", "polylip-ca"),
    ("PersistentVolumeClaim", "polylip-built"),
}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number of bytes, cores or pieces."""
    found = re.fullmatch(r"([\d.]+)(Ki|Mi|Gi|m|)", str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity that we use")
    return float(found[1]) * UNITS[found[2]]


def pods_can_do_no_more_than_they_must(objects: Sequence[Object]) -> Iterator[str]:
    for owner, pod in pods(objects):
        context = pod.get("securityContext", {})
        if not (context.get("runAsNonRoot") and context.get("runAsUser") == context.get("runAsGroup") == USER):
            yield f"{owner} does not run as user {USER}"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{owner} lacks the seccomp profile RuntimeDefault"
        for shared in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            if pod.get(shared):
                yield f"{owner} has {shared}"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{owner} gets a token of its service account"
        if pod.get("enableServiceLinks") is not False:
            yield f"{owner} gets the addresses of all services"
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                yield f"{owner} mounts {volume['name']} of its node"
    for account in of_kind(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {account['metadata']['name']} hands out a token"


def containers_can_do_no_more_than_they_must(objects: Sequence[Object]) -> Iterator[str]:
    wanted = {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for name, container in containers(objects):
        context = container.get("securityContext", {})
        for key, value in wanted.items():
            if context.get(key) != value:
                yield f"{name} has {key} {context.get(key)}"
        for key in context.keys() - wanted.keys():
            yield f"{name} sets {key} for itself"


def the_namespace_admits_no_others(objects: Sequence[Object]) -> Iterator[str]:
    names = {item["metadata"]["name"] for item in of_kind(objects, "Namespace")}
    for item in of_kind(objects, "Namespace"):
        labels = item["metadata"].get("labels", {})
        for mode in ("enforce", "audit", "warn"):
            if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                yield f"Namespace {item['metadata']['name']} does not {mode} the pod security level restricted"
    for item in objects:
        inside = item["metadata"].get("namespace")
        if item["kind"] not in NO_NAMESPACE and (inside is None or (names and inside not in names)):
            yield f"{item['kind']} {item['metadata']['name']} is in namespace {inside}"


def containers_say_what_they_take(objects: Sequence[Object]) -> Iterator[str]:
    for name, container in containers(objects):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for key in ("cpu", "memory"):
            if key not in requests or key not in limits:
                yield f"{name} has no request and limit for {key}"
        for key in requests.keys() & limits.keys():
            if quantity(requests[key]) > quantity(limits[key]):
                yield f"{name} requests more {key} than its limit"
        if limits.get("nvidia.com/gpu") != requests.get("nvidia.com/gpu"):
            yield f"{name} requests another number of GPUs than its limit"
    for owner, pod in pods(objects):
        for volume in pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{owner}: {volume['name']} may grow without limit"


def images_are_of_one_version(objects: Sequence[Object]) -> Iterator[str]:
    versions = set()
    for name, container in containers(objects):
        image = container["image"]
        found = re.fullmatch(r"[a-z0-9./-]+(?::(\d+\.\d+\.\d+)|@sha256:[0-9a-f]{64})", image)
        if not found:
            yield f"{name} has image {image}, neither a version nor a digest"
        elif found[1]:
            versions.add(found[1])
    if len(versions) > 1:
        yield f"images of several versions: {', '.join(sorted(versions))}"


def what_is_written_is_mounted(objects: Sequence[Object]) -> Iterator[str]:
    for owner, pod in pods(objects):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in containers_of(pod):
            mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
            for mount in mounts.values():
                if mount["name"] not in volumes:
                    yield f"{owner}, container {container['name']} mounts {mount['name']}, which is no volume"
            if serves(container):
                for path in WRITTEN:
                    if path not in mounts or mounts[path].get("readOnly"):
                        yield f"{owner} cannot write {path}"


def shared_memory_fits(objects: Sequence[Object], size_mib: Callable[[str], int]) -> Iterator[str]:
    """`size_mib`: what a profile needs."""
    for owner, pod, container in servers(objects):
        name = next((m["name"] for m in container["volumeMounts"] if m["mountPath"] == SHM), None)
        volume = next((v.get("emptyDir", {}) for v in pod["volumes"] if v["name"] == name), {})
        needed = size_mib(settings_of(container, objects)["POLYLIP_PROFILE"])
        if volume.get("medium") != "Memory" or quantity(volume.get("sizeLimit", "0")) != needed * 2**20:
            yield f"{owner} has {volume} for /dev/shm, and its profile needs {needed}Mi"
        if quantity(container["resources"]["limits"]["memory"]) < 4 * needed * 2**20:
            yield f"{owner} has little memory beside its shared memory, which counts as the container's"


def references_lead_somewhere(objects: Sequence[Object]) -> Iterator[str]:
    there = {(item["kind"], item["metadata"]["name"]) for item in objects} | YOURS
    for item in objects:
        for kind, name in _references(item):
            if (kind, name) not in there:
                yield f"{item['kind']} {item['metadata']['name']} refers to {kind} {name}, which is not there"


def _references(item: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Kind and name of every object that another one names."""
    named = {
        "configMapRef": ("ConfigMap", "name"),
        "configMapKeyRef": ("ConfigMap", "name"),
        "secretKeyRef": ("Secret", "name"),
        "secret": ("Secret", "secretName"),
        "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
        "certificateRefs": ("Secret", "name"),
        "parentRefs": ("Gateway", "name"),
        "backendRefs": ("Service", "name"),
    }
    if isinstance(item, list):
        for inner in item:
            yield from _references(inner, key)
    if not isinstance(item, dict):
        return
    if key in named and named[key][1] in item:
        yield named[key][0], item[named[key][1]]
    elif key.endswith(("Ref", "Refs")) and {"kind", "name"} <= item.keys():
        yield item["kind"], item["name"]
    if "serviceAccountName" in item:
        yield "ServiceAccount", item["serviceAccountName"]
    for name, inner in item.items():
        yield from _references(inner, name)


def serves(container: Object) -> bool:
    """Whether it is a server."""
    return list(container.get("args", []))[:2] == ["polylip", "serve"]


def servers(objects: Sequence[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Owner, pod and container of every server."""
    for owner, pod in pods(objects):
        for container in filter(serves, pod["containers"]):
            yield owner, pod, container


def options_of(container: Object) -> dict[str, str]:
    """--name=value of a server's command."""
    return dict(word[2:].split("=", 1) for word in container["args"] if word.startswith("--"))


def settings_of(container: Object, objects: Sequence[Object]) -> dict[str, str]:
    """The variables that a container gets from config maps."""
    wanted = [source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source]
    found = [item["data"] for item in of_kind(objects, "ConfigMap") if item["metadata"]["name"] in wanted]
    return {name: value for data in found for name, value in data.items()}


POD_POLICIES: tuple[Policy, ...] = (
    pods_can_do_no_more_than_they_must,
    containers_can_do_no_more_than_they_must,
    the_namespace_admits_no_others,
    containers_say_what_they_take,
    images_are_of_one_version,
    what_is_written_is_mounted,
    references_lead_somewhere,
)
