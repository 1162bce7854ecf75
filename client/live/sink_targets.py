"""Where encoded packets leave to: a file, a folder of HLS, a socket or pipe of ours, or FFmpeg in a process of its own.

FFmpeg's output protocols wait without end and hold the interpreter while they connect; in a child they can be ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import av

from polylip.client.errors import InputError
from polylip.client.live.formats import SOURCES, Place
from polylip.client.live.source_wire import Wire, standard_wire, tcp_wire, udp_wire

WRITE_TIMEOUT_S = 5.0  # a receiver that takes nothing for so long is given up
CONNECT_TIMEOUT_S = 10.0
RELAY_END_S = 2.0  # for a child that is connected to send what it has, and the goodbye of its protocol
SEGMENT_S = 2  # of HLS, and of fragments: one group of pictures

FILE_FORMATS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".ts": "mpegts",
    ".flv": "flv",
    ".m3u8": "hls",
}
URL_FORMATS = {
    "rtmp": "flv",
    "rtmps": "flv",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "srt": "mpegts",
    "http": "mpegts",
    "https": "mpegts",
    "udp": "mpegts",
    "rtp": "rtp_mpegts",
    "tcp": "mpegts",
    "pipe": "mpegts",
}
LISTEN_OPTIONS = {"rtmp": {"listen": "1"}, "http": {"listen": "1"}}  # and tcp
IN_ORDER = {"max_interleave_delta": "1"}  # packets come in order: none is held back to be sorted
MUXER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "mp4": {"movflags": "+frag_keyframe+delay_moov+default_base_moof"},
    "mov": {"movflags": "+frag_keyframe+delay_moov+default_base_moof"},
    "flv": {"flvflags": "no_duration_filesize"},
    "matroska": {"cluster_time_limit": str(SEGMENT_S * 1000)},
    "rtsp": {"rtsp_transport": "tcp"},
}


@dataclass(frozen=True)
class Outlet:
    """What a sink writes to, and how."""

    place: Place
    format: str
    listen: bool = False
    list_size: int = 0  # segments in an HLS playlist; 0: all
    tags: Mapping[str, str] = field(default_factory=dict)
    timescale: int = 1000  # ticks per second of the picture's clock

    @property
    def reopens(self) -> bool:
        return self.place.is_network


def outlet(
    place: Place, format_name: str | None, *, listen: bool, list_size: int, tags: Mapping[str, str], timescale: int
) -> Outlet:
    """Raises InputError when nothing can be written there."""
    if place.scheme == "device":
        raise InputError(f"{place.label}: is a camera; name a file or an address to write to")
    if place.scheme == "file":
        known = FILE_FORMATS.get(place.path.suffix.lower())
        if known is None and format_name is None:
            raise InputError(f"{place.label}: unknown output type; end the name in one of: {', '.join(FILE_FORMATS)}")
        if place.path.is_dir():
            raise InputError(f"{place.label}: is a folder; name an output file")
    else:
        known = URL_FORMATS[place.scheme]
    if listen and place.scheme not in (*LISTEN_OPTIONS, "tcp"):
        raise InputError(f"{place.label}: cannot wait for a receiver; tcp, http and rtmp can")
    name = format_name or known or ""
    if name not in {*FILE_FORMATS.values(), *URL_FORMATS.values(), "nut"}:
        raise InputError(f"{name}: is no known container; known are mpegts, flv, matroska, mp4, nut")
    return Outlet(place, name, listen, list_size, tags, timescale)


class Target(Protocol):
    """An open connection or file."""

    def send(self, kind: str, packet: Any) -> None:
        """Raises av.FFmpegError and OSError."""

    def ready(self) -> bool:
        """Whether what is sent really goes out."""

    def close(self, *, complete: bool) -> None:
        """With the container's end where `complete`; without it nothing more is written."""

    def interrupt(self) -> None:
        """From another thread: a `send` that waits ends with an error."""


class MuxTarget:
    """A container in this process."""

    def __init__(self, container: Any, templates: Mapping[str, Any], wire: Wire | None = None) -> None:
        self._container = container
        self._wire = wire
        self._streams = {
            kind: container.add_stream_from_template(template, opaque=True) for kind, template in templates.items()
        }

    def send(self, kind: str, packet: Any) -> None:
        packet.stream = self._streams[kind]
        self._container.mux(packet)

    def ready(self) -> bool:
        return True

    def close(self, *, complete: bool) -> None:
        if not complete and self._wire is not None:
            self._wire.close()  # then no end is written
        try:
            self._container.close()
        finally:
            if self._wire is not None:
                self._wire.close()

    def interrupt(self) -> None:
        if self._wire is not None:
            self._wire.wake()


