"""`polylip serve` as the first process of a container: signals, orphans, and what is left when it is killed outright.

A process namespace of Linux stands for the container.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from polylip.perf.supervised import END_S, POLL_S, POLYLIP, START_S
from polylip.serving import control
from polylip.serving.guard import LOCK_PREFIX, PREFIX, SHM, sweep_stale
from polylip.serving.supervisor import Exit

NAMESPACE = ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
INSIDE = ["nsenter", "--user", "--preserve-credentials", "--pid", "--mount"]


@pytest.fixture
def first(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """`unshare`, and the supervisor that is process 1 inside; ready."""
    if subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a process namespace")
    tmp_path.chmod(0o700)
    command = [POLYLIP, "serve", "--models", "mel", "--grpc-port", "0", "--metrics-port", "0"]
    outside = subprocess.Popen(
        [*NAMESPACE, *command, "--log", str(tmp_path / "log")],
        env=os.environ | {control.STATE_DIR_VARIABLE: str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(outside.stdout.readline()), daemon=True).start()
        assert lines.get(timeout=START_S).startswith("ready: ")
        [supervisor] = psutil.Process(outside.pid).children()
        assert f"NSpid:\t{supervisor.pid}\t1\n" in Path(f"/proc/{supervisor.pid}/status").read_text()
        yield outside, supervisor
    finally:
        outside.kill()
        outside.communicate()
        sweep_stale()


def left() -> list[str]:
    """Of servers whose supervisor is process 1 of some namespace."""
    return [name for name in os.listdir(SHM) if name.startswith((f"{PREFIX}1_", f"{LOCK_PREFIX}1_"))]


def test_it_takes_signals_and_ends_in_order(first):
    outside, supervisor = first
    supervisor.send_signal(signal.SIGTERM)
    _, errors = outside.communicate(timeout=END_S)
    assert (outside.returncode, errors) == (Exit.STOPPED, "polylip: the server is stopped\n")
    assert left() == []


def test_it_reaps_the_orphans_of_the_container(first):
    _, supervisor = first
    into = [*INSIDE, "--target", str(supervisor.pid), "sh", "-c"]
    subprocess.run([*into, "(sleep 0.3; exit 7) & exit 0"], check=True, timeout=END_S)
    deadline = time.monotonic() + END_S
    while len(children := supervisor.children()) > 1:
        assert time.monotonic() < deadline, children
        time.sleep(POLL_S)
    assert children[0].is_running(), "the guard"


@pytest.mark.alone  # any start of a server on this machine would sweep first
def test_what_a_container_killed_outright_has_left_is_swept_by_the_next_start(first):
    """Where /dev/shm outlives it, as in a pod. The ids in the names mean nothing outside."""
    outside, supervisor = first
    assert sweep_stale() == [], "it lives, though nobody here has process 1's id"
    supervisor.kill()
    outside.wait()
    stale = left()
    assert len(stale) >= 2
    assert len(sweep_stale()) == 1
    assert left() == []
