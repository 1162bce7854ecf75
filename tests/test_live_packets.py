"""The parts of live media that need no stream: addresses, the sender's clock, the ring and the box of held packets."""

from __future__ import annotations

import threading
from fractions import Fraction
from types import SimpleNamespace

import pytest

from polylip.client.errors import InputError
from polylip.client.live import packets as ring
from polylip.client.live.formats import masked, place
from polylip.client.live.packets import Decoding, Item, PacketLane
from polylip.client.live.sink_outbox import Outbox
from polylip.client.live.source_clock import StreamClock


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://u:p@cam:554/ch1?key=1", "rtsp://***@cam:554/ch1?***"),
        ("srt://host:9000?passphrase=x", "srt://host:9000?***"),
        ("rtmps://host/app/key", "rtmps://host/app/***"),
        ("udp://@239.0.0.1:1234", "udp://@239.0.0.1:1234"),
        ("talk.mp4", "talk.mp4"),
    ],
)
def test_what_messages_show_of_an_address(url: str, shown: str):
    assert masked(url) == shown


def test_what_kind_of_end_a_name_is():
    kinds = {"-": "pipe", "pipe:0": "pipe", "/dev/video0": "device", "a b.mp4": "file", "SRT://h:1": "srt"}
    assert {name: place(name).scheme for name in kinds} == kinds
    with pytest.raises(InputError, match="names no port"):
        _ = place("tcp://host").host_port


class TestClock:
    """Times in, times out."""

    @staticmethod
    def run(*packets: tuple[str, float, float]) -> list[float]:
        """(stream, stated, arrived) -> corrected."""
        clock = StreamClock()
        return [float(Fraction(t) + clock.offset_s(name, Fraction(t), now)) for name, t, now in packets]

    def test_an_even_stream_is_left_alone(self):
        assert self.run(("v", 5, 0), ("a", 5, 0), ("v", 5.5, 0.5), ("v", 9.5, 0.6)) == [5, 5, 5.5, 9.5]

    def test_a_counter_that_wraps_goes_on_exactly(self):
        wrap = 2**33 / 90_000
        times = self.run(("v", wrap - 0.5, 0), ("a", wrap - 0.4, 0), ("v", 0.5, 1), ("a", 0.625, 1))
        assert times == pytest.approx([wrap - 0.5, wrap - 0.4, wrap + 0.5, wrap + 0.625], abs=1e-6)

    def test_both_streams_of_a_restart_move_alike(self):
        times = self.run(("v", 100, 0), ("a", 100, 0), ("v", 100.25, 1), ("v", 0, 2), ("a", 100.25, 2), ("a", 0.125, 2))
        assert times[3] == pytest.approx(101.25)
        assert times[4] == 100.25
        assert times[5] - times[3] == pytest.approx(0.125)

    def test_a_jump_ahead_is_no_gap_and_a_gap_is_no_jump(self):
        assert self.run(("v", 0, 0), ("v", 3600, 0.04))[1] < 1
        assert self.run(("v", 0, 0), ("v", 60, 60))[1] == 60

    def test_a_new_connection_keeps_a_clock_that_went_on(self):
        clock = StreamClock()
        clock.offset_s("v", Fraction(10), 0)
        clock.reopened()
        assert clock.offset_s("v", Fraction("13.2"), 3) == 0
        clock.reopened()
        assert clock.offset_s("v", Fraction(0), 4) == pytest.approx(Fraction("14.2"), abs=0.01)
        assert clock.jumps == 1


def item(at: int, *, group: int = 5) -> Item:
    """Packets of 1 s each, a key frame every `group`."""
    packet = SimpleNamespace(size=1000)
    return Item(packet, Decoding(None, None, (), Fraction(1)), Fraction(at), at % group == 0)


