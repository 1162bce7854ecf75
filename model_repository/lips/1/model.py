"""Mel windows and faces to mouths, for the profiles that run it in the Python backend: MEL, FACES -> MOUTHS."""

from polylip.serving import adapter
from polylip.serving.engines import Lips, load_engine
from polylip.serving.metrics import WORK, ModelMetrics


class TritonPythonModel:
    metrics = ModelMetrics("lips")

    def initialize(self, args):
        self.engine: Lips = load_engine("lips", adapter.parameters(args), adapter.version_dir(args))
        self.metrics.start(args["model_version"], adapter.engine_name(args), WORK)

    def execute(self, requests):
        return adapter.answer_together("lips", self._render, ("MEL", "FACES"), requests)

    def _render(self, mel, faces):
        with self.metrics.stage(len(faces)):
            return {"MOUTHS": self.engine.render(mel, faces)}
