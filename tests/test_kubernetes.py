"""docker/kubernetes without a cluster: rendered, checked against schemas and promises, compared with the repository.

That the checks can fail is in test_kubernetes_mutations.py.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import click
import pytest
import typer
from docker_programs import program
from kubernetes_policies import POD_POLICIES, YOURS, servers, serves, settings_of, shared_memory_fits
from kubernetes_tools import (
    KUBERNETES,
    ROOT,
    TOOLS,
    Object,
    commands,
    containers,
    is_installed,
    of_kind,
    render,
    rendered,
    renderers,
    schema_problems,
)
from kubernetes_traffic import TRAFFIC_POLICIES, hook_of

from polylip.client.cli import app
from polylip.serving import control

SERVING = ("base", "overlays/cpu", "overlays/gpu", "overlays/full")
SETS = (*SERVING, "files", "plan")
# Every component on the base alone, and those that need another one with it.
COMPONENTS = (
    ("built-files",),
    ("gpu",),
    ("tls",),
    ("gateway",),
    ("gateway", "tls", "gateway-tls"),
    ("network-policy",),
    ("monitoring",),
    ("autoscaling",),
    ("tracing",),
)
DOCS = (ROOT / "docs" / "kubernetes.md").read_text()
MONITORING = ROOT / "docker" / "monitoring"


shm = program("shm")


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if not is_installed():
        pytest.fail("the Kubernetes tools are missing; run: python tests/kubernetes_tools.py")


def test_every_object_is_what_the_schema_of_its_kind_wants(tmp_path: Path):
    sets = [*map(render, SETS), *(on_the_base(names, tmp_path) for names in COMPONENTS)]
    objects = {json.dumps(item): item for items in sets for item in items}  # at once: node takes a second to start
    assert len(objects) > 30
    assert schema_problems([*objects.values()]) == []


@pytest.mark.parametrize("name", SETS)
def test_a_set_keeps_our_promises(name: str):
    assert problems(render(name)) == []


@pytest.mark.parametrize("names", COMPONENTS, ids=" ".join)
def test_a_component_works_on_the_base(names: tuple[str, ...], tmp_path: Path):
    objects = on_the_base(names, tmp_path)
    assert problems(objects) == []
    assert objects != render("base")


def test_every_component_and_folder_is_tested():
    assert {name for names in COMPONENTS for name in names} == {p.name for p in (KUBERNETES / "components").iterdir()}
    tested = {KUBERNETES / name for name in SETS} | {KUBERNETES / "namespace"}
    assert {path.parent for path in KUBERNETES.rglob("kustomization.yaml") if "components" not in path.parts} == tested


@pytest.mark.parametrize("name", SETS)
def test_all_versions_of_kustomize_here_make_the_same(name: str):
    one, *others = (sorted(render(name, renderer), key=identity) for renderer in renderers())
    assert all(other == one for other in others)


def problems(objects: list[Object]) -> list[str]:
    return [problem for policy in (*POD_POLICIES, *TRAFFIC_POLICIES) for problem in policy(objects)]


def on_the_base(names: tuple[str, ...], folder: Path) -> list[Object]:
    """The base with components, as an overlay of one's own would have them."""
    folder /= "-".join(names)
    folder.mkdir()
    base = os.path.relpath(KUBERNETES, folder.resolve())
    text = f"namespace: polylip\nresources: [{base}/base]\ncomponents:\n"
    (folder / "kustomization.yaml").write_text(text + "".join(f"  - {base}/components/{name}\n" for name in names))
    objects: list[Object] = json.loads(rendered(folder))
    return objects


