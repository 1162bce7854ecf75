"""A picture branch that is far behind the speech branch: every dub waits for its own frames."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from live_run import slow_server

from polylip.client import ring
from polylip.client.job import DubOptions, dub
from polylip.client.results import FaceChoice, Status

AHEAD_S = 4.0  # held of the picture: one sentence, while all four of the clip have been spoken
SLOWER = 60  # than the mouth warp of profile lite: half a second per call


def test_a_dub_that_is_ready_long_before_its_frames_has_lips(
    demo_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ring, "MIN_SLOTS", 0)
    monkeypatch.setattr(ring, "SECONDS_AHEAD", AHEAD_S)
    server, slow = slow_server(tmp_path, "lips", SLOWER)
    slow.touch()
    try:
        report = asyncio.run(dub(DubOptions(demo_clip, tmp_path / "o.mp4", "es", "en", url=server.url))).report
    finally:
        server.stop()
    assert report.counters["ring_high_water"] == report.counters["ring_capacity"] == AHEAD_S * 25
    assert [(s.status, s.face_choice) for s in report.segments] == [(Status.DUBBED, FaceChoice.ONLY)] * 4
