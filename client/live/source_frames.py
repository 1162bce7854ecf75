"""Decodes the packets of a live source: each reader with its own decoder, which a new connection replaces."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from polylip.client.live.formats import MAX_PIXELS
from polylip.client.live.packets import Decoding, Item, PacketLane, PacketReader
from polylip.client.media_in import Silence

SOUND_WAIT_S = 2  # sound that lies further behind the picture does not come; broadcasts send it 1 s late at most
POLL_S = 0.1  # how often a reader that waits for sound looks at the picture


class LiveFrames:
    """The frames of one stream of a live source, as `media_in.Frames`."""

    trusted = True  # the receiver has corrected the times

    def __init__(self, packets: PacketReader, picture: PacketLane | None = None) -> None:
        """`picture`: for sound: the lane whose progress shows that the sound has stopped."""
        self._packets = packets
        self._picture = picture
        self._decoding: Decoding | None = None
        self._decoder: Any = None
        self.damaged = 0
        self.silent_s = Fraction(0)  # time up to which silence stands in for sound, beyond what has come

    def __iter__(self) -> Iterator[Any]:
        for item in self._items():
            if isinstance(item, Silence):
                yield item
                continue
            if item.decoding is not self._decoding:
                yield from self._rest()
                self._decoding, self._decoder = item.decoding, make_decoder(item.decoding)
            if item.packet is None:
                yield from self._rest()
            else:
                yield from self._decoded(item.packet)
        yield from self._rest()

    def _items(self) -> Iterator[Item | Silence]:
        if self._picture is None:
            yield from self._packets
            return
        heard_s: Fraction | None = None
        while True:
            item = self._packets.next(POLL_S)
            if item is not None:
                heard_s = item.time_s if heard_s is None else max(heard_s, item.time_s)
                yield item
            elif self._packets.over:
                return
            elif heard_s is not None and (due_s := (self._picture.newest_s or heard_s) - SOUND_WAIT_S) > heard_s:
                self.silent_s += due_s - heard_s
                heard_s = due_s
                yield Silence(heard_s)

    def _decoded(self, packet: Any) -> Iterator[Any]:
        try:
            frames = self._decoder.decode(packet)
        except av.EOFError:
            return
        except av.FFmpegError:
            self.damaged += 1
            yield None
            return
        for frame in frames:
            if packet is None and self._decoding is not None:
                frame.time_base = self._decoding.time_base
            yield frame

    def _rest(self) -> Iterator[Any]:
        """What the decoder still holds; the next packet gets a new one."""
        if self._decoder is not None:
            yield from self._decoded(None)
            self._decoding = self._decoder = None

    def at_hand(self) -> bool:
        return self._packets.at_hand()

    def end(self) -> tuple[int, Fraction] | None:
        """A live stream does not say."""
        return None

    def interrupt(self) -> None:
        self._packets.close()

    def close(self) -> None:
        self._packets.close()


def make_decoder(decoding: Decoding) -> Any:
    """An av.CodecContext that knows what the container said. Threads per slice only: those cost no delay."""
    decoder = av.CodecContext.create(decoding.codec, "r")
    decoder.extradata = decoding.extradata
    for name, value in decoding.settings:
        setattr(decoder, name, value)
    base = decoding.time_base
    decoder.options = {"pkt_timebase": f"{base.numerator}/{base.denominator}"}  # or trimmed sound keeps a wrong time
    if decoder.type == "video":
        decoder.thread_type = "SLICE"
        decoder.options = {**decoder.options, **MAX_PIXELS}
    return decoder
