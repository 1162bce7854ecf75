"""Lets streams of `dub` in and checks what they send: content that cannot be used is a status, not an error."""

import time

import numpy as np

from polylip.serving import adapter
from polylip.serving.dub.admission import Admission, Ask
from polylip.serving.dub.codes import Refusal, RefusedError
from polylip.serving.dub.request import Asked, check
from polylip.serving.metrics import DEGRADE, REFUSED, SLOTS, STREAMS, ModelMetrics
from polylip.serving.sweeping import Sweeping

SWEEP_S = 1.0  # idle streams give back their slots also when nobody asks
FAMILIES = (*STREAMS, SLOTS, REFUSED, DEGRADE)
TEXTS = ("SOURCE_LANGUAGE", "TARGET_LANGUAGE", "CONTEXT", "KNOWN_TEXT", "GLOSSARY", "FIT")


class TritonPythonModel:
    metrics = ModelMetrics("gate")

    def initialize(self, args):
        self.admission = Admission.of_server(adapter.parameters(args))
        self.metrics.start(args["model_version"], adapter.engine_name(args), FAMILIES, Refusal)
        self.metrics.slots(self.admission.slots)
        self.sweeping = Sweeping(self.metrics, self.admission, SWEEP_S)

    def execute(self, requests):
        responses = adapter.answer("gate", self._let_in, requests)
        self.sweeping.look()
        return responses

    def finalize(self):
        self.sweeping.stop()

    def _let_in(self, request):
        parameters = adapter.request_parameters(request)
        ask = _ask(request, parameters)
        try:
            self.admission.admit(ask, time.monotonic())
        except RefusedError as refused:
            if ask.start:
                self.metrics.refused(refused.code)
            raise
        self.metrics.degraded(parameters)
        stream = np.array([[str(ask.sequence).encode()]], np.object_)
        own = {"STREAM_ID": stream, "MOVE_MS": np.array([self.admission.move_ms], np.int32)}
        return check(_asked(request)).tensors | own


def _ask(request, parameters):
    start, end = adapter.sequence_ends(request)
    return Ask(request.correlation_id(), start, end, request.timeout(), int(parameters.get("replaces", 0)))


def _asked(request):
    return Asked(
        adapter.array(request, "AUDIO"),
        adapter.array(request, "FRAMES").tolist(),
        adapter.array(request, "FRAME_MS"),
        adapter.optional_int(request, "AUDIO_MS"),
        {name: _text(request, name) for name in TEXTS},
        adapter.optional_array(request, "VOICE"),
        adapter.flag(request, "VOICE_CONSENT"),
        adapter.optional_int(request, "SLOT_MS"),
        adapter.optional_int(request, "LIMIT_MS"),
        _text(request, "MOUTH_FORMAT"),
    )


def _text(request, name):
    """What is not UTF-8 must not fail the request: `join` has to see START and END."""
    value = adapter.optional_array(request, name)
    return "" if value is None else value.reshape(-1)[0].decode("utf-8", "replace")
