"""The engines of a profile loaded into this process and called directly: no server, no batches, FP32 networks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.pending import Outputs, Pending
from polylip.client.unary import UnaryCalls
from polylip.client.wire import Inputs, SequencePosition
from polylip.perf.speech_triton import engine_parameters
from polylip.serving import steps
from polylip.serving.dub.request import ANALYSIS_HEIGHT, ANALYSIS_WIDTH
from polylip.serving.engines import (
    Detector,
    Lips,
    Passage,
    Status,
    Transcriber,
    Transcript,
    Translation,
    Translator,
    Utterance,
    load_engine,
)
from polylip.serving.mel import MEL_BANDS, MEL_COLUMNS
from polylip.serving.runtime import find_model_repository
from polylip.serving.speaking import Line, Speaking
from polylip.serving.tracking import Tracker

FULL_PRECISION = {"precision": "fp32", "compute_type": "float32"}  # by the parameter that engines call it
DETECTOR_THREADS = 1  # of OpenCV: what both detectors set in a process of their own
FACE_PX = 96
WARM_S = 0.5  # of silence, which the recogniser hears before the clock starts
SPEECH_RATE_HZ = 16_000

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


class Step(StrEnum):
    """What is done one after another, in order."""

    DECODE = "decode"
    SEGMENT = "segment"
    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"
    SYNTHESIZE = "synthesize"
    PLACE = "place"  # speech on the timeline, resampled and levelled
    LOOK = "look"  # at every frame: cuts, mouths, small pictures for the detector
    DETECT = "detect"
    TRACK = "track"
    CUT = "cut"  # faces out of the frames
    MEL = "mel"
    LIPS = "lips"
    BLEND = "blend"
    MIX = "mix"
    ENCODE = "encode"  # and mux, to the closed file
    WAIT = "wait"  # for the clip, where it arrives in real time


@dataclass(frozen=True)
class StepSpan:
    """One step at work, in seconds since the run began."""

    step: Step
    start_s: float
    end_s: float


class Clock:
    """Gives every moment to exactly one step: an inner one stops the one around it."""

    def __init__(self) -> None:
        self._began = self._since = time.perf_counter()
        self._open: list[Step] = []
        self.spans: list[StepSpan] = []

    @property
    def now_s(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self._began

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """All that is done inside, unless another step is named there."""
        self._note()
        self._open.append(step)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def wait_until(self, since_s: float) -> None:
        """Sleep up to a time since the run began."""
        with self.step(Step.WAIT):
            time.sleep(max(0.0, since_s - self.now_s))

    @property
    def seconds(self) -> dict[str, float]:
        """By step, in order."""
        return {str(step): sum(s.end_s - s.start_s for s in self.spans if s.step is step) for step in Step}

    def _note(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.spans.append(StepSpan(self._open[-1], self._since - self._began, now - self._began))
        self._since = now


class Engines:
    """Those of a profile, loaded and warm, and how often each was called."""

    def __init__(self, profile: str, repository: Path | None = None, *, fp32: bool = True) -> None:
        """`repository`: another one than the checkout's; `fp32`: in the place of what the profile computes in.

        Raises ValueError where a model has no engine to call.
        """

        def load(model: str) -> Any:
            parameters = engine_parameters(root, profile, model)
            version_dir = str(root / model / "1")
            return load_engine(model, full_precision(parameters) if fp32 else parameters, version_dir)

        root, self._threads = repository or find_model_repository(), cv2.getNumThreads()
        self.transcriber: Transcriber = load("transcribe")
        self.translator: Translator = load("translate")
        self.speaking = Speaking(load("synthesize"))
        self.detector: Detector = load("detect")
        self._lips: Lips = load("lips")
        cv2.setNumThreads(self._threads)  # detectors change it, and would take it from the blending
        self.calls: Counter[str] = Counter()
        self._warm()
        self.calls.clear()

    def transcribe(self, audio: Float32, language: str) -> Transcript:
        """float32 (samples,) at 16 kHz; language ISO 639-1 or auto."""
        self.calls["transcribe"] += 1
        return steps.transcribe(self.transcriber, [Utterance(audio, language)])[0]

    def translate(self, heard: Transcript, target: str) -> Translation:
        """As the model does: what was not heard is passed on with its status."""
        if heard.status is not Status.OK:
            return Translation("", heard.status, heard.message)
        self.calls["translate"] += 1
        return steps.translate(self.translator, [Passage(heard.text, heard.language, target)])[0]

    def synthesize(self, line: Line, status: Status, message: str) -> list[steps.Spoken]:
        """The whole voice of a segment; status and message are those of the steps before."""
        self.calls["synthesize"] += 1
        return list(steps.speak(self.speaking, line, status, message))

    def detect(self, frames: UInt8) -> tuple[Float32, Float32]:
        """One call: frames uint8 (n, height, width, 3) -> boxes float32 (n, k, 4), scores float32 (n, k)."""
        self.calls["detect"] += 1
        cv2.setNumThreads(DETECTOR_THREADS)
        try:
            return self.detector.detect(frames)
        finally:
            cv2.setNumThreads(self._threads)

    def lips(self, mel: Float32, faces: UInt8) -> UInt8:
        """One call: mel float32 (n, 80, 16), faces uint8 (n, 96, 96, 3) -> mouths uint8 (n, 96, 96, 3)."""
        self.calls["lips"] += 1
        return self._lips.render(mel, faces)

    def _warm(self) -> None:
        """One call each, as a server makes before it is ready."""
        steps.transcribe(self.transcriber, [Utterance(np.zeros(round(WARM_S * SPEECH_RATE_HZ), np.float32), "en")])
        self.translate(Transcript("yes", "en"), "es")
        self.synthesize(Line("sí", "es"), Status.OK, "")
        self.detect(np.zeros((1, ANALYSIS_HEIGHT, ANALYSIS_WIDTH, 3), np.uint8))
        self.lips(np.zeros((1, MEL_BANDS, MEL_COLUMNS), np.float32), np.zeros((1, FACE_PX, FACE_PX, 3), np.uint8))


class DirectFaces(UnaryCalls):
    """Answers the picture branch's requests here and now: each key frame through the detector by itself, then tracks.

    Requests of one sequence share a tracker, as in the model `track`.
    """

    def __init__(self, engines: Engines, clock: Clock) -> None:
        super().__init__(stub=None)
        self._engines = engines
        self._clock = clock
        self._tracker = Tracker()

    async def submit(
        self, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Pending:
        """Done when it returns."""
        with self._clock.step(Step.DETECT):
            found = [self._engines.detect(frame[None]) for frame in _array(inputs, "FRAMES")]
            boxes, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        with self._clock.step(Step.TRACK):
            if sequence is None or sequence.start:
                self._tracker = Tracker()
            tracks = self._tracker.update(boxes, scores, _array(inputs, "KEYFRAME_MS"), _array(inputs, "QUERY_MS"))
        return _Answered(
            {
                "TRACK_BOXES": tracks.boxes,
                "TRACK_IDS": tracks.ids,
                "TRACK_SCORES": tracks.scores,
                "TRACK_SURPRISE": tracks.surprise,
            }
        )


class _Answered(Pending):
    """A request whose answer is there."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__("", "faces", float("inf"), {})
        self._outputs = outputs

    async def result(self) -> Outputs:
        return self._outputs


def full_precision(parameters: Mapping[str, str]) -> dict[str, str]:
    """Parameters of an engine with FP32 in the place of what the profile computes in."""
    return {name: FULL_PRECISION.get(name, value) for name, value in parameters.items()}


def _array(inputs: Inputs, name: str) -> npt.NDArray[Any]:
    return np.asarray(inputs[name])
