"""Where live media come from and go to: what a URL may open, which container it carries, and what messages call it.

Every scheme has its own short list of protocols and of formats, so that no stream or playlist can make FFmpeg open
anything else, a local file least of all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from polylip.client.errors import InputError
from polylip.client.media_probe import FORMATS, MAX_SIDE_PX

MAX_PIXELS = {"max_pixels": str(MAX_SIDE_PX * MAX_SIDE_PX)}
STREAM_FORMATS = "mpegts,flv,live_flv,matroska,nut,mpeg,ogg,asf,mov"  # readable from front to back
PIPES = ("-", "pipe:", "pipe:0", "pipe:1")


@dataclass(frozen=True)
class Scheme:
    """What FFmpeg may do for URLs of one kind."""

    protocols: str  # FFmpeg's names, all that may be opened on the way
    formats: str  # demuxers
    options: tuple[tuple[str, str], ...] = ()
    listen: tuple[tuple[str, str], ...] | None = None  # options that make it wait for a sender; None: it cannot
    resumes: bool = True  # whether a new connection goes on where the stream is now


_RTSP = (("rtsp_transport", "tcp"),)  # no packet is lost, and it passes firewalls
_HTTP = Scheme("http,https,tcp,tls", ",".join([*FORMATS, "hls"]), resumes=False)
_LISTEN = (("listen", "1"),)

SOURCES = {
    "rtmp": Scheme("rtmp,tcp", "flv,live_flv", listen=_LISTEN),
    "rtmps": Scheme("rtmps,rtmp,tls,tcp", "flv,live_flv"),
    "rtsp": Scheme(
        "rtsp,rtp,udp,tcp", "rtsp,sdp,rtp,mpegts", _RTSP, (("rtsp_flags", "listen"), ("listen_timeout", "300"))
    ),
    "rtsps": Scheme("rtsps,rtsp,rtp,srtp,udp,tls,tcp", "rtsp,sdp,rtp,mpegts", _RTSP),
    "srt": Scheme("srt,udp", STREAM_FORMATS, listen=(("mode", "listener"),)),
    "http": _HTTP,
    "https": _HTTP,
    "udp": Scheme("udp", "mpegts,mpeg", (("overrun_nonfatal", "1"),)),
    "rtp": Scheme("rtp,udp", "rtp,sdp,mpegts"),
    "tcp": Scheme("none", STREAM_FORMATS, listen=()),  # through a socket of our own, and pipes likewise
    "pipe": Scheme("none", STREAM_FORMATS, resumes=False),
}


@dataclass(frozen=True)
class Place:
    """One end of a live job."""

    url: str
    scheme: str  # file, pipe, device or one of SOURCES

    @property
    def label(self) -> str:
        """The URL as messages and logs may show it."""
        return masked(self.url)

    @property
    def is_network(self) -> bool:
        return self.scheme not in ("file", "pipe", "device")

    @property
    def path(self) -> Path:
        """Of a file or a device."""
        return Path(self.url.removeprefix("file:"))

    @property
    def host_port(self) -> tuple[str, int]:
        """Raises InputError when the URL names no port."""
        parts = split(self.url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if port is None:
            raise InputError(f"{self.label}: names no port; write it as {self.scheme}://host:port")
        return (host or "").lstrip("@"), port


def place(url: str) -> Place:
    """What kind of end a URL or path is. Raises InputError."""
    if url in PIPES:
        return Place(url, "pipe")
    if re.fullmatch(r"/dev/video\d+", url):
        return Place(url, "device")
    found = re.match(r"([a-z][a-z0-9+.-]*)://", url, re.IGNORECASE)
    if found is None or url.startswith("file:"):
        return Place(url, "file")
    scheme = found[1].lower()
    if scheme not in SOURCES or scheme == "pipe":
        known = ", ".join(name for name in SOURCES if name != "pipe")
        raise InputError(
            f"{masked(url)}: {scheme} is no known kind of stream; known are {known}, files and - for a pipe"
        )
    return Place(url, scheme)


def masked(url: str) -> str:
    """Without passwords, without the query, and without the stream key that ends an RTMP address."""
    if "://" not in url:
        return url
    parts = split(url)
    user, at, host = parts.netloc.rpartition("@")
    netloc = f"***@{host}" if at and user else parts.netloc
    path = parts.path
    if parts.scheme.startswith("rtmp") and path.count("/") > 1:
        path = path.rpartition("/")[0] + "/***"
    return f"{parts.scheme}://{netloc}{path}{'?***' if parts.query else ''}"


def split(url: str) -> SplitResult:
    """Raises InputError."""
    try:
        return urlsplit(url)
    except ValueError:
        raise InputError("an address cannot be read; write it as scheme://host:port/path") from None
