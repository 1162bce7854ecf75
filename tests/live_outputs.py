"""A short clip for live sinks, and a receiver of what they send."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
from clips import Picture, Sound, clicks, write_media

from polylip.client.live.sink import LiveSink
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import output_channels, output_sample_rate

FRAMES, START_S, CLICKS_S = 60, 0.2, (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def info(tmp_path_factory) -> MediaInfo:
    sound = Sound(clicks(CLICKS_S, 2.6, 48_000), 48_000)
    picture = Picture(FRAMES, start_s=Fraction(1, 5), options={"bf": "2"})
    return probe_media(write_media(tmp_path_factory.mktemp("clips") / "in.mp4", picture, sound))


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """No thread, child or descriptor of a source or sink outlives it."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("live-")] == []
    assert len(os.listdir("/proc/self/fd")) <= before


def feed(sink: LiveSink, info: MediaInfo) -> None:
    """A whole clip, as fast as it is decoded."""
    nothing = np.zeros((output_channels(info), 0), np.float32)
    with (
        closing(VideoReader(info, info.planar_format)) as video,
        closing(AudioReader(info, output_sample_rate(info), output_channels(info))) as audio,
    ):
        while True:
            frames, piece = video.read(8), audio.read(0.3)
            if not frames and piece is None:
                break
            sink.write([(frame, time_ms) for time_ms, frame in frames], nothing if piece is None else piece[0])


def due_now() -> dict:
    return {"origin_s": time.monotonic(), "delay_s": 0.0}


class Receiver:
    """Takes TCP connections one after the other; keeps what came on each, and when."""

    def __init__(self, *limits: int | None) -> None:
        """`limits`: bytes after which each connection is closed."""
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.server.bind(("127.0.0.1", 0))
        self.server.listen()
        self.server.settimeout(15)
        self.url = f"tcp://127.0.0.1:{self.server.getsockname()[1]}"
        self.got: list[list[tuple[float, bytes]]] = []
        self._limits = limits
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with self.server:
            for limit in self._limits:
                connection, _ = self.server.accept()
                pieces: list[tuple[float, bytes]] = []
                self.got.append(pieces)
                with connection:
                    count = 0
                    while limit is None or count < limit:
                        data = connection.recv(65536)
                        if not data:
                            break
                        count += len(data)
                        pieces.append((time.monotonic(), data))

    def stream(self, number: int) -> bytes:
        self.thread.join(10)
        return b"".join(data for _, data in self.got[number])