class TestRing:
    """60 s at most; what is dropped has been seen by nobody."""

    def test_slow_readers_lose_the_same_whole_groups(self):
        lane = PacketLane(threading.Condition(), 2, waits=False)
        analysis, output = lane.reader(), lane.reader()
        for at in range(3):
            lane.put(item(at))
        seen = [analysis.next(), analysis.next()]
        for at in range(3, 200):
            lane.put(item(at))
        lane.end()
        first = [packet.time_s for packet in [*seen, *analysis]]
        assert first == [packet.time_s for packet in output]
        assert first[:5] == [0, 1, 2, 3, 4]  # the group that was begun
        assert first[-1] == 199  # the newest is there
        rest = first[5:]
        assert rest[0] % 5 == 0 and rest == list(range(int(rest[0]), 200))
        assert lane.dropped == 200 - len(first)
        assert lane.high_water_bytes <= 62_000

    def test_what_the_output_still_needs_is_kept(self):
        """The analysis has seen all, the output nothing: new groups are dropped as they come."""
        lane = PacketLane(threading.Condition(), 2, waits=False)
        analysis, output = lane.reader(), lane.reader()
        seen = []
        for at in range(100):
            lane.put(item(at))
            while analysis.at_hand():
                seen.append(analysis.next().time_s)
        lane.end()
        assert [packet.time_s for packet in output] == seen
        assert seen[:60] == list(range(60))
        assert lane.dropped == 100 - len(seen) > 0

    def test_a_reader_that_left_holds_nothing(self):
        lane = PacketLane(threading.Condition(), 2, waits=False)
        analysis, output = lane.reader(), lane.reader()
        analysis.close()
        for at in range(500):
            lane.put(item(at))
            assert output.next().time_s == at
        assert lane.dropped == 0 and lane.held_s == 0

    def test_memory_is_bounded_in_bytes(self, monkeypatch):
        monkeypatch.setattr(ring, "MAX_BYTES", 20_000)
        lane = PacketLane(threading.Condition(), 1, waits=False)
        for at in range(100):
            lane.put(item(at))
        assert lane.high_water_bytes <= 20_000
        assert lane.dropped > 0


class TestOutbox:
    """Sorted by time, bounded, and never beginning in the middle of a group."""

    @staticmethod
    def box(*packets: tuple[str, float, bool]) -> Outbox:
        """(kind, seconds, key)."""
        box = Outbox(threading.Condition())
        with box.changed:
            for kind, time_s, key in packets:
                stamp = SimpleNamespace(size=100, dts=round(time_s * 1000), time_base=Fraction(1, 1000))
                stamp.is_keyframe = key or kind == "audio"
                box.add(kind, stamp)
        return box

    def left(self, box: Outbox) -> list[tuple[str, float]]:
        with box.changed:
            box.complete()
            taken = []
            while box.head() is not None:
                held = box.pop()
                taken.append((held.kind, float(held.time_s)))
        assert box.finished and box.bytes == 0
        return taken

    def test_sound_that_begins_earlier_goes_first(self):
        box = self.box(("video", 0, True), ("video", 0.5, False))
        with box.changed:
            assert box.head() is None
        stamp = SimpleNamespace(size=1, dts=-21, time_base=Fraction(1, 1000), is_keyframe=True)
        with box.changed:
            box.add("audio", stamp)
        assert self.left(box) == [("audio", -0.021), ("video", 0), ("video", 0.5)]

    def test_what_is_late_goes_up_to_the_last_key_frame_that_is_due(self):
        packets = [("video", at / 4, at % 4 == 0) for at in range(16)] + [("audio", at / 2, False) for at in range(8)]
        box = self.box(*packets)
        with box.changed:
            box.drop_before(Fraction(5, 2))
        left = self.left(box)
        assert left[0] == ("video", 2.0)
        assert min(at for kind, at in left if kind == "audio") == 2.0
        assert box.dropped == 24 - len(left)

    def test_a_new_receiver_waits_for_a_key_frame(self):
        box = self.box(("video", 0, False), ("audio", 0, False), ("video", 1, True), ("audio", 1, False))
        with box.changed:
            box.need_key()
        assert self.left(box) == [("video", 1), ("audio", 1)]
        assert box.dropped == 2

    def test_when_all_that_is_left_must_be_dropped_the_end_has_come(self):
        """The last packets are late, and no key frame follows: nobody else wakes who waits."""
        box, waited = self.box(("video", 0, False), ("audio", 0, True)), []

        def wait() -> None:
            with box.changed:
                waited.append(box.wait())

        with box.changed:
            box.need_key()
            box.complete()
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        thread.join(5)
        assert waited == [None] and box.finished and box.dropped == 2
