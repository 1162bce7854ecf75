"""Frames to face boxes: FRAMES -> BOXES, SCORES. Tensors in config.pbtxt; the work is in the engine."""

from polylip.serving import adapter
from polylip.serving.engines import Detector, load_engine


class TritonPythonModel:
    def initialize(self, args):
        self.engine: Detector = load_engine("detect", adapter.parameters(args), adapter.version_dir(args))

    def execute(self, requests):
        return adapter.answer_together("detect", self._detect, ("FRAMES",), requests)

    def _detect(self, frames):
        boxes, scores = self.engine.detect(frames)
        return {"BOXES": boxes, "SCORES": scores}
