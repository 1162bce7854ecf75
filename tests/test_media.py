"""The promise of the timeline: same frames at the same times, and sound that stays where it was, whatever comes in."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from clips import Picture, Sound, clicks, grey, write_media
from playback import listen, onsets, pass_through, play, watch

from polylip.client.errors import InputError
from polylip.client.job import DubOptions, DubResult, dub
from polylip.client.media_in import SPEECH_RATE_HZ, probe_media
from polylip.serving.launcher import Server

NTSC_FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
MPEG_CLOCK = Fraction(1, 90_000)
CLICKS_S = (0.5, 1.0, 1.5)
AAC_FRAME_S = 0.023
CLICK_S = 0.002  # how exactly a click is found again behind a lossy codec


def sound(codec: str = "aac", rate_hz: int = 48_000, channels: int = 1, **more) -> Sound:
    return Sound(clicks(CLICKS_S, 2, rate_hz, channels), rate_hz, codec, **more)


def irregular(count: int) -> list[Fraction]:
    """Frame times of a screen recording, in ticks of the MPEG clock."""
    steps = np.random.default_rng(1).choice([1500, 1800, 3003, 9000, 38571], count)
    return [Fraction(int(tick), 90_000) for tick in np.cumsum(steps)]


KINDS = {
    "film.mp4": (Picture(frames=330, rate=NTSC_FILM), sound()),
    "ntsc.mp4": (Picture(frames=330, rate=NTSC), sound()),
    "film.mkv": (Picture(frames=330, rate=NTSC_FILM), sound()),
    "60fps.mp4": (Picture(frames=330, rate=60), sound()),
    "12fps.mov": (Picture(frames=30, rate=12), sound("pcm_s16le")),
    "b_frames.mp4": (Picture(options={"bf": "4", "b_strategy": "0"}), sound()),
    "irregular.mp4": (Picture(times_s=irregular(40), time_base=MPEG_CLOCK), sound()),
    "irregular.mkv": (Picture(times_s=irregular(40), time_base=Fraction(1, 1000)), sound()),
    "vp9.webm": (Picture(codec="libvpx-vp9", rate=30, options={"deadline": "realtime"}), sound("libopus")),
    "vp8.webm": (Picture(codec="libvpx", rate=30, options={"deadline": "realtime"}), sound("libopus")),
    "late_start.ts": (Picture(start_s=95_000, options={"bf": "2"}), sound(start_s=95_000)),
    "broadcast.ts": (Picture(codec="mpeg2video", rate=NTSC, options={"bf": "2"}), sound("mp2")),
    "old.avi": (Picture(codec="mpeg4"), sound("libmp3lame")),
    "b_frames.avi": (Picture(codec="mpeg4", options={"bf": "2"}), sound("pcm_u8", 22_050)),
    "flash.flv": (Picture(), sound(rate_hz=44_100)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_keeps_its_time_to_the_tick(kind: str, tmp_path: Path):
    clip = write_media(tmp_path / kind, *KINDS[kind])
    assert_kept(clip, tmp_path / "out.mp4")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("browser.webm", {"live": "1"}),  # no duration, no index, as a browser records
        ("fragments.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("no_edit_list.mp4", {"use_editlist": "0"}),  # pictures begin with the delay of their B-frames
    ],
)
def test_files_that_are_written_as_they_come_keep_their_times(name: str, options: dict[str, str], tmp_path: Path):
    webm = name.endswith("webm")
    picture = Picture(codec="libvpx" if webm else "libx264", rate=30)
    clip = write_media(tmp_path / name, picture, sound("libopus" if webm else "aac"), options=options)
    assert_kept(clip, tmp_path / "out.mp4")


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.m4v", "out.mkv"])
def test_every_output_type_keeps_times_and_offset(name: str, tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(frames=60, rate=24, start_s=0.25), sound(rate_hz=44_100))
    assert_kept(clip, tmp_path / name, tick_s=Fraction(1, 1000) if name.endswith("mkv") else Fraction(0))


def test_a_clock_that_does_not_divide_the_offset_still_ticks_evenly(tmp_path: Path):
    """The sound begins half a tick of the picture's clock before the picture."""
    start_s = Fraction(4801, 48_000)
    picture = Picture(frames=320, rate=NTSC_FILM, start_s=Fraction(4805, 24_000))
    spoken = sound("pcm_s16le", start_s=start_s)
    clip = write_media(tmp_path / "in.mov", picture, spoken, options={"movie_timescale": "48000"})
    info = pass_through(clip, tmp_path / "out.mp4")
    assert info.start_s == start_s
    ticks = [time * 24_000 for time in play(tmp_path / "out.mp4").times_s]
    assert {b - a for a, b in pairwise(ticks)} == {1001}


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("name", ["few.mp4", "few.mkv", "few.ts"])
def test_a_handful_of_frames_comes_out_whole(name: str, frames: int, tmp_path: Path):
    clip = write_media(tmp_path / name, Picture(frames=frames, options={"bf": "2"}), sound())
    assert_kept(clip, tmp_path / "out.mp4")
    assert probe_media(tmp_path / "out.mp4").frame_rate == 25


