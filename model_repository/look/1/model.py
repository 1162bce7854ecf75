"""Key frames of a segment to face boxes, by `detect`. A failure is a status: the voice must not be lost with it."""

import numpy as np

from polylip.serving import adapter, steps
from polylip.serving.dub import calls, riding
from polylip.serving.dub.codes import DubStatus
from polylip.serving.dub.decoding import Decoder, Wanted
from polylip.serving.dub.looking import detect, key_frames
from polylip.serving.errors import EngineError
from polylip.serving.metrics import WORK, ModelMetrics

TEXTS = ("MOUTH_FORMAT", "SPEECH_STATUS", "SPEECH_MESSAGE")


class TritonPythonModel:
    metrics = ModelMetrics("look")

    def initialize(self, args):
        self.decoder = Decoder()
        self.metrics.start(args["model_version"], adapter.engine_name(args), WORK)

    def execute(self, requests):
        return adapter.answer("look", self._look, requests)

    def finalize(self):
        self.decoder.close()

    def _look(self, request):
        frame_ms = adapter.array(request, "FRAME_MS")
        frames = adapter.array(request, "FRAMES").tolist() if frame_ms.size else []
        standing = DubStatus(adapter.text(request, "PICTURE_STATUS")), adapter.text(request, "PICTURE_MESSAGE")
        keys = key_frames(frame_ms)
        try:
            boxes, scores = detect(self._decode(frames, keys), _detect)
        except EngineError as error:
            standing = DubStatus.PICTURE_FAILED, steps.describe(error)[1]
        except ValueError as error:
            standing = DubStatus.BAD_FRAMES, str(error)
        if standing[0] is not DubStatus.OK:
            frames, frame_ms, keys = [], frame_ms[:0], []
            boxes, scores = detect([], _detect)
        numbers = {name: adapter.optional_int(request, name) or 0 for name in ("AUDIO_MS", "MOVE_MS", "FACE_ID")}
        arrays = {"BOXES": boxes, "SCORES": scores, "KEYFRAME_MS": frame_ms[keys], "FRAME_MS": frame_ms}
        arrays |= {name: np.array([value], np.int64) for name, value in numbers.items()}
        texts = {name: adapter.text(request, name) for name in TEXTS}
        texts |= {"PICTURE_STATUS": standing[0], "PICTURE_MESSAGE": standing[1]}
        return {"RIDE": np.array([riding.pack(arrays, texts, frames)], np.object_)}

    def _decode(self, frames, keys):
        pictures = []
        with self.metrics.stage(len(keys)):
            for index in keys:
                try:
                    pictures.append(self.decoder.decode(Wanted(frames[index])))
                except ValueError as error:
                    raise ValueError(f"frame {index} {error}") from None
        return pictures


def _detect(frames):
    found = calls.call("detect", {"FRAMES": frames}, ("BOXES", "SCORES"))
    return found["BOXES"], found["SCORES"]