def identity(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


# The program's own commands.


@pytest.mark.parametrize("folder", SETS)
def test_commands_are_those_that_polylip_has(folder: str):
    programs = dict(commands(render(folder)))
    for name, words in programs.items():
        if words[0] == "polylip":
            parse(name, words[1:])
        elif words[0] == "python":
            assert words[1:3] == ["-m", control.__name__]
    if folder in SERVING:
        assert {" ".join(words[:2]) for words in programs.values()} >= {"polylip serve", "polylip drain", "python -m"}


def parse(name: str, words: list[str]) -> None:
    """Let click read the words as it would."""
    command = typer.main.get_command(app)
    while isinstance(command, click.Group):
        assert words and words[0] in command.commands, f"{name}: polylip has no {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name, list(words))
    except click.UsageError as error:
        pytest.fail(f"{name}: polylip {command.name} {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("folder", SERVING)
def test_servers_listen_in_the_pod(folder: str):
    (server,) = (container for _, container in containers(render(folder)) if serves(container))
    assert {"--listen=0.0.0.0", "--metrics-listen=0.0.0.0"} <= set(server["args"])


# The same numbers as elsewhere in the repository.


def test_images_are_of_this_version_or_of_a_digest():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for folder in SETS for _, container in containers(render(folder))}
    assert {image for image in images if "@sha256:" not in image} == {
        f"polylip-server:{version}",
        f"polylip-plan:{version}",
    }


@pytest.mark.parametrize("folder", SERVING)
def test_shared_memory_is_what_the_profile_needs(folder: str):
    assert [*shared_memory_fits(render(folder), shm.shm_size_mib)] == []


@pytest.mark.parametrize(
    ("folder", "profile"),
    [("base", "lite"), ("overlays/cpu", "cpu"), ("overlays/gpu", "gpu"), ("overlays/full", "gpu")],
)
def test_an_overlay_has_its_profile(folder: str, profile: str):
    objects = render(folder)
    (server,) = (container for _, container in containers(objects) if serves(container))
    assert settings_of(server, objects)["POLYLIP_PROFILE"] == profile
    assert (ROOT / "model_repository" / "lips" / "configs" / f"{profile}.pbtxt").exists() or profile == "gpu"


def test_the_slots_of_the_base_are_the_streams_that_were_measured():
    measured = json.loads((ROOT / "perf" / "results" / "streams_lite.json").read_text())
    objects = render("base")
    (server,) = (container for _, container in containers(objects) if serves(container))
    assert settings_of(server, objects)["POLYLIP_SLOTS"] == str(measured["data"]["streams"])
    assert server["resources"]["requests"]["cpu"] == str(measured["machine"]["cores"])


def test_the_gateways_numbers_are_those_of_the_proxy():
    proxy = (ROOT / "docker" / "haproxy.cfg").read_text()
    window = re.search(r"tune.h2.initial-window-size (\d+)", proxy)
    idle = re.search(r"timeout client (\w+)", proxy)
    (policy,) = of_kind(render("overlays/full"), "ClientTrafficPolicy")
    assert window and policy["spec"]["http2"]["initialStreamWindowSize"] == f"{int(window[1]) >> 20}Mi"
    assert idle and policy["spec"]["timeout"]["http"]["streamIdleTimeout"] == idle[1]


def test_rules_and_dashboard_are_the_files_of_monitoring():
    objects = render("overlays/full")
    rule = program("kubernetes/prometheus_rule")
    assert (MONITORING / "prometheus-rule.yaml").read_text() == rule.prometheus_rule(
        (MONITORING / "rules.yaml").read_text()
    ), "run: python docker/kubernetes/prometheus_rule.py"
    (dashboard,) = (o for o in of_kind(objects, "ConfigMap") if "grafana_dashboard" in o["metadata"].get("labels", {}))
    assert dashboard["data"] == {"dashboard.json": (MONITORING / "dashboard.json").read_text()}
    (made,) = of_kind(objects, "PrometheusRule")
    assert any(group["rules"] for group in made["spec"]["groups"])


def test_the_tools_are_pinned_exactly():
    wanted = json.loads((TOOLS / "package.json").read_text())["dependencies"]
    lock = json.loads((TOOLS / "package-lock.json").read_text())["packages"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all("integrity" in package and "resolved" not in package for path, package in lock.items() if path)


# The page.


def test_the_page_names_everything_that_you_choose_or_bring():
    for _, name in YOURS:
        assert f"`{name}`" in DOCS, name
    for path in (*(KUBERNETES / "components").iterdir(), *(KUBERNETES / "overlays").iterdir()):
        assert f"`{path.name}`" in DOCS, path.name
    for name in settings_of(next(c for _, c in containers(render("base")) if serves(c)), render("base")):
        assert f"`{name}`" in DOCS, name


def test_the_page_has_the_numbers_of_the_manifests():
    objects = render("overlays/full")
    ((_, pod, server),) = servers(objects)
    elsewhere_s, drain_s = hook_of(server) or (0, 0)
    (scaled,) = of_kind(objects, "ScaledObject")
    (down,) = (scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]["policies"],)
    for said in (
        f"{elsewhere_s:g} s are left for that",
        f"`polylip drain --timeout {drain_s:g}`",
        f"after {pod['terminationGracePeriodSeconds']} s in all",
        f"wants it at {scaled['spec']['triggers'][0]['metadata']['threshold']}",
        f"one server in {down[0]['periodSeconds'] // 60} minutes",
        f"`maxReplicaCount` is {scaled['spec']['maxReplicaCount']}",
    ):
        assert said in " ".join(DOCS.split()), said
