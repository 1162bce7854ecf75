"""Text to speech, decoupled: a stream of AUDIO_CHUNK, then the final flag. The texts ride through.

Where there is nothing to say, or no more, an empty chunk with a status tells why. Where a picture rides along as RIDE
(`dub`), all comes in one answer.
"""

from functools import partial

import numpy as np

from polylip.serving import adapter, steps
from polylip.serving.checks import require_audio
from polylip.serving.engines import Status, load_engine
from polylip.serving.isochrony import Slot, parse_fit
from polylip.serving.metrics import AUDIO, FIRST_SOUND, SEGMENTS, WORK, ModelMetrics
from polylip.serving.speaking import Line, Speaking
from polylip.serving.turns import Turn, Turns

TEXTS = ("TARGET_TEXT", "SOURCE_TEXT", "DETECTED_LANGUAGE")
FAMILIES = (*WORK, FIRST_SOUND, AUDIO, SEGMENTS)
NO_RIDE = np.zeros(0, np.object_)


class TritonPythonModel:
    metrics = ModelMetrics("synthesize")

    def initialize(self, args):
        self.speaking = Speaking(load_engine("synthesize", adapter.parameters(args), adapter.version_dir(args)))
        self.turns = Turns()
        self.metrics.start(args["model_version"], adapter.engine_name(args), FAMILIES, Status)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                status = Status(adapter.text(request, "STATUS") or Status.OK)
                line = _line(request, sender)
                spoken = steps.speak(self.speaking, line, status, adapter.text(request, "STATUS_MESSAGE"))
                spoken = self.metrics.each(spoken, lambda item: item.chunk.seconds)
                texts = {name: adapter.text(request, name) for name in TEXTS}
                ride, kept = adapter.row(request, "RIDE"), []
                rest = texts | {"RIDE": NO_RIDE if ride is None else ride}
                send, last = partial(_send, sender, rest), None
                if ride is not None:
                    send, last = kept.append, partial(_whole, kept, rest)
                end = adapter.finish(sender, "synthesize", line.stream, last)
                self.turns.add(Turn(self._work(spoken, send), end, line.stream))
            except Exception as error:  # the process must outlive any request
                adapter.finish(sender, "synthesize", adapter.stream_id(request))(error)

    def finalize(self):
        self.turns.close()

    def _work(self, spoken, send):
        for item in spoken:
            send(item)
            yield item.chunk.seconds
        self.metrics.segment(item.status)


def _line(request, sender):
    voice = adapter.row(request, "VOICE")
    slot_ms, limit_ms = (adapter.optional_int(request, name) or None for name in ("SLOT_MS", "LIMIT_MS"))
    return Line(
        adapter.text(request, "TARGET_TEXT"),
        adapter.text(request, "TARGET_LANGUAGE"),
        require_audio(voice, "VOICE") if voice is not None and adapter.flag(request, "VOICE_CONSENT") else None,
        adapter.text(request, "STREAM_ID"),
        Slot(slot_ms, limit_ms, parse_fit(adapter.text(request, "FIT"))),
        sender.is_cancelled,
    )


def _send(sender, rest, item):
    sender.send(adapter.row_response(item.tensors | rest))


def _whole(kept, rest):
    return steps.joined(kept).tensors | rest
