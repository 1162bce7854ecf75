"""The parts of `dub` that need no server: admission, checks, decoding, tracks, the face that gets the voice."""

import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from polylip.serving.dub import codes
from polylip.serving.dub.admission import MOVE_MS, Admission, Ask
from polylip.serving.dub.codes import DubStatus, Refusal, RefusedError, read_refusal
from polylip.serving.dub.decoding import Decoder, Wanted
from polylip.serving.dub.joining import SegmentTracks, StreamTracks, choose_face, mouths_of, spoken_frames, worst
from polylip.serving.dub.jpeg import MAX_BYTES, read_header
from polylip.serving.dub.looking import DETECT_BATCH, detect, key_frames
from polylip.serving.dub.request import MAX_FRAMES, Asked, check
from polylip.serving.dub.riding import pack, unpack
from polylip.serving.engines import Status
from polylip.serving.speaking import SpeechChunk
from polylip.serving.steps import Spoken, joined

DOCS = Path(__file__).parents[1] / "docs"


def picture(width: int = 640, height: int = 360) -> np.ndarray:
    """With edges and colours, the same each time."""
    chosen = np.random.default_rng(1)
    return cv2.resize(chosen.integers(0, 255, (9, 16, 3), np.uint8), (width, height))


def jpeg(pixels: np.ndarray | None = None, *options: int) -> bytes:
    return cv2.imencode(".jpg", picture() if pixels is None else pixels, list(options))[1].tobytes()


def start(sequence: int = 1, **more: int) -> Ask:
    return Ask(sequence, start=True, timeout_us=1_000_000, **more)


def refusal(admission: Admission, ask: Ask, now_s: float = 0.0) -> tuple[str, int | None]:
    with pytest.raises(RefusedError) as refused:
        admission.admit(ask, now_s)
    return read_refusal(f"in ensemble 'dub', gate: {refused.value}")


def test_streams_over_the_slots_are_refused_with_a_time_to_come_back():
    admission = Admission(2, idle_s=60)
    admission.admit(start(1), 0)
    admission.admit(start(2), 0)
    assert refusal(admission, start(3)) == ("full", 2000)
    admission.admit(Ask(1, end=True), 1)
    admission.admit(start(3), 1)
    assert len(admission) == 2


def test_a_slot_of_an_idle_stream_is_given_back_and_counted():
    admission = Admission(1, idle_s=60)
    admission.admit(start(1), 0)
    admission.admit(Ask(1), 59)
    assert refusal(admission, start(2), 118) == ("full", 2000)
    admission.admit(start(2), 120)
    assert (len(admission), admission.swept) == (1, 1)
    assert refusal(admission, Ask(1), 120)[0] == "sequence_lost"


def test_a_second_start_on_a_live_id_is_refused_and_the_first_goes_on():
    admission = Admission(2, idle_s=60)
    admission.admit(start(1), 0)
    assert refusal(admission, start(1))[0] == "taken"
    admission.admit(Ask(1), 1)
    assert len(admission) == 1


def test_a_client_that_comes_back_takes_its_own_slot():
    admission = Admission(1, idle_s=60)
    admission.admit(start(1), 0)
    admission.admit(start(2, replaces=1), 0)
    assert refusal(admission, Ask(1))[0] == "sequence_lost"
    assert len(admission) == 1


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (Ask(0, start=True, timeout_us=1), "bad_request"),
        (Ask(1, start=True), "bad_request"),
        (Ask(1), "sequence_lost"),
        (Ask(1, end=True), "sequence_lost"),
    ],
)
def test_a_request_that_breaks_the_rules_is_refused_and_changes_nothing(ask, code):
    admission = Admission(1, idle_s=60)
    assert refusal(admission, ask)[0] == code
    assert len(admission) == 0


def test_a_draining_server_lets_nobody_in_and_tells_the_others_to_move(tmp_path):
    drain_file = tmp_path / "drain"
    admission = Admission(2, 60, drain_file)
    admission.admit(start(1), 0)
    assert admission.move_ms == 0
    drain_file.touch()
    assert refusal(admission, start(2)) == ("draining", 0)
    admission.admit(Ask(1), 1)
    assert admission.move_ms == MOVE_MS
    drain_file.write_text(str(round((time.time() + 5) * 1000)))
    assert 0 < admission.move_ms <= 5000
    drain_file.write_text("1000")
    assert admission.move_ms == 1


