"""Text to text: SOURCE_TEXT -> TARGET_TEXT. Tensors in config.pbtxt; the work is in the engine."""

from polylip.serving import adapter
from polylip.serving.engines import Translator, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Translator = load_engine("translate", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer("translate", self._translate, requests)

    def _translate(self, request):
        source = adapter.text(request, "DETECTED_LANGUAGE")
        target = adapter.text(request, "TARGET_LANGUAGE")
        return {"TARGET_TEXT": self.engine.translate(adapter.text(request, "SOURCE_TEXT"), source, target)}
