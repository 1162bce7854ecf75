"""A live output: encodes at once, and sends each packet when its time has come. See docs/live-media.md.

Media time t leaves at `origin_s` + t + `delay_s` of time.monotonic(), so that a player sees an even stream.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from threading import Condition, Lock
from typing import Any

import av

from polylip.client.errors import InputError
from polylip.client.live.formats import place
from polylip.client.live.sink_outbox import Held, Outbox
from polylip.client.live.sink_targets import SEGMENT_S, Target, open_target, outlet
from polylip.client.media_in import MediaInfo
from polylip.client.media_out import GLOBAL_HEADER, Encoders, Float32
from polylip.client.media_probe import reason
from polylip.client.named_log import NamedLog

PRESET = "superfast"  # 5 ms of one core per 720p frame; veryfast takes 9 for 30 % fewer bits
BITS_PER_PIXEL = 0.12  # cap of the bit rate: 2.8 Mbit/s at 720p25
MAX_LATE_S = 3.0  # a receiver that is further behind misses something, so that it catches up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0  # between tries to connect again


class LiveSink:
    """The interface of `MediaWriter`, for an address, a growing file, a folder of HLS or `-`."""

    def __init__(
        self,
        url: str,
        info: MediaInfo,
        *,
        origin_s: float | Callable[[], float],
        delay_s: float,
        format: str | None = None,
        listen: bool = False,
        list_size: int = 0,
        tags: Mapping[str, str] | None = None,
        bit_rate: int | None = None,
        preset: str = PRESET,
        name: str | None = None,
    ) -> None:
        """`list_size`: segments that an HLS playlist keeps (0: all). `bit_rate`: cap of the picture's, bit/s.
        `name`: whose it is in a call.

        Raises InputError where nothing can be written; connects when the first packet is due.
        """
        self._log = NamedLog(name)
        ticks = info.video_time_base.denominator
        self._outlet = outlet(place(url), format, listen=listen, list_size=list_size, tags=tags or {}, timescale=ticks)
        self.label = self._outlet.place.label
        self._origin_s = origin_s if callable(origin_s) else lambda: origin_s
        self._delay_s = delay_s
        self._busy = Lock()  # of the encoders
        self._closed = False
        self._pictures_ended = False
        # The encoders stand in a container that is never written: every connection copies its streams.
        self._template = av.open("-", "w", format="null")
        self._encoders = Encoders(self._template, info, x264_options(info, bit_rate, preset), flags=GLOBAL_HEADER)
        self._template.start_encoding()
        self._templates = {"video": self._encoders.video, "audio": self._encoders.audio}
        self._box = Outbox(Condition())
        self._target: Target | None = None
        self._unsure: list[int] = []  # sizes of the packets that the target took before it was connected
        self._pause_s = FIRST_PAUSE_S
        self._now = False  # send everything without waiting for its time
        self._stopped = threading.Event()
        self.failed: InputError | None = None  # why nothing can be written any more
        self.lost: str | None = None  # why the receiver is away now
        self.reconnects = 0
        self.bytes = 0  # of the packets that were sent
        self.emitted_ms = 0.0  # media time of the last packet that was sent
        self.late_ms = 0.0  # how much after its time it went
        self.worst_late_ms = 0.0
        self._thread = threading.Thread(target=self._run, name="live-sink", daemon=True)
        self._thread.start()

    def write(self, pictures: Iterable[tuple[Any, float]], pcm: Float32) -> None:
        """Pictures (av.VideoFrame, time_ms) and the sound float32 (channels, n) that follows on the last call's.

        Waits 1 s at most for a receiver that does not keep up. Raises InputError once nothing can be written.
        """
        with self._busy:
            if self.failed is not None:
                raise self.failed
            if self._closed:
                return
            for frame, time_ms in pictures:
                self._hold("video", self._encoders.picture(frame, time_ms))
            self._hold("audio", self._encoders.sound(pcm))

    def end_pictures(self) -> None:
        """No picture comes any more."""
        with self._busy:
            self._end_pictures()

    def close(self, *, now: bool = False) -> None:
        """Send what is held, each packet at its time or all of it `now`, then end. Raises InputError if that failed."""
        with self._busy:
            if not self._closed:
                self._end_pictures()
                self._hold("audio", self._encoders.audio.encode())
                self._closed = True
        with self._box.changed:
            self._now = self._now or now
            self._box.complete()
        self._thread.join()
        self._template.close()
        if self.failed is not None:
            raise self.failed

    def discard(self) -> None:
        """End at once; what was not sent is lost, what was is kept. Safe after `close`."""
        self._stopped.set()
        if self._target is not None:
            self._target.interrupt()
        self._end_box()
        with self._busy:
            self._closed = True
        self._end_box()
        self._thread.join()
        self._template.close()

    @property
    def buffered_ms(self) -> float:
        """Media time between the last packet sent and the newest one encoded."""
        newest_s = self._box.newest_s
        return 0.0 if newest_s is None else max(0.0, float(newest_s) * 1000 - self.emitted_ms)

    @property
    def held_bytes(self) -> int:
        return self._box.bytes

    @property
    def dropped(self) -> int:
        """Packets that the receiver was too slow for, or away."""
        return self._box.dropped

    def _end_box(self) -> None:
        with self._box.changed:
            self._box.clear()
            self._box.complete()

    def _end_pictures(self) -> None:
        if not self._closed and not self._pictures_ended:
            self._pictures_ended = True
            self._hold("video", self._encoders.video.encode())

    def _hold(self, kind: str, packets: Iterable[Any]) -> None:
        with self._box.changed:
            for packet in packets:
                self._box.add(kind, packet)

    def _run(self) -> None:
        """The thread that sends."""
        try:
            while (held := self._next_due()) is not None:
                self._send(held)
        finally:
            self._close_target(complete=not self._stopped.is_set())

    def _next_due(self) -> Held | None:
        """Waits for the next packet's time; None at the end."""
        with self._box.changed:
            while (head := self._box.wait()) is not None:
                late_s = self._late_s(head.time_s)
                if late_s > MAX_LATE_S and not self._now and self._outlet.reopens:
                    self._box.drop_before(head.time_s + Fraction(late_s))
                elif late_s >= 0 or self._now:
                    return self._box.pop()
                else:
                    self._box.changed.wait(-late_s)
        return None

    def _late_s(self, time_s: Fraction) -> float:
        return time.monotonic() - (self._origin_s() + float(time_s) + self._delay_s)

    def _send(self, held: Held) -> None:
        size = held.packet.size
        try:
            if self._target is None:
                self._target = open_target(self._outlet, self._templates, self._stopped.is_set)
            self._target.send(held.kind, held.packet)
        except (av.FFmpegError, OSError, ValueError, InputError) as error:
            self._give_up(error)
            return
        if self._target.ready():
            self._reached()
        else:
            self._unsure.append(size)
        self.bytes += size
        self.emitted_ms = float(held.time_s) * 1000
        self.late_ms = 0.0 if self._now else max(0.0, self._late_s(held.time_s)) * 1000
        self.worst_late_ms = max(self.worst_late_ms, self.late_ms)

    def _give_up(self, error: Exception) -> None:
        """A packet could not be sent: a receiver may come back, a full disk does not."""
        self._close_target(complete=False)
        why = str(error).removeprefix(f"{self.label}: ") if isinstance(error, InputError) else reason(error)
        with self._box.changed:
            self._box.dropped += 1
            self._box.need_key()
        if not self._outlet.reopens or self._now or self._stopped.is_set():
            self.lost = why
            if not self._outlet.reopens and not self._stopped.is_set():
                why = f"{self.label}: cannot be written ({why}); make room, or choose another output"
                self.failed = InputError(why)
            self._end_box()
            return
        if self.lost is None:
            self._log.warning("%s: the receiver is away (%s); connecting again", self.label, why)
            self._pause_s = FIRST_PAUSE_S
        self.lost = why
        self._stopped.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _close_target(self, *, complete: bool) -> None:
        target, self._target = self._target, None
        if target is None:
            return
        try:
            target.close(complete=complete)
            if complete:
                self._reached()
        except (av.FFmpegError, OSError) as error:
            if complete:
                self._miss_end(reason(error))
        if not target.ready():
            with self._box.changed:
                self._box.dropped += len(self._unsure)
            self.bytes -= sum(self._unsure)
        self._unsure.clear()

    def _reached(self) -> None:
        """The receiver is there, and gets what its target took."""
        self._unsure.clear()
        if self.lost is not None:
            self.lost = None
            self.reconnects += 1

    def _miss_end(self, why: str) -> None:
        """All was sent, and its end did not arrive."""
        if not self._outlet.reopens:
            self.failed = self.failed or InputError(f"{self.label}: its end cannot be written ({why}); make room")
        elif not self._stopped.is_set():
            self.lost = why
            self._log.warning("%s: the end did not reach the receiver (%s)", self.label, why)


def x264_options(info: MediaInfo, bit_rate: int | None, preset: str = PRESET) -> dict[str, str]:
    """No picture waits for a later one; a key frame every two seconds; a bit rate that lines can plan with."""
    cap = bit_rate or round(info.width * info.height * float(info.frame_rate) * BITS_PER_PIXEL)
    return {
        "preset": preset,
        "tune": "zerolatency",
        "bf": "0",
        "sc_threshold": "0",  # a cut costs no key frame: segments stay of one length, and the bit rate even
        "g": str(max(1, round(info.frame_rate * SEGMENT_S))),
        "crf": "21",
        "maxrate": str(cap),
        "bufsize": str(cap),
    }
