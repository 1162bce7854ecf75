"""Text to speech, decoupled: a stream of AUDIO_CHUNK, then the final flag. The texts ride through.

Where there is nothing to say, or no more, an empty chunk with a status tells why.
"""

import triton_python_backend_utils as pb_utils

from polylip.serving import adapter, steps
from polylip.serving.checks import require_audio
from polylip.serving.engines import Status, load_engine
from polylip.serving.isochrony import Slot, parse_fit
from polylip.serving.speaking import Line, Speaking
from polylip.serving.turns import Turn, Turns

TEXTS = ("TARGET_TEXT", "SOURCE_TEXT", "DETECTED_LANGUAGE")


class TritonPythonModel:
    def initialize(self, args):
        self.speaking = Speaking(load_engine("synthesize", adapter.parameters(args), adapter.version_dir(args)))
        self.turns = Turns()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                status = Status(adapter.text(request, "STATUS") or Status.OK)
                message = adapter.text(request, "STATUS_MESSAGE")
                line = _line(request, sender)
                spoken = steps.speak(self.speaking, line, status, message)
                texts = {name: adapter.text(request, name) for name in TEXTS}
                self.turns.add(Turn(_send(spoken, texts, sender), _finish(sender), line.stream))
            except Exception as error:  # the process must outlive any request
                _finish(sender)(error)

    def finalize(self):
        self.turns.close()


def _line(request, sender):
    voice = adapter.row(request, "VOICE")
    return Line(
        adapter.text(request, "TARGET_TEXT"),
        adapter.text(request, "TARGET_LANGUAGE"),
        require_audio(voice, "VOICE") if voice is not None and adapter.flag(request, "VOICE_CONSENT") else None,
        adapter.text(request, "STREAM_ID"),
        Slot(
            adapter.optional_int(request, "SLOT_MS"),
            adapter.optional_int(request, "LIMIT_MS"),
            parse_fit(adapter.text(request, "FIT")),
        ),
        sender.is_cancelled,
    )


def _send(spoken, texts, sender):
    for item in spoken:
        sender.send(adapter.row_response(item.tensors | texts))
        yield item.chunk.seconds


def _finish(sender):
    def finish(error):
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is None:
            sender.send(flags=final)
        else:  # in one message: an ensemble whose step sends them apart never ends (tritonserver 2.51)
            sender.send(adapter.error_response(error, "synthesize"), flags=final)

    return finish
