"""The contact sheet: right frames, right boxes and captions, both sounds on one axis, and no input that breaks it."""

import asyncio
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
from clips import Picture, Sound, write_media
from material import RATE_HZ, read_aloud
from two_faces import BOXES, film

from polylip.client import contact_sheet as sheets
from polylip.client.contact_sheet import choose_picks, envelope, frames_at, write_contact_sheet
from polylip.client.job import DubOptions, dub
from polylip.client.lettering import plate
from polylip.client.results import FaceSample, HideReason, SegmentResult, Status
from polylip.perf.demo_clip import SENTENCES

FPS, SECONDS, SIZE, AUDIO_HZ = 25, 4, (160, 90), 16_000
BOX_PX, OTHER_PX = (60.0, 20.0, 100.0, 60.0), (110.0, 30.0, 150.0, 70.0)


def make_video(path, tone_s=None):
    """Four seconds, one key frame, each frame lighter than the last; a tone from tone_s[0] to tone_s[1]."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "10", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.codec_context.gop_size = 1000
        audio = container.add_stream("aac", rate=AUDIO_HZ, layout="mono") if tone_s else None
        for number in range(FPS * SECONDS):
            pixels = np.full((SIZE[1], SIZE[0], 3), 20 + 2 * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "bgr24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio:
            times_s = np.arange(AUDIO_HZ * SECONDS) / AUDIO_HZ
            sounding = (times_s >= tone_s[0]) & (times_s < tone_s[1])
            tone = (0.5 * np.sin(2 * np.pi * 300 * times_s) * sounding).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
            frame.sample_rate, frame.pts = AUDIO_HZ, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return make_video(folder / "in.mp4", (1.0, 2.0)), make_video(folder / "out.mp4", (1.5, 3.0))


def samples(box=BOX_PX):
    """One per frame; lip-synced from 1.5 to 3 s."""
    return [FaceSample(n, n * 40, box, 7, box is not None and 1500 <= n * 40 < 3000) for n in range(FPS * SECONDS)]


def segments():
    return [
        SegmentResult("a", 1000, 2000, 1500, 3000, 1.0, "one", "él dice “uno”", Status.DUBBED),
        SegmentResult("b", 3200, 3600, source_text="two", status=Status.ERROR),
    ]


def sheet(videos, tmp_path, faces=(), spans=()):
    path = write_contact_sheet(*videos, faces, spans, tmp_path / "sheet.png", duration_s=SECONDS)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"], "no temporary file stays"
    return cv2.imread(str(path))


def tiles(image, row):
    """The six frame tiles of row 0 (source) or 1 (dubbed)."""
    height = round(sheets.TILE_WIDTH * SIZE[1] / SIZE[0])
    top = sheets.HEADER_HEIGHT + row * (height + sheets.GAP)
    lefts = [sheets.LEFT + column * (sheets.TILE_WIDTH + sheets.GAP) for column in range(sheets.COLUMNS)]
    return [image[top : top + height, left : left + sheets.TILE_WIDTH] for left in lefts]


def captioned(tile, text):
    """Whether a tile has exactly this caption: its letters, and nothing of a plate behind them."""
    blank = np.zeros_like(tile)
    plate(blank, text, (0, len(blank)), sheets.INK)
    width = np.flatnonzero(blank.any(axis=(0, 2))).max() + 1
    same = np.array_equal(tile[-16:, :width], blank[-16:, :width])
    return same and not (tile[-16:, width] == sheets.INK).all()


def shows(image, colour):
    """Whether an area, not just the edge of a letter, has this colour."""
    return int((image == np.array(colour, dtype=np.uint8)).all(axis=-1).sum()) > 100


def wave_height(image, colour, time_s):
    """Pixels of `colour` in the column of `time_s`."""
    x = sheets.LEFT + round(time_s / SECONDS * sheets.CONTENT)
    return int((image[:, x] == np.array(colour, dtype=np.uint8)).all(axis=-1).sum())


def test_frames_are_the_nearest_to_their_times(videos):
    with av.open(str(videos[0])) as container:
        every = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    times_ms, numbers = [2019, 0, 3960, 500, 9000], [50, 0, 99, 12, 99]
    for frame, number in zip(frames_at(videos[0], times_ms), numbers, strict=True):
        assert np.array_equal(frame, every[number])


def test_boxes_are_green_where_lips_changed_and_grey_elsewhere(videos, tmp_path):
    image = sheet(videos, tmp_path, samples(), segments())
    assert image.shape[1] == sheets.WIDTH
    picks = choose_picks(samples(), segments(), SECONDS, envelope(videos[1], SECONDS))
    assert sum(pick.sample.lipsynced for pick in picks) == sheets.COLUMNS - sheets.OUTSIDE
    for row in (0, 1):
        for tile, pick in zip(tiles(image, row), picks, strict=True):
            assert shows(tile, sheets.BOX_LIPSYNCED) is pick.sample.lipsynced
            assert shows(tile, sheets.BOX_UNTOUCHED) is not pick.sample.lipsynced
            assert not shows(tile, sheets.BOX_OTHER)


@pytest.mark.parametrize("row", [0, 1])
def test_every_box_lies_on_its_face(videos, tmp_path, row):
    faces = [replace(sample, others=((OTHER_PX, 12),)) for sample in samples()]
    tile = tiles(sheet(videos, tmp_path, faces, segments()), row)[2]
    scale = sheets.TILE_WIDTH / SIZE[0]
    for colour, box in ((sheets.BOX_LIPSYNCED, BOX_PX), (sheets.BOX_OTHER, OTHER_PX)):
        rows, columns = np.nonzero((tile == colour).all(axis=-1))
        assert (columns.min(), columns.max()) == pytest.approx((box[0] * scale, box[2] * scale), abs=3)
        assert rows.max() == pytest.approx(box[3] * scale, abs=3)
    middle = round((BOX_PX[1] + BOX_PX[3]) / 2 * scale)
    speaker, other = (
        int((tile[middle] == colour).all(axis=-1).sum()) for colour in (sheets.BOX_LIPSYNCED, sheets.BOX_OTHER)
    )
    assert speaker > other > 0, "the speaker's is the thicker one"


@pytest.mark.parametrize("track", [2, 12])
def test_every_face_has_its_id_at_its_box(videos, tmp_path, track):
    faces = [replace(sample, others=((OTHER_PX, track),)) for sample in samples()]
    tile = tiles(sheet(videos, tmp_path, faces, segments()), 0)[2]
    scale = sheets.TILE_WIDTH / SIZE[0]
    for colour, box, number in ((sheets.BOX_LIPSYNCED, BOX_PX, 7), (sheets.BOX_OTHER, OTHER_PX, track)):
        x, y = round(box[0] * scale) - 1, round(box[1] * scale) - 1
        expected = np.zeros_like(tile)
        plate(expected, f"#{number}", (x, y), colour)
        drawn = expected.any(axis=-1)
        drawn[y - 1 :] = False  # where the box begins
        assert np.array_equal(tile[drawn], expected[drawn])


def test_a_face_that_is_no_speaker_needs_no_speaker_to_be_shown(videos, tmp_path):
    faces = [replace(sample, others=((OTHER_PX, 2),)) for sample in samples(box=None)]
    for tile in tiles(sheet(videos, tmp_path, faces, segments()), 0):
        assert shows(tile, sheets.BOX_OTHER)
        assert not shows(tile, sheets.BOX_UNTOUCHED)


@pytest.mark.parametrize(
    ("box", "hidden", "others", "caption"),
    [
        (BOX_PX, None, (), ""),
        (None, None, (), "  no face found"),
        (None, HideReason.NOT_FOUND, (), "  no face found"),
        (None, HideReason.NOT_FOUND, ((OTHER_PX, 2),), "  speaker not found"),
        (None, HideReason.LEAVES, (), "  leaves the picture"),
        (BOX_PX, HideReason.LEAVES, (), "  leaves the picture"),
        (BOX_PX, HideReason.SMALL, (), "  too small"),
        (BOX_PX, HideReason.COVERED, (), "  covered or turned away"),
    ],
)
def test_the_caption_says_why_there_is_no_box_or_why_its_lips_stay(videos, tmp_path, box, hidden, others, caption):
    image = sheet(videos, tmp_path, [FaceSample(51, 2040, box, 7, False, hidden, others)], segments())
    for row in (0, 1):
        shown = [captioned(tile, f"2.04 s{caption}") for tile in tiles(image, row)]
        assert sum(shown) == 1


def test_a_caption_of_a_long_video_stays_inside_its_tile():
    tile = np.zeros((100, sheets.TILE_WIDTH, 3), np.uint8)
    plate(tile, f"{5 * 3600 + 0.5:.2f} s  {HideReason.COVERED}", (0, 100), sheets.INK)
    assert (tile[-16:, 0] == sheets.INK).all()
    assert (tile[-16:, -3:] < 128).all(), "no letter is cut by the edge"


def test_a_dub_of_two_faces_knows_both_and_why_the_speaker_is_hidden(server, tmp_path):
    """The right one speaks and is covered midway."""
    sound = np.concatenate([np.zeros(8000, np.float32), read_aloud(SENTENCES[4]), np.zeros(24_000, np.float32)])
    frames = film(None, sound, len(sound) * FPS // RATE_HZ)
    frames[45:75, 20:170, 400:560] = 90
    picture = Picture(len(frames), size=(640, 360), draw=lambda index: cv2.cvtColor(frames[index], cv2.COLOR_BGR2RGB))
    clip = write_media(tmp_path / "two.mp4", picture, Sound(sound[None], RATE_HZ))
    result = asyncio.run(dub(DubOptions(clip, tmp_path / "out" / "o.mp4", "es", url=server.url)))
    speaker = result.report.segments[0].face_id
    (other,) = (face.id for face in result.report.faces if face.id != speaker)
    assert len(result.face_samples) == len(frames)
    for sample in result.face_samples:
        assert sample.track_id == speaker and [track for _, track in sample.others] == [other]
        (box, _), left = sample.others[0], BOXES[0]
        assert left[0] < (box[0] + box[2]) / 2 < left[2] and left[1] < (box[1] + box[3]) / 2 < left[3]
    (span,) = result.report.face_spans_hidden
    for sample in result.face_samples:
        assert sample.hidden == (span.reason if span.start_ms <= sample.time_ms < span.end_ms else None)
    tile = tiles(cv2.imread(str(tmp_path / "out" / "contact_sheet.png")), 0)[0]
    assert shows(tile, sheets.BOX_OTHER) and shows(tile, sheets.BOX_UNTOUCHED)


def test_mouth_rows_appear_only_with_a_face(videos, tmp_path):
    with_face = sheet(videos, tmp_path, samples(), segments())
    without = sheet(videos, tmp_path, samples(box=None), segments())
    assert with_face.shape[0] - without.shape[0] == 2 * (sheets.CROP_HEIGHT + sheets.GAP)
    assert not shows(without, sheets.BOX_LIPSYNCED)


def test_both_sounds_share_one_axis(videos, tmp_path):
    image = sheet(videos, tmp_path, (), segments())
    for colour, loud_s, quiet_s in ((sheets.SOURCE_WAVE, 1.2, 2.5), (sheets.DUBBED_WAVE, 2.5, 1.2)):
        assert wave_height(image, colour, loud_s) > 40
        assert wave_height(image, colour, quiet_s) <= 4
    for colour in (sheets.SOURCE_SPAN, sheets.DUBBED_SPAN, sheets.PLAIN_SPAN):
        assert shows(image, colour)


def test_envelope_holds_peaks_in_place_whatever_its_width(videos):
    for columns in (8, 400):
        peaks = envelope(videos[0], SECONDS, columns)
        assert peaks.shape == (columns, 2)
        assert peaks[columns * 3 // 8] == pytest.approx((-0.5, 0.5), abs=0.06)
        assert np.abs(peaks[columns * 6 // 8 :]).max() < 0.01


def test_works_without_segments_samples_and_sound(tmp_path_factory, tmp_path):
    silent = make_video(tmp_path_factory.mktemp("silent") / "silent.mp4")
    image = sheet((silent, silent), tmp_path)
    assert image.shape[1] == sheets.WIDTH
    levels = [tile[20, 20].mean() for tile in tiles(image, 0)]
    assert levels == sorted(levels)
    assert levels[-1] - levels[0] > 100, "evenly spaced frames"


def test_boxes_and_spans_beyond_the_picture_do_not_break_it(videos, tmp_path):
    faces = [FaceSample(0, 0, (-50.0, -50.0, 400.0, 300.0), 1, True), FaceSample(9, 99_000, (5, 5, 5, 5), None, True)]
    spans = [SegmentResult(str(n), n * 40, n * 40 + 30, -50, 99_000, 1.0, "x" * 300, "你好") for n in range(200)]
    assert sheet(videos, tmp_path, faces, spans).shape[1] == sheets.WIDTH
