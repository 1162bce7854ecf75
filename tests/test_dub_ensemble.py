"""`dub` on a real server: the same result as the three lines, streams side by side, and every failure as a status."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from polylip.client.dub_stream import DubAnswer, DubSegment, DubStream
from polylip.client.protocol_golden import FOLDER, READ, REQUEST, RESPONSE, golden_request, read_answer
from polylip.client.segment_folder import answer_fields, cut_segment, read_segment, write_json
from polylip.client.triton import TritonClient
from polylip.client.wire import CHANNEL_OPTIONS, SequencePosition, new_sequence_id, row, rows
from polylip.serving.crops import FACE_SIZE
from polylip.serving.dub.codes import DubStatus
from polylip.serving.dub.decode_child import decode
from polylip.serving.dub.looking import DETECT_BATCH, LIPS_BATCH, chunks, key_frames
from polylip.serving.launcher import Server
from polylip.serving.lips_audio import at_16k, speech_window

REPOSITORY = Path(__file__).parents[1] / "model_repository"
GRPC_DEFAULT_BYTES = 4 << 20  # what a client takes without being told otherwise
CALL_S = 60.0


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory, demo_clip: Path) -> DubSegment:
    """The first one of the demo clip, with all frames."""
    return cut_segment(demo_clip, tmp_path_factory.mktemp("segment") / "first", language="en")


@asynccontextmanager
async def dubbing(server: Server, target: str = "es") -> AsyncIterator[DubStream]:
    async with DubStream(server.url, "en", target, timeout_s=CALL_S) as stream:
        yield stream


async def dubbed(server: Server, segment: DubSegment, target: str = "es", **options) -> DubAnswer:
    """Of a stream with this one segment."""
    segment = DubSegment(segment.audio, segment.frames, segment.frame_ms, segment.audio_ms, options)
    async with dubbing(server, target) as stream:
        await stream.send(segment)
        return await stream.answer()


async def spoken_by_the_line(server: Server, segment: DubSegment) -> tuple[dict, np.ndarray]:
    """The texts and the whole voice, from `speech`."""
    inputs = rows({"AUDIO": segment.audio, "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"})
    async with TritonClient(server.url) as client, client.stream() as stream:
        answers = [row(answer) async for answer in await stream.submit("speech", inputs, CALL_S)]
    return answers[0], np.concatenate([answer["AUDIO_CHUNK"] for answer in answers])


async def faces_by_the_line(server: Server, segment: DubSegment) -> dict:
    """The tracks of all frames, from `faces`: key frames in as many requests as it takes, then the questions."""
    keys = key_frames(segment.frame_ms)
    frames = np.stack([decode(segment.frames[index], (0, 0, 0, 0), 0) for index in keys])
    sequence, parts = new_sequence_id(), list(chunks(len(keys), DETECT_BATCH))
    async with TritonClient(server.url) as client, client.line() as line:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            inputs = {
                "FRAMES": frames[part],
                "KEYFRAME_MS": segment.frame_ms[keys][part],
                "QUERY_MS": segment.frame_ms if last else segment.frame_ms[:0],
            }
            tracks = await line.call("faces", inputs, CALL_S, SequencePosition(sequence, number == 0, last))
    return tracks


async def mouths_by_the_line(server: Server, segment: DubSegment, answer: DubAnswer, speech: np.ndarray) -> np.ndarray:
    """New mouths for the frames and boxes of `answer`, from `lipsync`."""
    outputs, mouths = answer.outputs, []
    frames, boxes = outputs["MOUTH_FRAMES"], outputs["MOUTH_BOXES"]
    faces = [decode(segment.frames[i], tuple(box), FACE_SIZE) for i, box in zip(frames, boxes.tolist(), strict=True)]
    offsets = segment.frame_ms[frames] - segment.audio_ms
    async with TritonClient(server.url) as client, client.line() as line:
        for part in chunks(len(faces), LIPS_BATCH):
            audio, within = speech_window(speech, offsets[part].tolist())
            inputs = {"AUDIO": audio, "FRAME_OFFSETS_MS": within, "FACES": np.stack(faces[part])}
            mouths.append((await line.call("lipsync", inputs, CALL_S))["MOUTHS"])
    return np.concatenate(mouths)


async def test_dub_and_the_three_lines_give_the_same(server: Server, segment: DubSegment):
    answer = await dubbed(server, segment, MOUTH_FORMAT="raw")
    texts, voice = await spoken_by_the_line(server, segment)
    assert answer.status is DubStatus.OK and answer.message == ""
    for name in ("SOURCE_TEXT", "TARGET_TEXT", "DETECTED_LANGUAGE"):
        assert answer.outputs[name][0] == texts[name][0]
    assert np.array_equal(answer.audio, voice) and answer.rate_hz == texts["SAMPLE_RATE_HZ"][0]
    tracks = await faces_by_the_line(server, segment)
    assert np.array_equal(answer.outputs["TRACK_IDS"], tracks["TRACK_IDS"])
    assert np.array_equal(answer.outputs["TRACK_BOXES"], tracks["TRACK_BOXES"])
    mouths = await mouths_by_the_line(server, segment, answer, at_16k(voice, answer.rate_hz))
    difference = np.abs(answer.outputs["MOUTHS"].astype(int) - mouths)
    assert len(mouths) > 50 and difference.max() <= 1
    covered = (segment.frame_ms >= segment.audio_ms) & (
        segment.frame_ms < segment.audio_ms + answer.audio.size * 1000 / answer.rate_hz
    )
    assert answer.outputs["MOUTH_FRAMES"].tolist() == np.flatnonzero(covered).tolist()


async def test_mouths_come_as_jpeg_unless_raw_ones_are_wanted(server: Server, segment: DubSegment):
    few = DubSegment(segment.audio, segment.frames[:8], segment.frame_ms[:8], segment.audio_ms)
    raw, packed = await dubbed(server, few, MOUTH_FORMAT="raw"), await dubbed(server, few)
    assert not len(raw.outputs["MOUTHS_JPEG"]) and not len(packed.outputs["MOUTHS"])
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), -1) for data in packed.outputs["MOUTHS_JPEG"]]
    assert np.abs(np.stack(pictures).astype(int) - raw.outputs["MOUTHS"]).mean() < 2


async def test_streams_side_by_side_keep_their_segments_in_order_and_apart(server: Server, segment: DubSegment):
    known = ["the dog", "the house", "the water", "the book", "the city", "the friend"]

    async def speaker(number: int) -> list[str]:
        said = [known[(number + i) % len(known)] for i in range(len(known))]
        async with dubbing(server) as stream:
            for i, text in enumerate(said):
                times = np.arange(4, dtype=np.int64) * 200 + i * 1000
                await stream.send(
                    DubSegment(segment.audio[:0], segment.frames[:4], times, options={"KNOWN_TEXT": text})
                )
            answers = [await stream.answer() for _ in said]
            assert stream.links == 1 and stream.resent == 0
        assert {answer.status for answer in answers} == {DubStatus.OK}
        assert [answer.outputs["TRACK_IDS"].tolist() for answer in answers] == [[1]] * len(said)
        return [str(answer.outputs["SOURCE_TEXT"][0]) == text for answer, text in zip(answers, said, strict=True)]

    assert all(all(own) for own in await asyncio.gather(*map(speaker, range(4))))


async def test_frames_that_go_back_are_told_and_cost_no_voice(server: Server, segment: DubSegment):
    def at(start_ms: int) -> DubSegment:
        times = np.arange(4, dtype=np.int64) * 200 + start_ms
        return DubSegment(segment.audio[:0], segment.frames[:4], times, options={"KNOWN_TEXT": "the dog"})

    async with dubbing(server) as stream:
        statuses = []
        for start_ms in (9000, 100, 9000, 10_000):  # what was sent before may come again
            await stream.send(at(start_ms))
            answer = await stream.answer()
            statuses.append(answer.status)
            assert answer.audio.size
            if answer.status is DubStatus.BAD_FRAMES:
                assert answer.message.startswith("4 frames are older than the stream's newest")
                assert not len(answer.outputs["MOUTH_FRAMES"])
    assert statuses == [DubStatus.OK, DubStatus.BAD_FRAMES, DubStatus.OK, DubStatus.OK]


async def test_ten_seconds_stay_under_the_limit_of_every_grpc_client(server: Server, segment: DubSegment):
    frames = (list(segment.frames) * 4)[:250]
    times = np.arange(len(frames), dtype=np.int64) * 40
    text = "the people of the town are very friendly and the food is excellent " * 2
    long = DubSegment(segment.audio[:0], frames, times, 0, {"KNOWN_TEXT": text})
    request = golden_request(long, "en")
    del request.inputs[-1], request.raw_input_contents[-1]  # MOUTH_FORMAT
    request.parameters["sequence_id"].int64_param = new_sequence_id()
    with grpc.insecure_channel(server.url, options=CHANNEL_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (reply,) = await asyncio.to_thread(lambda: list(stub.ModelStreamInfer(iter([request]), timeout=CALL_S)))
    answer = read_answer(reply.infer_response)
    assert answer.status is DubStatus.OK and len(answer.outputs["MOUTHS_JPEG"]) > 150
    assert reply.ByteSize() < GRPC_DEFAULT_BYTES


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"audio": np.zeros(0, np.float32)}, DubStatus.NO_SPEECH, "AUDIO is empty"),
        ({"audio": np.full(100, np.inf, np.float32)}, DubStatus.BAD_AUDIO, "infinite"),
        ({"frames": [b"\x00"] * 8}, DubStatus.BAD_FRAMES, "frame 0 is no JPEG"),
        ({"frame_ms": np.arange(8)[::-1]}, DubStatus.BAD_FRAMES, "ascend"),
        ({"target": "zh"}, DubStatus.UNSUPPORTED, "en->zh"),
        ({"target": "\udcff"}, DubStatus.UNSUPPORTED, ""),
    ],
)
async def test_content_that_cannot_be_used_is_a_status_and_the_stream_goes_on(
    server: Server, segment: DubSegment, changes, status, says
):
    base = {"audio": segment.audio, "frames": segment.frames[:8], "frame_ms": segment.frame_ms[:8]}
    parts = base | {key: value for key, value in changes.items() if key != "target"}
    bad = DubSegment(parts["audio"], parts["frames"], parts["frame_ms"])
    target = changes.get("target")
    async with dubbing(server) as stream:
        if target is not None:
            bad = DubSegment(bad.audio, bad.frames, bad.frame_ms, None, {"TARGET_LANGUAGE": _raw(target)})
        await stream.send(bad)
        answer = await stream.answer()
        assert answer.status is status and says in answer.message
        later = DubSegment(segment.audio, segment.frames[8:16], segment.frame_ms[8:16])
        await stream.send(later)
        good = await stream.answer()
        assert good.status is DubStatus.OK and len(good.outputs["MOUTHS_JPEG"]) == 8
        assert stream.links == 1
    if status is DubStatus.BAD_FRAMES:
        assert answer.outputs["SOURCE_TEXT"][0] and answer.audio.size
    else:
        assert not answer.audio.size and not len(answer.outputs["MOUTH_FRAMES"])


def _raw(text: str) -> np.ndarray:
    """A STRING tensor that need not be UTF-8."""
    return np.array([text.encode("utf-8", "surrogateescape")], np.object_)


async def test_a_frame_that_breaks_the_decoder_costs_its_own_segment_the_picture(server: Server, segment: DubSegment):
    broken = segment.frames[0][: len(segment.frames[0]) // 3]
    answer = await dubbed(server, DubSegment(segment.audio, [broken] * 3, segment.frame_ms[:3]))
    assert answer.status is DubStatus.BAD_FRAMES and "cannot be decoded" in answer.message
    assert answer.audio.size
    assert (await dubbed(server, segment)).status is DubStatus.OK


async def test_the_face_that_is_wished_gets_the_mouths(server: Server, segment: DubSegment):
    few = DubSegment(segment.audio, segment.frames[:8], segment.frame_ms[:8])
    usual = await dubbed(server, few)
    (track,) = usual.outputs["TRACK_IDS"]
    wished = await dubbed(server, few, FACE_ID=np.array([track], np.int32))
    nobody = await dubbed(server, few, FACE_ID=np.array([track + 5], np.int32))
    assert wished.outputs["SPEAKER_ID"] == usual.outputs["SPEAKER_ID"] == track
    assert nobody.outputs["SPEAKER_ID"] == 0 and not len(nobody.outputs["MOUTH_FRAMES"]) and nobody.audio.size


def test_the_request_of_the_golden_segment_is_the_golden_one():
    golden = service_pb2.ModelInferRequest.FromString((FOLDER / REQUEST).read_bytes())
    assert golden_request(*read_segment(FOLDER)) == golden


def test_the_golden_answer_is_read_as_it_says(tmp_path: Path):
    answer = read_answer(service_pb2.ModelInferResponse.FromString((FOLDER / RESPONSE).read_bytes()))
    write_json(tmp_path / READ, answer_fields(answer))
    assert (tmp_path / READ).read_bytes() == (FOLDER / READ).read_bytes()


async def test_the_server_answers_the_golden_request_with_the_golden_answer(server: Server):
    golden = read_answer(service_pb2.ModelInferResponse.FromString((FOLDER / RESPONSE).read_bytes()))
    segment, _ = read_segment(FOLDER)
    answer = await dubbed(server, segment, MOUTH_FORMAT="raw")
    for name in ("SOURCE_TEXT", "TARGET_TEXT", "MOUTH_FRAMES", "MOUTH_BOXES", "SAMPLE_RATE_HZ"):
        assert answer.outputs[name].tolist() == golden.outputs[name].tolist()
    assert np.abs(answer.outputs["MOUTHS"].astype(int) - golden.outputs["MOUTHS"]).max() <= 1


@pytest.mark.parametrize("model", ["transcribe", "translate", "look", "synthesize"])
@pytest.mark.parametrize("profile", ["", "lite", "cpu", "onnx", "openvino"])
def test_what_comes_before_join_keeps_the_order_in_every_profile(model: str, profile: str):
    path = REPOSITORY / model / "configs" / f"{profile}.pbtxt"
    path = path if path.is_file() else REPOSITORY / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    assert config.dynamic_batching.preserve_ordering or sum(group.count for group in config.instance_group) == 1
    if config.dynamic_batching != model_config_pb2.ModelDynamicBatching():
        assert config.dynamic_batching.preserve_ordering
