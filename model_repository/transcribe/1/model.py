"""Speech to text: AUDIO -> SOURCE_TEXT and its words. Tensors in config.pbtxt; the work is in the engine."""

import numpy as np

from polylip.serving import adapter
from polylip.serving.checks import require_audio
from polylip.serving.engines import Transcriber, Transcript, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Transcriber = load_engine("transcribe", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer("transcribe", self._transcribe, requests)

    def _transcribe(self, request):
        language = adapter.text(request, "SOURCE_LANGUAGE")
        known = adapter.text(request, "KNOWN_TEXT")
        if known:
            heard = Transcript(known, self.engine.resolve_language(language), confidence=1.0)
        else:
            audio = require_audio(adapter.array(request, "AUDIO"), "AUDIO")
            heard = self.engine.transcribe(audio, language, adapter.text(request, "CONTEXT"))
        return {
            "SOURCE_TEXT": heard.text,
            "DETECTED_LANGUAGE": heard.language,
            "WORDS": list(heard.words),
            "WORD_SPANS_MS": np.array(heard.spans_ms, dtype=np.int32).reshape(-1, 2),
            "CONFIDENCE": np.array([heard.confidence], dtype=np.float32),
        }
