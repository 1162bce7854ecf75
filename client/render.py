"""The output: takes settled frames from the ring, gives dubbed ones their new mouths, and writes picture and sound.

Two tasks with a bounded queue between them, so that the lips of the next frames are on their way while these are
blended and encoded. Memory is a few batches of decoded frames.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

from polylip.client.blend import FaceCut, MouthPaster, cut_face, frame_planes, to_frame
from polylip.client.captions import draw_caption
from polylip.client.ladder import Level, Pressure
from polylip.client.lipsync import TIMEOUT_S, LipsRequest, request_lips
from polylip.client.media_in import MediaInfo
from polylip.client.media_out import Writer
from polylip.client.mix import AudioBed, Float32
from polylip.client.pacing import Pacing
from polylip.client.pictures import PictureReader
from polylip.client.pulse import Pulse
from polylip.client.quality import QualityMeter
from polylip.client.render_state import FaceSamples, PartEnds, PictureState, Prepared, RenderCounts, SeenFaces
from polylip.client.results import FaceSample, HideReason
from polylip.client.ring import Face, FrameRing, Slot
from polylip.client.source_watch import SourceWatch
from polylip.client.speaker import Choice, SpeakerChooser
from polylip.client.sync import OffsetMeter, SourceSync
from polylip.client.timeline import Dub, Timeline
from polylip.client.trace import Stage, Trace
from polylip.client.triton import Stream
from polylip.client.visibility import HiddenSpans, Visibility, frames_around

MAX_BATCH = 16  # frames per `lipsync` request: beyond it neither onnxruntime nor TensorRT gain much
BATCH_BYTES = 64 * 1024 * 1024  # of decoded frames: smaller batches for larger pictures
EDGE_MS = 80.0  # the mouth fades in and out over this time at the ends of a dub's lips
SOUND_STEP_MS = 500  # of sound written at once behind the last picture
MIN_LIPS_S = 0.05  # for the mouths of frames that are nearly due: below, Triton's own time decides


@dataclass
class _Work:
    """One frame on its way to the encoder."""

    slot: Slot
    frame: Any  # av.VideoFrame in the output's pixel format, or its pixels once cut is set
    duration: int  # of the frame, in ticks of the output's clock
    face: Face | None = None
    dub: Dub | None = None
    visible: float = 1.0  # of the face: strength of its lips
    hidden: HideReason | None = None  # why that is 0
    cut: FaceCut | None = None
    caption: str = ""
    pasted: bool = False


@dataclass
class _Batch:
    """Frames with the lips requests that were sent for them, in order."""

    work: list[_Work]
    requests: list[tuple[LipsRequest, list[_Work]]] = field(default_factory=list)
    ends_part: Prepared | None = None


class Renderer:
    """Writes the output file from the settled part of ring and timeline."""

    def __init__(
        self,
        info: MediaInfo,
        *,
        ring: FrameRing,
        timeline: Timeline,
        chooser: SpeakerChooser,
        bed: AudioBed,
        stream: Stream,
        writer: Writer,
        pulse: Pulse,
        on_progress: Callable[[float, int], None],
        pacing: Pacing | None = None,
        trace: Trace | None = None,
        source_sync: SourceSync | None = None,
        parts: PartEnds | None = None,
    ) -> None:
        self._pacing = pacing or Pacing()
        self._trace = trace or Trace()
        self.source_sync = source_sync or SourceSync()
        self._watch = SourceWatch(self.source_sync)
        self._parts = parts
        self._damaged_before = 0
        self._seen = SeenFaces()
        self._pulse = pulse
        self._info = info
        self._ring = ring
        self._timeline = timeline
        self._chooser = chooser
        self._choices: dict[str, Choice] = {}  # by segment, until it is written
        self._visibility = Visibility(info.width, info.height, float(info.frame_rate))
        self._taken: deque[Slot] = deque(maxlen=frames_around(float(info.frame_rate)))
        self.hidden = HiddenSpans(1000 / float(info.frame_rate))
        self._bed = bed
        self._stream = stream
        self._writer = writer
        self._on_progress = on_progress
        self._format = info.planar_format
        frame_bytes = info.width * info.height * 3 // 2
        self._batch = max(2, min(MAX_BATCH, BATCH_BYTES // frame_bytes))
        self.counts = RenderCounts()
        self.offsets = OffsetMeter()
        self.quality = QualityMeter()
        self._paster = MouthPaster(self.quality)
        self.samples = FaceSamples()
        self.position_ms = 0.0
        self.next_ms = 0.0  # of the picture waited for: the sound must be known up to it, however long the last stays

    async def run(self, reader: PictureReader) -> None:
        """Until every frame of the ring is written, and the sound to its end."""
        batches: asyncio.Queue[_Batch | None] = asyncio.Queue(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_all(batches))
            await self._prepare_all(reader, batches)
            await batches.put(None)

    async def _prepare_all(self, reader: PictureReader, batches: asyncio.Queue[_Batch | None]) -> None:
        while True:
            slots = await self._next_slots()
            if not slots:
                return
            frames = await asyncio.to_thread(reader.read, len(slots))
            self.counts.damaged_packets = self._damaged_before + reader.damaged
            # The analysis has seen these frames; a second reader of the same file sees the same ones.
            work = [self._work(slot, frame) for slot, (_, frame) in zip(slots, frames, strict=True)]
            self._judge_visibility(work)
            await asyncio.to_thread(self._cut_faces, work)
            batch = await self._request_lips(work)
            if self._parts is not None and self._parts.ends_at(slots[-1].time_ms, self._timeline.active):
                batch.ends_part = self._prepared()
            await batches.put(batch)

    def _prepared(self) -> Prepared:
        counts = self.counts
        return Prepared(
            self._chooser.speakers,
            dict(self._choices),
            list(self.hidden.spans),
            counts.lips_calls,
            counts.lips_frames,
            counts.damaged_packets,
        )

    def _state(self, position_ms: float, prepared: Prepared) -> PictureState:
        counts = replace(
            self.counts,
            lips_calls=prepared.lips_calls,
            lips_frames=prepared.lips_frames,
            damaged_packets=prepared.damaged_packets,
        )
        seen = self._seen
        samples = list(self.samples.kept), self.samples.step
        measured = self.offsets.state(), self.quality.state()
        return PictureState(
            position_ms, prepared, counts, *samples, seen.shot, dict(seen.entries), dict(seen.last), *measured
        )

    def restore(self, state: PictureState) -> None:
        """Of a job that goes on: what is written."""
        self.position_ms = self.next_ms = state.position_ms
        self.counts = replace(state.counts, lips_retries=0)  # those are in the job's counters
        self._damaged_before = state.counts.damaged_packets
        self.samples.restore(state)
        self.hidden.spans, self._choices = list(state.prepared.hidden), dict(state.prepared.choices)
        self._chooser.restore(state.prepared.speakers)
        self._seen.restore(state)
        self.offsets.restore(state.offsets)
        self.quality.restore(state.quality)

    async def _next_slots(self) -> list[Slot]:
        """The next frames that are settled, at least one; none at the end."""
        await self._pulse.until(lambda: self._ring.ready(float("inf")) or self._ring.finished)
        slots = self._ring.take(1, float("inf"))
        if slots:
            self.next_ms = slots[0].time_ms
            self._pulse.beat()
            await self._pulse.until(lambda: self._timeline.safe_ms > self.next_ms)
            safe_ms = self._timeline.safe_ms
            await self._choose_faces(slots, self.next_ms)
            following: list[Slot] = []
            while len(settled := self._following(safe_ms)) > len(following):  # more may settle in the meantime
                following = settled
                await self._choose_faces(slots, following[-1].time_ms)
            slots += self._ring.take(len(following), safe_ms)
            self._watch.take(slots)
        await self._watch.measure(self._ring)
        return slots

    def _following(self, safe_ms: float) -> list[Slot]:
        """What can still become of the batch whose first frame is taken."""
        return [slot for slot in self._ring.settled(self._batch - 1) if slot.time_ms < safe_ms]

    async def _choose_faces(self, slots: list[Slot], last_ms: float) -> None:
        """For each dub that starts by the batch's last frame: of a later one the ring may hold no frames yet."""
        for dub in self._timeline.active:
            segment = dub.segment
            if not dub.audible or segment.id in self._choices or segment.start_ms > last_ms:
                continue
            if not self._pacing.live:  # there the faces at hand must do
                await self._pulse.until(partial(self._ring.settled_to, segment.end_ms))
            frames = [*self._taken, *slots, *self._ring.settled()]
            within = [slot for slot in frames if segment.start_ms <= slot.time_ms < segment.end_ms]
            choice = await asyncio.to_thread(self._chooser.choose, within, segment)
            self._watch.add(segment, choice, [*self._taken, *slots])
            self._choices[segment.id] = choice
            dub.result.face_id, dub.result.face_choice = choice.face_id, choice.reason

    def _work(self, slot: Slot, frame: Any) -> _Work:
        dub = self._timeline.lips_at(slot.time_ms)
        face = self._chooser.usual(slot) if dub is None else self._choices[dub.segment.id].face(slot)
        return _Work(slot, frame, frame.duration, face, dub, caption=self._timeline.caption_at(slot.time_ms))

    def _judge_visibility(self, work: list[_Work]) -> None:
        """Of the faces under a dub, from the frames around them."""
        slots = [item.slot for item in work]
        around = [*self._taken, *slots, *self._ring.settled(self._taken.maxlen)]
        self._taken.extend(slots)
        for dub, group in groupby((item for item in work if item.dub is not None), key=lambda item: item.dub):
            views = self._visibility.views(around, self._choices[dub.segment.id].face)
            for item in group:
                view = views[item.slot.index]
                item.visible, item.hidden = view.strength, view.hidden
                if view.hidden is not None:
                    self.hidden.add(item.slot.time_ms, view.hidden)

    def _cut_faces(self, work: list[_Work]) -> None:
        if self._pacing.level >= Level.SOUND:
            return
        for item in work:
            if item.dub is not None and item.face is not None and item.visible > 0:
                pixels, planes = frame_planes(item.frame, self._format)
                item.cut = cut_face(planes, item.face.box_px)
                if item.cut is not None:
                    item.frame = pixels

    async def _request_lips(self, work: list[_Work]) -> _Batch:
        batch = _Batch(work)
        group: list[_Work] = []
        for item in [*work, None]:
            if group and (item is None or item.cut is None or item.dub is not group[0].dub):
                batch.requests.append((await self._request_group(group), group))
                group = []
            if item is not None and item.cut is not None:
                group.append(item)
        return batch

    async def _request_group(self, group: list[_Work]) -> LipsRequest:
        dub = group[0].dub
        assert dub is not None  # noqa: S101  a cut is made only under a dub
        asked = group[:: self._lips_step]
        self.counts.lips_calls += 1
        self.counts.lips_frames += len(asked)
        times_ms = [item.slot.time_ms for item in asked]
        faces = [item.cut.face for item in asked if item.cut is not None]
        timeout_s = min(TIMEOUT_S, max(MIN_LIPS_S, self._pacing.left_s(times_ms[0])))
        return await request_lips(self._stream, dub, times_ms, faces, timeout_s)

    async def _write_all(self, batches: asyncio.Queue[_Batch | None]) -> None:
        while (batch := await batches.get()) is not None:
            for request, group in batch.requests:
                mouths = await request.mouths()
                self._note(request.dub.segment.id, Stage.LIPS, request.sent_at, request.answered_at, group)
                self.counts.lips_retries += request.retries
                if mouths is None:
                    self.counts.lips_failures += 1
                    self.counts.lips_missed += len(group)
                    self._pacing.missed(Pressure.LIPS, f"no mouths for {len(group)} frames in time")
                else:
                    began_at = time.monotonic()
                    await asyncio.to_thread(self._blend, group, mouths)
                    self._note(request.dub.segment.id, Stage.BLEND, began_at, time.monotonic(), group)
                    self._note_first_frame(group)
            sound = self._bed.render(batch.work[-1].slot.time_ms, self._timeline.active)
            began_at = time.monotonic()
            await asyncio.to_thread(self._encode, batch.work, sound)
            self._note(None, Stage.ENCODE, began_at, time.monotonic(), batch.work)
            self._moved_to(batch.work[-1].slot.time_ms)
            if self._parts is not None and batch.ends_part is not None:
                await self._parts.save(self._state(self.position_ms, batch.ends_part))
        await self._write_rest_of_sound()

    async def _write_rest_of_sound(self) -> None:
        """The sound may go on behind the last picture, a dub too: words are never cut."""
        await asyncio.to_thread(self._writer.end_pictures)
        complete = False
        while not complete:
            await self._pulse.until(
                lambda: self._timeline.complete or self._timeline.safe_ms > self.position_ms + SOUND_STEP_MS
            )
            complete = self._timeline.complete
            active = self._timeline.active
            ends_ms = [self._bed.end_ms, *(dub.end_ms for dub in active if dub.ended)]
            until_ms = max(ends_ms) if complete else min(self._timeline.safe_ms, self._bed.end_ms)
            await asyncio.to_thread(self._writer.write, [], self._bed.render(until_ms, active))
            self._moved_to(max(until_ms, self.position_ms))
        self._forget_written(float("inf"))

    def _note(self, segment_id: str | None, stage: Stage, start_s: float, end_s: float, work: list[_Work]) -> None:
        end_ms = work[-1].slot.time_ms + 1000 / float(self._info.frame_rate)
        self._trace.span(segment_id, stage, start_s, end_s, media_start_ms=work[0].slot.time_ms, media_end_ms=end_ms)

    def _note_first_frame(self, group: list[_Work]) -> None:
        dub = group[0].dub
        if dub is not None and dub.result.latency_ms.first_frame is None and any(item.pasted for item in group):
            dub.result.latency_ms.first_frame = (time.monotonic() - dub.closed_at) * 1000
            dub.result.first_frame_after_ms = self._pacing.since_ms(dub.segment.end_ms)

    def _blend(self, group: list[_Work], mouths: Any) -> None:
        step = -(-len(group) // len(mouths))  # frames that share a mouth
        for index, item in enumerate(group):
            if item.cut is None or item.dub is None:
                continue
            mouth = mouths[index // step]
            time_ms = item.slot.time_ms
            opening = self._paster.paste(
                item.cut,
                mouth,
                item.visible * self._edge(item.dub, time_ms),
                frame=item.slot.index,
                track=None if item.face is None else item.face.track_id,
            )
            item.pasted = opening > 0
            self.counts.lipsynced += item.pasted
            if (item.dub.start_ms or 0) <= time_ms < item.dub.end_ms:
                self.offsets.add(item.dub, time_ms, opening)

    @property
    def _lips_step(self) -> int:
        """Every how manieth frame gets a mouth of its own."""
        return 2 if self._pacing.level is Level.HALF_LIPS else 1

    def _edge(self, dub: Dub, time_ms: float) -> float:
        """Strength of the lips by the distance from both ends of their time."""
        since = time_ms - dub.lips_start_ms + 1000 / float(self._info.frame_rate)
        left = dub.lips_end_ms - time_ms if dub.ended else EDGE_MS
        return min(1.0, since / EDGE_MS, left / EDGE_MS)

    def _encode(self, work: list[_Work], sound: Float32) -> None:
        self._writer.write(((self._picture(item), item.slot.time_ms) for item in work), sound)
        for item in work:
            self._count(item)

    def _picture(self, item: _Work) -> Any:
        """The frame as the encoder takes it."""
        if item.caption:
            pixels, planes = (item.frame, item.cut.planes) if item.cut else frame_planes(item.frame, self._format)
            draw_caption(planes, item.caption)
            item.frame = pixels
        if item.cut is not None or item.caption:
            item.frame = to_frame(item.frame, self._format)
            item.frame.duration = item.duration
        return item.frame

    def _count(self, item: _Work) -> None:
        self.counts.frames += 1
        self._seen.add(item.slot)
        face = item.face
        if face is None:
            self.counts.without_face += 1
        if self.samples.wants(item.slot.index):
            self.samples.add(
                FaceSample(
                    frame=item.slot.index,
                    time_ms=round(item.slot.time_ms),
                    box_px=None if face is None else face.box_px,
                    track_id=None if face is None else face.track_id,
                    lipsynced=item.pasted,
                    hidden=item.hidden,
                    others=tuple((other.box_px, other.track_id) for other in item.slot.faces if other is not face),
                )
            )

    def _moved_to(self, time_ms: float) -> None:
        self.position_ms = time_ms
        self._forget_written(time_ms)
        self._pulse.beat()
        self._on_progress(time_ms, self.counts.frames)

    def _forget_written(self, time_ms: float) -> None:
        for dub in self._timeline.written(time_ms):
            self._choices.pop(dub.segment.id, None)
            self.offsets.close(dub)
            dub.result.latency_ms.total = (time.monotonic() - dub.closed_at) * 1000
