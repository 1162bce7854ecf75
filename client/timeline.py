"""The dub's timeline: where each segment's new speech sits, how far it is known, and what may be written out.

All times are milliseconds on the video's own clock. docs/pipeline.md: placed at the segment's start, later when the
speech before is still going, never two at once; the video's own timeline never changes. A live job commits to what
must be shown next, whatever is missing for it (docs/live.md).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from polylip.client.pulse import Pulse
from polylip.client.results import SegmentResult, Status
from polylip.client.segmentation import SPEECH_RATE_HZ, Segment
from polylip.serving.lips_audio import LOOK_AHEAD_MS

Float32 = npt.NDArray[np.float32]

GAP_MS = 80  # least silence between two dubbed segments
MAX_LATE_MS = 4000  # a dub that would start later than this is dropped: it would no longer fit the picture
MAX_PAUSED_MS = 2500  # of silence within a dub: a voice that is this much too slow has stopped
SPILL_MS = 1500  # a dub may run this long into the pause behind its segment before it is spoken faster still
MIN_SLOT_MS = 300
CAPTION_MS, READ_MS = (
    700,
    60,
)  # a caption stays for this long and so much per letter: 17 letters a second are read easily
RAMP_MS = 40  # fade between the original sound and the dub; so much before a change must not be written yet


@dataclass(eq=False)
class Dub:
    """One segment on its way from closed to written."""

    segment: Segment
    result: SegmentResult
    closed_at: float = field(default_factory=time.monotonic)
    start_ms: int | None = None
    # Set with start_ms: from here on its lips are its own, silent until the speech starts, and the original is muted.
    lips_start_ms: float = 0.0
    speech: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))  # 16 kHz, as far as it has come
    pcm: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))  # mono at the output's rate, levelled
    ended: bool = False
    paused_ms: float = 0.0  # silence put into it, live, as its voice came too slowly
    caption: tuple[float, float, str] | None = None  # start and end in ms, text: what is shown in place of a dub

    @property
    def received_ms(self) -> float:
        return len(self.speech) * 1000 / SPEECH_RATE_HZ

    @property
    def end_ms(self) -> float:
        """Where the speech received so far ends; the segment's start when there is none."""
        return (self.segment.start_ms if self.start_ms is None else self.start_ms) + self.received_ms

    @property
    def shown_ms(self) -> float:
        """Where its caption ends; 0 without one."""
        return self.caption[1] if self.caption else 0.0

    @property
    def audible(self) -> bool:
        return self.start_ms is not None and len(self.speech) > 0

    @property
    def failed(self) -> bool:
        """Whether it ended without its whole dub: the original then comes back where the new speech stops."""
        return self.ended and self.result.status is not Status.DUBBED

    @property
    def lips_end_ms(self) -> float:
        """Its lips are its own up to here: in its segment's rest they are silent, as the speaker now is."""
        return self.end_ms if self.failed else max(self.end_ms, self.segment.end_ms)


