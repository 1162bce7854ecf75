"""One segment as plain files, for clients of `dub` in any language: cut from a clip, read back, its answer written.

The layout is in docs/clients.md. Frames are the server's analysis frames, so nothing but the sound has to be decoded.
"""

from __future__ import annotations

import json
import re
import wave
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from polylip.client.closing import Policy
from polylip.client.dub_stream import DubAnswer, DubSegment
from polylip.client.errors import InputError
from polylip.client.faces import Letterbox
from polylip.client.media_in import AudioReader, VideoReader
from polylip.client.media_probe import MediaInfo, probe_media
from polylip.client.segmentation import SPEECH_RATE_HZ, Segment, Segmenter
from polylip.client.timeline import SPILL_MS

Float32 = npt.NDArray[np.float32]

READ_S = 0.5
JPEG_QUALITY = 90  # of the frames: faces are cut out of them
INT16 = 32768.0  # levels of a 16-bit sample on one side of 0
MANIFEST = "segment.json"
OF_ANSWER = re.compile(r"answer\.json|voice\.wav|mouth-\d+\.(png|jpg)")


def cut_segment(
    clip: Path, folder: Path, number: int = 1, every: int = 1, language: str = "auto", quality: int = JPEG_QUALITY
) -> DubSegment:
    """Write segment `number` of a clip, from 1, to a new folder, with every `every`-th frame under it and behind it.

    Raises InputError.
    """
    info = probe_media(clip)
    segment = next(islice(_segments(info), number - 1, None), None)
    if segment is None:
        raise InputError(f"{clip}: has no segment {number}; speech is looked for by silence around it")
    frames, frame_ms = _frames(info, segment, every, quality)
    names = [f"frames/{index:05}.jpg" for index in range(len(frames))]
    manifest = {
        "audio": "audio.wav",
        "audio_ms": segment.audio_start_ms,
        "frame_ms": frame_ms,
        "frames": names,
        "source_language": language,
    }
    try:
        (folder / "frames").mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name a new folder") from None
    write_wav(folder / "audio.wav", segment.audio, SPEECH_RATE_HZ)
    for name, data in zip(names, frames, strict=True):
        (folder / name).write_bytes(data)
    write_json(folder / MANIFEST, manifest)  # last: a folder without it is not whole
    return read_segment(folder)[0]


def read_segment(folder: Path) -> tuple[DubSegment, str]:
    """A segment and its language. Raises InputError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        audio = read_wav(folder / manifest["audio"])
        frames = [(folder / name).read_bytes() for name in manifest["frames"]]
        times = np.array(manifest["frame_ms"], np.int64)
        return DubSegment(audio, frames, times, int(manifest["audio_ms"])), str(manifest["source_language"])
    except (OSError, KeyError, ValueError, TypeError, wave.Error) as error:
        raise InputError(
            f"{folder}: is no segment folder ({error}); make one with: polylip segment CLIP -o FOLDER"
        ) from None


def write_answer(answer: DubAnswer, folder: Path) -> None:
    """answer.json, voice.wav, and the mouths as mouth-00000.png or .jpg, in place of an answer that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if OF_ANSWER.fullmatch(path.name):  # the older one may have more mouths, or others
            path.unlink()
    outputs = answer.outputs
    write_wav(folder / "voice.wav", answer.audio, answer.rate_hz)
    for index, mouth in enumerate(outputs["MOUTHS"]):
        cv2.imwrite(str(folder / f"mouth-{index:05}.png"), mouth)
    for index, data in enumerate(outputs["MOUTHS_JPEG"]):
        (folder / f"mouth-{index:05}.jpg").write_bytes(data)
    write_json(folder / "answer.json", answer_fields(answer))


def answer_fields(answer: DubAnswer) -> dict[str, Any]:
    """What answer.json says."""
    outputs = answer.outputs
    return {
        "detected_language": str(outputs["DETECTED_LANGUAGE"][0]),
        "message": answer.message,
        "mouth_boxes": outputs["MOUTH_BOXES"].tolist(),
        "mouth_frames": outputs["MOUTH_FRAMES"].tolist(),
        "move_ms": int(outputs["MOVE_MS"][0]),
        "sample_rate_hz": answer.rate_hz,
        "samples": int(answer.audio.size),
        "source_text": str(outputs["SOURCE_TEXT"][0]),
        "speaker_id": int(outputs["SPEAKER_ID"][0]),
        "status": str(answer.status),
        "target_text": str(outputs["TARGET_TEXT"][0]),
        "track_ids": outputs["TRACK_IDS"].tolist(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Sorted, so that two clients write the same bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_wav(path: Path, audio: Float32, rate_hz: int) -> None:
    """Float32 (samples,) as 16 bits, mono."""
    scaled = np.clip(np.floor(audio.astype(np.float64) * (INT16 - 1) + 0.5), -INT16, INT16 - 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(scaled.astype("<i2").tobytes())


def read_wav(path: Path) -> Float32:
    """Float32 (samples,) of a mono file with 16 bits and 16 kHz. Raises ValueError."""
    with wave.open(str(path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, SPEECH_RATE_HZ):
            raise ValueError(f"{path.name} is not mono with 16 bits and {SPEECH_RATE_HZ} Hz")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(INT16)


def _segments(info: MediaInfo) -> Iterator[Segment]:
    segmenter = Segmenter(policy=Policy.SILENCE)
    with closing(AudioReader(info, SPEECH_RATE_HZ, 1)) as reader:
        while (piece := reader.read(READ_S)) is not None:
            yield from (item for item in segmenter.push(piece[1]) if isinstance(item, Segment))
    yield from (item for item in segmenter.flush() if isinstance(item, Segment))


def _frames(info: MediaInfo, segment: Segment, every: int, quality: int) -> tuple[list[bytes], list[int]]:
    """From the segment's sound to where its new voice ends at the latest."""
    letterbox = Letterbox(info.width, info.height)
    frames: list[bytes] = []
    times_ms: list[int] = []
    with closing(VideoReader(info)) as reader:
        index = 0
        while pictures := reader.read(1):
            time_ms, frame = pictures[0]
            if time_ms >= segment.end_ms + SPILL_MS:
                break
            if time_ms >= segment.audio_start_ms:
                if index % every == 0:
                    _, data = cv2.imencode(".jpg", letterbox.shrink(frame), [cv2.IMWRITE_JPEG_QUALITY, quality])
                    frames.append(data.tobytes())
                    times_ms.append(round(time_ms))
                index += 1
    return frames, times_ms
