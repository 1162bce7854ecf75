"""Pipes and sockets as file objects that FFmpeg reads and writes: each waits for a bounded time, and can be woken."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from polylip.client.errors import InputError
from polylip.client.live.formats import Place

DATAGRAM_BYTES = 1316  # seven MPEG-TS packets, which fit an Ethernet frame
MULTICAST_TTL = 8


class WireClosedError(OSError):
    """Somebody closed it while it waited."""


class Wire:
    """Reads or writes one descriptor that does not block."""

    def __init__(
        self, descriptor: int, timeout_s: float, close: Callable[[], None], *, datagrams: bool = False
    ) -> None:
        self._descriptor = descriptor
        self._timeout_s = timeout_s
        self._release = close
        self._piece = DATAGRAM_BYTES if datagrams else 1 << 20
        self._wake_read, self._wake_write = os.pipe()
        self._woken = False
        self.closed = False
        self.bytes = 0

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end. Raises TimeoutError and WireClosedError."""
        while True:
            self._wait(write=False)
            try:
                data = os.read(self._descriptor, count)
            except BlockingIOError:
                continue
            self.bytes += len(data)
            return data

    def write(self, data: bytes) -> int:
        """All of it. Raises TimeoutError and WireClosedError."""
        view = memoryview(data)
        while view:
            self._wait(write=True)
            try:
                sent = os.write(self._descriptor, view[: self._piece])
            except BlockingIOError:
                continue
            except ConnectionRefusedError:
                if self._piece != DATAGRAM_BYTES:
                    raise
                sent = min(len(view), self._piece)  # nobody listens to the datagrams, yet
            self.bytes += sent
            view = view[sent:]
        return len(data)

    def wake(self) -> None:
        """From any thread: every wait ends with WireClosedError, now and later."""
        if not self._woken and not self.closed:
            self._woken = True
            with suppress(OSError):
                os.write(self._wake_write, b"x")

    def close(self) -> None:
        """By the thread that uses it, once that is done."""
        if not self.closed:
            self.closed = True
            self._release()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _wait(self, *, write: bool) -> None:
        poll = select.poll()  # select cannot watch descriptors above 1023
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._descriptor, select.POLLOUT if write else select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(self._timeout_s * 1000)]
        if self._woken or self._wake_read in ready:
            raise WireClosedError("closed")
        if not ready:
            raise TimeoutError(f"no data {'taken' if write else 'came'} for {self._timeout_s:g} s")


def standard_wire(*, write: bool, timeout_s: float) -> Wire:
    """Standard input or output."""
    descriptor = os.dup(sys.stdout.fileno() if write else sys.stdin.fileno())
    was_blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)

    def release() -> None:
        with suppress(OSError):
            os.set_blocking(descriptor, was_blocking)
        os.close(descriptor)

    return Wire(descriptor, timeout_s, release)


def tcp_wire(
    place: Place, *, listen: bool, open_s: float, timeout_s: float, stopped: Callable[[], bool] = lambda: False
) -> Wire:
    """A TCP connection: made, or waited for. Raises InputError."""
    host, port = place.host_port
    try:
        connection = (
            _accepted(host, port, open_s, stopped) if listen else socket.create_connection((host, port), open_s)
        )
    except TimeoutError:
        what = "nobody connected" if listen else "no answer"
        raise InputError(f"{place.label}: {what} within {open_s:g} s; check address and sender") from None
    except OSError as error:
        raise InputError(
            f"{place.label}: cannot be opened ({error.strerror or error}); check address and port"
        ) from None
    connection.setblocking(False)
    return Wire(connection.fileno(), timeout_s, connection.close)


def udp_wire(place: Place, timeout_s: float) -> Wire:
    """Datagrams to an address. Raises InputError."""
    host, port = place.host_port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        datagrams = socket.socket(family, kind, protocol)
        datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, MULTICAST_TTL)
        datagrams.connect(address)
    except OSError as error:
        raise InputError(f"{place.label}: cannot be opened ({error.strerror or error}); check the address") from None
    datagrams.setblocking(False)
    return Wire(datagrams.fileno(), timeout_s, datagrams.close, datagrams=True)


def _accepted(host: str, port: int, open_s: float, stopped: Callable[[], bool]) -> socket.socket:
    """The first connection that comes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as server:
        server.settimeout(0.1)  # seconds until it looks whether it was stopped
        until = time.monotonic() + open_s
        while True:
            try:
                return server.accept()[0]
            except TimeoutError:
                if stopped() or time.monotonic() > until:
                    raise
