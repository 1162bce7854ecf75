"""Frames to face boxes: FRAMES -> BOXES, SCORES. Tensors in config.pbtxt; the work is in the engine."""

from polylip.serving import adapter
from polylip.serving.engines import Detector, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Detector = load_engine("detect", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer("detect", self._detect, requests)

    def _detect(self, request):
        boxes, scores = self.engine.detect(adapter.array(request, "FRAMES"))
        return {"BOXES": boxes, "SCORES": scores}
