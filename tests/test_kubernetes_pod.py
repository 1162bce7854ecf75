"""What a pod runs, run here: the server's command with all options of the full overlay, its probes and its hook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes_policies import serves, settings_of
from kubernetes_tools import Object, containers, is_installed, render
from pki import make_pki

START_S = 120.0  # on a busy machine
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Pod:
    """A server started as in a pod."""

    process: subprocess.Popen[str]
    container: Object
    environment: dict[str, str]

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """A command in the container."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=START_S)

    def probe(self, name: str) -> int:
        return self.run(self.container[name]["exec"]["command"]).returncode


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    if not is_installed():
        pytest.fail("the Kubernetes tools are missing; run: python tests/kubernetes_tools.py")
    folder = tmp_path_factory.mktemp("pod")
    (container,) = (container for _, container in containers(render("overlays/full")) if serves(container))
    (base,) = (container for _, container in containers(render("base")) if serves(container))
    settings = settings_of(base, render("base"))  # profile lite
    environment = {
        **os.environ,
        **settings,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "POLYLIP_STATE_DIR": str(folder / "state"),
    }
    words = [here(word, settings, folder) for word in container["args"]]
    with (
        (folder / "output").open("w") as output,
        subprocess.Popen(
            [*words, f"--log={folder / 'server.log'}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as process,
    ):
        yield Pod(process, container, environment)
        process.terminate()
        process.terminate()  # the second signal: at once
        try:
            process.wait(60)
        finally:
            process.kill()  # its guard then ends the server


def here(word: str, settings: dict[str, str], folder: Path) -> str:
    """A word of the command for this machine: loopback, free ports, files of a test."""
    word = re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], word)
    name, _, value = word.partition("=")
    if name in ("--listen", "--metrics-listen"):
        return f"{name}=127.0.0.1"
    if name in ("--grpc-port", "--metrics-port"):
        return f"{name}=0"
    if name == "--otlp-endpoint":
        return f"{name}=http://127.0.0.1:9/v1/traces"  # where nobody listens
    if value.startswith("/etc/polylip/tls/"):
        return f"{name}={secret(folder) / Path(value).name}"
    return word


def secret(folder: Path) -> Path:
    """A folder as the secret polylip-tls is mounted."""
    mounted = folder / "tls"
    if not mounted.exists():
        mounted.mkdir()
        pki = make_pki(mounted)
        for name, path in (("ca.crt", pki.ca), ("tls.crt", pki.server[0]), ("tls.key", pki.server[1])):
            (mounted / name).write_bytes(path.read_bytes())
    return mounted


def test_a_pod_lives_and_drains_as_its_probes_and_hook_say(pod: Pod):
    deadline = time.monotonic() + START_S
    while pod.probe("startupProbe") != 0:
        assert pod.process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    assert pod.probe("livenessProbe") == pod.probe("readinessProbe") == 0
    assert pod.process.stdout is not None
    said = re.search(r"metrics (127\.0\.0\.1:\d+)", pod.process.stdout.readline())
    assert said
    with urllib.request.urlopen(f"http://{said[1]}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    # Both sides of the autoscaler's query, and the slots that the config map says.
    assert re.search(
        rf'^polylip_slots{{[^}}]*model="gate"[^}}]*}} {pod.environment["POLYLIP_SLOTS"]}(\.0*)?$', metrics, re.M
    )
    for model in ("gate", "track"):
        assert re.search(rf'^polylip_live_sequences{{[^}}]*model="{model}"[^}}]*}} 0', metrics, re.M)
    shell, flag, text = pod.container["lifecycle"]["preStop"]["exec"]["command"]
    hook = pod.run([shell, flag, text.replace("sleep 10", "sleep 0")])
    assert (hook.returncode, hook.stdout) == (0, ""), hook.stderr
    assert pod.process.wait(60) == 0
    assert pod.probe("livenessProbe") == pod.probe("readinessProbe") == 1
