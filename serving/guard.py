"""Runs one tritonserver and answers for its end: `python -m polylip.serving.guard RUN_DIR LOG PREFIX -- COMMAND...`.

The guard sits between the process that wants a server and the server. It ends the server when it gets SIGTERM or
SIGINT, or when its standard input closes, which happens however the parent dies; a line `kill` there ends it without
grace. Then it kills what the server left (Python stubs) and removes the shared-memory regions with its prefix and the
run directory. Should the guard itself be killed outright, `sweep_stale` does that later.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

GRACE_S = 8.0  # tritonserver unloads the lite models in 1 s; one with a hung request never stops by itself
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
SHM = Path("/dev/shm")  # noqa: S108  where POSIX shared memory lives on Linux
PREFIX = "polylip_"  # of all regions of all our servers
LOCK_PREFIX = "polylip-lock_"  # beside the regions, so that whoever sees those sees this
RUN_PREFIX = "polylip-"  # of run directories
PROGRAMS = ("tritonserver", "triton_python_backend_stub")
KILL = b"kill"


def main(arguments: list[str]) -> int:
    """Run the command until it ends or is asked to; its exit status, or 0 when it was stopped on request."""
    run_dir, log_path, prefix, _, *command = arguments
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, _ignore)
    become_subreaper()
    libc = ctypes.CDLL(None)
    lock = _take_lock(prefix, run_dir)
    with open(log_path, "ab", buffering=0) as log:
        fcntl.flock(log, fcntl.LOCK_SH)  # as long as anything below has it open: nobody removes it
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # Should the guard itself be killed outright, the server goes with it.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509  one thread here
        )
    grace_s = GRACE_S
    try:
        status, grace_s = _wait(server, wake_read)
    finally:
        _stop(server, grace_s)
        sweep_shared_memory(prefix)
        shutil.rmtree(run_dir, ignore_errors=True)
        lock_path(prefix).unlink(missing_ok=True)
        os.close(lock)
    return status if status >= 0 else 128 - status  # of a signal, as shells say it


def become_subreaper() -> None:
    """Orphans below this process become its children, where a PID 1 may reap late or, in a container, never."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: int) -> None:
    """Take the exit status of each ended child but `own`, whose status its own object wants."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != own:
            os.waitpid(ended.si_pid, os.WNOHANG)


def _ignore(number: int, frame: FrameType | None) -> None:
    """The wake-up pipe carries the signal; the handler only keeps the default action away."""


def _wait(server: subprocess.Popen[bytes], wake: int) -> tuple[int, float]:
    """Until the server ends (its status) or somebody wants it to (0), and how long it may take for that."""
    while True:
        ready, _, _ = select.select([sys.stdin, wake], [], [])
        reap_orphans(server.pid)
        if server.poll() is not None:
            return server.returncode, GRACE_S
        if wake in ready and set(os.read(wake, 64)) <= {signal.SIGCHLD}:
            continue
        if sys.stdin in ready and (said := os.read(sys.stdin.fileno(), 64)):
            if said.startswith(KILL):
                return 0, 0.0
            continue
        return 0, GRACE_S


def _stop(server: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask, wait, then kill the server's whole process group, stubs included."""
    if server.poll() is None and grace_s:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace_s)
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


# What a guard that was killed outright has left


def lock_path(prefix: str) -> Path:
    """A file that the guard of the server with these regions has locked for as long as it lives."""
    return SHM / f"{LOCK_PREFIX}{prefix.removeprefix(PREFIX).rstrip('_')}"


def _take_lock(prefix: str, run_dir: str) -> int:
    """A sweeper that meets the file before it is locked removes it: then once more."""
    path = lock_path(prefix)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.write(handle, run_dir.encode())
                return handle
        os.close(handle)


def sweep_stale() -> list[str]:
    """Clear up after servers of this user whose guards were killed outright; the prefixes of their regions.

    A lock is free only when its holder is gone, whatever its process id means here: a shared /dev/shm can belong to
    containers with ids of their own. Servers that live keep their locks, and regions without a lock file are not ours.
    """
    return [prefix for path in sorted(SHM.glob(f"{LOCK_PREFIX}*")) if (prefix := _sweep(path)) is not None]


def sweep(prefix: str) -> None:
    """The same after one server, whose guard is gone; when it returns, so is all the rest, whoever cleared it up."""
    _sweep(lock_path(prefix), waits=True)


def _sweep(path: Path, *, waits: bool = False) -> str | None:
    prefix = f"{PREFIX}{path.name.removeprefix(LOCK_PREFIX)}_"
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # of another user, or gone
        return None
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            return None
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))  # another may be at it
        _kill_all_with(prefix)
        sweep_shared_memory(prefix)
        _remove_run_dir(Path(os.read(handle, 4096).decode("utf-8", "replace")))
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return None
    finally:
        os.close(handle)
    return prefix


def _kill_all_with(prefix: str) -> None:
    """Stubs and servers, which all carry the prefix in their arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            owner, line = folder.stat().st_uid, (folder / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        program = Path(line.partition("\0")[0]).name
        if owner == os.geteuid() and program in PROGRAMS and prefix in line:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)


def _remove_run_dir(folder: Path) -> None:
    """Only what looks like one of ours: the file that named it could be anybody's."""
    if folder.name.startswith(RUN_PREFIX) and folder.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
