"""Boxes on key frames to tracks on every frame, one tracker per sequence.

Triton tells a model nothing when a sequence expires, so states carry their own time-to-live.
"""

import time

from polylip.serving import adapter
from polylip.serving.metrics import PICTURE, STREAMS, WORK, ModelMetrics, span_s
from polylip.serving.sweeping import Sweeping
from polylip.serving.tracking import Tracker, TrackerPool, faceless

SWEEP_S = 5.0  # streams that nobody ends are given up also when no other one asks


class TritonPythonModel:
    metrics = ModelMetrics("track")

    def initialize(self, args):
        self.pool = TrackerPool(Tracker, ttl_s=float(adapter.parameters(args)["state_ttl_s"]))
        self.metrics.start(args["model_version"], adapter.engine_name(args), (*WORK, *PICTURE, *STREAMS))
        self.sweeping = Sweeping(self.metrics, self.pool, SWEEP_S)

    def execute(self, requests):
        self.sweeping.look()
        responses = adapter.answer("track", self._track, requests)
        self.sweeping.look()
        return responses

    def finalize(self):
        self.sweeping.stop()

    def _track(self, request):
        sequence, (start, end) = request.correlation_id(), adapter.sequence_ends(request)
        # Id 0 is a model warm-up: a state of its own that nothing keeps.
        tracker = self.pool.get(sequence, start, time.monotonic()) if sequence else Tracker()
        try:
            scores, query_ms = adapter.array(request, "SCORES"), adapter.array(request, "QUERY_MS")
            with self.metrics.stage(len(query_ms), video_s=span_s(query_ms)):
                tracks = tracker.update(
                    adapter.array(request, "BOXES"), scores, adapter.array(request, "KEYFRAME_MS"), query_ms
                )
            self.metrics.key_frames(len(scores), faceless(scores))
            self.metrics.faces_lost(self.pool.lost(sequence, tracks))
        finally:
            if end:
                self.pool.end(sequence)
        return {
            "TRACK_BOXES": tracks.boxes,
            "TRACK_IDS": tracks.ids,
            "TRACK_SCORES": tracks.scores,
            "TRACK_SURPRISE": tracks.surprise,
        }
