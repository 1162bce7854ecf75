"""A segment's frames are collected until all its faces are known, whether they have left the ring by then or not."""

from __future__ import annotations

from typing import Any

import numpy as np

from polylip.client.pulse import Pulse
from polylip.client.ring import Face, FrameRing, Slot
from polylip.client.segmentation import Segment
from polylip.client.source_watch import SourceWatch

FRAME_MS = 40


class Heard:
    """In place of the measurement: what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[tuple[int, int]]]] = []

    def hear(self, segment: Segment, slots: list[Slot], choice: Any) -> None:
        self.calls.append((segment.id, [(slot.index, len(slot.faces)) for slot in slots]))


def segment(name: str, start_ms: int, end_ms: int) -> Segment:
    return Segment(0, start_ms, end_ms, np.zeros(0, np.float32), id=name)


async def test_the_frames_of_a_segment_are_compared_once_all_its_faces_are_known():
    heard, ring = Heard(), FrameRing(25, Pulse())
    watch = SourceWatch(heard)
    face = (Face((0.0, 0.0, 1.0, 1.0), 1),)
    for index in range(20):
        await ring.add(index * FRAME_MS)
    ring.settle([face] * 5)
    gone = ring.take(2, float("inf"))
    watch.add(segment("a", FRAME_MS, 8 * FRAME_MS), None, gone)
    watch.add(segment("b", 9 * FRAME_MS, 11 * FRAME_MS), None, gone)
    await watch.measure(ring)
    assert not heard.calls, "faces of frames 5 to 7 are not known"
    watch.take(ring.take(3, float("inf")))
    ring.settle([face] * 4)
    await watch.measure(ring)
    assert heard.calls == [("a", [(index, 1) for index in range(1, 8)])], "frame 0 is before it"
    ring.close()
    await watch.measure(ring)
    assert heard.calls[1:] == [("b", [])], "no face will ever be known there"
