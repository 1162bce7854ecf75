"""The promise of live sinks: everything leaves at its time, in order, whole; and no receiver can hold the encoder."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Picture, Sound, clicks, write_media
from live_outputs import CLICKS_S, FRAMES, START_S, Receiver, due_now, feed, info, nothing_stays_open
from live_peers import assert_whole, free_port, is_open, take, wait_until
from playback import mean_luma, onsets, play

from polylip.client.errors import InputError
from polylip.client.live import sink_outbox, sink_targets, source_open
from polylip.client.live.sink import LiveSink
from polylip.client.live.source import LiveSource
from polylip.client.media_in import MediaInfo, VideoReader, probe_media

__all__ = ["info", "nothing_stays_open"]  # the fixtures


@pytest.mark.parametrize("name", ["o.mp4", "o.mov", "o.mkv", "o.ts", "o.flv", "new/o.m3u8"])
def test_a_file_holds_every_frame_at_its_time(name: str, info: MediaInfo, tmp_path: Path):
    sink = LiveSink(str(tmp_path / name), info, **due_now())
    feed(sink, info)
    sink.close(now=True)
    before, after = play(Path(info.path)), play(tmp_path / name)
    tick_s = 0 if name.endswith(("mp4", "mov")) else 0.0011  # the clocks of the others count milliseconds, or 1/90000
    assert len(after.times_s) == FRAMES
    first = after.times_s[0] - before.times_s[0]
    assert [float(at - first) for at in after.times_s] == pytest.approx(
        [float(at) for at in before.times_s], abs=tick_s
    )
    offsets_s = [at - float(after.times_s[0]) for at in after.onsets_s]
    assert offsets_s == pytest.approx([at - START_S for at in CLICKS_S], abs=0.001)
    assert after.greys == pytest.approx(before.greys, abs=2)
    assert (sink.dropped, sink.buffered_ms, sink.held_bytes) == (0, 0, 0)
    assert sink.bytes > 0


def test_key_frames_come_every_two_seconds_and_no_frame_waits_for_a_later_one(info: MediaInfo, tmp_path: Path):
    sink = LiveSink(str(tmp_path / "o.mkv"), info, **due_now())
    feed(sink, info)
    sink.close(now=True)
    with av.open(str(tmp_path / "o.mkv")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert all(packet.pts == packet.dts for packet in packets)
    assert [index for index, packet in enumerate(packets) if packet.is_keyframe] == [0, 50]


KILLED = """
import sys, time
from pathlib import Path
from test_live_sink import feed
from polylip.client.live.sink import LiveSink
from polylip.client.media_in import probe_media
info = probe_media(Path(sys.argv[1]))
sink = LiveSink(sys.argv[2], info, origin_s=time.monotonic() - 1000, delay_s=0)
feed(sink, info)
while sink.held_bytes:
    time.sleep(0.01)
