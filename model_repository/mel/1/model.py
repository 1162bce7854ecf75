"""Audio to the mel windows of Wav2Lip: AUDIO, FRAME_OFFSETS_MS -> MEL."""

from polylip.serving import adapter
from polylip.serving.checks import require_audio
from polylip.serving.mel import SAMPLE_RATE_HZ, mel_windows
from polylip.serving.metrics import AUDIO, WORK, ModelMetrics


class TritonPythonModel:
    metrics = ModelMetrics("mel")

    def initialize(self, args):
        self.metrics.start(args["model_version"], adapter.engine_name(args), (*WORK, AUDIO))

    def execute(self, requests):
        return adapter.answer("mel", self._mel, requests)

    def _mel(self, request):
        audio = require_audio(adapter.array(request, "AUDIO"), "AUDIO")
        offsets_ms = adapter.array(request, "FRAME_OFFSETS_MS")
        with self.metrics.stage(offsets_ms.size, audio_s=len(audio) / SAMPLE_RATE_HZ):
            return {"MEL": mel_windows(audio, offsets_ms)}
