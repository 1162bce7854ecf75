"""What a dubbing job leaves behind: one result per segment, samples of the faces seen, and the report around them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from polylip.client.ring import Box

STAND_INS = {"synthesize": "espeak-ng", "lips": "onnxruntime"}  # model -> engine: rules, no trained networks


class Status(StrEnum):
    """How a segment ended. A segment ends exactly once."""

    DUBBED = "dubbed"
    NO_SPEECH = "no_speech"  # the recogniser heard no words: the original sound passes
    TOO_LATE = "too_late"  # it could not start within the allowed lateness: the original sound passes
    UNSUPPORTED = "unsupported"  # no engine there can do its language: the original sound passes
    ERROR = "error"  # the server failed: the original sound passes
    CAPTIONED = "captioned"  # live: the server was too slow for a voice, the original passes with a caption
    PASSED = "passed"  # live: the server was not asked: it was too slow, or somebody else had the floor


class VoiceUsed(StrEnum):
    """Whose voice a dub has."""

    STOCK = "stock"
    CLONED = "cloned"  # the speaker's, with consent


class FaceChoice(StrEnum):
    """Why a segment's lips went to their face."""

    ONLY = "only"  # there was no other to be seen at the same time
    SPEAKING = "speaking"  # its mouth moved with the sound
    LARGEST = "largest"  # no mouth moved with the sound
    CHOSEN = "chosen"  # by the user


class HideReason(StrEnum):
    """Why a face that should have new lips keeps its own."""

    NOT_FOUND = "not found"
    COVERED = "covered or turned away"
    LEAVES = "leaves the picture"
    SMALL = "too small"


@dataclass
class Latency:
    """Milliseconds of wall time of one segment, each measured at the client."""

    queue: float = 0.0  # segment closed -> request sent
    first_audio: float = 0.0  # request sent -> first audio chunk
    speech: float = 0.0  # request sent -> last audio chunk
    first_frame: float | None = None  # segment closed -> its first frame with new lips is ready
    lipsync: float = 0.0  # sum over the segment's `lipsync` calls
    total: float = 0.0  # segment closed -> its last frame handed to the encoder


@dataclass
class TimeFit:
    """How a dub was to fit into its time, and how it did. See docs/isochrony.md."""

    slot_ms: int  # to be filled
    limit_ms: int  # not to be exceeded
    estimate_ms: int = 0  # at the voice's normal speed, before it was spoken
    natural_ms: float = 0.0  # at the voice's normal speed, as it turned out
    spoken_ms: float = 0.0  # as it is heard
    engine_rate: float = 1.0  # the voice's own speed, mean
    stretch: float = 1.0  # of its sound, mean; their product is the segment's rate
    over_ms: float = 0.0  # longer than its slot; negative when it is shorter

    def add(self, chunk_ms: float, rate: float, engine_rate: float) -> None:
        """A further chunk."""
        self.natural_ms += chunk_ms * rate
        own_ms = self.spoken_ms * self.engine_rate + chunk_ms * engine_rate
        self.spoken_ms += chunk_ms
        self.engine_rate = own_ms / self.spoken_ms
        self.stretch = self.rate / self.engine_rate
        self.over_ms = self.spoken_ms - self.slot_ms

    @property
    def rate(self) -> float:
        """Mean speaking rate, 1 = the voice's normal speed."""
        return self.natural_ms / self.spoken_ms if self.spoken_ms else 1.0


@dataclass
class SegmentResult:
    """One speech segment and its dub. All times are milliseconds on the video's own timeline."""

    id: str
    start_ms: int
    end_ms: int
    dub_start_ms: int | None = None
    dub_end_ms: int | None = None
    rate: float = 1.0  # speaking rate the voice used, 1 = its normal speed
    source_text: str = ""
    target_text: str = ""
    fit: TimeFit | None = None  # None: it was never asked for
    voice: VoiceUsed | None = None  # None: nothing was spoken
    status: Status = Status.ERROR
    message: str = ""
    face_id: int | None = None  # track that got the lips; None: no face
    face_choice: FaceChoice | None = None
    latency_ms: Latency = field(default_factory=Latency)
    error_code: str | None = None  # of an ERROR: docs/transport.md
    av_offset_ms: float | None = None  # picture behind sound (+), measured on the dub; None: unclear
    first_frame_after_ms: float | None = None  # live: its last word is spoken -> its first frame with new lips is ready
    closed_by: str = ""  # what ended it: docs/segmentation.md
    confidence: float | None = None  # that it ends with a sentence; None: it was not asked


@dataclass(frozen=True)
class FaceSample:
    """Where the faces were in one frame, in pixels of the source picture."""

    frame: int
    time_ms: int
    box_px: Box | None  # of the face that speaks, or is the usual one
    track_id: int | None
    lipsynced: bool
    hidden: HideReason | None = None  # why it keeps its own lips under a dub
    others: tuple[tuple[Box, int], ...] = ()  # the other faces, each with its track


@dataclass(frozen=True)
class FaceTrack:
    """One face from its first frame to its last."""

    id: int
    start_ms: int
    end_ms: int
    place: tuple[float, float]  # mean middle of its box, in fractions of the picture's width and height


@dataclass(frozen=True)
class HiddenSpan:
    """A stretch under the dub in which the lips are the source's own."""

    start_ms: int
    end_ms: int
    reason: HideReason


@dataclass
class Report:
    """The content of `report.json`."""

    profile: str
    input: str
    output: str
    source_language: str
    target_language: str
    duration_s: float
    frames: int
    frames_lipsynced: int
    frames_without_face: int
    real_time_factor: float
    wall_s: float
    av_offset_ms: float | None
    segments: list[SegmentResult]
    versions: dict[str, str]
    engines: dict[str, str] = field(default_factory=dict)  # model -> engine, as the server names it
    seam: float | None = None  # gradient jump across the mask's edge, grey levels per pixel; 0 is invisible
    seam_worst: float | None = None  # 95th percentile
    flicker: float | None = None  # frame difference inside the mask over the source's; 1 is as lively
    flicker_worst: float | None = None  # 95th percentile
    faces: list[FaceTrack] = field(default_factory=list)
    face_spans_hidden: list[HiddenSpan] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    av_offsets: dict[str, Any] = field(default_factory=dict)  # spread over segments, and over windows of 5 s
    trace: dict[str, Any] | None = None  # every stage of every segment on the wall clock: docs/reports.md

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