def test_the_last_frame_stays_as_long_as_it_did(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(times_s=irregular(40), time_base=MPEG_CLOCK), sound())
    pass_through(clip, tmp_path / "out.mp4")
    assert video_end_s(tmp_path / "out.mp4") == pytest.approx(video_end_s(clip), abs=1e-4)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize(("picture_s", "sound_s"), [(0, 0.7), (0, 0.013), (0.44, 0), (2.6, 0)])
def test_the_offset_between_sound_and_picture_survives(suffix: str, picture_s: float, sound_s: float, tmp_path: Path):
    clip = write_media(tmp_path / f"in{suffix}", Picture(start_s=Fraction(picture_s)), sound(start_s=sound_s))
    assert_kept(clip, tmp_path / "out.mp4")


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_a_click_is_at_the_same_time_in_both_forms_of_the_sound(rate_hz: int, channels: int, tmp_path: Path):
    clip = write_media(tmp_path / "in.mkv", Picture(frames=5), sound("flac", rate_hz, channels, start_s=0.3))
    native, mono = listen(clip, rate_hz, min(channels, 2))
    assert native.shape[0] == min(channels, 2)
    assert native.shape[1] / rate_hz == pytest.approx(len(mono) / SPEECH_RATE_HZ, abs=0.001)
    expected = [0.3 + time_s for time_s in CLICKS_S]
    assert onsets(native[0], rate_hz) == pytest.approx(expected, abs=CLICK_S)
    assert onsets(mono, SPEECH_RATE_HZ) == pytest.approx(expected, abs=CLICK_S)


def test_the_two_forms_of_the_sound_do_not_drift_apart_in_a_minute(tmp_path: Path):
    times_s = [0.2, 30.0, 59.9]
    clip = write_media(tmp_path / "in.mkv", Picture(frames=5), Sound(clicks(times_s, 60, 44_100), 44_100, "pcm_s16le"))
    native, mono = listen(clip, 44_100)
    assert native.shape[1] == 60 * 44_100
    assert len(mono) == pytest.approx(60 * SPEECH_RATE_HZ, abs=2)
    assert onsets(native[0], 44_100) == pytest.approx(times_s, abs=0.001)
    assert onsets(mono, SPEECH_RATE_HZ) == pytest.approx(times_s, abs=0.001)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 96_000, 11_000])
@pytest.mark.parametrize("channels", [1, 6])
def test_sound_of_any_rate_is_written_in_place(rate_hz: int, channels: int, tmp_path: Path):
    clip = write_media(tmp_path / "in.mkv", Picture(), sound("pcm_s16le", rate_hz, channels))
    assert_kept(clip, tmp_path / "out.mp4")