print("written", flush=True)
time.sleep(60)
"""


def ended(path: Path) -> Path:
    """A playlist that is still written makes every player wait for more."""
    if path.suffix != ".m3u8":
        return path
    copy = path.with_name("ended.m3u8")
    copy.write_text(path.read_text() + "#EXT-X-ENDLIST\n")
    return copy


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.ts", "o.m3u8"])
def test_what_was_written_before_a_crash_plays(name: str, tmp_path: Path):
    """At most the group of pictures that was being written is lost."""
    sound = Sound(clicks((0.5, 3.0), 7, 16_000), 16_000)
    clip = write_media(tmp_path / "in.mp4", Picture(175), sound)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, str(clip), str(tmp_path / name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"written\n"
        growing = play(ended(tmp_path / name))
        process.send_signal(signal.SIGKILL)
    broken = play(ended(tmp_path / name))
    for found in (growing, broken):
        assert len(found.times_s) >= 150
        assert found.greys[:150] == pytest.approx(play(clip).greys[:150], abs=2)
        first_s = float(found.times_s[0])
        assert [at - first_s for at in found.onsets_s] == pytest.approx([0.5, 3.0], abs=0.002)


def test_an_hls_folder_can_keep_the_last_segments_only(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(400), Sound(clicks((1,), 16, 16_000), 16_000))
    info = probe_media(clip)
    for size in (0, 2):
        folder = tmp_path / f"of{size}"
        sink = LiveSink(str(folder / "live.m3u8"), info, **due_now(), list_size=size)
        feed(sink, info)
        sink.close(now=True)
        listed = [line for line in (folder / "live.m3u8").read_text().splitlines() if not line.startswith("#")]
        assert len(listed) == (size or 8)
        assert set(listed) <= {path.name for path in folder.glob("*.ts")}
        assert len(list(folder.glob("*.ts"))) == 8 if size == 0 else len(list(folder.glob("*.ts"))) < 8


def test_every_packet_leaves_at_its_time(info: MediaInfo):
    receiver = Receiver(None)
    origin_s = time.monotonic() + 60  # nothing is due while the clip is encoded
    sink = LiveSink(receiver.url, info, origin_s=lambda: origin_s, delay_s=0.8)
    feed(sink, info)
    assert sink.emitted_ms == 0
    assert sink.buffered_ms > 2000
    origin_s = time.monotonic()
    sink.close()
    assert time.monotonic() - origin_s >= 0.8 + 2.5
    stream = receiver.stream(0)
    assert receiver.got[0][0][0] - origin_s >= 0.7
    assert sink.worst_late_ms < 1500
    with av.open(io.BytesIO(stream)) as container:
        frames = [frame for frame in container.decode(video=0)]
    assert len(frames) == FRAMES
    assert {round((b.pts - a.pts) * a.time_base * 1000) for a, b in pairwise(frames)} == {40}
    # Halfway through the sending time, half of the media had come.
    half = origin_s + 0.8 + 1.3
    early = sum(len(data) for at, data in receiver.got[0] if at <= half)
    assert 0.2 * len(stream) < early < 0.8 * len(stream)


@pytest.mark.parametrize(
    ("address", "waits"),
    [("tcp://127.0.0.1:{}", True), ("rtmp://127.0.0.1:{}/live/key", True), ("udp://127.0.0.1:{}", False)],
)
def test_a_source_gets_what_a_sink_sends(address: str, waits: bool, info: MediaInfo, monkeypatch):
    monkeypatch.setattr(source_open, "READ_TIMEOUT_S", 4.0)
    monkeypatch.setattr(sink_targets, "RELAY_END_S", 15.0)  # the machine may be busy
    port = free_port()
    url = address.format(port)
    received = LiveSource(url, listen=waits, reconnect_s=0)
    opening = threading.Thread(target=received.start)
    opening.start()
    wait_until(lambda: is_open(port))
    sink = LiveSink(url, info, origin_s=time.monotonic(), delay_s=0.5)
    feed(sink, info)
    sink.close()
    opening.join(15)
    assert_whole(take(received))
    received.close()
    assert (sink.dropped, sink.lost) == (0, None)


def test_standard_output_is_written(info: MediaInfo):
    script = """
