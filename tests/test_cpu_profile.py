"""Profile cpu on a real tritonserver: the full-size graphs of S3FD and Wav2Lip, with generated weights.

The detector is fitted to the demo clip's face, so that real boxes go through the real decoding, tracking and blending.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from material import read_aloud

from polylip.client.errors import ServerError
from polylip.client.faces import Letterbox
from polylip.client.job import DubOptions, DubResult, dub
from polylip.client.media_in import VideoReader, probe_media
from polylip.client.triton import TritonClient, TritonStream
from polylip.client.wire import SequencePosition, new_sequence_id
from polylip.export.gate_inputs import gate_faces, gate_mel
from polylip.export.generated import generated_network
from polylip.export.graphs import LipsGraph
from polylip.export.parity import ssim
from polylip.export.sidecar import read_sidecar
from polylip.perf.demo_clip import make_demo_clip
from polylip.serving.doctor import generated_networks, run_checks
from polylip.serving.engines.cascade import Cascade
from polylip.serving.engines.s3fd import S3fd
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.tracking import Tracker

TIMEOUT_S = 60.0
SAME_FACE_IOU = 0.5
SURE_OF_A_FACE = 0.5  # score of the cascade


@pytest.fixture(scope="module")
def cpu_server(generated_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("cpu") / "server.log"
    running = start_server(ServerOptions(profile="cpu", model_repository=generated_repository, log_path=log))
    yield running
    running.stop()


@pytest.fixture
async def stream(cpu_server: Server) -> AsyncIterator[TritonStream]:
    async with TritonClient(cpu_server.url) as client, client.stream() as opened:
        yield opened


@pytest.fixture(scope="module")
def frames(demo_clip: Path) -> np.ndarray:
    """uint8 (6, 360, 640, 3) BGR: a second of the demo, five frames apart."""
    info = probe_media(demo_clip)
    letterbox, reader = Letterbox(info.width, info.height), VideoReader(info)
    try:
        return np.stack([letterbox.shrink(frame) for _, frame in reader.read(30)[::5]])
    finally:
        reader.close()


def dub_with_cpu(clip: Path, server: Server, folder: Path) -> DubResult:
    return asyncio.run(dub(DubOptions(clip, folder / clip.name, "es", url=server.url, profile="cpu")))


@pytest.fixture(scope="module")
def demo(demo_clip: Path, cpu_server: Server, tmp_path_factory: pytest.TempPathFactory) -> DubResult:
    return dub_with_cpu(demo_clip, cpu_server, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def real(real_clip: Path, cpu_server: Server, tmp_path_factory: pytest.TempPathFactory) -> DubResult:
    return dub_with_cpu(real_clip, cpu_server, tmp_path_factory.mktemp("real"))


@pytest.fixture
def short_clip(tmp_path: Path) -> Path:
    """Four seconds of the demo."""
    return make_demo_clip(tmp_path / "short.mp4", seconds=4.0)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    areas = [float(np.prod(box[2:] - box[:2])) for box in (a, b)]
    return float(np.prod(sides)) / (sum(areas) - float(np.prod(sides)))


def lite_boxes(frames: np.ndarray) -> np.ndarray:
    """float32 (n, 4): what the lite profile's detector takes for the face."""
    boxes, scores = Cascade({}, "").detect(frames)
    assert (scores[:, 0] > 0).all()
    return boxes[:, 0]


def test_the_graphs_are_full_size_and_say_what_they_are_made_of(generated_repository):
    for name, size_mb in (("lips/1/wav2lip_fp32.onnx", 145), ("detect/1/s3fd_fp32.onnx", 90)):
        path = generated_repository / name
        assert abs(path.stat().st_size / 1e6 - size_mb) < 2
        assert read_sidecar(path).source.weights == "generated"
    assert generated_networks("cpu", generated_repository) == ["wav2lip", "s3fd"]
    graphs = [check for check in run_checks("cpu", generated_repository) if check.name.startswith("graph of")]
    assert len(graphs) == 2 and all("GENERATED WEIGHTS" in check.detail for check in graphs)


