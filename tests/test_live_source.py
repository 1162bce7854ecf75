"""The promise of live sources: what is sent arrives, on one clock, in bounded memory, and every wait ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from clips import Picture, Sound, clicks, write_media
from live_outputs import nothing_stays_open
from live_peers import (
    CLICKS_S,
    FRAMES,
    OFFSETS_S,
    assert_whole,
    free_port,
    is_open,
    sender,
    take,
    tcp_server,
    wait_until,
    web,
    write_ts,
)
from playback import listen, mean_luma, onsets, watch

from polylip.client.errors import InputError
from polylip.client.live import packets as ring
from polylip.client.live import source_open
from polylip.client.live.formats import masked, place
from polylip.client.live.packets import Decoding, Item, PacketLane
from polylip.client.live.source import LiveSource
from polylip.client.live.source_frames import LiveFrames
from polylip.client.live.source_open import Opened, open_device
from polylip.client.media_in import AudioReader, probe_media

__all__ = ["nothing_stays_open"]  # the fixture


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    sound = Sound(clicks(CLICKS_S, 2.6, 48_000), 48_000)
    picture = Picture(FRAMES, start_s=Fraction(1, 5), options={"bf": "2", "g": "25"})
    return write_media(tmp_path_factory.mktemp("clips") / "in.mp4", picture, sound)


def test_a_paced_file_is_a_camera(clip: Path):
    source = LiveSource.open(str(clip), paced=True)
    taken = take(source)
    reference = watch(clip)
    assert [time_ms for time_ms, _, _ in taken.pictures] == [time_ms for time_ms, _ in reference]
    assert [level for _, level, _ in taken.pictures] == [mean_luma(frame) for _, frame in reference]
    assert np.array_equal(taken.pcm, listen(clip, 48_000)[0][0])
    lead_s = [at - source.origin_s - time_ms / 1000 for time_ms, _, at in taken.analysis]
    assert min(lead_s) >= 0
    assert sorted(lead_s)[len(lead_s) // 2] < 1
    assert (source.ended, source.broke_off, source.dropped) == ("the stream ended", False, 0)
    source.close()


def test_a_source_that_is_ended_shows_what_has_come(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(500), Sound(clicks((0.5,), 20, 48_000), 48_000))
    source = LiveSource.open(str(clip), paced=True)
    wait_until(lambda: source.newest_ms > 600)
    source.end()
    taken = take(source)
    assert 5 < len(taken.pictures) < 500
    assert [at for at, *_ in taken.pictures] == [at for at, *_ in taken.analysis]
    assert (source.ended, source.broke_off) == ("stopped", False)
    source.close()


def test_a_file_that_is_not_paced_waits_for_its_readers(clip: Path, monkeypatch):
    monkeypatch.setattr(ring, "MAX_SECONDS", 0.5)
    source = LiveSource.open(str(clip))
    time.sleep(0.3)
    taken = take(source)
    assert_whole(taken)
    assert source.dropped == 0
    source.close()


@pytest.mark.parametrize(
    ("address", "name", "waits"),
    [
        ("tcp://127.0.0.1:{}", "mpegts", True),
        ("tcp://127.0.0.1:{}", "nut", True),
        ("rtmp://127.0.0.1:{}/live/key", "flv", True),
        ("udp://127.0.0.1:{}", "mpegts", False),
    ],
)
def test_a_stream_arrives_whole(address: str, name: str, waits: bool, clip: Path, monkeypatch):
    monkeypatch.setattr(source_open, "READ_TIMEOUT_S", 4.0)
    url = address.format(free_port())
    with sender(clip, url + ("" if waits else "?pkt_size=1316"), name):
        source = LiveSource.open(url, listen=waits, reconnect_s=0)
        assert_whole(take(source))
        newest_ms = source.newest_ms
    assert source.info.path == masked(url)
    assert newest_ms > (FRAMES - 1) * 40
    assert source.ended is not None and source.lost is None
    source.close()


def test_rtp_arrives(clip: Path, monkeypatch):
    """Without a description, FFmpeg drops the first packets, by which it tells what comes."""
    monkeypatch.setattr(source_open, "READ_TIMEOUT_S", 4.0)
    url = f"rtp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with sender(clip, url, "rtp_mpegts"):
        source = LiveSource.open(url, reconnect_s=0)
        taken = take(source)
    assert len(taken.pictures) >= FRAMES - 5
    assert [at for at, *_ in taken.pictures] == [at for at, *_ in taken.analysis]
    source.close()


def test_rtsp_arrives(clip: Path):
    url = f"rtsp://127.0.0.1:{free_port()}/live"
    with sender(clip, url, "rtsp", rtsp_transport="tcp"):
        source = LiveSource.open(url, listen=True, reconnect_s=0)
        taken = take(source)
    assert len(taken.pictures) >= FRAMES - 2
    assert len(onsets(taken.pcm, 48_000)) == len(CLICKS_S)
    source.close()


def test_a_client_reads_a_tcp_server(clip: Path, tmp_path: Path):
    stream = write_ts(clip, tmp_path / "in.ts")
    with tcp_server(lambda connection: connection.sendall(stream)) as port:
        source = LiveSource.open(f"tcp://127.0.0.1:{port}", reconnect_s=0)
        assert_whole(take(source))
        source.close()


def test_standard_input_is_read(clip: Path, tmp_path: Path):
    stream = write_ts(clip, tmp_path / "in.ts")
    script = """