def test_sound_in_eight_channels_is_heard(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(), sound(channels=8, start_s=0.4))
    assert_kept(clip, tmp_path / "out.mp4")


def test_a_hole_in_the_sound_is_filled_with_silence(tmp_path: Path):
    hole = sound("pcm_s16le", jumps=((0.8, 0.4),))
    clip = write_media(tmp_path / "in.mkv", Picture(frames=60), hole)
    assert onsets(listen(clip, 48_000)[0][0], 48_000) == pytest.approx([0.5, 1.4, 1.9], abs=CLICK_S)
    assert_kept(clip, tmp_path / "out.mp4")


def test_sound_that_overlaps_is_heard_once(tmp_path: Path):
    """The second recording begins 0.3 s before the first has ended: of its sound, only what is new is taken."""
    clip = strung_together(tmp_path / "in.ts", sound(start_s=10), sound(start_s=Fraction("11.68")))
    native, mono = listen(clip, 48_000)
    expected = [0.52, 1.02, 1.52, 2.2, 2.7, 3.2]  # behind the 21 ms that AAC begins with
    assert native.shape[1] / 48_000 == pytest.approx(3.68, abs=3 * AAC_FRAME_S)
    assert onsets(native[0], 48_000) == pytest.approx(expected, abs=AAC_FRAME_S)
    assert onsets(mono, SPEECH_RATE_HZ) == pytest.approx(expected, abs=AAC_FRAME_S)


def test_timestamps_that_jitter_leave_the_sound_alone(tmp_path: Path):
    """As a webcam writes them: each piece up to 25 ms early or late, none missing."""
    offsets = np.random.default_rng(0).uniform(-0.025, 0.025, 30)
    jumps = tuple((index * 0.064, float(by)) for index, by in enumerate(np.diff(offsets, prepend=0), 1))
    tone = np.sin(2 * np.pi * 440 * np.arange(32_768) / 16_000).astype(np.float32) / 2
    clip = write_media(tmp_path / "in.mkv", Picture(), Sound(tone[None], 16_000, "pcm_s16le", jumps=jumps))
    assert np.abs(np.diff(listen(clip, 16_000)[0][0])).max() < 0.1


@pytest.mark.parametrize("second_s", [1000, 50])
def test_timestamps_that_make_no_sense_are_refused_in_one_line(second_s: float, tmp_path: Path):
    clip = strung_together(tmp_path / "in.ts", sound(start_s=100), sound(start_s=second_s))
    with pytest.raises(InputError, match=r"sound jumps by -?\d+ s"):
        listen(clip, 48_000)
    with pytest.raises(InputError, match=r"picture jumps by -?\d+ s"):
        watch(clip)


def test_a_few_broken_timestamps_are_passed_over(tmp_path: Path):
    strange = Sound(clicks([], 0.12, 48_000), 48_000, start_s=5000)
    clip = strung_together(tmp_path / "in.ts", sound(start_s=100), strange, sound(start_s=Fraction("102.12")))
    times_ms = [time_ms for time_ms, _ in watch(clip)]
    assert len(times_ms) == 103
    assert np.diff(times_ms) == pytest.approx(40, abs=1)
    assert onsets(listen(clip, 48_000)[0][0], 48_000)[3:] == pytest.approx([2.64, 3.14, 3.64], abs=AAC_FRAME_S)


def test_a_picture_that_stands_for_long_and_sound_that_goes_on_end_the_job(server: Server, tmp_path: Path):
    """Frame 5 stays for 40 s, and the sound goes on for 31 s behind the last frame: all of it is kept."""
    times_s = [*(index / 25 for index in range(6)), *(40 + index / 25 for index in range(6))]
    spoken = Sound(clicks([0.5, 39.5, 71.0], 71.5), 16_000, "aac")
    clip = write_media(tmp_path / "in.mp4", Picture(times_s=times_s, time_base=MPEG_CLOCK), spoken)
    result = job(clip, tmp_path / "out" / "o.mp4", server)
    assert_same(clip, result.video)


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv"])
def test_the_last_pictures_do_not_wait_behind_sound_that_goes_on(name: str, server: Server, tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(), Sound(clicks(CLICKS_S, 32), 16_000, "aac"))
    result = job(clip, tmp_path / "out" / name, server)
    assert_same(clip, result.video)
    assert player_waits_s(result.video) < 1.5