def test_a_dub_with_generated_weights_says_so(generated_repository, short_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYLIP_MODEL_REPOSITORY", str(generated_repository))
    result = asyncio.run(dub(DubOptions(short_clip, tmp_path / "out.mp4", "es", profile="cpu")))
    assert "generated weights in wav2lip and s3fd: the picture means nothing" in result.report.warnings


def test_the_server_says_in_which_precision_it_runs(cpu_server, demo):
    log = cpu_server.read_log()
    assert "wav2lip: openvino, " in log and "s3fd: openvino, " in log


async def test_lips_answers_what_torch_computes(stream):
    mel, faces = gate_mel(5), gate_faces(5)
    served = (await stream.call("lips", {"MEL": mel, "FACES": faces}, TIMEOUT_S))["MOUTHS"]
    with torch.no_grad():
        expected = LipsGraph(generated_network("wav2lip"))(torch.from_numpy(mel), torch.from_numpy(faces)).numpy()
    assert min(ssim(a, b) for a, b in zip(expected, served, strict=True)) > 0.995
    assert np.abs(expected.astype(int) - faces).max() > 30, "the network does something"


async def test_lips_of_two_callers_at_once_are_those_of_each_alone(stream, cpu_server):
    inputs = [{"MEL": gate_mel(8)[i : i + n], "FACES": gate_faces(8)[i : i + n]} for i, n in ((0, 3), (3, 5), (2, 1))]
    alone = [(await stream.call("lips", i, TIMEOUT_S))["MOUTHS"] for i in inputs]

    async def call(i):
        async with TritonClient(cpu_server.url) as client, client.stream() as own:
            return (await own.call("lips", i, TIMEOUT_S))["MOUTHS"]

    together = await asyncio.gather(*(call(i) for i in inputs * 3))
    for got, expected in zip(together, alone * 3, strict=True):
        assert got.shape == expected.shape and np.abs(got.astype(int) - expected).max() <= 2


async def test_detect_finds_the_face_that_the_lite_detector_finds(stream, frames):
    found = await stream.call("detect", {"FRAMES": frames}, TIMEOUT_S)
    assert found["BOXES"].shape == (6, 256, 4) and found["SCORES"].shape == (6, 256)
    assert (np.diff(found["SCORES"], axis=1) <= 0).all(), "best first"
    for box, score, lite in zip(found["BOXES"][:, 0], found["SCORES"][:, 0], lite_boxes(frames), strict=True):
        assert score > 0.5 and iou(box, lite) > SAME_FACE_IOU


async def test_detect_through_triton_is_the_engine_in_process(stream, frames, generated_repository):
    engine = S3fd({"graph": "s3fd"}, str(generated_repository / "detect" / "1"))
    boxes, scores = engine.detect(frames[:2])
    served = await stream.call("detect", {"FRAMES": frames[:2]}, TIMEOUT_S)
    np.testing.assert_array_equal(served["SCORES"], scores)
    np.testing.assert_array_equal(served["BOXES"], boxes)


async def test_whole_and_small_frames_find_the_same_face(frames, generated_repository):
    folder = str(generated_repository / "detect" / "1")
    whole, small = (
        S3fd({"graph": "s3fd", "pass_height": s}, folder).detect(frames[:1])[0][0, 0] for s in ("360", "135")
    )
    assert iou(whole, small) > SAME_FACE_IOU


async def test_faces_holds_one_track_on_the_face(stream, frames):
    key_ms = np.arange(6, dtype=np.int64) * 200
    inputs = {"FRAMES": frames, "KEYFRAME_MS": key_ms, "QUERY_MS": key_ms}
    position = SequencePosition(new_sequence_id(), start=True, end=True)
    tracks = await stream.call("faces", inputs, TIMEOUT_S, position)
    best = int(np.argmax(tracks["TRACK_SCORES"].mean(axis=0)))
    for box, lite in zip(tracks["TRACK_BOXES"][:, best], lite_boxes(frames), strict=True):
        assert iou(box, lite) > SAME_FACE_IOU
    # The ensemble is nothing but its parts.
    found = await stream.call("detect", {"FRAMES": frames}, TIMEOUT_S)
    alone = Tracker().update(found["BOXES"], found["SCORES"], key_ms, key_ms)
    np.testing.assert_allclose(tracks["TRACK_BOXES"], alone.boxes, atol=1e-3)


async def test_lipsync_opens_the_mouth_for_speech_and_not_for_silence(stream):
    speech = read_aloud("My house has a big red door.")
    offsets = np.arange(16, dtype=np.int64) * 40 + 300
    faces = np.repeat(gate_faces(1), 16, axis=0)

    async def mouths(audio):
        inputs = {"AUDIO": audio, "FRAME_OFFSETS_MS": offsets, "FACES": faces}
        return (await stream.call("lipsync", inputs, TIMEOUT_S))["MOUTHS"].astype(int)

    spoken, silent = await mouths(speech), await mouths(np.zeros_like(speech))
    assert spoken.shape == (16, 96, 96, 3)
    assert np.abs(np.diff(spoken, axis=0)).max() > 20 > np.abs(np.diff(silent, axis=0)).max()


@pytest.mark.parametrize("shape", [(1, 40, 40, 3), (1, 2400, 64, 3)])
async def test_frames_of_a_size_that_cannot_be_searched_are_refused_and_the_server_lives(stream, frames, shape):
    with pytest.raises(ServerError, match="send sides of 64 to 2160 px, best 640x360"):
        await stream.call("detect", {"FRAMES": np.zeros(shape, np.uint8)}, TIMEOUT_S)
    await stream.call("detect", {"FRAMES": frames[:1]}, TIMEOUT_S)


def test_the_demo_is_dubbed_with_the_face_held_in_every_frame(demo):
    report = demo.report
    assert report.profile == "cpu" and report.frames_without_face == 0
    assert report.frames_lipsynced > report.frames / 3
    assert [s.status for s in report.segments] == ["dubbed"] * len(report.segments) and report.segments


@pytest.mark.parametrize("clip", ["demo", "real"])
def test_the_boxes_of_the_contact_sheet_lie_where_the_lite_detector_finds_the_face_or_it_says_why_not(clip, request):
    source, result = request.getfixturevalue(f"{clip}_clip"), request.getfixturevalue(clip)
    samples = {s.frame: s for s in result.face_samples}
    info = probe_media(source)
    letterbox, reader = Letterbox(info.width, info.height), VideoReader(info)
    detector, compared, elsewhere, unexplained = Cascade({}, ""), 0, [], []
    try:
        for index, (_, frame) in enumerate(reader.read(10_000)):
            if index not in samples or index % 3:
                continue
            boxes, scores = detector.detect(letterbox.shrink(frame)[None])
            sure = boxes[0, scores[0] > SURE_OF_A_FACE] / letterbox.scale
            if not len(sure):
                continue
            compared += 1
            sample = samples[index]
            if sample.box_px is None:
                if not any(span.start_ms <= sample.time_ms <= span.end_ms for span in result.report.face_spans_hidden):
                    unexplained.append(index)
            elif max(iou(np.array(sample.box_px), box) for box in sure) < SAME_FACE_IOU:
                elsewhere.append(index)
    finally:
        reader.close()
    assert compared > 30 and not unexplained
    # The cascade itself errs now and then: on the real clip it takes a lamp for a face in three of these frames.
    assert len(elsewhere) <= 0.1 * compared, elsewhere
    assert all(sample.box_px is not None for sample in samples.values()) or result.report.face_spans_hidden
