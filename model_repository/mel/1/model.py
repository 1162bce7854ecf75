"""Audio to the mel windows of Wav2Lip: AUDIO, FRAME_OFFSETS_MS -> MEL."""

from polylip.serving import adapter
from polylip.serving.checks import require_audio
from polylip.serving.mel import mel_windows


class TritonPythonModel:
    def execute(self, requests):
        return adapter.answer("mel", self._mel, requests)

    def _mel(self, request):
        audio = require_audio(adapter.array(request, "AUDIO"), "AUDIO")
        return {"MEL": mel_windows(audio, adapter.array(request, "FRAME_OFFSETS_MS"))}