import json, sys
from live_peers import take
from polylip.client.live.source import LiveSource
source = LiveSource.open("-")
taken = take(source)
source.close()
print(json.dumps([len(taken.analysis), len(taken.pictures), source.info.path, source.ended]))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], input=stream, capture_output=True, timeout=30, env=environment, check=False
    )
    assert json.loads(done.stdout) == [FRAMES, FRAMES, "-", "the stream ended"], done.stderr


@pytest.mark.parametrize("name", ["in.ts", "in.m3u8"])
def test_http_and_its_playlists_are_read(name: str, clip: Path, tmp_path: Path):
    write_ts(clip, tmp_path / "in.ts")
    (tmp_path / "in.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.6,\nin.ts\n#EXT-X-ENDLIST\n")
    with web(tmp_path) as address:
        source = LiveSource.open(f"{address}/{name}", paced=False)
        assert_whole(take(source))
        source.close()
    assert (source.ended, source.broke_off) == ("the stream ended", False)


def test_a_playlist_cannot_open_a_local_file(clip: Path, tmp_path: Path):
    secret = tmp_path / "secret.ts"
    write_ts(clip, secret)
    (tmp_path / "www").mkdir()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.6,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    (tmp_path / "www" / "in.m3u8").write_text(playlist)
    with web(tmp_path / "www") as address, pytest.raises(InputError, match=r"in\.m3u8\?\*\*\*: cannot be opened"):
        LiveSource.open(f"{address}/in.m3u8?token=abc")


def test_a_playlist_that_comes_through_a_socket_is_no_stream(tmp_path: Path):
    text = b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.6,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    with tcp_server(lambda connection: connection.sendall(text)) as port, pytest.raises(InputError, match="tcp://"):
        LiveSource.open(f"tcp://127.0.0.1:{port}", reconnect_s=0)


@pytest.mark.parametrize("url", ["gopher://host/x", "concat://a|b", "subfile://x", "ftp://host/x"])
def test_other_protocols_are_refused(url: str):
    with pytest.raises(InputError, match="no known kind of stream"):
        LiveSource.open(url)


def test_nobody_there_is_one_line_without_the_password():
    port = free_port()
    with pytest.raises(InputError) as caught:
        LiveSource.open(f"rtmp://anna:secret@127.0.0.1:{port}/live/streamkey?token=abc")
    line = str(caught.value)
    assert "\n" not in line
    assert f"rtmp://***@127.0.0.1:{port}/live/***?***: cannot be opened (Connection refused)" in line
    assert not any(word in line for word in ("anna", "secret", "streamkey", "abc"))


