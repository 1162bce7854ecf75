"""Runs one tritonserver and answers for its end: `python -m polylip.serving.guard RUN_DIR LOG PREFIX -- COMMAND...`.

The guard sits between the process that wants a server and the server. It ends the server when it gets SIGTERM or
SIGINT, or when its standard input closes, which happens however the parent dies. Then it kills what the server left
(Python stubs) and removes the shared-memory regions with its prefix and the run directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

GRACE_S = 8.0  # tritonserver unloads the lite models in 1 s; one with a hung request never stops by itself
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
SHM = Path("/dev/shm")  # noqa: S108  where POSIX shared memory lives on Linux


def main(arguments: list[str]) -> int:
    """Run the command until it ends or is asked to; its exit status, or 0 when it was stopped on request."""
    run_dir, log_path, prefix, _, *command = arguments
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, _ignore)
    # The stubs of a killed server become children of the guard, for a PID 1 that reaps late or, in a container, never.
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open(log_path, "ab", buffering=0) as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Should the guard itself be killed outright, the server goes with it.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509  one thread here
        )
    try:
        status = _wait(server, wake_read)
    finally:
        _stop(server)
        sweep_shared_memory(prefix)
        shutil.rmtree(run_dir, ignore_errors=True)
    return status


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe carries the signal; the handler only keeps the default action away."""


def _wait(server: subprocess.Popen[bytes], wake: int) -> int:
    """Until the server ends (its status) or somebody wants it to (0)."""
    while True:
        ready, _, _ = select.select([sys.stdin, wake], [], [])
        if server.poll() is not None:
            return server.returncode
        if wake in ready and set(os.read(wake, 64)) <= {signal.SIGCHLD}:
            continue
        if sys.stdin in ready and os.read(sys.stdin.fileno(), 64):
            continue
        return 0


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then kill the server's whole process group, stubs included."""
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + GRACE_S
    while _group_lives(server.pid) and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.02)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def sweep_shared_memory(prefix: str) -> int:
    """Remove the regions of a server that is gone; how many there were."""
    regions = [path for path in SHM.glob(f"{prefix}*") if path.is_file()]
    for path in regions:
        path.unlink(missing_ok=True)
    return len(regions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
