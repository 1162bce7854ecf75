"""The main job, end to end: a clip goes through a real server and comes out dubbed."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from clips import make_clip, noise

from polylip.client.job import DubOptions, DubResult, Progress, dub
from polylip.client.media_in import AudioReader, MediaInfo, probe_media
from polylip.client.results import Report, Status
from polylip.client.timeline import RAMP_MS
from polylip.client.vad import VadChoice
from polylip.perf.demo_clip import SENTENCES
from polylip.serving.launcher import Server

REPORT_FIELDS = {
    "profile", "input", "output", "duration_s", "frames", "frames_lipsynced", "frames_without_face",
    "real_time_factor", "wall_s", "av_offset_ms", "segments", "versions", "faces", "face_spans_hidden", "seam",
    "flicker", "av_offsets", "trace",
}  # fmt: skip
SEGMENT_FIELDS = {
    "id", "start_ms", "end_ms", "dub_start_ms", "dub_end_ms", "rate", "source_text", "target_text", "status",
    "latency_ms", "face_id", "face_choice", "error_code", "av_offset_ms", "closed_by", "confidence",
}  # fmt: skip


@dataclass(frozen=True)
class Dubbed:
    """A finished job and its source."""

    source: Path
    result: DubResult
    progress: list[Progress]

    @property
    def report(self) -> Report:
        return self.result.report


def run(clip: Path, output: Path, url: str) -> Dubbed:
    progress: list[Progress] = []
    result = asyncio.run(dub(DubOptions(clip, output, "es", url=url), progress.append))
    return Dubbed(clip, result, progress)


@pytest.fixture(scope="module")
def demo(demo_clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Dubbed:
    return run(demo_clip, tmp_path_factory.mktemp("dubbed") / "demo.mp4", server.url)


@pytest.fixture(scope="module")
def real(real_clip: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Dubbed:
    return run(real_clip, tmp_path_factory.mktemp("dubbed") / "real.mp4", server.url)


@pytest.fixture(params=["demo", "real"])
def job(request: pytest.FixtureRequest) -> Dubbed:
    return request.getfixturevalue(request.param)


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """(time_ms, uint8 (h, w) luma) of every frame; luma, so that no colour conversion blurs the comparison."""
    with av.open(str(path)) as container:
        return [(frame.time * 1000, luma(frame)) for frame in container.decode(video=0)]


def luma(frame) -> np.ndarray:
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()


def sound(path: Path) -> np.ndarray:
    """Mono float32 at 16 kHz."""
    reader = AudioReader(probe_media(path), 16_000, 1)
    pieces = []
    while (piece := reader.read(1.0)) is not None:
        pieces.append(piece[1])
    reader.close()
    return np.concatenate(pieces)


def dubbed_at(report: Report, time_ms: float) -> bool:
    return any(
        s.dub_start_ms is not None and s.dub_end_ms is not None and s.dub_start_ms <= time_ms < s.dub_end_ms
        for s in report.segments
    )


def test_every_segment_is_heard_translated_and_spoken(job: Dubbed):
    assert len(job.report.segments) >= 2
    for segment in job.report.segments:
        assert segment.status is Status.DUBBED
        assert segment.source_text and segment.target_text
        assert segment.target_text != segment.source_text


def test_the_demo_sentences_arrive_word_for_word(demo: Dubbed):
    texts = " ".join(s.source_text for s in demo.report.segments)
    sentences = SENTENCES[: len(demo.report.segments)]
    spoken = [word.strip(".,?!").lower() for sentence in sentences for word in sentence.split()]
    heard = texts.lower().split()
    assert len(set(spoken) & set(heard)) >= 0.9 * len(set(spoken))


def test_size_rate_count_and_times_of_the_frames_are_those_of_the_input(job: Dubbed):
    before, after = probe_media(job.source), probe_media(job.result.video)
    assert (after.width, after.height, after.frame_rate) == (before.width, before.height, before.frame_rate)
    source, dubbed = pictures(job.source), pictures(job.result.video)
    assert len(dubbed) == len(source) == job.report.frames
    assert max(abs(a - b) for (a, _), (b, _) in zip(source, dubbed, strict=True)) < 1.0
    assert after.duration_s == pytest.approx(before.duration_s, abs=0.1)


def test_codecs_are_h264_and_aac(job: Dubbed):
    with av.open(str(job.result.video)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"


def test_two_dubs_never_overlap(job: Dubbed):
    spans = [(s.dub_start_ms, s.dub_end_ms) for s in job.report.segments if s.dub_start_ms is not None]
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert all(s.dub_start_ms >= s.start_ms for s in job.report.segments if s.dub_start_ms is not None)


def test_the_face_is_held_in_nearly_every_frame(job: Dubbed):
    assert job.report.frames_without_face <= 0.05 * job.report.frames


def test_frames_outside_the_dub_differ_by_encoder_loss_alone(job: Dubbed):
    """Same loss inside and outside the face, frame by frame; under the dub the mouth differs far more."""
    face = {s.frame: s.box_px for s in job.result.face_samples if s.box_px is not None}
    outside, under = [], []
    for index, ((time_ms, a), (_, b)) in enumerate(zip(pictures(job.source), pictures(job.result.video), strict=True)):
        box = face.get(index) or next(iter(face.values()))
        x1, y1, x2, y2 = (max(0, int(v)) for v in box)
        loss = np.abs(a.astype(np.int16) - b.astype(np.int16))
        mouth = loss[(y1 + y2) // 2 : y2, x1:x2]
        (under if dubbed_at(job.report, time_ms) else outside).append((loss.mean(), np.percentile(mouth, 99)))
    assert max(mean for mean, _ in outside) < 3.0  # grey levels of 256: crf 18
    assert max(peak for _, peak in outside) < 20
    assert np.percentile([peak for _, peak in under], 90) > 25


def test_the_original_voice_is_gone_under_the_dub_and_untouched_elsewhere(job: Dubbed):
    before, after = sound(job.source), sound(job.result.video)
    replaced = np.zeros(len(before), bool)
    margin = 2 * RAMP_MS
    for s in job.report.segments:
        for start, end in ((s.start_ms, s.end_ms), (s.dub_start_ms, s.dub_end_ms)):
            replaced[max(0, (start - margin) * 16) : (end + margin) * 16] = True
    length = min(len(before), len(after))
    kept = np.flatnonzero(~replaced[:length])
    assert kept.size > 8000
    residual = np.sqrt(np.mean((before[kept] - after[kept]) ** 2))
    assert residual < 0.01
    first = job.report.segments[0]
    span = slice(first.start_ms * 16, min(first.end_ms, first.dub_end_ms) * 16)
    assert abs(np.corrcoef(before[span], after[span])[0, 1]) < 0.1


def test_the_mouth_is_in_time_with_the_dub(job: Dubbed):
    """Detectable is audio early by 45 ms or late by 125 ms (ITU-R BT.1359); positive means that the picture is late."""
    assert job.report.av_offset_ms is not None
    assert -125 < job.report.av_offset_ms < 45


def test_the_report_holds_what_is_promised(job: Dubbed):
    report = json.loads((job.result.video.parent / "report.json").read_text())
    assert report.keys() >= REPORT_FIELDS
    assert all(segment.keys() >= SEGMENT_FIELDS for segment in report["segments"])
    assert set(report["segments"][0]["latency_ms"]) == {
        "queue", "first_audio", "speech", "first_frame", "lipsync", "total",
    }  # fmt: skip
    assert report["versions"]["tritonserver"] == "2.51.0"
    assert report["frames_lipsynced"] > 0


def test_companions_lie_beside_the_video(job: Dubbed):
    names = {path.name for path in job.result.video.parent.iterdir()}
    stem = job.result.video.stem
    assert {"report.json", "contact_sheet.png"} <= names
    assert {f"{stem}.{language}.{kind}" for language in ("en", "es") for kind in ("vtt", "srt")} <= names
    assert not [name for name in names if name.startswith(".")], "a temporary file was left behind"


def test_progress_counts_every_frame(job: Dubbed):
    frames = [p.frames for p in job.progress if p.stage == "dubbing"]
    assert frames == sorted(frames)
    assert frames[-1] == job.report.frames
    assert job.progress[-1].frames_total == job.report.frames


def test_detection_is_rationed_to_key_frames(job: Dubbed):
    """At most 6.5 passes per second of video, and at most one lips call per 8 frames that they are asked for."""
    counters = job.report.counters
    assert counters["key_frames"] - counters["dense_key_frames"] <= 6.5 * job.report.duration_s + 2
    assert counters["dense_key_frames"] <= 0.1 * counters["key_frames"]
    assert counters["cuts"] == 0
    assert job.report.frames_lipsynced <= counters["lipsync_frames"]
    assert counters["lipsync_calls"] <= counters["lipsync_frames"] / 8 + 3 * len(job.report.segments)
    assert counters["failed_lipsync_calls"] == counters["failed_faces_chunks"] == 0


async def test_two_jobs_at_once_do_not_mix(demo: Dubbed, demo_clip: Path, server: Server, tmp_path: Path):
    other = make_clip(tmp_path / "noise.mp4", seconds=6, sound=noise(6))
    jobs = [
        dub(DubOptions(demo_clip, tmp_path / "a" / "o.mp4", "es", url=server.url)),
        dub(DubOptions(other, tmp_path / "b" / "o.mp4", "es", url=server.url, vad=VadChoice.ENERGY)),
        dub(DubOptions(demo_clip, tmp_path / "c" / "o.mp4", "es", url=server.url)),
    ]
    first, noisy, second = [result.report for result in await asyncio.gather(*jobs)]
    alone = [s.target_text for s in demo.report.segments]
    told = [s.message for s in [*first.segments, *second.segments]]
    assert [s.target_text for s in first.segments] == [s.target_text for s in second.segments] == alone, told
    assert first.frames_without_face == second.frames_without_face == demo.report.frames_without_face
    assert noisy.frames_lipsynced == 0 and noisy.frames_without_face == noisy.frames


def test_media_info_is_kept(job: Dubbed):
    info: MediaInfo = probe_media(job.source)
    with av.open(str(job.result.video)) as container:
        assert container.streams.audio[0].rate == info.sample_rate_hz
