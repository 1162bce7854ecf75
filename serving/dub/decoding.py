"""JPEGs to pixels, by a child process that can be lost: a new one takes its place."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylip.serving.dub.decode_child import ANSWER, JOB, READY, WHOLE
from polylip.serving.errors import EngineError

UInt8 = npt.NDArray[np.uint8]

JOB_TIMEOUT_S = 2.0  # a 640x360 frame takes some 2 ms; a progressive one made of a thousand scans is not worth more
START_TIMEOUT_S = 30.0  # its libraries, on a busy machine
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "HOME")


@dataclass(frozen=True)
class Wanted:
    """One picture, or a part of it."""

    data: bytes
    box: tuple[int, int, int, int] = WHOLE  # left, top, right, bottom
    side: int = 0  # of the square that it is brought to; 0: as it is


class Decoder:
    """For one thread. The child is started at the first picture, and again when it was lost."""

    def __init__(self, timeout_s: float = JOB_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.started = 0

    @property
    def pid(self) -> int:
        """Of the child; 0 while there is none."""
        return self._child.pid if self._child is not None else 0

    def decode(self, wanted: Wanted) -> UInt8:
        """uint8 (h, w, 3) BGR. Raises ValueError for a picture that cannot be had, EngineError without a child."""
        link = self._link()
        deadline = time.monotonic() + self._timeout_s
        try:
            link.settimeout(self._timeout_s)
            link.sendall(JOB.pack(len(wanted.data), *wanted.box, wanted.side) + wanted.data)
            ok, height, width = ANSWER.unpack(_read(link, ANSWER.size, deadline))
            body = _read(link, height * width * 3 if ok else height, deadline)
        except (OSError, EOFError):
            self.close()
            raise ValueError("cannot be decoded: it took too long, or broke the decoder") from None
        if not ok:
            raise ValueError(bytes(body).decode("utf-8", "replace"))
        return np.frombuffer(body, np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        """End the child. Safe to call twice; the next picture starts another."""
        link, self._socket = self._socket, None
        child, self._child = self._child, None
        if link is not None:
            link.close()
        if child is not None:
            child.kill()
            child.wait()

    def _link(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [_interpreter(), "-m", "polylip.serving.dub.decode_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
                | {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            )
        self._socket = ours
        self.started += 1
        try:
            _read(ours, len(READY), time.monotonic() + START_TIMEOUT_S)
        except (OSError, EOFError):
            self.close()
            raise EngineError("the decoder did not start; see the lines before this one") from None
        return ours


def _read(link: socket.socket, size: int, deadline: float) -> bytearray:
    """So many bytes. Raises EOFError, OSError."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        link.settimeout(max(0.001, deadline - time.monotonic()))
        count = link.recv_into(view[got:])
        if not count:
            raise EOFError
        got += count
    return data


def _interpreter() -> str:
    """Python. Inside Triton's stub `sys.executable` may be empty: there it is the first on PATH."""
    found = sys.executable or shutil.which("python3")
    if not found:
        raise EngineError("python3 is not on PATH; the server's environment must name it")
    return found
