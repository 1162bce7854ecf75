"""Speech to text: AUDIO -> SOURCE_TEXT and its words. Tensors in config.pbtxt; the work is in the engine."""

import numpy as np

from polylip.serving import adapter, steps
from polylip.serving.checks import require_audio
from polylip.serving.engines import Transcriber, Utterance, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Transcriber = load_engine("transcribe", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer_rows("transcribe", _read, self._transcribe, requests)

    def _transcribe(self, jobs):
        heard = iter(steps.transcribe(self.engine, [utterance for utterance, known in jobs if not known]))
        return [
            _outputs(steps.known(self.engine, known, utterance.language) if known else next(heard))
            for utterance, known in jobs
        ]


def _read(request):
    known = adapter.text(request, "KNOWN_TEXT")
    audio = adapter.row(request, "AUDIO")
    utterance = Utterance(
        audio if known else require_audio(audio, "AUDIO"),
        adapter.text(request, "SOURCE_LANGUAGE"),
        adapter.text(request, "CONTEXT"),
        request.is_cancelled,
        adapter.flag(request, "MORE"),
    )
    return utterance, known


def _outputs(heard):
    return {
        "SOURCE_TEXT": heard.text,
        "DETECTED_LANGUAGE": heard.language,
        "WORDS": list(heard.words),
        "WORD_SPANS_MS": np.array(heard.spans_ms, dtype=np.int32).reshape(-1, 2),
        "CONFIDENCE": np.array([heard.confidence], dtype=np.float32),
        "STATUS": heard.status,
        "STATUS_MESSAGE": heard.message,
    }
