"""Boxes on key frames to tracks on every frame, one tracker per sequence.

Triton tells a model nothing when a sequence expires, so states carry their own time-to-live.
"""

import time

import triton_python_backend_utils as pb_utils

from polylip.serving import adapter
from polylip.serving.tracking import Tracker, TrackerPool


class TritonPythonModel:
    def initialize(self, args):
        self.pool = TrackerPool(ttl_s=float(adapter.parameters(args)["state_ttl_s"]))

    def execute(self, requests):
        self.pool.sweep(time.monotonic())
        return adapter.answer("track", self._track, requests)

    def _track(self, request):
        sequence, flags = request.correlation_id(), request.flags()
        # Id 0 is a model warm-up: a state of its own that nothing keeps.
        start = bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
        tracker = self.pool.get(sequence, start, time.monotonic()) if sequence else Tracker()
        try:
            tracks = tracker.update(
                adapter.array(request, "BOXES"),
                adapter.array(request, "SCORES"),
                adapter.array(request, "KEYFRAME_MS"),
                adapter.array(request, "QUERY_MS"),
            )
        finally:
            if flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self.pool.end(sequence)
        return {
            "TRACK_BOXES": tracks.boxes,
            "TRACK_IDS": tracks.ids,
            "TRACK_SCORES": tracks.scores,
            "TRACK_SURPRISE": tracks.surprise,
        }