def test_slots_come_from_the_environment_before_the_config(monkeypatch):
    parameters = {"slots": "128", "idle_s": "60"}
    assert Admission.of_server(parameters).slots == 128
    monkeypatch.setenv("POLYLIP_SLOTS", "3")
    assert Admission.of_server(parameters).slots == 3
    with pytest.raises(ValueError, match="at least one"):
        Admission(0, 60)


def test_the_page_has_the_tables_of_the_codes():
    page = (DOCS / "protocol.md").read_text()
    assert codes.statuses_markdown() in page
    assert codes.refusals_markdown() in page
    assert set(codes.STATUSES) == set(DubStatus) and set(codes.REFUSALS) == set(Refusal)


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 4)])
def test_a_header_tells_the_size(options):
    info = read_header(jpeg(None, *options))
    assert (info.width, info.height, info.components) == (640, 360, 3)


def test_a_grey_jpeg_is_one():
    assert read_header(jpeg(picture()[..., 0])).components == 1


def _with_marker(data: bytes, marker: int) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[: at + 1] + bytes([marker]) + data[at + 2 :]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no JPEG"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "is no JPEG"),
        (b"\xff\xd8\xff", "without a picture"),
        (b"\xff\xd8\xff\xe0\x00\x01", "without a picture"),
        (jpeg()[:30], "without a picture"),
        (_with_marker(jpeg(), 0xC3), "lossless or arithmetic"),
        (_with_marker(jpeg(), 0xC9), "lossless or arithmetic"),
        (b"\xff\xd8\xff\xc0\x00\x04\x08\x00", "cut off"),
        (b"\xff\xd8" + b"\xff\xc0\x00\x11\x0c" + b"\x01\x68\x02\x80\x03" + b"0" * 20, "of 12 bits"),
        (b"\xff\xd8\xff" + b"0" * MAX_BYTES, "at most"),
    ],
)
def test_what_is_no_plain_jpeg_is_refused(data, says):
    with pytest.raises(ValueError, match=says):
        read_header(data)


@pytest.fixture
def decoder():
    decoder = Decoder()
    yield decoder
    decoder.close()


def test_the_decoder_gives_the_pixels_and_crops(decoder):
    data = jpeg()
    want = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoder.decode(Wanted(data)), want)
    crop = decoder.decode(Wanted(data, (100, 50, 300, 250), 96))
    assert np.array_equal(crop, cv2.resize(want[50:250, 100:300], (96, 96), interpolation=cv2.INTER_AREA))
    assert decoder.started == 1


