"""Where the branches of `dub` meet: tracks of one stream, the face that speaks, and the frames that get a new mouth."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.serving.crops import crop_box
from polylip.serving.dub.codes import DubStatus
from polylip.serving.dub.request import ANALYSIS_HEIGHT, ANALYSIS_WIDTH, MAX_FRAMES, OK, Standing
from polylip.serving.dub.riding import Ride
from polylip.serving.engines import Status
from polylip.serving.tracking import Tracker

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

SEEN_SCORE = 0.15  # of the tracker; below it the detector has missed a face at several key frames in a row
LATE = "{late} frames are older than the stream's newest and were not sent before; send them in order, or START anew"
SPEECH = {
    Status.OK: DubStatus.OK,
    Status.NO_SPEECH: DubStatus.NO_SPEECH,
    Status.UNSUPPORTED: DubStatus.UNSUPPORTED,
    Status.ERROR: DubStatus.SPEECH_FAILED,
    Status.CANCELLED: DubStatus.CANCELLED,
}


@dataclass(frozen=True)
class SegmentTracks:
    """The faces of a segment's frames; score 0 where one is not there."""

    boxes: Float32  # (frames, tracks, 4) x1 y1 x2 y2, pixels of the analysis frame
    ids: Int32  # (tracks,)
    scores: Float32  # (frames, tracks)
    late: int = 0  # frames older than the stream's newest that were not sent before: nothing is known of them


@dataclass(frozen=True)
class Mouths:
    """The frames that get a new mouth."""

    frames: Int32  # (mouths,) index into the request's frames
    boxes: Int32  # (mouths, 4) left, top, right, bottom of the crop
    offsets_ms: Int64  # (mouths,) of the frame within the new speech


class StreamTracks:
    """The tracker of one stream, which also answers again for frames that a request before has had."""

    def __init__(self) -> None:
        self._tracker = Tracker()
        self._last_key_ms: int | None = None
        self._known: deque[tuple[int, dict[int, tuple[Float32, float]]]] = deque(maxlen=MAX_FRAMES)

    def update(self, boxes: Float32, scores: Float32, key_ms: Int64, frame_ms: Int64) -> SegmentTracks:
        """Take in a segment's key frames and answer for its frames; what was sent before is not taken in twice.

        Raises ValueError, and changes nothing, for what does not fit together.
        """
        new_keys = np.ones(key_ms.shape, bool) if self._last_key_ms is None else key_ms > self._last_key_ms
        last_ms = self._known[-1][0] if self._known else None
        new = frame_ms if last_ms is None else frame_ms[frame_ms > last_ms]
        tracks = self._tracker.update(boxes[new_keys], scores[new_keys], key_ms[new_keys], new)
        if new_keys.any():
            self._last_key_ms = int(key_ms[new_keys][-1])
        for row, time_ms in enumerate(new.tolist()):
            seen = np.flatnonzero(tracks.scores[row])
            self._known.append(
                (time_ms, {int(tracks.ids[i]): (tracks.boxes[row, i], float(tracks.scores[row, i])) for i in seen})
            )
        return self._of(frame_ms)

    def _of(self, frame_ms: Int64) -> SegmentTracks:
        known = dict(self._known)
        faces = [known.get(time_ms, {}) for time_ms in frame_ms.tolist()]
        ids = sorted({track for frame in faces for track in frame})
        boxes = np.zeros((len(faces), len(ids), 4), np.float32)
        scores = np.zeros((len(faces), len(ids)), np.float32)
        for row, frame in enumerate(faces):
            for track, (box, score) in frame.items():
                column = ids.index(track)
                boxes[row, column], scores[row, column] = box, score
        late = sum(time_ms not in known for time_ms in frame_ms.tolist())
        return SegmentTracks(boxes, np.array(ids, np.int32), scores, late)