import sys, time
from pathlib import Path
from test_live_sink import feed
from polylip.client.live.sink import LiveSink
from polylip.client.media_in import probe_media
info = probe_media(Path(sys.argv[1]))
sink = LiveSink("-", info, origin_s=time.monotonic(), delay_s=0, format="matroska")
feed(sink, info)
sink.close(now=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(info.path)]
    done = subprocess.run(command, capture_output=True, timeout=30, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    with av.open(io.BytesIO(done.stdout)) as container:
        assert sum(1 for _ in container.decode(video=0)) == FRAMES


def test_a_receiver_that_reads_nothing_never_holds_the_encoder(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sink_targets, "WRITE_TIMEOUT_S", 0.4)
    monkeypatch.setattr(sink_outbox, "MAX_BYTES", 2_000_000)
    monkeypatch.setattr(sink_outbox, "ROOM_TIMEOUT_S", 0.05)
    generator = np.random.default_rng(0)
    picture = Picture(90, "ffv1", size=(320, 240), draw=lambda _: generator.integers(0, 255, (240, 320, 3), np.uint8))
    info = probe_media(write_media(tmp_path / "in.mkv", picture, Sound(clicks((1,), 6, 16_000), 16_000)))
    server = socket.create_server(("127.0.0.1", 0))  # its backlog accepts, nobody reads
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sink = LiveSink(f"tcp://127.0.0.1:{server.getsockname()[1]}", info, **due_now(), bit_rate=30_000_000)
    longest_s, most = 0.0, 0
    video = VideoReader(info, info.planar_format)
    while frames := video.read(5):
        began = time.monotonic()
        sink.write([(frame, time_ms) for time_ms, frame in frames], np.zeros((1, 5 * 640), np.float32))
        longest_s, most = max(longest_s, time.monotonic() - began), max(most, sink.held_bytes)
    video.close()
    assert longest_s < 3  # ten packets that wait 0.05 s for room each, and the encoder on a busy machine
    assert most < 2_500_000
    until = time.monotonic() + 10
    while (lost := sink.lost) is None and time.monotonic() < until:  # None again once it has connected anew
        time.sleep(0.02)
    assert lost == "no data taken for 0.4 s"
    assert sink.dropped > 0
    began = time.monotonic()
    sink.discard()
    assert time.monotonic() - began < 3
    server.close()


def test_a_receiver_that_comes_back_gets_a_key_frame_first(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(240), Sound(clicks((1, 3, 5, 7, 9), 9.6, 48_000), 48_000))
    info = probe_media(clip)
    receiver = Receiver(6_000, None)
    sink = LiveSink(receiver.url, info, origin_s=time.monotonic() - 2.0, delay_s=0)
    feed(sink, info)
    sink.close()
    assert (sink.reconnects, sink.lost) == (1, None)
    assert sink.dropped > 0
    with av.open(io.BytesIO(receiver.stream(1))) as container:
        packets = [packet for packet in container.demux() if packet.size]
        video = [packet for packet in packets if packet.stream.type == "video"]
        assert video[0].is_keyframe
        times_s = [float(packet.pts * packet.time_base) for packet in video]
    assert {round((b - a) * 1000) for a, b in pairwise(times_s)} == {40}
    pieces = list(av.open(io.BytesIO(receiver.stream(1))).decode(audio=0))
    pcm = np.concatenate([av.AudioResampler("fltp", "mono").resample(piece)[0].to_ndarray()[0] for piece in pieces])
    heard = [at + float(pieces[0].pts * pieces[0].time_base) for at in onsets(pcm, 48_000)]
    assert heard
    assert [round(at, 2) % 2 for at in heard] == pytest.approx([1.0] * len(heard), abs=0.03)


def test_a_full_disk_ends_the_job_with_one_line(info: MediaInfo):
    sink = LiveSink("/dev/full", info, **due_now(), format="matroska")
    with pytest.raises(InputError, match=r"/dev/full: cannot be written .No space left on device.; make room"):
        feed(sink, info)
        wait_until(lambda: sink.failed is not None)
        feed(sink, info)
    sink.discard()


def test_a_job_that_breaks_off_leaves_what_was_sent(info: MediaInfo, tmp_path: Path):
    sink = LiveSink(str(tmp_path / "o.ts"), info, origin_s=time.monotonic(), delay_s=60.0)
    feed(sink, info)
    began = time.monotonic()
    sink.discard()
    sink.discard()
    assert time.monotonic() - began < 3
    sink.write([], np.zeros((1, 1024), np.float32))  # a thread that cannot be stopped may still come


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("out.avi", {}, "unknown output type"),
        ("tests", {"format": "mpegts"}, "is a folder"),
        ("/dev/video0", {}, "is a camera"),
        ("udp://127.0.0.1:1", {"listen": True}, "cannot wait for a receiver"),
        ("tcp://127.0.0.1:1", {"format": "exe"}, "is no known container"),
        ("gopher://host/x", {}, "no known kind of stream"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(url: str, options: dict, message: str, info: MediaInfo):
    with pytest.raises(InputError, match=message):
        LiveSink(url, info, **due_now(), **options)


def test_a_picture_is_what_it_was(info: MediaInfo, tmp_path: Path):
    """Encoding for the live output stays near the input."""
    sink = LiveSink(str(tmp_path / "o.mp4"), info, **due_now())
    feed(sink, info)
    sink.close(now=True)
    with av.open(str(tmp_path / "o.mp4")) as container, av.open(str(info.path)) as source:
        for after, before in zip(container.decode(video=0), source.decode(video=0), strict=True):
            assert mean_luma(after) == pytest.approx(mean_luma(before), abs=2)