def test_a_broken_picture_is_an_error_and_the_next_one_is_decoded(decoder):
    data = jpeg()
    garbage = data[:400] + bytes(range(256)) * 40
    for broken in (b"nothing", garbage[: len(garbage) // 2]):
        with pytest.raises(ValueError, match=r"JPEG|decoded"):
            decoder.decode(Wanted(broken))
    assert decoder.decode(Wanted(data)).shape == (360, 640, 3)
    assert decoder.started == 1


def test_a_decoder_that_dies_or_hangs_is_replaced():
    decoder, data = Decoder(timeout_s=4.0), jpeg()  # of the pictures that it does decode, too
    try:
        decoder.decode(Wanted(data))
        os.kill(decoder.pid, signal.SIGKILL)
        with pytest.raises(ValueError, match="broke the decoder"):
            decoder.decode(Wanted(data))
        decoder.decode(Wanted(data))
        os.kill(decoder.pid, signal.SIGSTOP)
        with pytest.raises(ValueError, match="too long"):
            decoder.decode(Wanted(data))
        assert decoder.decode(Wanted(data)).shape == (360, 640, 3)
        assert decoder.started == 3
    finally:
        decoder.close()
    assert decoder.pid == 0


def test_the_decoder_can_open_nothing_and_has_little_memory(decoder):
    decoder.decode(Wanted(jpeg()))
    limits = Path(f"/proc/{decoder.pid}/limits").read_text()
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max open files"] == ["0", "0"]
    assert rows["Max file size"] == ["0", "0"]
    assert int(rows["Max address space"][1]) <= 2**30
    assert "NoNewPrivs:\t1" in Path(f"/proc/{decoder.pid}/status").read_text()


def asked(**changes) -> Asked:
    base = {
        "audio": np.zeros(16_000, np.float32),
        "frames": [jpeg()] * 3,
        "frame_ms": np.array([40, 80, 120], np.int64),
        "texts": {"SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"},
    }
    return Asked(**(base | changes))


def test_a_good_request_passes_and_starts_with_its_first_frame():
    done = check(asked())
    assert (done.speech[0], done.picture[0]) == (DubStatus.OK, DubStatus.OK)
    assert (done.audio_ms, done.mouth_format, done.voice.size) == (40, "jpeg", 0)
    assert check(asked(audio_ms=-5)).audio_ms == -5


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"audio": np.zeros(0, np.float32)}, DubStatus.NO_SPEECH, "empty"),
        ({"audio": np.full(10, np.nan, np.float32)}, DubStatus.BAD_AUDIO, "NaN"),
        ({"audio": np.zeros(61 * 16_000, np.float32)}, DubStatus.BAD_AUDIO, "at most 60 s"),
        ({"voice": np.zeros(31 * 16_000, np.float32), "voice_consent": True}, DubStatus.BAD_AUDIO, "at most 30 s"),
        ({"texts": {"FIT": "loose"}}, DubStatus.BAD_AUDIO, "FIT"),
        ({"texts": {"GLOSSARY": "x" * 70_000}}, DubStatus.BAD_AUDIO, "GLOSSARY"),
        ({"slot_ms": -1}, DubStatus.BAD_AUDIO, "SLOT_MS"),
        ({"mouth_format": "gif"}, DubStatus.BAD_AUDIO, "MOUTH_FORMAT"),
    ],
)
def test_sound_that_cannot_be_used_is_a_status_and_the_frames_are_kept(changes, status, says):
    done = check(asked(**changes))
    assert done.speech[0] is status and says in done.speech[1]
    assert done.picture[0] is DubStatus.OK and len(done.frame_ms) == 3
    assert done.audio.size  # the recogniser takes no empty row


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": [b"x"] * 3}, "frame 0 is no JPEG"),
        ({"frames": [jpeg(), jpeg(picture(320, 180)), jpeg()]}, "frame 1 has 320x180"),
        ({"frames": [jpeg() + bytes(200_000)] * 130, "frame_ms": np.arange(130)}, "at most 24"),
        ({"frame_ms": np.array([40, 80])}, "a time for each"),
        ({"frame_ms": np.array([40, 40, 80])}, "ascend"),
        ({"frames": [b""] * (MAX_FRAMES + 1), "frame_ms": np.arange(MAX_FRAMES + 1)}, "at most 400"),
    ],
)
def test_frames_that_cannot_be_used_are_a_status_and_the_voice_goes_on(changes, says):
    done = check(asked(**changes))
    assert done.picture[0] is DubStatus.BAD_FRAMES and says in done.picture[1]
    assert done.speech[0] is DubStatus.OK and not len(done.frame_ms)


def test_a_voice_without_consent_is_not_used_and_bad_sound_takes_what_is_known_with_it():
    voice = np.ones(16_000, np.float32)
    assert not check(asked(voice=voice)).voice.size
    assert check(asked(voice=voice, voice_consent=True)).tensors["CHECKED_VOICE_CONSENT"].tolist() == [[True]]
    bad = check(asked(audio=np.full(9, np.nan, np.float32), texts={"KNOWN_TEXT": "yes", "SOURCE_LANGUAGE": "en"}))
    assert bad.texts == {"KNOWN_TEXT": "", "SOURCE_LANGUAGE": "en"}
    known = check(asked(audio=np.zeros(0, np.float32), texts={"KNOWN_TEXT": "yes"}))
    assert known.speech[0] is DubStatus.OK


def test_every_fifth_frame_is_looked_at_and_the_last():
    assert key_frames(np.arange(13) * 40) == [0, 5, 10, 12]
    assert key_frames(np.zeros(0, np.int64)) == []


def test_detections_of_several_calls_are_padded_alike():
    sizes = []

    def call(frames):
        sizes.append(len(frames))
        found = 1 if len(sizes) == 1 else 3
        return np.ones((len(frames), found, 4), np.float32), np.ones((len(frames), found), np.float32)

    boxes, scores = detect([np.zeros((4, 4, 3), np.uint8)] * 20, call)
    assert sizes == [DETECT_BATCH, 20 - DETECT_BATCH]
    assert boxes.shape == (20, 3, 4) and scores[0].tolist() == [1, 0, 0] and scores[-1].tolist() == [1, 1, 1]
    assert detect([], call)[0].shape == (0, 0, 4)


BOX = np.array([100, 100, 200, 200], np.float32)


def seen(times_ms, shift=0.0):
    boxes = np.stack([[BOX + shift]] * len(times_ms)).astype(np.float32)
    return boxes, np.full((len(times_ms), 1), 0.9, np.float32), np.array(times_ms, np.int64)