def test_a_stream_that_stalls_ends_with_one_line(clip: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(source_open, "READ_TIMEOUT_S", 2.0)
    stream = write_ts(clip, tmp_path / "in.ts")
    stop = threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.sendall(stream)
        stop.wait(20)

    with tcp_server(stall) as port:
        source = LiveSource.open(f"tcp://127.0.0.1:{port}", reconnect_s=0)
        taken = take(source)
        assert len(taken.pictures) >= FRAMES - 2  # a parser waits for the start of the next picture
        assert (source.ended, source.broke_off) == ("no data for 2 s", True)
        stop.set()
        source.close()


def test_when_a_connection_ends_all_that_came_is_seen_at_once(clip: Path, tmp_path: Path):
    """Decoders hold pictures back; those are due before another connection comes, or none does."""
    stream = write_ts(clip, tmp_path / "in.ts")
    with tcp_server(lambda connection: connection.sendall(stream)) as port:
        source = LiveSource.open(f"tcp://127.0.0.1:{port}", reconnect_s=8)
        try:
            began_s, reader, pictures = time.monotonic(), source.pictures(), 0
            while pictures < FRAMES - 1:  # how long the very last one stands is not known yet
                pictures += len(reader.read(1))
            assert source.ended is None and time.monotonic() - began_s < 6
        finally:
            source.close()


@pytest.mark.parametrize("address", ["rtmp://127.0.0.1:{}/live", "tcp://127.0.0.1:{}"])
def test_waiting_for_a_sender_can_be_given_up(address: str):
    port = free_port()
    source = LiveSource(address.format(port), listen=True)
    refused: list[str] = []

    def start() -> None:
        try:
            source.start()
        except InputError as error:
            refused.append(str(error))

    opening = threading.Thread(target=start)
    opening.start()
    wait_until(lambda: is_open(port))
    source.close()
    opening.join(8)
    assert not opening.is_alive()
    assert len(refused) == 1


@pytest.mark.parametrize("address", ["rtmp://127.0.0.1:{}/live", "rtsp://127.0.0.1:{}/live"])
def test_a_listener_that_is_closed_before_it_has_a_port_ends_too(address: str, monkeypatch):
    """Its port is bound 0.5 s after the first try to wake it."""
    monkeypatch.setattr(source_open, "LISTEN_TIMEOUT_S", 15.0)
    opens, opening = av.open, threading.Event()

    def late(*args: object, **options: object) -> object:
        opening.set()
        source._opener.wait_stopped(10)
        time.sleep(0.5)
        return opens(*args, **options)

    def give_up() -> None:
        opening.wait(10)
        source.close()

    monkeypatch.setattr(av, "open", late)
    source = LiveSource(address.format(free_port()), listen=True)
    closing = threading.Thread(target=give_up)
    closing.start()
    began = time.monotonic()
    with pytest.raises(InputError):
        source.start()
    closing.join()
    assert time.monotonic() - began < 10


def test_what_was_stopped_opens_nothing(monkeypatch):
    monkeypatch.setattr(source_open, "LISTEN_TIMEOUT_S", 2.0)
    opener = source_open.Opener(place(f"rtmp://127.0.0.1:{free_port()}/live"), listen=True, sound=None)
    opener.stop()
    with pytest.raises(InputError, match="was closed before anything came"):
        opener.open()


def test_closing_after_the_end_writes_to_no_descriptor_of_others(clip: Path, tmp_path: Path):
    stream = write_ts(clip, tmp_path / "in.ts")
    with tcp_server(lambda connection: connection.sendall(stream)) as port:
        source = LiveSource.open(f"tcp://127.0.0.1:{port}", reconnect_s=0)
        take(source)
    others = [(tmp_path / str(number)).open("wb") for number in range(20)]  # on the numbers that have become free
    source.close()
    for other in others:
        other.close()
    assert {(tmp_path / str(number)).read_bytes() for number in range(20)} == {b""}


def test_close_ends_reads_that_wait(clip: Path, tmp_path: Path):
    stream = write_ts(clip, tmp_path / "in.ts")
    stop = threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.sendall(stream)
        stop.wait(20)

    with tcp_server(stall) as port:
        source = LiveSource.open(f"tcp://127.0.0.1:{port}")
        reader, sound = source.analysis(), source.audio(48_000, 1)
        ended = []

        def wait_for(read: Callable[[], object]) -> None:
            while read():
                pass
            ended.append(True)

        waiting = [threading.Thread(target=wait_for, args=(lambda: reader.read(10),))]
        waiting += [threading.Thread(target=wait_for, args=(lambda: sound.read(0.2) is not None,))]
        for thread in waiting:
            thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        source.close()
        for thread in waiting:
            thread.join(5)
        assert ended == [True, True]
        assert time.monotonic() - began < 3
        stop.set()
        reader.close()
        sound.close()


def test_a_sender_that_comes_back_goes_on_on_the_same_clock(clip: Path):
    url = f"tcp://127.0.0.1:{free_port()}"
    with sender(clip, url, "mpegts", again=2):
        source = LiveSource.open(url, listen=True, reconnect_s=4)
        taken = take(source)
    times_ms = [time_ms for time_ms, _, _ in taken.pictures]
    assert len(times_ms) == 2 * FRAMES
    assert times_ms == sorted(set(times_ms))
    assert times_ms == [time_ms for time_ms, _, _ in taken.analysis]
    assert (source.counts.reconnects, source.jumps) == (1, 1)
    heard = onsets(taken.pcm, 48_000)
    assert len(heard) == 2 * len(CLICKS_S)
    second_s = times_ms[FRAMES] / 1000
    assert [at - second_s for at in heard[len(CLICKS_S) :]] == pytest.approx(OFFSETS_S, abs=0.002)
    assert source.broke_off is False and "nothing more within 4 s" in source.ended
    source.close()


def test_sound_that_stops_becomes_silence(clip: Path):
    """The picture goes on for 10 s: what is behind it by more than 2 s does not come any more."""
    changed = threading.Condition()
    picture, sound = PacketLane(changed, 1, waits=False), PacketLane(changed, 1, waits=False)
    opened = source_open.Opener(place(str(clip)), listen=False, sound=None).open()
    for stream, packet in opened.packets(lambda: False):
        if stream.kind == "audio":
            sound.put(Item(packet, stream.decoding, packet.pts * Fraction(packet.time_base), True))
    opened.close()
    picture.put(Item(SimpleNamespace(size=1000), Decoding(None, None, (), Fraction(1)), Fraction(10), True))
    reader = AudioReader(probe_media(clip), 48_000, 1, LiveFrames(sound.reader(), picture))
    pieces = [reader.read(7.5)[0][0]]
    sound.end()
    while (piece := reader.read(1)) is not None:
        pieces.append(piece[0][0])
    reader.close()
    assert sum(map(len, pieces)) / 48_000 == pytest.approx(8, abs=0.1)
    assert onsets(np.concatenate(pieces), 48_000) == pytest.approx(CLICKS_S, abs=0.001)


def test_picture_and_sound_of_two_devices_come_together():
    """FFmpeg's generators stand in for a camera and a microphone."""
    containers = [open_device("testsrc=size=64x48:rate=25:duration=1", "lavfi", {})]
    containers.append(open_device("sine=frequency=440:duration=1", "lavfi", {}))
    opened = Opened("camera", containers)
    kinds = [stream.kind for stream, _ in opened.packets(lambda: False)]
    opened.close()
    assert kinds.count("video") == 25
    assert kinds.count("audio") > 10
    assert "audio" in kinds[:3] and "video" in kinds[:3]


def test_a_camera_without_a_microphone_is_refused():
    with pytest.raises(InputError, match="name its microphone"):
        LiveSource.open("/dev/video0")
