"""Live outputs that a process of its own sends: what did not arrive is told, though nobody was there."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil
from clips import Picture, Sound, clicks, write_media
from live_outputs import FRAMES, Receiver, due_now, feed, info, nothing_stays_open
from live_peers import assert_whole, free_port, is_open, take, wait_until

from polylip.client.live import sink_targets, source_open
from polylip.client.live.sink import LiveSink
from polylip.client.live.source import LiveSource
from polylip.client.media_in import MediaInfo, probe_media
from polylip.perf.supervised import arguments_of

__all__ = ["info", "nothing_stays_open"]  # the fixtures


def test_nobody_there_costs_packets_not_the_job(tmp_path: Path):
    """Packets are due for longer than the sending process takes to start and to find that out."""
    info = probe_media(write_media(tmp_path / "in.mp4", Picture(500), Sound(clicks((1,), 20, 48_000), 48_000)))
    url = f"rtmp://anna:secret@127.0.0.1:{free_port()}/live/streamkey"
    sink = LiveSink(url, info, origin_s=time.monotonic() - 1, delay_s=0.0)
    feed(sink, info)
    wait_until(lambda: sink.lost is not None)
    assert sink.lost == "Connection refused"
    sink.close(now=True)
    assert sink.dropped > 0
    assert sink.label.startswith("rtmp://***@") and sink.label.endswith("/live/***")


def test_a_short_stream_to_nobody_is_told_at_its_end(info: MediaInfo, caplog):
    """All of it is in the pipe to the sending process before that has tried to connect."""
    sink = LiveSink(f"rtmp://127.0.0.1:{free_port()}/live/key", info, **due_now())
    feed(sink, info)
    sink.close(now=True)
    assert sink.lost == "Connection refused"
    assert (sink.bytes, sink.held_bytes) == (0, 0)
    assert sink.dropped > FRAMES
    assert [record.message for record in caplog.records] == [
        f"{sink.label}: the end did not reach the receiver (Connection refused)"
    ]


def test_a_short_stream_waits_for_a_sending_process_that_starts_late(info: MediaInfo, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(source_open, "LISTEN_TIMEOUT_S", 12.0)
    late = tmp_path / "python"
    late.write_text(f'#!/bin/sh\nsleep {sink_targets.RELAY_END_S + 1}\nexec {sys.executable} "$@"\n')
    late.chmod(0o755)
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/key"
    received = LiveSource(url, listen=True, reconnect_s=0)
    opening = threading.Thread(target=received.start)
    opening.start()
    wait_until(lambda: is_open(port))
    monkeypatch.setattr(sys, "executable", str(late))
    sink = LiveSink(url, info, **due_now())
    feed(sink, info)
    sink.close(now=True)
    opening.join(15)
    assert_whole(take(received))
    received.close()
    assert (sink.dropped, sink.lost) == (0, None)


def test_a_sending_process_that_hangs_at_the_end_is_told(info: MediaInfo):
    receiver = Receiver(None)
    sink = LiveSink(receiver.url.replace("tcp:", "http:"), info, **due_now())
    feed(sink, info)
    wait_until(lambda: bool(receiver.got and receiver.got[0]))
    (child,) = (each for each in psutil.Process().children() if "polylip.client.live.sink_relay" in arguments_of(each))
    child.suspend()
    sink.close(now=True)
    assert sink.lost == f"the rest was not taken within {sink_targets.RELAY_END_S:g} s"
    receiver.stream(0)
