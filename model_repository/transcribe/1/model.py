"""Speech to text: AUDIO -> SOURCE_TEXT and its words. Tensors in config.pbtxt; the work is in the engine."""

from dataclasses import dataclass

import numpy as np

from polylip.serving import adapter, steps
from polylip.serving.checks import require_audio
from polylip.serving.engines import Status, Transcriber, Utterance, load_engine
from polylip.serving.mel import SAMPLE_RATE_HZ
from polylip.serving.metrics import AUDIO, DEGRADE, SEGMENTS, WORK, ModelMetrics


class TritonPythonModel:
    metrics = ModelMetrics("transcribe")

    def initialize(self, args):
        self.engine: Transcriber = load_engine("transcribe", adapter.parameters(args), adapter.version_dir(args))
        families = *WORK, AUDIO, SEGMENTS, DEGRADE
        self.metrics.start(args["model_version"], adapter.engine_name(args), families, Status)

    def execute(self, requests):
        return adapter.answer_rows("transcribe", _read, self._transcribe, requests)

    def _transcribe(self, jobs):
        asked = [job for job in jobs if not job.known]
        with self.metrics.stage(len(asked), audio_s=sum(len(job.utterance.audio) for job in asked) / SAMPLE_RATE_HZ):
            done = iter(steps.transcribe(self.engine, [job.utterance for job in asked], [job.stream for job in asked]))
        heard = [steps.known(self.engine, j.known, j.utterance.language) if j.known else next(done) for j in jobs]
        for job, transcript in zip(jobs, heard, strict=True):
            self.metrics.segment(transcript.status)
            self.metrics.degraded(job.parameters)
        return [_outputs(transcript) for transcript in heard]


@dataclass(frozen=True)
class _Job:
    utterance: Utterance
    known: str  # its text, where the caller knows it
    stream: str
    parameters: dict


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
    return _Job(utterance, known, adapter.stream_id(request), adapter.request_parameters(request))


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