def join(ride: Ride, tracks: SegmentTracks, speech_ms: float, spoken: tuple[str, str]) -> dict[str, Any]:
    """What `join` answers about the picture, by tensor name; `spoken` is the status and message of the voice."""
    frame_ms, audio_ms = ride.arrays["FRAME_MS"], int(ride.arrays["AUDIO_MS"][0])
    face = choose_face(tracks, spoken_frames(frame_ms, audio_ms, speech_ms), int(ride.arrays["FACE_ID"][0]))
    mouths = mouths_of(tracks, face, frame_ms, audio_ms, speech_ms)
    status, message = worst(
        (DubStatus(ride.texts["SPEECH_STATUS"]), ride.texts["SPEECH_MESSAGE"]),
        (SPEECH[Status(spoken[0])], spoken[1]),
        (DubStatus(ride.texts["PICTURE_STATUS"]), ride.texts["PICTURE_MESSAGE"]),
        (DubStatus.BAD_FRAMES, LATE.format(late=tracks.late)) if tracks.late else OK,
    )
    return {
        "TRACK_BOXES": tracks.boxes,
        "TRACK_IDS": tracks.ids,
        "TRACK_SCORES": tracks.scores,
        "SPEAKER_ID": np.array([face], np.int32),
        "WANTED": np.array([ride.frames[index] for index in mouths.frames], np.object_),
        "WANTED_FRAMES": mouths.frames,
        "WANTED_BOXES": mouths.boxes,
        "WANTED_OFFSETS_MS": mouths.offsets_ms,
        "MOUTH_FORMAT": ride.texts["MOUTH_FORMAT"],
        "JOINED_STATUS": status,
        "JOINED_MESSAGE": message,
    }


def choose_face(tracks: SegmentTracks, spoken: npt.NDArray[np.bool_], wish: int = 0) -> int:
    """Id of the face that gets the mouths: the wished one, else the largest over the `spoken` frames; 0 for none.

    A face counts by its area, by the frames that show it, and by how surely they do.
    """
    if wish:
        return wish if wish in tracks.ids else 0
    sides = np.maximum(tracks.boxes[spoken, :, 2:] - tracks.boxes[spoken, :, :2], 0)
    weights = (sides[..., 0] * sides[..., 1] * tracks.scores[spoken]).sum(axis=0)
    if not weights.size or weights.max() <= 0:
        return 0
    return int(tracks.ids[int(weights.argmax())])


def mouths_of(tracks: SegmentTracks, face: int, frame_ms: Int64, audio_ms: int, speech_ms: float) -> Mouths:
    """The frames under the new speech, which lasts `speech_ms` from `audio_ms` on, that show the face well enough."""
    frames, boxes, offsets = [], [], []
    column = tracks.ids.tolist().index(face) if face else 0
    for index, time_ms in enumerate(frame_ms.tolist() if face else []):
        offset_ms = time_ms - audio_ms
        if not 0 <= offset_ms < speech_ms or tracks.scores[index, column] < SEEN_SCORE:
            continue
        box = crop_box(tuple(tracks.boxes[index, column].tolist()), ANALYSIS_WIDTH, ANALYSIS_HEIGHT)
        if box is not None:
            frames.append(index)
            boxes.append(box)
            offsets.append(offset_ms)
    return Mouths(np.array(frames, np.int32), np.array(boxes, np.int32).reshape(-1, 4), np.array(offsets, np.int64))


def spoken_frames(frame_ms: Int64, audio_ms: int, speech_ms: float) -> npt.NDArray[np.bool_]:
    """Which frames the new speech covers; all of them where there is none, as somebody is in the picture anyway."""
    if speech_ms <= 0:
        return np.ones(frame_ms.shape, bool)
    covered = (frame_ms >= audio_ms) & (frame_ms < audio_ms + speech_ms)
    return np.asarray(covered)


def worst(*standings: Standing) -> Standing:
    """The first that is not ok: the branches are given in the order of what they mean to a listener."""
    return next((standing for standing in standings if standing[0] is not DubStatus.OK), OK)