def test_a_picture_that_begins_long_after_the_sound_ends_the_job(server: Server, tmp_path: Path):
    clip = write_media(tmp_path / "in.mkv", Picture(frames=10, start_s=33), Sound(clicks(CLICKS_S, 36), 16_000, "aac"))
    result = job(clip, tmp_path / "out" / "o.mkv", server)
    assert_same(clip, result.video)


def test_sound_that_ends_early_leaves_silence(server: Server, tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(frames=200), sound(rate_hz=16_000))
    result = job(clip, tmp_path / "out" / "o.mp4", server)
    assert_same(clip, result.video)
    assert result.report.frames == 200


def strung_together(path: Path, *recordings: Sound) -> Path:
    """An MPEG transport stream whose clock jumps."""
    parts = [
        write_media(
            path.with_name(f"{index}.ts"),
            Picture(recording.pcm.shape[1] * 25 // recording.rate_hz, start_s=recording.start_s),
            recording,
        ).read_bytes()
        for index, recording in enumerate(recordings)
    ]
    path.write_bytes(b"".join(parts))
    return path


def job(clip: Path, output: Path, server: Server) -> DubResult:
    return asyncio.run(asyncio.wait_for(dub(DubOptions(clip, output, "es", url=server.url)), 60))


def player_waits_s(path: Path) -> float:
    """How far the sound in the file runs ahead of a picture that comes behind it."""
    heard_s = ahead_s = 0.0
    with av.open(str(path)) as container:
        for packet in sorted(
            (p for p in container.demux() if p.pos is not None and p.pts is not None), key=lambda p: p.pos
        ):
            time_s = float(packet.pts * packet.time_base)
            if packet.stream.type == "audio":
                heard_s = max(heard_s, time_s)
            else:
                ahead_s = max(ahead_s, heard_s - time_s)
    return ahead_s


def assert_kept(clip: Path, output: Path, tick_s: Fraction = Fraction(0)) -> None:
    pass_through(clip, output)
    assert_same(clip, output, tick_s)
    seen = watch(clip)
    assert [time_ms for time_ms, _ in seen] == pytest.approx(
        [float(time * 1000) for time in play(clip).times_s], abs=0.6
    )


def assert_same(clip: Path, output: Path, tick_s: Fraction = Fraction(0)) -> None:
    before, after = play(clip), play(output)
    assert len(after.times_s) == len(before.times_s)
    assert max(abs(a - b) for a, b in zip(relative(after.times_s), relative(before.times_s), strict=True)) <= tick_s
    assert float(after.times_s[0]) == pytest.approx(float(before.times_s[0]), abs=0.001)
    assert after.greys == pytest.approx(before.greys, abs=3)
    assert len(after.onsets_s) >= 1
    assert after.onsets_s == pytest.approx(before.onsets_s, abs=CLICK_S)
    assert len(after.pcm) / after.rate_hz >= len(before.pcm) / before.rate_hz - AAC_FRAME_S


def relative(times_s: list[Fraction]) -> list[Fraction]:
    return [time_s - times_s[0] for time_s in times_s]


def video_end_s(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float((stream.start_time + stream.duration) * stream.time_base)


def test_the_clips_show_what_they_are_meant_to(tmp_path: Path):
    clip = write_media(tmp_path / "in.mp4", Picture(frames=7), sound())
    assert play(clip).greys == pytest.approx([grey(index) for index in range(7)], abs=1)
    assert play(clip).onsets_s == pytest.approx(CLICKS_S, abs=CLICK_S)