class RelayTarget(MuxTarget):
    """FFmpeg in a child, which gets the packets through a pipe and says when it is connected."""

    def __init__(
        self, outlet: Outlet, options: Mapping[str, str], templates: Mapping[str, Any], stopped: Callable[[], bool]
    ) -> None:
        command = [sys.executable, "-m", "polylip.client.live.sink_relay"]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        self._until_s = time.monotonic() + CONNECT_TIMEOUT_S
        self._stopped = stopped
        self._ready = False
        self._words = ""
        assert self._child.stdin and self._child.stdout  # noqa: S101  they were asked for
        wire = Wire(self._child.stdin.fileno(), WRITE_TIMEOUT_S, self._close_input)
        try:
            os.set_blocking(self._child.stdin.fileno(), False)
            os.set_blocking(self._child.stdout.fileno(), False)
            order = {"url": outlet.place.url, "format": outlet.format, "options": dict(options)}
            order["tags"] = dict(outlet.tags)
            wire.write(json.dumps(order).encode() + b"\n")  # not on the command line, which every user can read
            super().__init__(av.open(wire, "w", format="nut", options=IN_ORDER), templates, wire)
        except BaseException:
            wire.close()
            self._end_child(0.0)
            raise

    def send(self, kind: str, packet: Any) -> None:
        if not self.ready() and time.monotonic() > self._until_s:
            raise TimeoutError(f"no answer within {CONNECT_TIMEOUT_S:g} s")
        try:
            super().send(kind, packet)
        except BrokenPipeError:
            self._end_child(RELAY_END_S)
            raise OSError(self._words) from None

    def ready(self) -> bool:
        if not self._ready and self._child.stdout is not None and not self._child.stdout.closed:
            self._ready = bool(self._child.stdout.read(1))
        return self._ready

    def close(self, *, complete: bool) -> None:
        """Raises OSError where `complete` and the child did not bring everything to its receiver."""
        wait_s = 0.0
        try:
            with suppress(BrokenPipeError):
                super().close(complete=complete)
            if complete and self._connects():
                wait_s = RELAY_END_S
        finally:
            self._end_child(wait_s)
        if complete and self._child.returncode:
            raise OSError(self._words)

    def _connects(self) -> bool:
        """Wait until the child is connected or has ended; whether one of the two came in time."""
        while not self.ready() and self._child.poll() is None:
            if time.monotonic() > self._until_s or self._stopped():
                return False
            time.sleep(0.05)
        return True

    def _close_input(self) -> None:
        with suppress(OSError):
            self._child.stdin.close()  # type: ignore[union-attr]  # opened as a pipe

    def _end_child(self, wait_s: float) -> None:
        """And note its last words, which say why it ended."""
        killed = ""
        try:
            self._child.wait(wait_s)
        except subprocess.TimeoutExpired:
            killed = f"the rest was not taken within {wait_s:g} s"
            self._child.kill()
            self._child.wait()
        if killed and not self.ready():  # asked for the last time now
            killed = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        if self._child.stderr is not None and not self._child.stderr.closed:
            lines = self._child.stderr.read(4096).decode(errors="replace").strip().splitlines()
            self._words = killed or (lines[-1] if lines else "the sending process ended")
            self._child.stderr.close()
        if self._child.stdout is not None:
            self._child.stdout.close()


def open_target(outlet: Outlet, templates: Mapping[str, Any], stopped: Callable[[], bool]) -> Target:
    """Connect. Raises InputError, av.FFmpegError and OSError."""
    place = outlet.place
    options = {**MUXER_OPTIONS.get(outlet.format, {}), **IN_ORDER}
    if place.scheme == "file":
        return _open_file(outlet, options, templates)
    if place.scheme in ("pipe", "tcp", "udp"):
        wire = _wire(outlet, stopped)
        size = {"buffer_size": 1316} if place.scheme == "udp" else {}
        try:
            container = av.open(wire, "w", format=outlet.format, options={**options, "flush_packets": "1"}, **size)
            container.metadata.update(outlet.tags)
            return MuxTarget(container, templates, wire)
        except BaseException:
            wire.close()
            raise
    if outlet.listen:
        options |= LISTEN_OPTIONS[place.scheme]
    options["protocol_whitelist"] = SOURCES[place.scheme].protocols
    return RelayTarget(outlet, options, templates, stopped)


def _wire(outlet: Outlet, stopped: Callable[[], bool]) -> Wire:
    place = outlet.place
    if place.scheme == "pipe":
        return standard_wire(write=True, timeout_s=WRITE_TIMEOUT_S)
    if place.scheme == "udp":
        return udp_wire(place, WRITE_TIMEOUT_S)
    return tcp_wire(place, listen=outlet.listen, open_s=CONNECT_TIMEOUT_S, timeout_s=WRITE_TIMEOUT_S, stopped=stopped)


def _open_file(outlet: Outlet, options: dict[str, str], templates: Mapping[str, Any]) -> Target:
    """Readable while it grows: every group of pictures is on the disk when the next one begins."""
    path = outlet.place.path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if outlet.format == "hls":
        flags = "independent_segments+temp_file" + ("+delete_segments" if outlet.list_size else "")
        options |= {"hls_time": str(SEGMENT_S), "hls_list_size": str(outlet.list_size), "hls_flags": flags}
        options |= {} if outlet.list_size else {"hls_playlist_type": "event"}
    else:
        options["flush_packets"] = "1"
    if outlet.format in ("mp4", "mov"):
        options["movie_timescale"] = str(outlet.timescale)  # a time before a track's start is kept in its ticks
    container = av.open(str(path), "w", format=outlet.format, options=options)  # HLS deletes no `file:` names
    container.metadata.update(outlet.tags)
    return MuxTarget(container, templates)
