"""The process that decodes JPEGs for a model, so that a picture made to break a decoder breaks nothing else.

`python -m polylip.serving.dub.decode_child FD`: jobs come over the socket FD and are answered one by one. It can open
no file, has little memory, and ends with its parent.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import socket
import struct
import sys

import cv2
import numpy as np
import numpy.typing as npt

from polylip.serving.dub.jpeg import read_header

UInt8 = npt.NDArray[np.uint8]

MEMORY_BYTES = 1024**3  # of address space; with its libraries it takes some 0.5 GiB
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
JOB = struct.Struct("<I4iH")  # bytes of the JPEG; left, top, right, bottom of what is wanted; side to shrink it to
ANSWER = struct.Struct("<BHH")  # ok; height and width, or the bytes of a message and 0
READY = b"+"  # sent once, before the first job
WHOLE = (0, 0, 0, 0)  # the box of a job that wants the whole picture


def decode(data: bytes, box: tuple[int, int, int, int], side: int) -> UInt8:
    """The picture, or a box of it, as uint8 (h, w, 3) BGR; shrunk or grown to a square where `side` is not 0.

    Raises ValueError.
    """
    info = read_header(data)
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None or frame.shape != (info.height, info.width, 3):
        raise ValueError("cannot be decoded")
    if box != WHOLE:
        left, top, right, bottom = box
        frame = frame[top:bottom, left:right]
    if side:
        shrinks = min(frame.shape[:2]) >= side
        frame = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(frame, np.uint8)


def main(descriptor: int) -> None:
    """Until the parent hangs up."""
    _lock()
    with socket.socket(fileno=descriptor) as parent:
        parent.sendall(READY)
        while head := _read(parent, JOB.size):
            size, left, top, right, bottom, side = JOB.unpack(head)
            try:
                pixels = decode(_read(parent, size), (left, top, right, bottom), side)
                parent.sendall(ANSWER.pack(1, *pixels.shape[:2]) + pixels.tobytes())
            except (ValueError, cv2.error, MemoryError) as error:
                told = (str(error) if isinstance(error, ValueError) else "cannot be decoded").encode()
                parent.sendall(ANSWER.pack(0, len(told), 0) + told)


def _lock() -> None:
    """Give up what decoding does not need."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    cv2.setNumThreads(1)
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _read(parent: socket.socket, size: int) -> bytes:
    """So many bytes; none when the parent has hung up."""
    data = bytearray()
    while len(data) < size:
        part = parent.recv(size - len(data))
        if not part:
            return b""
        data += part
    return bytes(data)


if __name__ == "__main__":
    main(int(sys.argv[1]))
