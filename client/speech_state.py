"""What the speech branch knows at a checkpoint, and its dubs again from that."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from polylip.client.error_codes import ErrorCode
from polylip.client.journal import Journal
from polylip.client.mix import Levels
from polylip.client.results import SegmentResult, Status
from polylip.client.segmentation import Segment, SegmenterState
from polylip.client.timeline import Dub

Float32 = npt.NDArray[np.float32]

OWN_FIELDS = {"id", "face_id", "face_choice", "av_offset_ms"}  # of a result: not those of an earlier run


@dataclass(frozen=True)
class ActiveDub:
    """A segment that has closed and is not yet written."""

    index: int
    pending: Segment | None  # to be dubbed still; None: its dub is in the journal


@dataclass(frozen=True)
class SpeechState:
    """Sound, segments and dubs between two pieces of sound."""

    segmenter: SegmenterState
    results: list[SegmentResult]  # of all segments so far
    active: list[ActiveDub]
    levels: Levels
    gathered: Float32  # of the voice reference
    detected_language: str
    stream_id: str  # by which a server knows the voice that it has been speaking with


def is_lost(result: SegmentResult) -> bool:
    """Whether it failed because the server was not there: worth another try."""
    return result.status is Status.ERROR and result.error_code not in (None, ErrorCode.ENGINE_FAILED)


def take_over(result: SegmentResult, kept: SegmentResult) -> None:
    """How the segment was dubbed in an earlier run."""
    for field in fields(SegmentResult):
        if field.name not in OWN_FIELDS:
            setattr(result, field.name, getattr(kept, field.name))


def restored_dubs(state: SpeechState, journal: Journal) -> list[Dub]:
    """Those that are not yet written, as the timeline had them; their results are those of the state.

    Raises ValueError where the journal lacks one.
    """
    dubs = []
    for active in state.active:
        if active.pending is not None:
            segment = active.pending
            chosen = state.results[active.index]  # its face may have been, before its voice had come whole
            again = replace(anew(segment), face_id=chosen.face_id, face_choice=chosen.face_choice)
            state.results[active.index] = again
            dubs.append(Dub(segment, state.results[active.index]))
            continue
        kept = journal.read(active.index)
        if kept is None:
            raise ValueError(f"segment {active.index} is missing")
        dub = Dub(kept.segment, state.results[active.index], start_ms=kept.start_ms, ended=True)
        dub.lips_start_ms, dub.speech, dub.pcm = kept.lips_start_ms, kept.speech, kept.pcm
        dubs.append(dub)
    return dubs


def anew(segment: Segment) -> SegmentResult:
    """Of a segment that has just closed."""
    return SegmentResult(
        segment.id,
        segment.start_ms,
        segment.end_ms,
        closed_by=str(segment.closed_by),
        confidence=segment.confidence,
    )
