"""Frames to face boxes: FRAMES -> BOXES, SCORES. Tensors in config.pbtxt; the work is in the engine."""

from polylip.serving import adapter
from polylip.serving.engines import Detector, load_engine
from polylip.serving.metrics import WORK, ModelMetrics


class TritonPythonModel:
    metrics = ModelMetrics("detect")

    def initialize(self, args):
        self.engine: Detector = load_engine("detect", adapter.parameters(args), adapter.version_dir(args))
        self.metrics.start(args["model_version"], adapter.engine_name(args), WORK)

    def execute(self, requests):
        return adapter.answer_together("detect", self._detect, ("FRAMES",), requests)

    def _detect(self, frames):
        with self.metrics.stage(len(frames)):
            boxes, scores = self.engine.detect(frames)
        return {"BOXES": boxes, "SCORES": scores}
