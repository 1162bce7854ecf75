"""A live source: a camera, a stream or a paced file, received by one thread and read as files are.

Its clock begins at the earlier of the first picture and the first sound, and rises whatever the sender does. See
docs/live-media.md.
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from polylip.client.drift import DriftTracker, exact_ns
from polylip.client.errors import InputError
from polylip.client.live.formats import SOURCES, Place, place
from polylip.client.live.packets import Item, PacketLane, PacketReader
from polylip.client.live.source_clock import StreamClock
from polylip.client.live.source_frames import LiveFrames, make_decoder
from polylip.client.live.source_open import Opened, Opener, Stream
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader
from polylip.client.media_probe import describe, probe_media, reason
from polylip.client.named_log import NamedLog

RECONNECT_S = 10.0  # an interruption that lasts longer ends the source
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0  # between tries to connect again
PROBE_TIMEOUT_S = 10.0  # for the first picture and the first sound: two groups of pictures of a usual stream
ORIGIN_WINDOW_S = 2.0  # the first packets may come in a burst or late; what came first in this time sets the clock
LAG_WINDOW_S = 5.0
WAKE_AGAIN_S = 0.2  # between two tries to wake a thread that has to end


@dataclass
class SourceCounts:
    """What the receiver did."""

    packets: int = 0
    before_key: int = 0  # pictures before the first key frame of a connection: nobody can decode them
    corrupt: int = 0  # packets that the container marks as damaged; they are decoded as far as that goes
    reconnects: int = 0


class LiveSource:
    """Made with `open`. Picture is read by `readers` readers (analysis and output), which see the same frames."""

    def __init__(
        self,
        url: str,
        *,
        paced: bool | None = None,
        listen: bool = False,
        sound: str | None = None,
        reconnect_s: float = RECONNECT_S,
        readers: int = 2,
        name: str | None = None,
    ) -> None:
        """See `open`. Nothing is opened yet: so another thread can already `close`. `name`: whose it is in a call.

        Raises InputError.
        """
        self._log = NamedLog(name)
        self._place: Place = place(url)
        self.label = self._place.label
        scheme = self._place.scheme
        self._paced = scheme in ("http", "https", "pipe") if paced is None else paced
        self._is_file = scheme == "file"
        self._reconnect_s = reconnect_s if self._place.is_network and SOURCES[scheme].resumes else 0.0
        self._opener = Opener(self._place, listen=listen, sound=sound)
        self._changed = threading.Condition()
        waits = self._is_file and not self._paced
        self._video = PacketLane(self._changed, readers + 1, waits=waits)  # one more for the first look
        self._audio = PacketLane(self._changed, 2, waits=waits)
        self._lanes = {"video": self._video, "audio": self._audio}
        self._readers = {kind: lane.reader() for kind, lane in self._lanes.items()}
        self._clock = StreamClock()
        self.clocks = {kind: DriftTracker() for kind in self._lanes}  # of a sender that paces itself
        self._needs_key = not self._is_file
        self._thread = threading.Thread(target=self._run, name="live-source", daemon=True)
        self._first_s: Fraction | None = None  # time of the first packet, which paces the others
        self._first_arrival_s = 0.0
        self._earliest_s = float("inf")  # of arrival minus time: when the container's clock was 0
        self._lags: list[tuple[float, float]] = []
        self._failure: InputError | None = None
        self.counts = SourceCounts()
        self.lost: str | None = None  # why it is interrupted now
        self.ended: str | None = None  # why it has ended
        self.broke_off = False  # whether it ended otherwise than by its own end or by close()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        paced: bool | None = None,
        listen: bool = False,
        sound: str | None = None,
        reconnect_s: float = RECONNECT_S,
        readers: int = 2,
    ) -> LiveSource:
        """Open a URL, a file, a camera (/dev/video0, `sound`: its microphone) or `-`. Raises InputError.

        `paced`: hand data out no faster than in real time (None: for pipes and HTTP). `listen`: wait for a sender.
        `reconnect_s`: how long an interruption may last. `readers`: how many picture readers there will be.
        """
        source = cls(url, paced=paced, listen=listen, sound=sound, reconnect_s=reconnect_s, readers=readers)
        source.start()
        return source

    def start(self) -> None:
        """Connect and find out what comes. Raises InputError; nothing is left open then."""
        try:
            if self._is_file:
                self.info = probe_media(self._place.path)
            self._started_s = time.monotonic()
            self._thread.start()
            if not self._is_file:
                self.info = self._probe()
            for reader in self._readers.values():
                reader.close()
        except BaseException:
            self.close()
            raise

    def audio(self, sample_rate_hz: int, channels: int) -> AudioReader:
        """The sound, once; decoded in the calls to its `read`."""
        picture = None if self._is_file and not self._paced else self._video
        return AudioReader(self.info, sample_rate_hz, channels, LiveFrames(self._audio.reader(), picture))

    def analysis(self) -> VideoReader:
        """The pictures at once; a read gives what is there."""
        return VideoReader(self.info, None, LiveFrames(self._video.reader()), eager=True)

    def pictures(self, pixel_format: str | None = None) -> VideoReader:
        """The same pictures for the output; a read waits for all that it is asked for."""
        return VideoReader(self.info, pixel_format, LiveFrames(self._video.reader()))

    @property
    def is_interrupted(self) -> bool:
        """Whether nothing comes now, or ever."""
        return self.lost is not None or self.ended is not None

    @property
    def newest_ms(self) -> float:
        """Media time of the newest packet that has come."""
        times = [lane.newest_s for lane in self._lanes.values() if lane.newest_s is not None]
        return float(max(times) - self.info.start_s) * 1000 if times else 0.0

    @property
    def origin_s(self) -> float:
        """time.monotonic() at media time 0. It moves back, never forth, in the first two seconds, then stays."""
        if self._paced:
            return self._started_s + float(self.info.start_s - (self._first_s or self.info.start_s))
        return self._earliest_s + float(self.info.start_s)

    @property
    def lag_ms(self) -> float:
        """How much later than `origin_s` says the promptest packet of the last seconds came: jitter, or clock drift."""
        return min((lag for _, lag in list(self._lags)), default=0.0) * 1000

    @property
    def dropped(self) -> int:
        """Packets that nobody will see, as the readers were too slow; pictures in whole groups."""
        return self._video.dropped + self._audio.dropped

    @property
    def jumps(self) -> int:
        """How often the sender's clock jumped or restarted."""
        return self._clock.jumps

    @property
    def held_bytes(self) -> int:
        """The most that was held so far."""
        return self._video.high_water_bytes + self._audio.high_water_bytes

    def end(self) -> None:
        """Receive nothing more; what has come can still be read. A stalled server is waited for until its timeout."""
        self._stop(discard=False)

    def close(self) -> None:
        """As `end`, and every read ends too. Safe to call twice."""
        self._stop(discard=True)

    def _stop(self, *, discard: bool) -> None:
        self._opener.stop()
        for lane in self._lanes.values():
            lane.end(discard=discard)
        if self._thread is not threading.current_thread():
            while self._thread.is_alive():
                self._opener.stop()  # again, as a listener that had no port yet could not be woken
                self._thread.join(WAKE_AGAIN_S)

    def _run(self) -> None:
        """The thread."""
        try:
            self.ended = self._receive()
        except InputError as error:
            self._failure = error
            self.ended = str(error)
        finally:
            self.ended = self.ended or "an internal error"
            self.lost = None
            for lane in self._lanes.values():
                lane.end()

    def _receive(self) -> str:
        """Connection after connection; why there are no more."""
        opened: Opened | None = self._opener.open()
        why = ""
        while opened is not None:
            why, broken = self._pump(opened)
            if self._opener.stopped():
                return "stopped"
            self.broke_off = broken
            if not self._reconnect_s:
                return why
            opened = self._reopen(why)
        return f"{self._place.label}: {why}, and nothing more within {self._reconnect_s:g} s; check the sender"

    def _reopen(self, why: str) -> Opened | None:
        self._log.warning("%s: %s; connecting again", self._place.label, why)
        self.lost = why
        until, pause_s = time.monotonic() + self._reconnect_s, FIRST_PAUSE_S
        while (left_s := until - time.monotonic()) > 0 and not self._opener.wait_stopped(min(pause_s, left_s)):
            try:
                opened = self._opener.open(max(FIRST_PAUSE_S, left_s))
            except InputError:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            self.lost = None
            self.counts.reconnects += 1
            self._needs_key = True
            self._clock.reopened()
            for clock in self.clocks.values():
                clock.restart()
            return opened
        return None

    def _pump(self, opened: Opened) -> tuple[str, bool]:
        """Everything that a connection brings; why it ended, and whether it broke."""
        try:
            for stream, packet in opened.packets(self._opener.stopped):
                if self._opener.stopped():
                    break
                self._take(stream, packet)
            return "the stream ended", False
        except (av.error.ExitError, TimeoutError):
            return f"no data for {opened.read_timeout_s:g} s", True
        except (av.FFmpegError, OSError) as error:
            hung_up = getattr(error, "errno", None) == errno.EIO  # so FFmpeg calls the end of a connection
            return "the sender hung up" if hung_up else f"the connection broke ({reason(error)})", True
        finally:
            opened.close()
            for lane in self._lanes.values():
                lane.mark_end()

    def _take(self, stream: Stream, packet: Any) -> None:
        now_s = time.monotonic()
        lane = self._lanes[stream.kind]
        self.counts.packets += 1
        self.counts.corrupt += bool(packet.is_corrupt)
        decoded_s = self._correct(stream.kind, packet, now_s)
        if stream.kind == "video" and self._needs_key:
            if not packet.is_keyframe:
                self.counts.before_key += 1
                return
            self._needs_key = False
        time_s = decoded_s if packet.pts is None else packet.pts * Fraction(packet.time_base)
        if time_s is None:
            time_s = lane.newest_s or Fraction(0)
        if not self._paced and packet.pts is not None:
            self.clocks[stream.kind].add(exact_ns(packet.pts, Fraction(packet.time_base)), time.monotonic_ns())
        self._pace(time_s)
        self._note_arrival(time_s if decoded_s is None else decoded_s)
        dropped = lane.dropped
        lane.put(Item(packet, stream.decoding, time_s, stream.kind == "audio" or bool(packet.is_keyframe)))
        if lane.dropped and not dropped:
            self._log.warning("%s: the readers are too slow; whole groups of pictures are dropped", self._place.label)

    def _correct(self, kind: str, packet: Any, now_s: float) -> Fraction | None:
        """Put a packet on the rising clock; its decoding time. Files have checks of their own."""
        base = Fraction(packet.time_base)
        if self._is_file:
            return None if packet.dts is None else Fraction(packet.dts * base)
        if packet.dts is None:
            offset_s = self._clock.current_s(kind)
        else:
            jumps = self._clock.jumps
            offset_s = self._clock.offset_s(kind, packet.dts * base, now_s)
            if self._clock.jumps > jumps:
                self._log.warning("%s: the sender's clock jumped; the output's goes on evenly", self._place.label)
        ticks = round(offset_s / base)
        if packet.pts is not None:
            packet.pts += ticks
        if packet.dts is None:
            return None
        packet.dts += ticks
        return Fraction(packet.dts * base)

    def _pace(self, time_s: Fraction) -> None:
        """Wait until a packet is due."""
        if self._first_s is None:
            self._first_s = self.info.start_s if self._is_file else time_s
        if self._paced:
            self._opener.wait_stopped(self._started_s + float(time_s - self._first_s) - time.monotonic())

    def _note_arrival(self, time_s: Fraction) -> None:
        now_s = time.monotonic()
        zero_s = now_s - float(time_s)
        self._first_arrival_s = self._first_arrival_s or now_s
        if now_s - self._first_arrival_s < ORIGIN_WINDOW_S or self._earliest_s == float("inf"):
            self._earliest_s = min(self._earliest_s, zero_s)
        bucket, lag_s = now_s // LAG_WINDOW_S, zero_s - self._earliest_s
        if self._lags and self._lags[-1][0] == bucket:
            self._lags[-1] = (bucket, min(lag_s, self._lags[-1][1]))
        else:
            self._lags = [*self._lags[-1:], (bucket, lag_s)]

    def _probe(self) -> MediaInfo:
        """From the first picture and the first sound, which stay for the readers."""
        until_s = time.monotonic() + PROBE_TIMEOUT_S
        self._await_first_packet()
        picture, first = self._first_frame("video", until_s)
        sound, _ = self._first_frame("audio", until_s)
        decoding = first.decoding
        return describe(
            self._place.label,
            picture,
            sound,
            frame_rate=decoding.frame_rate,
            time_base=decoding.time_base,
            aspect=decoding.aspect,
            start_s=min(_time_s(frame) for frame in (picture, sound)),
        )

    def _await_first_packet(self) -> None:
        """For as long as opening may take."""
        with self._changed:
            while not any(reader.at_hand() or reader.over for reader in self._readers.values()):
                self._changed.wait()

    def _first_frame(self, kind: str, until_s: float) -> tuple[Any, Item]:
        reader: PacketReader = self._readers[kind]
        what = "picture" if kind == "video" else "sound"
        decoder: Any = None
        while (item := reader.next(max(0.0, until_s - time.monotonic()))) is not None:
            decoder = decoder or make_decoder(item.decoding)
            try:
                frames = decoder.decode(item.packet)
            except av.FFmpegError:
                frames = []
            if item.packet is None:  # another connection follows, if any
                decoder = None
            if frames:
                return frames[0], item
        if self._failure is not None:
            raise self._failure
        ended = f" before it ended ({self.ended})" if self.ended else f" within {PROBE_TIMEOUT_S:g} s"
        raise InputError(f"{self._place.label}: no {what} came that can be decoded{ended}; check the sender")


def _time_s(frame: Any) -> Fraction:
    return Fraction(0) if frame.pts is None else Fraction(frame.pts * frame.time_base)
