"""Text to text: SOURCE_TEXT -> TARGET_TEXT. Tensors in config.pbtxt; the work is in the engine.

A segment that came with a status other than "ok" is passed on untranslated, with that status.
"""

from polylip.serving import adapter, steps
from polylip.serving.engines import Passage, Status, Translation, Translator, load_engine
from polylip.serving.metrics import SEGMENTS, WORK, ModelMetrics


class TritonPythonModel:
    metrics = ModelMetrics("translate")

    def initialize(self, args):
        self.engine: Translator = load_engine("translate", adapter.parameters(args), adapter.version_dir(args))
        self.metrics.start(args["model_version"], adapter.engine_name(args), (*WORK, SEGMENTS), Status)

    def execute(self, requests):
        return adapter.answer_rows("translate", _read, self._translate, requests)

    def _translate(self, jobs):
        asked = [(job, stream) for job, stream in jobs if isinstance(job, Passage)]
        with self.metrics.stage(len(asked)):
            done = iter(steps.translate(self.engine, [job for job, _ in asked], [stream for _, stream in asked]))
        translations = [next(done) if isinstance(job, Passage) else job for job, _ in jobs]
        for translation in translations:
            self.metrics.segment(translation.status)
        return [_outputs(translation) for translation in translations]


def _read(request):
    return _job(request), adapter.stream_id(request)


def _job(request):
    status = Status(adapter.text(request, "STATUS", Status.OK))
    if status is not Status.OK:
        return Translation("", status, adapter.text(request, "STATUS_MESSAGE"))
    return Passage(
        adapter.text(request, "SOURCE_TEXT"),
        adapter.text(request, "DETECTED_LANGUAGE"),
        adapter.text(request, "TARGET_LANGUAGE"),
        adapter.text(request, "GLOSSARY"),
        request.is_cancelled,
    )


def _outputs(translation):
    return {
        "TARGET_TEXT": translation.text,
        "STATUS": translation.status,
        "STATUS_MESSAGE": translation.message,
    }
