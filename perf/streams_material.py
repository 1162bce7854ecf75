"""What live streams send: the demo clip's face and sentences, cut into requests as the client cuts them.

The chunks of `faces`, the batches of `lipsync` and the segments of `speech` have the client's own sizes and rhythm. The
speech that lips are moved to is the original one, not a translation: the work is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.faces import KEY_FRAMES_PER_CHUNK, LOOK_AHEAD_MS
from polylip.client.key_frames import KeyFrames
from polylip.client.render import MAX_BATCH
from polylip.client.segmentation import SPEECH_RATE_HZ
from polylip.client.wire import Inputs, Tensor
from polylip.perf.demo_clip import PAUSES_S, SENTENCES, Camera
from polylip.perf.spoken import read_aloud
from polylip.serving.dub.request import ANALYSIS_HEIGHT, ANALYSIS_WIDTH
from polylip.serving.engines.cascade import Cascade
from polylip.serving.isochrony import Fit
from polylip.serving.lips_audio import speech_window

FPS = 25
CYCLE_S = 4  # of the picture; then it runs backwards, so that it never jumps
SPOKEN = SENTENCES[:4]  # as in the demo clip, over and over
TRANSLATED = (  # of them, for `synthesize` alone
    "El puente viejo es el lugar más famoso de la ciudad.",
    "La gente del pueblo es muy amable y la comida es excelente.",
    "La música era hermosa y la gente estaba muy feliz.",
    "El ordenador puede traducir mi voz en tiempo real.",
)
SOURCE, TARGET = "en", "es"
FACE_SIDE = 96  # what `lips` takes

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Chunk:
    """A request to `faces`: frames by their number, and when the client sends it."""

    keys: tuple[int, ...]
    queries: tuple[int, ...]
    sent_at: int  # the frame that has just come


def chunk_plan(frames: int) -> list[Chunk]:
    """The chunks of one shot of a stream at FPS, as far as `frames` frames bring them about."""
    rhythm, look_ahead = KeyFrames(Fraction(FPS)), FPS * LOOK_AHEAD_MS // 1000
    plan: list[Chunk] = []
    keys: list[int] = []
    asked = 0
    for frame in range(frames):
        if len(keys) >= KEY_FRAMES_PER_CHUNK and frame - asked > look_ahead:
            plan.append(Chunk(tuple(keys), tuple(range(asked, frame - look_ahead)), frame))
            keys, asked = [], frame - look_ahead
        if rhythm.next_is_key():
            keys.append(frame)
    return plan


class Material:
    """Pictures, faces and sentences, made once."""

    @cached_property
    def frames(self) -> list[UInt8]:
        """Every frame of CYCLE_S at analysis size: uint8 (360, 640, 3) BGR."""
        camera = Camera((ANALYSIS_WIDTH, ANALYSIS_HEIGHT))
        return [camera.frame(number / FPS) for number in range(CYCLE_S * FPS)]

    @cached_property
    def boxes(self) -> tuple[Float32, Float32]:
        """Of KEY_FRAMES_PER_CHUNK frames, 0.2 s apart, as a real detector sees them: boxes and scores."""
        return Cascade({}, "").detect(np.stack(self.frames[:: FPS // KEY_FRAMES_PER_CHUNK][:KEY_FRAMES_PER_CHUNK]))

    @cached_property
    def crops(self) -> UInt8:
        """The face in MAX_BATCH frames: uint8 (MAX_BATCH, 96, 96, 3) BGR."""
        x1, y1, x2, y2 = (max(0, round(float(side))) for side in self.boxes[0][0, 0])
        faces = [frame[y1:y2, x1:x2] for frame in self.frames[:MAX_BATCH]]
        return np.stack([np.asarray(cv2.resize(face, (FACE_SIDE, FACE_SIDE)), np.uint8) for face in faces])

    @cached_property
    def speech(self) -> list[Float32]:
        """SPOKEN: float32 (samples,) at 16 kHz."""
        return [read_aloud(text) for text in SPOKEN]

    @cached_property
    def lengths_s(self) -> tuple[float, ...]:
        return tuple(len(speech) / SPEECH_RATE_HZ for speech in self.speech)

    def frame(self, number: int) -> UInt8:
        """Of a stream of any length."""
        turn, place = divmod(number, len(self.frames))
        return self.frames[-1 - place if turn % 2 else place]

    def faces(self, chunk: Chunk) -> Inputs:
        """A request to `faces`."""
        return {
            "FRAMES": np.stack([self.frame(key) for key in chunk.keys]),
            "KEYFRAME_MS": _times_ms(chunk.keys),
            "QUERY_MS": _times_ms(chunk.queries),
        }

    def lipsync(self, sentence: int, first: int, count: int) -> Inputs:
        """A request to `lipsync`: `count` frames of a sentence from its frame `first` on."""
        offsets = [1000 * number / FPS for number in range(first, first + count)]
        audio, within = speech_window(self.speech[sentence], offsets)
        return {"AUDIO": audio, "FRAME_OFFSETS_MS": within, "FACES": self.crops[:count]}

    def segment(self, sentence: int, stream_id: str) -> dict[str, Tensor | str]:
        """A request to `speech`, before `rows`."""
        audio = self.speech[sentence]
        slot_ms = len(audio) * 1000 // SPEECH_RATE_HZ
        return {
            "AUDIO": audio,
            "SOURCE_LANGUAGE": SOURCE,
            "TARGET_LANGUAGE": TARGET,
            "STREAM_ID": stream_id,
            "SLOT_MS": np.array([slot_ms], np.int32),
            "LIMIT_MS": np.array([slot_ms + round(1000 * PAUSES_S[sentence])], np.int32),
            "FIT": str(Fit.TIGHT),
        }


@cache
def material() -> Material:
    """Of this process."""
    return Material()


@dataclass(frozen=True)
class Talk:
    """When whole sentences end in a stream that speaks them over and over with the demo clip's pauses."""

    lengths_s: tuple[float, ...]

    @property
    def cycle_s(self) -> float:
        """All sentences once."""
        return sum(self.lengths_s) + sum(PAUSES_S[: len(self.lengths_s)])

    def sentences(self, from_s: float, until_s: float) -> list[tuple[int, float, float]]:
        """Of those that end within: [(sentence, start in seconds, end)]."""
        found, at_s = [], 0.0
        while at_s < until_s:
            for sentence, length_s in enumerate(self.lengths_s):
                if from_s <= at_s + length_s < until_s:
                    found.append((sentence, at_s, at_s + length_s))
                at_s += length_s + PAUSES_S[sentence]
        return found


def batches(length_s: float) -> list[tuple[int, int]]:
    """The `lipsync` requests of a dub: [(its first frame, frames)]."""
    frames = round(length_s * FPS)
    return [(first, min(MAX_BATCH, frames - first)) for first in range(0, frames, MAX_BATCH)]


def _times_ms(frames: tuple[int, ...]) -> npt.NDArray[np.int64]:
    return np.array([number * 1000 // FPS for number in frames], np.int64)
