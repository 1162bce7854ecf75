"""One pair of apertium's languages as a line of programs that stay: text in, translation out, at a zero byte each.

A text that ends with a zero byte makes every program of a mode write out what it has (apertium's "null flush").
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
import weakref
from pathlib import Path

from polylip.serving.errors import EngineError

ENVIRONMENT = {"LC_ALL": "C.UTF-8"}  # the tools read and write in the encoding of the locale
TIMEOUT_S = 20.0  # for a text, which takes 0.01 s, and 0.2 s when it is the first
STALL_S = 5.0  # without a byte going in or coming out, it hangs
FILTER_TIMEOUT_S = 2.0  # of each program that takes a text's formatting away or puts it back: 0.004 s
END = b"\0"
READ_BYTES = 65_536
NO_MARKS = "-n"  # what `apertium -u` hands to the generator: no signs in front of unknown words


class ApertiumLine:
    """The programs of one mode. They end with this object, and by themselves when this process is gone."""

    def __init__(self, mode: str) -> None:
        """Raises EngineError where this apertium has no such mode, or is too old for it."""
        self._mode = mode
        self._process = _start(_script(mode))
        self._end = weakref.finalize(self, _kill, self._process)

    def translate(self, text: str) -> str:
        """What `apertium -u` says. Raises EngineError; the line is of no use then."""
        try:
            plain = _filter("apertium-destxt", text.replace("\0", " ").encode("utf-8"))
            return _filter("apertium-retxt", self._exchange(plain + END)).decode("utf-8")
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
            raise EngineError(f"apertium's line for {self._mode} broke: {error}") from None

    def close(self) -> None:
        """End the programs."""
        self._end()

    def _exchange(self, request: bytes) -> bytes:
        """Write and read at the same time, so that a long text cannot fill both pipes. The answer, without its end."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101  both were asked for
        deadline, answer = time.monotonic() + TIMEOUT_S, b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            selector.register(stdout, selectors.EVENT_READ)
            while END not in answer:
                ready = selector.select(min(STALL_S, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError("it hangs")
                for key, _ in ready:
                    if key.fileobj is stdout:
                        answer += _read(stdout.fileno())
                    else:
                        request = request[os.write(stdin.fileno(), request) :]
                        if not request:
                            selector.unregister(stdin)
        if request or answer.index(END) != len(answer) - 1:
            raise OSError("it answered more than it was asked")
        return answer[:-1]


def _script(mode: str) -> str:
    """The shell line of a mode, each program told to flush. Raises EngineError."""
    apertium = shutil.which("apertium")
    path = Path(apertium or "/").resolve().parent.parent / "share" / "apertium" / "modes" / f"{mode}.mode"
    if not path.is_file():
        raise EngineError(f"apertium's mode {mode} cannot be kept running: {path} is not there")
    try:
        return _filter("apertium-wblank-mode", b"", "-z", str(path)).decode("utf-8")
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"apertium's mode {mode} cannot be kept running: {error}") from None


def _start(script: str) -> subprocess.Popen[bytes]:
    """In a group of its own, so that all of its programs can be ended."""
    process = subprocess.Popen(
        ["bash", "-c", script, "apertium", NO_MARKS, ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
        bufsize=0,
        start_new_session=True,
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None  # noqa: S101  both were asked for
        os.set_blocking(pipe.fileno(), False)
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _read(descriptor: int) -> bytes:
    data = os.read(descriptor, READ_BYTES)
    if not data:
        raise OSError("it has ended")
    return data


def _filter(program: str, data: bytes, *arguments: str) -> bytes:
    """What a small program makes of `data`. Raises OSError, SubprocessError."""
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(
        [program, *arguments], input=data, capture_output=True, env=environment, timeout=FILTER_TIMEOUT_S, check=True
    ).stdout