class Timeline:
    """The segments in order. One event loop owns it; the pulse beats after every change."""

    def __init__(self, duration_ms: float | None, pulse: Pulse) -> None:
        self._pulse = pulse
        self.results: list[SegmentResult] = []
        self._duration_ms = duration_ms
        self._active: list[Dub] = []
        self._horizon_ms = 0.0
        self._free_ms = 0.0  # where the last placed speech ends
        self._planned_free_ms = 0.0  # where the last requested speech is planned to end
        self._committed_ms = 0.0  # what lies before has been given out, as it was known then
        self.paused_ms = 0.0  # silence put into dubs whose voice came too slowly

    def add(self, segment: Segment) -> Dub:
        """A segment has closed."""
        result = SegmentResult(
            segment.id,
            segment.start_ms,
            segment.end_ms,
            closed_by=str(segment.closed_by),
            confidence=segment.confidence,
        )
        dub = Dub(segment, result)
        self._active.append(dub)
        self.results.append(result)
        self._pulse.beat()
        return dub

    def restore(self, results: list[SegmentResult], dubs: list[Dub]) -> None:
        """Of a job that goes on: the results of all its segments so far, and those that are not yet written."""
        self.results = results
        self._active = dubs
        ends_ms = [float(result.dub_end_ms) for result in results if result.dub_end_ms is not None]
        exact_ms = [dub.end_ms for dub in dubs if dub.audible]
        self._free_ms = self._planned_free_ms = max(exact_ms or ends_ms, default=0.0)

    def advance(self, horizon_ms: float) -> None:
        """No segment still to come starts before `horizon_ms`."""
        self._horizon_ms = horizon_ms
        self._pulse.beat()

    @property
    def committed_ms(self) -> float:
        """What lies before this time has been given out and can no longer change."""
        return self._committed_ms

    def commit(self, time_ms: float) -> list[Dub]:
        """Everything before `time_ms` must be written now; returns the dubs that this makes too late, to be ended.

        A dub that waits for its first sound starts later; one whose voice comes too slowly pauses, but not for long.
        """
        self._committed_ms = max(self._committed_ms, time_ms)
        for dub in self._active:
            if dub.audible and not dub.ended:
                self._pause(dub, self._committed_ms + LOOK_AHEAD_MS + RAMP_MS - dub.end_ms)
        self._pulse.beat()
        waiting = [dub for dub in self._active if not dub.ended and dub.start_ms is None]
        late = [dub for dub in waiting if self._earliest_ms(dub) - dub.segment.start_ms > MAX_LATE_MS]
        return late + [dub for dub in self._active if not dub.ended and dub.paused_ms > MAX_PAUSED_MS]

    def _pause(self, dub: Dub, silence_ms: float) -> None:
        """Silence behind what has come of a dub, so that what comes next is not late."""
        if silence_ms <= 0:
            return
        self.paused_ms += silence_ms
        dub.paused_ms += silence_ms
        pcm_rate = len(dub.pcm) / len(dub.speech)
        speech = np.zeros(round(silence_ms * SPEECH_RATE_HZ / 1000), np.float32)
        self.append(dub, speech, np.zeros(round(len(speech) * pcm_rate), np.float32))

    def _earliest_ms(self, dub: Dub) -> float:
        """Where a dub could start now."""
        after = round(self._free_ms + GAP_MS) if self._free_ms else 0
        committed = math.ceil(self._committed_ms + RAMP_MS) if self._committed_ms else 0
        return max(dub.segment.start_ms, after, committed)

    def plan(self, dub: Dub) -> tuple[int, int]:
        """(time to fill, time not to exceed) in ms for a segment that is about to be requested."""
        start = max(dub.segment.start_ms, self._free_ms, self._planned_free_ms, self._committed_ms)
        fill = max(dub.segment.end_ms - start, MIN_SLOT_MS)
        limit = fill + SPILL_MS
        if self._duration_ms is not None:
            limit = max(min(limit, self._duration_ms - start), MIN_SLOT_MS)
        self._planned_free_ms = start + fill
        return int(fill), int(limit)

    def previous_ended(self, dub: Dub) -> bool:
        """Whether every segment before this one has ended, so that this one can be placed; or it has ended itself."""
        return dub.ended or all(other.ended for other in self._active[: self._active.index(dub)])

    def place(self, dub: Dub) -> bool:
        """Fix the start; False when it would be too late. Call only after `previous_ended`."""
        start = self._earliest_ms(dub)
        if start - dub.segment.start_ms > MAX_LATE_MS:
            return False
        dub.start_ms = round(start)
        committed_ms = self._committed_ms + RAMP_MS if self._committed_ms else 0.0
        dub.lips_start_ms = max(dub.segment.start_ms, self._free_ms, committed_ms)
        self._pulse.beat()
        return True

    def append(self, dub: Dub, speech: Float32, pcm: Float32) -> None:
        """More of the segment's speech, at 16 kHz and at the output's rate."""
        dub.speech = np.concatenate([dub.speech, speech])
        dub.pcm = np.concatenate([dub.pcm, pcm])
        self._free_ms = max(self._free_ms, dub.end_ms)
        self._pulse.beat()

    def end(self, dub: Dub, status: Status, message: str = "") -> None:
        """The segment's one and only end. Raises RuntimeError on a second."""
        if dub.ended:
            raise RuntimeError(f"segment {dub.segment.index} ended twice")
        dub.ended = True
        dub.result.status = status
        dub.result.message = message
        if dub.audible:
            dub.result.dub_start_ms = dub.start_ms
            dub.result.dub_end_ms = round(dub.end_ms)
        self._pulse.beat()

    @property
    def safe_ms(self) -> float:
        """Everything before this time is settled and may be written."""
        safe = self._horizon_ms
        for dub in self._active:
            if not dub.ended:
                known = dub.segment.start_ms if dub.start_ms is None else dub.end_ms - LOOK_AHEAD_MS
                safe = min(safe, max(known, dub.segment.start_ms))
        return max(safe - RAMP_MS, self._committed_ms)

    @property
    def complete(self) -> bool:
        """Whether no segment is still to come or to end."""
        return self._horizon_ms == float("inf") and all(dub.ended for dub in self._active)

    def lips_at(self, time_ms: float) -> Dub | None:
        """The segment whose dub the lips follow at this time: through its speech, and its silence beside that."""
        for dub in self._active:
            if dub.audible and dub.lips_start_ms <= time_ms < dub.lips_end_ms:
                return dub
        return None

    def show(self, dub: Dub, text: str) -> None:
        """A caption in place of the dub: from the segment's start, or as soon as it still can be."""
        start_ms = max(float(dub.segment.start_ms), self._committed_ms)
        dub.caption = start_ms, max(float(dub.segment.end_ms), start_ms + CAPTION_MS + READ_MS * len(text)), text
        self._pulse.beat()

    def caption_at(self, time_ms: float) -> str:
        """The text to be shown in a frame: the newest there is; empty for none."""
        shown = [dub.caption for dub in self._active if dub.caption is not None]
        return next((text for start, end, text in reversed(shown) if start <= time_ms < end), "")

    @property
    def active(self) -> list[Dub]:
        """Segments not yet written out, in order."""
        return list(self._active)

    def written(self, time_ms: float) -> list[Dub]:
        """Drop and return the segments that lie wholly before this time: their sound is no longer needed."""
        done = [d for d in self._active if d.ended and max(d.segment.end_ms, d.end_ms, d.shown_ms) + RAMP_MS < time_ms]
        self._active = [d for d in self._active if d not in done]
        return done
