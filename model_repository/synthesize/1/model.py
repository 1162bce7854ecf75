"""Text to speech, decoupled: a stream of AUDIO_CHUNK, then the final flag. The texts ride through.

An empty text gives one response with an empty chunk, so that the caller always gets the texts.
"""

import numpy as np
import triton_python_backend_utils as pb_utils

from polylip.serving import adapter
from polylip.serving.checks import require_audio
from polylip.serving.engines import SpeechChunk, Voice, load_engine
from polylip.serving.isochrony import Slot

NOTHING_TO_SAY = SpeechChunk(np.zeros(0, dtype=np.float32), sample_rate_hz=16_000, rate=1.0)


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Voice = load_engine("synthesize", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._speak(request, sender)
            except Exception as error:  # the process must outlive any request
                sender.send(adapter.error_response(error, "synthesize"))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _speak(self, request, sender):
        texts = {name: adapter.text(request, name) for name in ("TARGET_TEXT", "SOURCE_TEXT", "DETECTED_LANGUAGE")}
        voice = adapter.optional_array(request, "VOICE")
        chunks = self.engine.speak(
            texts["TARGET_TEXT"],
            adapter.text(request, "TARGET_LANGUAGE"),
            None if voice is None else require_audio(voice, "VOICE"),
            Slot(adapter.optional_int(request, "SLOT_MS"), adapter.optional_int(request, "LIMIT_MS")),
        )
        sent = 0
        for chunk in chunks:
            if request.is_cancelled():
                chunks.close()
                return
            sender.send(_response(chunk, texts))
            sent += 1
        if not sent:
            sender.send(_response(NOTHING_TO_SAY, texts))


def _response(chunk, texts):
    return adapter.response(
        {
            "AUDIO_CHUNK": chunk.audio,
            "SAMPLE_RATE_HZ": np.array([chunk.sample_rate_hz], dtype=np.int32),
            "SPEECH_RATE": np.array([chunk.rate], dtype=np.float32),
            **texts,
        }
    )