def test_frames_that_are_sent_again_are_answered_as_before_and_not_tracked_twice():
    twice, once = StreamTracks(), StreamTracks()
    first = np.arange(0, 1200, 40, dtype=np.int64)
    for stream in (twice, once):
        stream.update(*seen([0, 200, 400, 600, 800, 1000, 1160]), first)
    again = np.arange(600, 2000, 40, dtype=np.int64)
    a = twice.update(*seen([600, 800, 1000, 1160, 1360, 1560, 1760, 1960], 3.0), again)
    b = once.update(*seen([1360, 1560, 1760, 1960], 3.0), again[again > 1160])
    assert a.ids.tolist() == [1]
    assert np.array_equal(a.boxes[again > 1160], b.boxes)
    assert a.scores[0, 0] > 0 and np.allclose(a.boxes[0, 0], BOX, atol=1)
    assert (a.late, b.late) == (0, 0)


def test_frames_that_go_back_behind_the_newest_are_told():
    stream = StreamTracks()
    stream.update(*seen([9500, 9700]), np.array([9500, 9540, 9700], np.int64))
    tracks = stream.update(*seen([100]), np.array([100, 140, 9540, 9800], np.int64))
    assert tracks.late == 2 and tracks.scores[:2].max() == 0 and tracks.scores[2, 0] > 0


def test_nothing_at_all_is_answered_with_nothing():
    tracks = StreamTracks().update(
        np.zeros((0, 0, 4), np.float32), np.zeros((0, 0), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    )
    assert tracks.boxes.shape == (0, 0, 4) and choose_face(tracks, np.zeros(0, bool)) == 0


def two_faces() -> SegmentTracks:
    small, large = [10, 10, 60, 60], [200, 50, 320, 200]
    boxes = np.array([[small, large]] * 4, np.float32)
    return SegmentTracks(boxes, np.array([3, 7], np.int32), np.array([[0.9, 0.8]] * 4, np.float32))


def test_the_largest_face_gets_the_voice_unless_another_is_wished():
    tracks = two_faces()
    assert choose_face(tracks, np.ones(4, bool)) == 7
    assert choose_face(tracks, np.ones(4, bool), wish=3) == 3
    assert choose_face(tracks, np.ones(4, bool), wish=5) == 0


def test_mouths_are_for_frames_under_the_voice_that_show_the_face():
    tracks = two_faces()
    tracks.scores[2, 1] = 0.05
    mouths = mouths_of(tracks, 7, np.array([0, 40, 80, 120]), audio_ms=40, speech_ms=80)
    assert mouths.frames.tolist() == [1] and mouths.offsets_ms.tolist() == [0]
    assert mouths.boxes.tolist() == [[200, 50, 320, 206]]
    assert mouths_of(tracks, 0, np.array([0, 40, 80, 120]), 0, 1000).frames.size == 0


def test_frames_without_any_voice_all_count():
    assert spoken_frames(np.array([0, 40]), 0, 0).all()
    assert spoken_frames(np.array([0, 40, 80]), 40, 40).tolist() == [False, True, False]


def test_what_means_most_to_a_listener_comes_first():
    bad, lost = (DubStatus.BAD_FRAMES, "b"), (DubStatus.SPEECH_FAILED, "s")
    assert worst((DubStatus.OK, ""), bad) == bad
    assert worst(lost, bad) == lost
    assert worst((DubStatus.OK, "")) == (DubStatus.OK, "")


def test_what_rides_along_comes_out_as_it_went_in():
    arrays = {"BOXES": np.zeros((2, 0, 4), np.float32), "FRAME_MS": np.array([1, 2**40])}
    ride = unpack(pack(arrays, {"STATUS": DubStatus.OK, "MESSAGE": "ñ"}, [b"one", b""]))
    assert ride.arrays["BOXES"].shape == (2, 0, 4) and ride.arrays["FRAME_MS"].tolist() == [1, 2**40]
    assert ride.texts == {"STATUS": "ok", "MESSAGE": "ñ"} and ride.frames == [b"one", b""]
    with pytest.raises(ValueError, match="look"):
        unpack([])


def test_chunks_of_a_segment_become_one_unless_it_did_not_end_well():
    def spoken(audio, **more):
        return Spoken(SpeechChunk(np.array(audio, np.float32), 22050, 1.1, 1.0, 900.0, cloned=True), **more)

    whole = joined([spoken([0.1, 0.2]), spoken([0.3])])
    assert np.allclose(whole.chunk.audio, [0.1, 0.2, 0.3]) and whole.chunk.rate == 1.1
    half = joined([spoken([0.1, 0.2]), spoken([], status=Status.ERROR, message="out of memory")])
    assert half.status is Status.ERROR and half.chunk.audio.size == 0
