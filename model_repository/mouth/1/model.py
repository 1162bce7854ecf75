"""New mouths for the frames of a segment, by `lipsync`. A failure is a status: the voice is there all the same."""

import numpy as np

from polylip.serving import adapter, steps
from polylip.serving.crops import FACE_SIZE
from polylip.serving.dub import calls, mouths
from polylip.serving.dub.codes import DubStatus
from polylip.serving.dub.decoding import Decoder, Wanted
from polylip.serving.errors import EngineError
from polylip.serving.lips_audio import at_16k
from polylip.serving.metrics import SEGMENTS, WORK, ModelMetrics

NONE = np.zeros((0, FACE_SIZE, FACE_SIZE, 3), np.uint8)


class TritonPythonModel:
    metrics = ModelMetrics("mouth")

    def initialize(self, args):
        self.decoder = Decoder()
        self.metrics.start(args["model_version"], adapter.engine_name(args), (*WORK, SEGMENTS), DubStatus)

    def execute(self, requests):
        return adapter.answer("mouth", self._mouth, requests)

    def finalize(self):
        self.decoder.close()

    def _mouth(self, request):
        frames, boxes = adapter.array(request, "WANTED_FRAMES"), adapter.array(request, "WANTED_BOXES")
        status, message = DubStatus(adapter.text(request, "JOINED_STATUS")), adapter.text(request, "JOINED_MESSAGE")
        try:
            made = self._render(request, frames, boxes) if frames.size else NONE
            is_jpeg = adapter.text(request, "MOUTH_FORMAT") == "jpeg"
            raw, pictures = (NONE, mouths.as_jpeg(made)) if is_jpeg else (made, [])
        except EngineError as error:
            status, message = DubStatus.PICTURE_FAILED, steps.describe(error)[1]
            frames, boxes, raw, pictures = frames[:0], boxes[:0], NONE, []
        except ValueError as error:
            status, message = DubStatus.BAD_FRAMES, str(error)
            frames, boxes, raw, pictures = frames[:0], boxes[:0], NONE, []
        self.metrics.segment(status)
        return {
            "MOUTHS": raw,
            "MOUTHS_JPEG": np.array(pictures, np.object_),
            "MOUTH_FRAMES": frames,
            "MOUTH_BOXES": boxes,
            "STATUS": status,
            "MESSAGE": message,
        }

    def _render(self, request, frames, boxes):
        data, offsets_ms = adapter.array(request, "WANTED"), adapter.array(request, "WANTED_OFFSETS_MS")
        with self.metrics.stage(len(frames)):
            faces = [self._face(*wanted) for wanted in zip(frames, data, boxes.tolist(), strict=True)]
        speech = at_16k(adapter.array(request, "AUDIO_OUT"), adapter.optional_int(request, "SAMPLE_RATE_HZ"))
        return mouths.render(speech, offsets_ms, np.stack(faces), _lips)

    def _face(self, index, data, box):
        try:
            return self.decoder.decode(Wanted(data, tuple(box), FACE_SIZE))
        except ValueError as error:
            raise ValueError(f"frame {index} {error}") from None


def _lips(audio, offsets_ms, faces):
    inputs = {"AUDIO": audio, "FRAME_OFFSETS_MS": offsets_ms, "FACES": faces}
    return calls.call("lipsync", inputs, ("MOUTHS",))["MOUTHS"]
