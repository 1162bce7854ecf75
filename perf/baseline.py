"""The sequential baseline: `python -m polylip.perf.baseline CLIP -o OUT --to es [--from en] [--profile lite] [--json]`.

The engines of a profile in one process, one step after another over the whole clip, each network one frame at a time:
no server, no gRPC, no overlap. It leaves a video as the pipeline does. See docs/baseline.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

from polylip.client.closing import Policy
from polylip.client.errors import InputError, PolylipError
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_out import check_output, output_channels, output_sample_rate
from polylip.client.mix import AudioBed, LevelMatch
from polylip.client.options import check_not_input
from polylip.client.pulse import Pulse
from polylip.client.results import Status
from polylip.client.segmentation import SPEECH_RATE_HZ, Segment, Segmenter
from polylip.client.speech import ENDS, TOO_LATE
from polylip.client.timeline import Dub, Timeline
from polylip.client.vad import VadChoice, make_vad
from polylip.perf import baseline_picture as picture
from polylip.perf import experiment
from polylip.perf.baseline_engines import Clock, Engines, Float32, Step, StepSpan
from polylip.serving import engines as serving
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.isochrony import Slot
from polylip.serving.speaking import Line
from polylip.serving.steps import Spoken

READ_S = 10.0  # of sound per read, until there is no more


@dataclass(frozen=True)
class BaselineSegment:
    """One segment and its dub, in milliseconds on the video's own timeline."""

    start_ms: int
    end_ms: int
    status: str
    source_text: str
    target_text: str
    dub_start_ms: int | None
    dub_end_ms: int | None


@dataclass(frozen=True)
class BaselineRun:
    """What a run did, and how long each step took."""

    total_s: float  # from the call to the closed file
    stages_s: dict[str, float]
    first_frame_s: float | None  # until the first frame with new lips went to the encoder
    duration_s: float
    frames: int
    frames_lipsynced: int
    key_frames: int
    calls: dict[str, int]  # of each engine
    segments: tuple[BaselineSegment, ...]
    spans: tuple[StepSpan, ...]

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of video."""
        return self.total_s / self.duration_s


class Baseline:
    """Loads the engines once; dubs any number of clips, one at a time."""

    def __init__(self, profile: str = "lite", repository: Path | None = None) -> None:
        """`repository`: another one than the checkout's. Raises ValueError, MissingError, EngineError."""
        self._engines = Engines(profile, repository)

    def dub(self, clip: Path, output: Path, *, source: str = "auto", target: str, paced: bool = False) -> BaselineRun:
        """Write the dubbed video. Languages are ISO 639-1 codes. Raises InputError.

        `paced`: the clip arrives in real time from the call on. A segment is taken up when it has closed, the picture
        when all of it is there.
        """
        check_output(output)
        self._engines.calls.clear()
        clock = Clock()
        with clock.step(Step.DECODE):
            info = probe_media(clip)
            pictures, sound = _decode(info)
        with clock.step(Step.SEGMENT):
            segments = _segments(sound[1])
        voice = _Voice(self._engines, output_sample_rate(info), source, target)
        timeline = Timeline(info.duration_s * 1000 if info.duration_s else None, Pulse())
        for segment in segments:
            if paced:
                clock.wait_until(segment.decided_ms / 1000)
            voice.speak(segment, timeline, clock)
        timeline.advance(float("inf"))
        if paced:
            clock.wait_until(info.duration_s or 0.0)
        slots, key_frames = picture.find_faces(info, pictures, self._engines, clock)
        with clock.step(Step.CUT):
            work = picture.plan_lips(info, slots, pictures, timeline)
            dubbed = picture.cut_faces(work, info.planar_format)
        with clock.step(Step.MEL):
            picture.add_mels(dubbed)
        with clock.step(Step.LIPS):
            picture.add_mouths(dubbed, self._engines)
        with clock.step(Step.BLEND):
            picture.blend(dubbed)
        with clock.step(Step.ENCODE):
            bed = AudioBed(output_sample_rate(info), output_channels(info))
            bed.append(sound[0])
            written = picture.Output(output, info, clock)
            written.write(work, bed, timeline.active)
        return BaselineRun(
            total_s=clock.now_s,
            stages_s=clock.seconds,
            first_frame_s=written.first_frame_s,
            duration_s=info.duration_s or pictures[-1][0] / 1000,
            frames=len(work),
            frames_lipsynced=sum(item.pasted for item in work),
            key_frames=key_frames,
            calls=dict(self._engines.calls),
            segments=tuple(map(_told, timeline.active)),
            spans=tuple(clock.spans),
        )


class _Voice:
    """Gives segments their new speech, one after another."""

    def __init__(self, engines: Engines, rate_hz: int, source: str, target: str) -> None:
        self._engines = engines
        self._rate_hz = rate_hz  # of the output
        self._source, self._target = source, target
        self._levels, self._stream_id = LevelMatch(), uuid.uuid4().hex

    def speak(self, segment: Segment, timeline: Timeline, clock: Clock) -> None:
        """All of it, onto the timeline."""
        dub = timeline.add(segment)
        slot = Slot(*timeline.plan(dub))
        with clock.step(Step.TRANSCRIBE):
            heard = self._engines.transcribe(segment.audio, self._source)
        with clock.step(Step.TRANSLATE):
            said = self._engines.translate(heard, self._target)
        dub.result.source_text, dub.result.target_text = heard.text, said.text
        with clock.step(Step.SYNTHESIZE):
            line = Line(said.text, self._target, stream=self._stream_id, slot=slot)
            spoken = self._engines.synthesize(line, said.status, said.message)
        with clock.step(Step.PLACE):
            _place(timeline, dub, spoken, self._levels, self._rate_hz)


