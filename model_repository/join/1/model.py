"""Where the branches of `dub` meet, one set of tracks per sequence. Every failure before it is a status."""

import time

import numpy as np

from polylip.serving import adapter
from polylip.serving.dub import riding
from polylip.serving.dub.joining import StreamTracks, join
from polylip.serving.metrics import PICTURE, STREAMS, WORK, ModelMetrics, span_s
from polylip.serving.sweeping import Sweeping
from polylip.serving.tracking import TrackerPool, faceless

SWEEP_S = 5.0  # streams that nobody ends are given up also when no other one asks
TEXTS = ("SOURCE_TEXT", "TARGET_TEXT", "DETECTED_LANGUAGE")
NUMBERS = ("SAMPLE_RATE_HZ", "SPEECH_RATE", "VOICE_CLONED")


class TritonPythonModel:
    metrics = ModelMetrics("join")

    def initialize(self, args):
        self.pool = TrackerPool(StreamTracks, ttl_s=float(adapter.parameters(args)["state_ttl_s"]))
        self.metrics.start(args["model_version"], adapter.engine_name(args), (*WORK, *PICTURE, *STREAMS))
        self.sweeping = Sweeping(self.metrics, self.pool, SWEEP_S)

    def execute(self, requests):
        responses = adapter.answer("join", self._join, requests)
        self.sweeping.look()
        return responses

    def finalize(self):
        self.sweeping.stop()

    def _join(self, request):
        sequence, (start, end) = request.correlation_id(), adapter.sequence_ends(request)
        stream = self.pool.get(sequence, start, time.monotonic())
        ride = riding.unpack(adapter.row(request, "RIDE").tolist())
        scores, frame_ms = ride.arrays["SCORES"], ride.arrays["FRAME_MS"]
        try:
            with self.metrics.stage(len(frame_ms), video_s=span_s(frame_ms)):
                tracks = stream.update(ride.arrays["BOXES"], scores, ride.arrays["KEYFRAME_MS"], frame_ms)
            self.metrics.key_frames(len(scores), faceless(scores))
            self.metrics.faces_lost(self.pool.lost(sequence, tracks))
        finally:
            if end:
                self.pool.end(sequence)
        audio, rate_hz = adapter.row(request, "AUDIO_CHUNK"), adapter.optional_int(request, "SAMPLE_RATE_HZ")
        spoken = adapter.text(request, "STATUS"), adapter.text(request, "STATUS_MESSAGE")
        return {
            "AUDIO_OUT": audio,
            **{f"{name}_OUT": adapter.row(request, name) for name in NUMBERS},
            **{f"{name}_OUT": adapter.text(request, name) for name in TEXTS},
            "MOVE_MS": ride.arrays["MOVE_MS"].astype(np.int32),
            **join(ride, tracks, audio.size * 1000 / rate_hz, spoken),
        }
