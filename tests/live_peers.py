"""The other end of a live source or sink: senders and servers, and everything that a source gives."""

from __future__ import annotations

import functools
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from playback import mean_luma, onsets

from polylip.client.live.source import LiveSource
from polylip.client.media_in import VideoReader

FRAMES, START_S, CLICKS_S = 60, 0.2, (0.5, 1.0, 2.0)
OFFSETS_S = [at - START_S for at in CLICKS_S]  # of the clicks behind the first picture

# Sends a file as it is, `again` times, datagrams in real time.
SENDER = """
import sys, time, av
clip, url, name, options, again = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4]), int(sys.argv[5])
def send():
    source = av.open(clip)
    target = av.open(url, "w", format=name, options=options)
    streams = {s.index: target.add_stream_from_template(s, opaque=True) for s in source.streams}
    began = time.monotonic()
    for packet in source.demux():
        if packet.dts is not None:
            if url[:3] in ("udp", "rtp"):
                time.sleep(max(0.0, began + float(packet.dts * packet.time_base) - time.monotonic()))
            packet.stream = streams[packet.stream_index]
            target.mux(packet)
    target.close()
until = time.monotonic() + 15
for _ in range(again):
    while True:
        try:
            send()
            break
        except OSError:
            if time.monotonic() > until: raise
            time.sleep(0.1)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {seconds:g} s"
        time.sleep(0.02)


def is_open(port: int) -> bool:
    """Whether this process takes what is sent to a port: it listens there, or has a socket for datagrams."""
    return any(used.laddr.port == port for used in psutil.Process().net_connections("inet4"))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def sender(clip: Path, url: str, name: str, *, again: int = 1, **options) -> Iterator[None]:
    """Another process, that tries until somebody listens; for datagrams it waits until their port is bound."""
    wait = []
    if url[:3] in ("udp", "rtp"):
        bound = f'grep -q ":{urlsplit(url).port:04X} " /proc/net/udp*'
        wait = ["bash", "-c", f'until {bound}; do sleep 0.05; done; exec "$@"', "bash"]
    command = [*wait, sys.executable, "-c", SENDER, str(clip), url, name, repr(options), str(again)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def take(source: LiveSource) -> SimpleNamespace:
    """Everything, by three readers at once as in a job."""
    taken = SimpleNamespace()

    def hear() -> None:
        reader = source.audio(48_000, 1)
        pieces = []
        while (piece := reader.read(0.2)) is not None:
            pieces.append(piece[0])
        reader.close()
        taken.pcm = np.concatenate(pieces, axis=1)[0]

    def see(name: str, reader: VideoReader) -> None:
        frames = []
        while batch := reader.read(4):
            frames += [(time_ms, mean_luma(frame), time.monotonic()) for time_ms, frame in batch]
        reader.close()
        setattr(taken, name, frames)

    work = [
        threading.Thread(target=hear),
        threading.Thread(target=see, args=("analysis", source.analysis())),
        threading.Thread(target=see, args=("pictures", source.pictures("yuv420p"))),
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join(30)
    assert not any(thread.is_alive() for thread in work)
    return taken


def assert_whole(taken: SimpleNamespace, *, lost_frames: int = 0) -> None:
    """All frames for both readers, and the clicks where they were beside the picture."""
    times_ms = [time_ms for time_ms, _, _ in taken.analysis]
    assert FRAMES - lost_frames <= len(times_ms) <= FRAMES
    assert times_ms == [time_ms for time_ms, _, _ in taken.pictures]
    assert {round(b - a) for a, b in pairwise(times_ms)} == {40}
    first_s = times_ms[-1] / 1000 - (FRAMES - 1) * 0.04
    assert [at - first_s for at in onsets(taken.pcm, 48_000)] == pytest.approx(OFFSETS_S, abs=0.001)


@contextmanager
def web(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # its end waits for those that still close a connection
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def write_ts(clip: Path, path: Path) -> bytes:
    command = [sys.executable, "-c", SENDER, str(clip), str(path), "mpegts", "{}", "1"]
    subprocess.run(command, check=True, timeout=20)
    return path.read_bytes()


@contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """One connection."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(15)

    def run() -> None:
        with server:
            connection, _ = server.accept()
            with connection:
                serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    yield server.getsockname()[1]
    thread.join()
