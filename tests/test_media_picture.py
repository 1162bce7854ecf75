"""The promise of the picture: upright, of the same size, shape and colours, from the right stream."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import Picture, Sound, clicks, noise, write_media
from material import face_at, read_aloud
from playback import mean_luma, pass_through, play, watch

from polylip.client.faces import Letterbox
from polylip.client.job import DubOptions, dub
from polylip.client.media_in import probe_media
from polylip.serving.launcher import Server

WIDTH, HEIGHT = 96, 64
QUIET = Sound(clicks([0.5], 1), 16_000, "pcm_s16le")
BT709, BT601, BT2020 = 1, 6, 9  # codes of ITU-T H.273, for matrix, primaries and (the first two) transfer
PQ = 16
LIMITED, FULL = 1, 2


def scene(index: int = 0) -> np.ndarray:
    """uint8 (h, w, 3) RGB without any symmetry: four flat corners, each with its own colour, and a moving bar."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:32, :48], picture[:32, 48:] = (200, 40, 40), (40, 180, 60)
    picture[32:, :48], picture[32:, 48:] = (60, 60, 200), (230, 230, 230)
    picture[28:36, index % 48 * 2 : index % 48 * 2 + 8] = 255
    return picture


def shown(path: Path) -> np.ndarray:
    """uint8 (h, w, 3) RGB of the first frame, with its colours as the file declares them; no display matrix counts."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        matrix = {BT709: "ITU709", BT2020: "BT2020"}.get(frame.colorspace, "SMPTE170M")
        full = frame.color_range == FULL or frame.format.is_rgb
        levels = {"src_color_range": "JPEG" if full else "MPEG", "dst_color_range": "JPEG"}
        return frame.to_ndarray(format="rgb24", src_colorspace=matrix, **levels)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape
    return float(np.abs(first.astype(np.int16) - second.astype(np.int16)).mean())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("codec", ["libx264", "prores_ks"])
def test_a_turned_clip_comes_out_upright(codec: str, degrees: int, suffix: str, tmp_path: Path):
    """A phone stores the picture as the sensor lies, and how it was held."""

    def stored(index: int) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(scene(index), -degrees // 90))

    size = (HEIGHT, WIDTH) if degrees != 180 else (WIDTH, HEIGHT)
    picture = Picture(frames=8, codec=codec, size=size, draw=stored, rotation=degrees)
    if codec == "prores_ks":
        suffix, picture = ".mov", Picture(**{**vars(picture), "pixel_format": "yuv422p10le"})
    clip = write_media(tmp_path / f"in{suffix}", picture, QUIET)
    info = pass_through(clip, tmp_path / "out.mp4")
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    assert difference(shown(tmp_path / "out.mp4"), scene()) < 12  # chroma at half the resolution smears the edges
    for analysed, written in zip(watch(clip), watch(clip, info.planar_format), strict=True):
        assert analysed[0] == written[0]
        assert difference(analysed[1].to_ndarray(format="gray"), written[1].to_ndarray(format="gray")) < 1


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
def test_all_eight_orientations_are_undone(transposed: bool, mirrored: tuple[bool, bool], tmp_path: Path):
    stored = scene()
    x, y = (-1 if flag else 1 for flag in mirrored)
    if transposed:
        stored, matrix = scene()[::y, ::x].transpose(1, 0, 2), (0, y, x, 0)
    else:
        stored, matrix = scene()[::y, ::x], (x, 0, 0, y)
    clip = tmp_path / "in.mp4"
    size = stored.shape[1::-1]
    write_media(clip, Picture(frames=2, size=size, draw=lambda _: np.ascontiguousarray(stored)), QUIET)
    set_matrix(clip, matrix)
    pass_through(clip, tmp_path / "out.mp4")
    assert difference(shown(tmp_path / "out.mp4"), scene()) < 12


def set_matrix(clip: Path, matrix: tuple[int, int, int, int]) -> None:
    """Put a, b, c, d into the display matrix of the first track of an MP4."""
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for position, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[at + position : at + position + 4] = (value << 16).to_bytes(4, "big", signed=True)
    clip.write_bytes(bytes(data))


def test_the_shape_of_the_pixels_is_kept(tmp_path: Path):
    for name, rotation, expected in (
        ("dv.mp4", 0, Fraction(16, 11)),
        ("dv.mkv", 0, Fraction(16, 11)),
        ("turned.mov", 90, Fraction(11, 16)),
    ):
        picture = Picture(size=(WIDTH, HEIGHT), rotation=rotation, attributes={"sample_aspect_ratio": Fraction(16, 11)})
        clip = write_media(tmp_path / name, picture, QUIET)
        for suffix in (".mp4", ".mkv"):
            output = tmp_path / f"out_{name}{suffix}"
            pass_through(clip, output)
            with av.open(str(output)) as container:
                assert container.streams.video[0].sample_aspect_ratio == expected


PIXELS = {
    "10bit.mkv": Picture(pixel_format="yuv420p10le"),
    "422.mkv": Picture(pixel_format="yuv422p"),
    "444.mkv": Picture(pixel_format="yuv444p"),
    "prores.mov": Picture(codec="prores_ks", pixel_format="yuv422p10le"),
    "full.mkv": Picture(codec="mjpeg", pixel_format="yuvj420p", attributes={"color_range": FULL}),
    "full422.avi": Picture(codec="mjpeg", pixel_format="yuvj422p", attributes={"color_range": FULL}),
    "full.mp4": Picture(attributes={"color_range": FULL}),
    "rgb.mkv": Picture(codec="ffv1", pixel_format="bgr0"),
    "gbr10.mkv": Picture(codec="ffv1", pixel_format="gbrp10le"),
    "png.mov": Picture(codec="png", pixel_format="rgb24"),
    "alpha.mov": Picture(codec="qtrle", pixel_format="argb"),
    "yuv_alpha.mkv": Picture(codec="ffv1", pixel_format="yuva420p"),
    "grey.mkv": Picture(codec="ffv1", pixel_format="gray"),
    "nv12.nut": Picture(codec="rawvideo", pixel_format="nv12"),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_every_pixel_format_becomes_yuv420p_that_looks_the_same(kind: str, tmp_path: Path):
    clip = write_media(tmp_path / kind, PIXELS[kind], QUIET)
    pass_through(clip, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt in ("yuv420p", "yuvj420p")
    assert play(tmp_path / "out.mp4").greys == pytest.approx(play(clip).greys, abs=1.5)
    gray = PIXELS[kind].pixel_format == "gray"
    assert difference(shown(clip), shown(tmp_path / "out.mp4")) < (40 if gray else 2)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "bgr0", "yuv420p"])
def test_colours_are_those_of_the_input(pixel_format: str, tmp_path: Path):
    codec = "ffv1" if pixel_format == "bgr0" else "libx264"
    picture = Picture(frames=3, codec=codec, size=(WIDTH, HEIGHT), pixel_format=pixel_format, draw=scene)
    if codec == "libx264":
        attributes = dict(colorspace=BT709, color_primaries=BT709, color_trc=BT709, color_range=LIMITED)
        picture = Picture(**{**vars(picture), "attributes": attributes, "options": {"crf": "1"}})
    pass_through(write_media(tmp_path / "in.mkv", picture, QUIET), tmp_path / "out.mp4")
    assert difference(shown(tmp_path / "out.mp4"), scene()) < 12


@pytest.mark.parametrize(
    ("space", "primaries", "transfer", "levels"),
    [(BT709, BT709, BT709, LIMITED), (BT601, BT601, BT601, FULL), (BT2020, BT2020, PQ, LIMITED), (2, 2, 2, 0)],
)
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_what_the_file_says_of_its_colours_is_kept(name, space, primaries, transfer, levels, tmp_path: Path):
    attributes = dict(colorspace=space, color_primaries=primaries, color_trc=transfer, color_range=levels)
    picture = Picture(frames=3, pixel_format="yuv420p10le", attributes=attributes)
    pass_through(write_media(tmp_path / "in.mkv", picture, QUIET), tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        frame = next(container.decode(video=0))
    tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
    assert tags == (space, primaries, transfer, levels)


@pytest.mark.parametrize("matrix", [8, 10, 12, 14])
def test_a_matrix_that_nobody_converts_is_analysed_and_kept(matrix: int, tmp_path: Path):
    picture = Picture(frames=3, attributes={"colorspace": matrix})
    clip = write_media(tmp_path / "in.mkv", picture, QUIET)
    assert Letterbox(64, 48).shrink(watch(clip)[0][1]).max() > 0
    pass_through(clip, tmp_path / "out.mp4")
    assert play(tmp_path / "out.mp4").greys == pytest.approx(play(clip).greys, abs=1)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).colorspace == matrix


def test_a_picture_that_changes_its_size_keeps_the_first(tmp_path: Path):
    """Calls are recorded so when the network gets worse. The second part of the stream is smaller."""
    parts = []
    for index, size in enumerate([(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2)]):
        sound = Sound(clicks([0.5], 1, 48_000), 48_000, "mp2", start_s=10 + index)
        clip = Picture(frames=25, size=size, start_s=10 + index, draw=lambda _, size=size: cv2.resize(scene(), size))
        parts.append(write_media(tmp_path / f"{index}.ts", clip, sound).read_bytes())
    clip = tmp_path / "in.ts"
    clip.write_bytes(b"".join(parts))
    pass_through(clip, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 50
    assert {(frame.width, frame.height) for frame in frames} == {(WIDTH, HEIGHT)}
    assert mean_luma(frames[-1]) == pytest.approx(mean_luma(frames[0]), abs=2)


def test_cover_art_is_not_the_picture_and_the_first_sound_is_taken(tmp_path: Path):
    clip = tmp_path / "in.mp4"

    def cover_and_subtitles(container) -> None:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 200, 200, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame(200, 200, "yuvj420p")):
            covers.append(packet)

    covers: list = []
    with av.open(str(clip), "w") as container:
        cover_and_subtitles(container)
        streams = [*Picture(frames=10).packets(container)], [*QUIET_AAC.packets(container)], [*LOUD.packets(container)]
        container.mux(covers)
        for stream in streams:
            container.mux([packet for _, packet in stream])
    info = pass_through(clip, tmp_path / "out.mp4")
    assert (info.width, info.height) == (64, 48)
    assert np.abs(play(tmp_path / "out.mp4").pcm).max() < 0.01


QUIET_AAC = Sound(clicks([], 1), 16_000)
LOUD = Sound(noise(1)[None], 16_000)


def test_a_turned_face_that_speaks_is_found_and_dubbed(server: Server, tmp_path: Path):
    upright = cv2.cvtColor(face_at(140), cv2.COLOR_BGR2RGB)
    sentence = read_aloud("My house has a big red door.")
    speech = np.concatenate([np.zeros(8000, np.float32), sentence, np.zeros(16_000, np.float32)])
    frames = len(speech) * 25 // 16_000
    picture = Picture(frames, size=(360, 640), draw=lambda _: np.ascontiguousarray(np.rot90(upright)), rotation=270)
    clip = write_media(tmp_path / "in.mp4", picture, Sound(speech[None], 16_000))
    result = asyncio.run(dub(DubOptions(clip, tmp_path / "out" / "o.mp4", "es", url=server.url)))
    assert result.report.frames == frames
    assert result.report.frames_without_face == 0
    assert result.report.frames_lipsynced > 15
    after = probe_media(result.video)
    assert (after.width, after.height) == (640, 360)
    assert difference(shown(result.video), upright) < 8
