"""What the gate reads of a request, with every value checked: bad content becomes a status, and the stream lives on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.serving.checks import require_audio
from polylip.serving.dub.codes import DubStatus
from polylip.serving.dub.jpeg import read_header
from polylip.serving.isochrony import parse_fit
from polylip.serving.mel import SAMPLE_RATE_HZ

Standing = tuple[DubStatus, str]  # a status, and the message that goes with it
OK: Standing = DubStatus.OK, ""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

ANALYSIS_WIDTH, ANALYSIS_HEIGHT = 640, 360  # of every frame, letterboxed: engines are compiled for it
MAX_FRAMES = 400  # the longest segment (10 s) and what its voice may run over, at 30 frames/s
MAX_FRAME_BYTES = 24 << 20  # of all of them: 60 KB each; they pass through shared memory
MAX_VOICE_S = 30
MAX_TEXT_CHARACTERS = 65_536  # of a glossary, a language or a text that is known
FORMATS = ("jpeg", "raw")  # of the mouths in the answer
LANGUAGES = ("SOURCE_LANGUAGE", "TARGET_LANGUAGE")
MAX_TAG = 35  # characters of a language tag that are looked at (RFC 5646 asks for so many)
NO_SOUND = np.zeros(0, np.float32)
SILENCE = np.zeros(SAMPLE_RATE_HZ // 100, np.float32)  # what the recogniser gets of a segment without usable sound


@dataclass(frozen=True)
class Asked:
    """The tensors of a request as they came; None for what it left out."""

    audio: npt.NDArray[Any]
    frames: list[bytes]
    frame_ms: npt.NDArray[Any]
    audio_ms: int | None = None
    texts: dict[str, str] = field(default_factory=dict)
    voice: npt.NDArray[Any] | None = None
    voice_consent: bool = False
    slot_ms: int | None = None
    limit_ms: int | None = None
    mouth_format: str = ""


@dataclass(frozen=True)
class Checked:
    """What the branches work on, and how the segment already stands."""

    audio: Float32  # (samples,), never empty
    texts: dict[str, str]
    frame_ms: Int64  # (frames,); none when the frames cannot be used
    audio_ms: int  # of the first sample, on the clock of the frames
    voice: Float32  # (samples,); empty: none that may be used
    slot_ms: int
    limit_ms: int
    mouth_format: str
    speech: Standing = OK
    picture: Standing = OK

    @property
    def tensors(self) -> dict[str, npt.NDArray[Any] | str]:
        """The outputs of the gate; those for models that Triton batches have one row."""
        return {
            "CHECKED_AUDIO": self.audio[None],
            **{f"CHECKED_{name}": _row(text) for name, text in self.texts.items()},
            "CHECKED_VOICE": self.voice[None],
            "CHECKED_VOICE_CONSENT": np.array([[self.voice.size > 0]]),
            "CHECKED_SLOT_MS": np.array([[self.slot_ms]], np.int32),
            "CHECKED_LIMIT_MS": np.array([[self.limit_ms]], np.int32),
            "SPEECH_STATUS": self.speech[0],
            "SPEECH_MESSAGE": self.speech[1],
            "PICTURE_STATUS": self.picture[0],
            "PICTURE_MESSAGE": self.picture[1],
            "CHECKED_FRAME_MS": self.frame_ms,
            "CHECKED_AUDIO_MS": np.array([self.audio_ms], np.int64),
            "CHECKED_MOUTH_FORMAT": self.mouth_format,
        }


def _row(text: str) -> npt.NDArray[Any]:
    return np.array([[text.encode("utf-8")]], np.object_)


def check(asked: Asked) -> Checked:
    """Never raises for content."""
    speech, picture = OK, OK
    audio, voice, texts = SILENCE, NO_SOUND, dict(asked.texts)
    slot_ms, limit_ms, frame_ms = asked.slot_ms or 0, asked.limit_ms or 0, asked.frame_ms
    try:
        _check_texts(asked)
        voice = _voice(asked)
        if asked.audio.size or texts.get("KNOWN_TEXT"):
            audio = require_audio(asked.audio, "AUDIO") if asked.audio.size else SILENCE
        else:
            speech = DubStatus.NO_SPEECH, "AUDIO is empty"
    except ValueError as error:
        speech = DubStatus.BAD_AUDIO, str(error)
        audio, voice, slot_ms, limit_ms = SILENCE, NO_SOUND, 0, 0
        texts = dict.fromkeys(texts, "") | {name: texts[name][:MAX_TAG] for name in LANGUAGES if name in texts}
    try:
        _check_frames(asked.frames, frame_ms)
    except ValueError as error:
        picture, frame_ms = (DubStatus.BAD_FRAMES, str(error)), frame_ms[:0]
    first_ms = int(frame_ms[0]) if frame_ms.size else 0
    return Checked(
        audio,
        texts,
        frame_ms.astype(np.int64),
        first_ms if asked.audio_ms is None else asked.audio_ms,
        voice,
        slot_ms,
        limit_ms,
        asked.mouth_format if asked.mouth_format in FORMATS else FORMATS[0],
        speech,
        picture,
    )


def _check_texts(asked: Asked) -> None:
    for name, text in asked.texts.items():
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"{name} has {len(text)} characters; send at most {MAX_TEXT_CHARACTERS}")
    parse_fit(asked.texts.get("FIT", ""))
    for wish, wished_ms in (("SLOT_MS", asked.slot_ms), ("LIMIT_MS", asked.limit_ms)):
        if wished_ms is not None and wished_ms < 0:
            raise ValueError(f"{wish} is {wished_ms}; send milliseconds, or leave it out")
    if asked.mouth_format and asked.mouth_format not in FORMATS:
        raise ValueError(f"MOUTH_FORMAT is {asked.mouth_format[:20]!r}; send one of: {', '.join(FORMATS)}")


def _voice(asked: Asked) -> Float32:
    if asked.voice is None or not asked.voice.size or not asked.voice_consent:
        return NO_SOUND
    if asked.voice.size > MAX_VOICE_S * SAMPLE_RATE_HZ:
        raise ValueError(f"VOICE lasts {asked.voice.size / SAMPLE_RATE_HZ:.0f} s; send at most {MAX_VOICE_S} s")
    return require_audio(asked.voice, "VOICE")


def _check_frames(frames: list[bytes], frame_ms: npt.NDArray[Any]) -> None:
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"{len(frames)} FRAMES; send at most {MAX_FRAMES} with a request")
    if (size := sum(map(len, frames))) > MAX_FRAME_BYTES:
        raise ValueError(f"FRAMES hold {size >> 20} MiB; send at most {MAX_FRAME_BYTES >> 20} with a request")
    if frame_ms.shape != (len(frames),):
        raise ValueError(f"{len(frames)} FRAMES and {frame_ms.size} FRAME_MS; send a time for each frame")
    if (frame_ms[1:] <= frame_ms[:-1]).any():
        raise ValueError("FRAME_MS does not ascend; send frames in the order of the video")
    for index, data in enumerate(frames):
        try:
            info = read_header(data)
        except ValueError as error:
            raise ValueError(f"frame {index} {error}") from None
        if (info.width, info.height) != (ANALYSIS_WIDTH, ANALYSIS_HEIGHT):
            wanted = f"{ANALYSIS_WIDTH}x{ANALYSIS_HEIGHT}"
            raise ValueError(f"frame {index} has {info.width}x{info.height} pixels; letterbox it into {wanted}")
