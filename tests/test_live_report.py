"""What the report of a live job warns of."""

from __future__ import annotations

from pathlib import Path

from live_peers import free_port

from polylip.client.live.job import live
from polylip.client.live.options import LiveOptions
from polylip.client.server import ServerChoice
from polylip.client.wishes import SpeechWishes
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.launcher import Server


async def test_an_output_that_nobody_took_is_told(server: Server, tmp_path: Path):
    clip = make_demo_clip(tmp_path / "talk.mp4", seconds=4, size=(320, 180))
    receiver = f"rtmp://127.0.0.1:{free_port()}/live/key"
    options = LiveOptions(str(clip), receiver, SpeechWishes("en", "es"), ServerChoice(server.url), delay_s=4.0)
    report = await live(options, lambda _: None)
    assert "the output was not received to its end: Connection refused" in report.warnings
    assert report.counters["sink_packets_dropped"] > 0
