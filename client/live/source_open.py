"""Opens a live source with FFmpeg: only the protocols and formats of its scheme, every wait bounded."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from polylip.client.errors import InputError
from polylip.client.live.formats import MAX_PIXELS, SOURCES, Place
from polylip.client.live.packets import Decoding
from polylip.client.live.source_wire import Wire, WireClosedError, standard_wire, tcp_wire
from polylip.client.media_probe import check_size, first_streams, nominal_frame_rate, open_media, reason
from polylip.client.media_whole import packets

CONNECT_TIMEOUT_S = 10.0  # a server far away answers within 1 s, a camera that wakes up within 5
LISTEN_TIMEOUT_S = 300.0  # time to start the sender by hand
READ_TIMEOUT_S = 5.0  # a stream without a packet for so long is interrupted
HTTP_READ_TIMEOUT_S = 20.0  # HLS delivers whole segments, of 10 s at most as a rule
ANALYSE_US = 2_000_000  # of media that FFmpeg may look at before it tells what the streams are

AUDIO_DEVICE_FORMATS = ("alsa", "pulse")


@dataclass(frozen=True)
class Stream:
    """One of the two streams of a source."""

    kind: str  # video or audio
    stream: Any  # av.Stream
    decoding: Decoding


class Opened:
    """The containers of one connection: one, or two where picture and sound are two devices."""

    def __init__(
        self,
        label: str,
        containers: list[Any],
        wire: Wire | None = None,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.read_timeout_s = read_timeout_s
        self._containers = containers
        self._wire = wire
        self.streams = _streams(containers, label)

    def packets(self, stopped: Callable[[], bool]) -> Iterator[tuple[Stream, Any]]:
        """All packets of picture and sound as they come. Raises av.FFmpegError and OSError."""
        if len(self._containers) > 1:
            yield from self._merged(stopped)
            return
        by_index = {stream.stream.index: stream for stream in self.streams}
        for packet in packets(self._containers[0], *(stream.stream for stream in self.streams)):
            if packet.size:  # the last ones are empty
                yield by_index[packet.stream_index], packet

    def _merged(self, stopped: Callable[[], bool]) -> Iterator[tuple[Stream, Any]]:
        """Of two devices the one that is behind is read: that never waits for longer than a picture lasts."""
        sources = [(stream, packets(stream.stream.container, stream.stream)) for stream in self.streams]
        reached_s = [Fraction(0), Fraction(0)]
        while not stopped():
            behind = reached_s.index(min(reached_s))
            stream, source = sources[behind]
            packet = next(source, None)
            if packet is None or not packet.size:
                return
            if packet.pts is not None:
                reached_s[behind] = packet.pts * Fraction(packet.time_base)
            yield stream, packet

    def close(self) -> None:
        for container in self._containers:
            container.close()
        if self._wire is not None:
            self._wire.close()


class Opener:
    """Opens a place again and again; `stop` ends a wait that is under way as soon as its protocol allows."""

    def __init__(self, place: Place, *, listen: bool, sound: str | None) -> None:
        self._place = place
        self._listen = listen
        self._sound = sound
        self._stopped = threading.Event()
        self._wire: Wire | None = None
        if listen and (place.scheme not in SOURCES or SOURCES[place.scheme].listen is None):
            raise InputError(f"{place.label}: cannot wait for a sender; rtmp, rtsp, srt and tcp can")

    def stop(self) -> None:
        """Again and again where need be: a listener that has no port yet cannot be woken."""
        self._stopped.set()
        if self._wire is not None:
            self._wire.wake()
        if self._listen and self._place.scheme != "tcp":
            with contextlib.suppress(OSError, InputError):  # whoever waits for a sender gets one that says nothing
                host, port = self._place.host_port
                socket.create_connection((host if host != "0.0.0.0" else "127.0.0.1", port), 1.0).close()  # noqa: S104

    def stopped(self) -> bool:
        return self._stopped.is_set()

    def wait_stopped(self, seconds: float) -> bool:
        """Sleep, unless it is stopped; whether it is."""
        return self._stopped.wait(max(0.0, seconds))

    def open(self, timeout_s: float | None = None) -> Opened:
        """Connect, or wait for a sender. Raises InputError."""
        place = self._place
        if timeout_s is None:
            timeout_s = LISTEN_TIMEOUT_S if self._listen else CONNECT_TIMEOUT_S
        if self.stopped():
            raise InputError(f"{place.label}: was closed before anything came")
        if place.scheme == "file":
            return Opened(place.label, [open_media(place.path)])
        if place.scheme == "device":
            return self._open_devices()
        try:
            return self._open_stream(timeout_s)
        except WireClosedError:
            raise InputError(f"{place.label}: was closed before anything came") from None
        except av.error.ExitError:
            what = "nobody sent" if self._listen else "no answer, or no media,"
            raise InputError(f"{place.label}: {what} within {timeout_s:g} s; check address and sender") from None
        except av.error.ProtocolNotFoundError:
            raise InputError(
                f"{place.label}: refused, as the stream leads to another protocol than {place.scheme} may open, "
                "or this build of FFmpeg lacks it; for srt run: srt-live-transmit srt://... udp://127.0.0.1:PORT"
            ) from None
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{place.label}: cannot be opened ({reason(error)}); check address and sender") from None

    def _open_stream(self, timeout_s: float) -> Opened:
        place, scheme = self._place, SOURCES[self._place.scheme]
        read_s = HTTP_READ_TIMEOUT_S if place.scheme in ("http", "https") else READ_TIMEOUT_S
        if place.scheme == "pipe":
            self._wire = standard_wire(write=False, timeout_s=read_s)
        elif place.scheme == "tcp":
            self._wire = tcp_wire(
                place, listen=self._listen, open_s=timeout_s, timeout_s=read_s, stopped=self._stopped.is_set
            )
        options = {
            "protocol_whitelist": scheme.protocols,
            "format_whitelist": scheme.formats,
            "analyzeduration": str(ANALYSE_US),
            **MAX_PIXELS,
            **dict(scheme.options),
            **(dict(scheme.listen or ()) if self._listen else {}),
        }
        wire = self._wire
        try:
            container = av.open(
                wire if wire is not None else place.url,
                options=options,
                metadata_errors="replace",
                timeout=(timeout_s, read_s),
            )
            return _guarded(place.label, container, wire, read_s)
        except BaseException:
            if wire is not None:
                wire.close()
            raise

    def _open_devices(self) -> Opened:
        """A camera, and a microphone beside it, on the clock of the wall."""
        place = self._place
        if self._sound is None:
            raise InputError(f"{place.label}: is a camera without sound; name its microphone, such as alsa:default")
        sound_format, _, sound_name = self._sound.partition(":")
        if sound_format not in AUDIO_DEVICE_FORMATS:
            raise InputError(f"{self._sound}: is no sound device; write alsa:NAME, such as alsa:default")
        containers: list[Any] = []
        try:
            wanted: tuple[tuple[str, str, dict[str, str]], ...] = (
                (place.url, "video4linux2", {"timestamps": "abs"}),
                (sound_name or "default", sound_format, {}),
            )
            for name, format_name, options in wanted:
                containers.append(open_device(name, format_name, options))
            return Opened(place.label, containers)
        except (av.FFmpegError, OSError, ValueError) as error:
            for container in containers:
                container.close()
            raise InputError(f"{place.label}: the device cannot be opened ({reason(error)}); is it in use?") from None


def open_device(name: str, format_name: str, options: dict[str, str]) -> Any:
    """The av container of a camera or a microphone."""
    return av.open(
        name,
        format=format_name,
        options=options,
        metadata_errors="replace",
        timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
    )


def _guarded(label: str, container: Any, wire: Wire | None, read_timeout_s: float) -> Opened:
    try:
        return Opened(label, [container], wire, read_timeout_s=read_timeout_s)
    except BaseException:
        container.close()
        raise


def _streams(containers: list[Any], label: str) -> list[Stream]:
    """Picture and sound. Raises InputError."""
    if len(containers) == 1:
        video, audio = first_streams(containers[0], label)
    else:
        video, audio = containers[0].streams.video[0], containers[1].streams.audio[0]
    check_size(video, label)
    return [Stream("video", video, _decoding(video, label)), Stream("audio", audio, _decoding(audio, label))]


def _decoding(stream: Any, label: str) -> Decoding:
    """Taken out once, so that readers never touch a container that another thread may close."""
    context = stream.codec_context
    if stream.type == "video":
        names = ("width", "height", "pix_fmt", "color_range", "colorspace", "color_primaries", "color_trc")
        settings = {name: getattr(context, name) for name in names}
        rate, aspect = nominal_frame_rate(stream, label), Fraction(stream.sample_aspect_ratio or 1)
    else:
        settings = {"sample_rate": context.sample_rate, "layout": context.layout.name}
        rate, aspect = Fraction(25), Fraction(1)
    known = tuple((name, value) for name, value in settings.items() if value)
    return Decoding(context.codec, context.extradata, known, Fraction(stream.time_base), rate, aspect)
