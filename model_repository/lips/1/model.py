"""Mel windows and faces to mouths, for the profiles that run it in the Python backend: MEL, FACES -> MOUTHS."""

from polylip.serving import adapter
from polylip.serving.engines import Lips, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Lips = load_engine("lips", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer_together("lips", self._render, ("MEL", "FACES"), requests)

    def _render(self, mel, faces):
        return {"MOUTHS": self.engine.render(mel, faces)}
