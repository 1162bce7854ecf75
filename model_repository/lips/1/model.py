"""Mel windows and faces to mouths, for the profiles that run it in the Python backend: MEL, FACES -> MOUTHS."""

from polylip.serving import adapter
from polylip.serving.engines import Lips, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Lips = load_engine("lips", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer("lips", self._render, requests)

    def _render(self, request):
        return {"MOUTHS": self.engine.render(adapter.array(request, "MEL"), adapter.array(request, "FACES"))}