def _decode(info: MediaInfo) -> tuple[list[picture.Picture], tuple[Float32, Float32]]:
    """All pictures; all sound at the output's rate (channels, n) and at 16 kHz (m,)."""
    channels = output_channels(info)
    with closing(VideoReader(info, info.planar_format)) as video:
        pictures = video.read(sys.maxsize)
    native, mono = [np.zeros((channels, 0), np.float32)], [np.zeros(0, np.float32)]
    with closing(AudioReader(info, output_sample_rate(info), channels)) as audio:
        while (piece := audio.read(READ_S)) is not None:
            native.append(piece[0])
            mono.append(piece[1])
    return pictures, (np.concatenate(native, axis=1), np.concatenate(mono))


def _segments(sound: Float32) -> list[Segment]:
    """Cut by silence alone, with the client's own segmenter: nothing is asked of the recogniser."""
    segmenter = Segmenter(make_vad(VadChoice.AUTO), Policy.SILENCE)
    items = [*segmenter.push(sound), *segmenter.flush()]
    return [item for item in items if isinstance(item, Segment)]


def _place(timeline: Timeline, dub: Dub, spoken: Sequence[Spoken], levels: LevelMatch, rate_hz: int) -> None:
    """As the client does with what comes of a segment, but at once."""
    last, chunks = spoken[-1], [item.chunk for item in spoken if item.chunk.audio.size]
    if not chunks:
        timeline.end(dub, ENDS.get(last.status, Status.ERROR), last.message)
        return
    if not timeline.place(dub):
        timeline.end(dub, Status.TOO_LATE, TOO_LATE)
        return
    voice_hz, voice = chunks[0].sample_rate_hz, np.concatenate([chunk.audio for chunk in chunks])
    gain = levels.gain(dub.segment.audio, _resampled(chunks[0].audio, voice_hz, SPEECH_RATE_HZ))
    for_ear = _resampled(voice, voice_hz, rate_hz) * np.float32(gain)
    timeline.append(dub, _resampled(voice, voice_hz, SPEECH_RATE_HZ), for_ear)
    status = Status.DUBBED if last.status is serving.Status.OK else ENDS.get(last.status, Status.ERROR)
    timeline.end(dub, status, last.message)


def _resampled(audio: Float32, from_hz: int, to_hz: int) -> Float32:
    """float32 (samples,) at another rate."""
    resampler = av.AudioResampler("fltp", "mono", to_hz)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None, :]), format="fltp", layout="mono")
    frame.sample_rate = from_hz
    pieces = [piece.to_ndarray()[0] for piece in (*resampler.resample(frame), *resampler.resample(None))]
    return np.concatenate(pieces)


def _told(dub: Dub) -> BaselineSegment:
    result = dub.result
    return BaselineSegment(
        result.start_ms,
        result.end_ms,
        str(result.status),
        result.source_text,
        result.target_text,
        result.dub_start_ms,
        result.dub_end_ms,
    )


def table(run: BaselineRun) -> str:
    """Seconds of each step, and of all."""
    rows = [f"{name:12}{seconds:8.3f} s" for name, seconds in run.stages_s.items()]
    first = "none" if run.first_frame_s is None else f"after {run.first_frame_s:.3f} s"
    return "\n".join(
        [
            *rows,
            f"{'total':12}{run.total_s:8.3f} s for {run.duration_s:.2f} s of video: {run.real_time_factor:.2f}",
            f"{len(run.segments)} segments, {run.frames_lipsynced} of {run.frames} frames with new lips, first {first}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Dub one clip and print how long each step took."""
    parser = argparse.ArgumentParser(
        prog="python -m polylip.perf.baseline",
        description="Dub a clip with one step after another, for comparison.",
        epilog="example: python -m polylip.perf.baseline talk.mp4 -o talk_es.mp4 --from en --to es",
    )
    parser.add_argument("clip", type=Path, metavar="CLIP", help="a video with speech")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", required=True, help="mp4, mov, mkv")
    parser.add_argument("--from", dest="source", default="auto", metavar="LANG", help="ISO 639-1, default auto")
    parser.add_argument("--to", dest="target", required=True, metavar="LANG", help="ISO 639-1")
    parser.add_argument("--profile", choices=experiment.PROFILES, default="lite", help="cpu makes its own weights")
    parser.add_argument("--json", action="store_true", help="everything, for a machine")
    options = parser.parse_args(arguments)
    try:
        _check(options.clip, options.output)
        with experiment.prepared(experiment.Setup(options.profile)) as setup:
            baseline = Baseline(options.profile, setup.repository)
            run = baseline.dub(options.clip, options.output, source=options.source, target=options.target)
    except (PolylipError, MissingError, EngineError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(run), indent=1) if options.json else table(run))
    statuses = {segment.status for segment in run.segments}
    if statuses == {Status.UNSUPPORTED}:
        print(f"error: profile {options.profile} cannot dub to {options.target!r}: polylip languages", file=sys.stderr)
        return 1
    return 0


def _check(clip: Path, output: Path) -> None:
    """What can be seen before anything is loaded. Raises InputError."""
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}; make it first")
    check_not_input(output, clip)


if __name__ == "__main__":
    sys.exit(main())
