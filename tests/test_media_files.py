"""Files that are damaged, cut off, hostile or odd, and outputs that cannot be written: one line, and nothing left."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import Picture, Sound, clicks, noise, write_media
from playback import listen, onsets, pass_through, play, watch

from polylip.client.errors import InputError
from polylip.client.job import DubOptions, dub
from polylip.client.media_in import AudioReader, VideoReader, probe_media
from polylip.client.media_out import MediaWriter
from polylip.serving.launcher import Server

SPOKEN = Sound(noise(4)[None], 16_000)
SILENT = Sound(clicks([], 4), 16_000)
MOVING = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8), (64, 48))


def moving(index: int) -> np.ndarray:
    """A picture that costs bytes, so that a cut or a damage hits some of it."""
    return np.roll(MOVING, index, axis=(0, 1))


PICTURE = Picture(100, draw=moving)


def refusal(clip: Path) -> str:
    with pytest.raises(InputError) as caught:
        probe_media(clip)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("name", ["cut.mp4", "cut.mov", "cut.mkv", "cut.webm"])
def test_a_file_that_was_cut_off_is_refused(name: str, kept: float, tmp_path: Path):
    webm = name.endswith("webm")
    picture = replace(PICTURE, codec="libvpx") if webm else PICTURE
    sound = Sound(clicks([], 4, 48_000), 48_000, "libopus") if webm else SPOKEN
    options = {"movflags": "+faststart"} if name[-3:] in ("mp4", "mov") else {}
    clip = write_media(tmp_path / name, picture, sound, options=options)
    probe_media(clip)
    clip.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * kept)])
    assert "is truncated" in refusal(clip)


@pytest.mark.parametrize("name", ["cut.avi", "cut.flv"])
def test_a_cut_file_of_an_older_kind_is_refused(name: str, tmp_path: Path):
    sound = Sound(noise(8)[None], 44_100, "libmp3lame")
    clip = write_media(tmp_path / name, replace(PICTURE, codec="flv1" if name == "cut.flv" else "mpeg4"), sound)
    probe_media(clip)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert "is truncated" in refusal(clip)


WHOLE = {
    "gop_of_20_s.mp4": (Picture(500, options={"g": "1000", "sc_threshold": "0"}), Sound(clicks([], 20))),
    "gop_of_20_s.mkv": (Picture(500, options={"g": "1000", "sc_threshold": "0"}), Sound(clicks([], 20))),
    "gop_of_20_s.avi": (Picture(500, codec="mpeg4", options={"g": "1000"}), Sound(clicks([], 20), codec="pcm_s16le")),
    "short_sound.mp4": (Picture(150), Sound(clicks([], 3))),
    "short_sound.mkv": (Picture(150), Sound(clicks([], 3))),
    "short_sound.ts": (Picture(150), Sound(clicks([], 3))),
    "short_sound.avi": (Picture(150, codec="mpeg4"), Sound(clicks([], 3), codec="pcm_s16le")),
    "short_picture.mp4": (Picture(75), Sound(clicks([], 6))),
    "short_picture.mkv": (Picture(75), Sound(clicks([], 6))),
    "short_picture.ts": (Picture(75), Sound(clicks([], 6))),
    "short_picture.flv": (Picture(75), Sound(clicks([], 6), 44_100)),
    "late.ts": (Picture(500, start_s=80_000), Sound(clicks([], 20), start_s=80_000)),
    "late_picture.mp4": (Picture(50, start_s=20), Sound(clicks([], 3))),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_file_is_not_taken_for_a_cut_one(kind: str, tmp_path: Path):
    probe_media(write_media(tmp_path / kind, *WHOLE[kind]))


@pytest.mark.parametrize("name", ["crashed.mkv", "crashed.webm", "crashed.ts", "fragments.mp4"])
def test_a_recording_that_declares_no_length_is_taken_as_far_as_it_goes(name: str, tmp_path: Path):
    """A recorder that crashed leaves such a file, and a browser makes no other."""
    webm = name.endswith("webm")
    picture = replace(PICTURE, codec="libvpx") if webm else PICTURE
    sound = Sound(clicks([0.5], 4, 48_000), 48_000, "libopus" if webm else "aac")
    options = {"live": "1"} if name[-3:] in ("mkv", "ebm") else {}
    if name == "fragments.mp4":
        options = {"movflags": "frag_keyframe+empty_moov"}
        picture = replace(picture, options={"g": "12"})
    clip = write_media(tmp_path / name, picture, sound, options=options)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 3 // 4])
    pass_through(clip, tmp_path / "out.mp4")
    assert 40 < len(play(tmp_path / "out.mp4").times_s) <= 80


@pytest.mark.parametrize("name", ["damaged.mp4", "damaged.mkv", "damaged.ts", "damaged.avi", "damaged.webm"])
@pytest.mark.parametrize("seed", range(3))
def test_both_readers_skip_the_same_of_a_damaged_file(name: str, seed: int, tmp_path: Path):
    codecs = {"avi": ("mpeg4", "libmp3lame"), "webm": ("libvpx", "libopus")}.get(name[8:], ("libx264", "aac"))
    sound = Sound(np.repeat(noise(4), 3)[None], 48_000, codecs[1])
    options = {"cluster_time_limit": "400"} if name[8:] in ("mkv", "webm") else {}  # where reading can go on, in ms
    clip = write_media(tmp_path / name, replace(PICTURE, codec=codecs[0]), sound, options=options)
    with av.open(str(clip)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos]
    data = np.frombuffer(clip.read_bytes(), np.uint8).copy()
    random = np.random.default_rng(seed)
    damages = random.integers(len(data) // 3, len(data) * 2 // 3, 4)
    for at in damages:
        data[at : at + 300] = random.integers(0, 256, 300)
    clip.write_bytes(data.tobytes())
    info = pass_through(clip, tmp_path / "out.mp4")
    analysed, written = watch(clip), watch(clip, info.planar_format)
    in_front = sum(place <= damages.min() for place in places) - 1  # one that reads as a length may cost all behind it
    assert 10 < in_front <= len(analysed)
    assert [time_ms for time_ms, _ in analysed] == [time_ms for time_ms, _ in written]
    assert len(play(tmp_path / "out.mp4").times_s) == len(written)


def test_sound_behind_a_damaged_packet_stays_in_its_place(tmp_path: Path):
    """21 ms are lost: too little for a jump of the timestamps, but exactly known."""
    pcm = clicks([1.5], 2, 48_000) + noise(6) / 100  # 6 s at 16 kHz: 2 s here
    clip = write_media(tmp_path / "in.mp4", Picture(50), Sound(pcm, 48_000, "aac"))
    expected = onsets(listen(clip, 48_000)[0][0], 48_000)
    damage_packet(clip, "audio", 15)
    assert onsets(listen(clip, 48_000)[0][0], 48_000) == pytest.approx(expected, abs=0.002)


def test_a_picture_that_is_too_large_is_refused(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(1, size=(8208, 16)), Sound(clicks([], 1)))
    assert "8208x16 is too large; at most 8192 px a side" in refusal(clip)


@pytest.mark.parametrize("size", [(100_000, 100_000), (0, 0)])
def test_a_header_with_an_impossible_size_is_refused(size: tuple[int, int], tmp_path: Path):
    picture = Picture(5, codec="rawvideo")
    clip = write_media(tmp_path / "in.avi", picture, Sound(clicks([], 1), codec="pcm_s16le"))
    data = bytearray(clip.read_bytes())
    for chunk, offset in ((b"avih", 40), (b"strf", 12)):
        at = data.index(chunk) + offset
        data[at : at + 8] = b"".join(side.to_bytes(4, "little") for side in size)
    clip.write_bytes(bytes(data))
    assert "has no picture size" in refusal(clip)


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{secret}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {secret}\n",
    "list.mp4": "ffconcat version 1.0\nfile {secret}\n",
    "hidden.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{secret}\n#EXT-X-ENDLIST\n",
    "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_points_to_other_files_is_refused(name: str, tmp_path: Path):
    secret = write_media(tmp_path / "secret.ts", PICTURE, SPOKEN)
    clip = tmp_path / name
    clip.write_text(PLAYLISTS[name].format(secret=secret.name))
    message = refusal(clip)
    assert "is no video file of a known kind" in message or "is cut off, damaged or no video" in message


@pytest.mark.parametrize("name", ["http:clip.mp4", "concat:secret.ts|secret.ts", "-i.mp4", "a%03d.mp4", "data:,x.mp4"])
def test_a_name_that_looks_like_an_address_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_media(tmp_path / "secret.ts", replace(PICTURE, size=(32, 32), draw=None), SPOKEN)
    clip = write_media(tmp_path / "plain.mp4", PICTURE, SPOKEN).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    relative = Path(clip.name)
    info = pass_through(relative, Path(f"out.{Path(name).stem}.mp4"))
    assert (info.width, info.height) == (64, 48)
    with pytest.raises(InputError, match="no such file"):
        probe_media(Path("concat:secret.ts"))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(path: str):
    assert "is a device or a pipe" in refusal(Path(path))


def test_music_with_a_cover_picture_is_no_video(tmp_path: Path):
    clip = tmp_path / "song.m4a"
    with av.open(str(clip), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        covers = cover.encode(av.VideoFrame(64, 64, "yuvj420p"))
        packets = SPOKEN.packets(container)
        container.mux(covers)
        container.mux([packet for _, packet in packets])
    assert "has no video stream" in refusal(clip)


def test_readers_give_nothing_behind_their_close(tmp_path: Path):
    info = probe_media(write_media(tmp_path / "in.mp4", PICTURE, SPOKEN))
    video, audio = VideoReader(info), AudioReader(info, 16_000, 1)
    for reader in (video, audio):
        reader.close()
        reader.close()
    assert video.read(5) == [] and audio.read(1.0) is None


def begun(tmp_path: Path, name: str = "o.mp4") -> MediaWriter:
    clip = write_media(tmp_path / "in.mp4", PICTURE, SPOKEN)
    writer = MediaWriter(tmp_path / "out" / name, probe_media(clip))
    writer.write(
        [(frame, time_ms) for time_ms, frame in watch(clip, "yuv420p")[:30]], np.zeros((1, 16_000), np.float32)
    )
    return writer


def test_a_discarded_output_leaves_nothing(tmp_path: Path):
    writer = begun(tmp_path)
    assert len(list((tmp_path / "out").iterdir())) == 1
    writer.discard()
    writer.discard()
    writer.write([], np.zeros((1, 16_000), np.float32))
    writer.finish(tmp_path / "out" / "o.mp4")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_output_appears_at_once_and_replaces_what_was_there(tmp_path: Path):
    writer = begun(tmp_path)
    target = tmp_path / "out" / "o.mp4"
    target.write_text("what was there before")
    writer.write([], np.zeros((1, 16_000), np.float32))
    assert target.read_text() == "what was there before"
    writer.finish(target)
    writer.discard()
    assert list((tmp_path / "out").iterdir()) == [target]
    assert len(play(target).times_s) == 30


def test_times_that_do_not_rise_are_made_to(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", PICTURE, SPOKEN)
    writer = MediaWriter(tmp_path / "o.mp4", probe_media(clip))
    frames = watch(clip, "yuv420p")[:4]
    times_ms = [0.0, 40.0, 40.0, 20.0]
    writer.write(zip([frame for _, frame in frames], times_ms, strict=True), np.zeros((1, 16_000), np.float32))
    writer.finish(tmp_path / "o.mp4")
    tick = Fraction(1, 12_800)
    assert play(tmp_path / "o.mp4").times_s == [0, Fraction(1, 25), Fraction(1, 25) + tick, Fraction(1, 25) + 2 * tick]


def test_an_output_folder_that_goes_away_is_one_line(tmp_path: Path):
    writer = begun(tmp_path)
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    (tmp_path / "out").rmdir()
    with pytest.raises(InputError, match=r"o\.mp4: cannot be written \(No such file or directory\)"):
        writer.finish(tmp_path / "out" / "o.mp4")
    writer.discard()


@contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 8 kB: stands for a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv"])
def test_a_disk_that_is_full_leaves_nothing(name: str, tmp_path: Path):
    clip = write_media(tmp_path / "in.mkv", PICTURE, SPOKEN)
    with small_disk(), pytest.raises(InputError, match=rf"{name}: cannot be written \(File too large\); make room"):
        pass_through(clip, tmp_path / "out" / name)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_full_ends_the_command_with_one_line(server: Server, tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", PICTURE, SILENT)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "polylip.client.cli", "dub", clip, "--to", "es", "-o", out / "o.mp4"]
    command += ["--url", server.url]
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *map(str, command)]  # KiB
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "o.mp4: cannot be written (File too large); make room, or choose another output path" in done.stderr
    assert list(out.iterdir()) == []


def test_a_job_on_a_damaged_file_ends_and_says_so(server: Server, tmp_path: Path):
    picture = replace(PICTURE, codec="libvpx")
    clip = write_media(tmp_path / "in.webm", picture, replace(SILENT, codec="libopus", rate_hz=48_000))
    damage_packet(clip, "video", 50)
    result = asyncio.run(dub(DubOptions(clip, tmp_path / "out" / "o.mp4", "es", url=server.url)))
    assert result.report.frames == len(watch(clip)) == 99
    assert any("the input is damaged: 1 packets" in warning for warning in result.report.warnings)


def damage_packet(clip: Path, kind: str, number: int) -> None:
    """Overwrite one packet of a stream with zeros."""
    data = clip.read_bytes()
    with av.open(str(clip)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        packet = bytes([*container.demux(stream)][number])
    assert data.count(packet) == 1
    clip.write_bytes(data.replace(packet, bytes(len(packet))))
