"""The demo's input: a face that detectors find, speech that the recogniser reads, the same file every time."""

import shutil

import av
import cv2
import numpy as np
import pytest

from polylip.perf import demo_clip
from polylip.perf.demo_clip import DemoClipError, main, make_demo_clip

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed: apt-get install flite")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "demo.mp4", seconds=6)


def sound(path):
    """float32 (samples,) at 16 kHz."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        return np.concatenate([r.to_ndarray()[0] for f in container.decode(audio=0) for r in resampler.resample(f)])


def level_db(samples):
    return 20 * np.log10(samples.std() + 1e-9)


@needs_flite
def test_length_rate_and_size_are_as_asked(clip):
    with av.open(str(clip)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name, audio.rate) == ("h264", "aac", 48_000)
        assert (video.width, video.height, video.average_rate) == (960, 540, 25)
        assert float(video.duration * video.time_base) == pytest.approx(6.0)
        assert float(audio.duration * audio.time_base) == pytest.approx(6.0, abs=0.03)
        assert sum(1 for _ in container.decode(video=0)) == 150
    assert [p.name for p in clip.parent.iterdir()] == ["demo.mp4"], "no temporary file stays"


@needs_flite
def test_speech_stands_between_silences_over_a_noise_floor(clip):
    samples = sound(clip)
    first = demo_clip._duration_s(0)
    assert level_db(samples[16_000 : int(16_000 * (0.6 + first))]) > -30
    for quiet in (samples[2000:9000], samples[-12_000:-2000]):
        assert -85 < level_db(quiet) < -65


@needs_flite
def test_recogniser_reads_the_first_sentence(clip):
    pocketsphinx = pytest.importorskip("pocketsphinx")
    decoder = pocketsphinx.Decoder(samprate=16_000, loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw((sound(clip) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    assert decoder.hyp().hypstr == demo_clip.SENTENCES[0].lower().rstrip(".")


@needs_flite
def test_face_is_found_and_large_enough_in_every_fifth_frame(clip):
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    with av.open(str(clip)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 5 == 0:
                small = cv2.resize(frame.to_ndarray(format="bgr24"), (640, 360), interpolation=cv2.INTER_AREA)
                faces = cascade.detectMultiScale(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), 1.1, 3)
                assert max((height for *_, height in faces), default=0) >= 80, f"frame {number}"


@pytest.mark.parametrize("size", [(960, 540), (640, 360), (540, 960), (480, 480), (1280, 534)])
def test_camera_moves_slowly_and_never_leaves_the_picture(size):
    pytest.importorskip("skimage")
    camera = demo_clip.Camera(size)
    frames = [camera.frame(number / 25) for number in (0, 1, 90, 180, 270)]
    assert all(frame.shape == (size[1], size[0], 3) for frame in frames)
    # Replicated borders are columns or rows that repeat exactly; the picture itself is never that flat.
    for frame in frames:
        for edge in (frame, frame[::-1], frame.transpose(1, 0, 2), frame.transpose(1, 0, 2)[::-1]):
            assert not (edge[:4] == edge[0]).all()
    step, far = (np.abs(frames[0].astype(int) - frames[index]).mean() for index in (1, 2))
    assert 0 < step < 2 < far


@needs_flite
def test_sentences_cycle_with_pauses_to_the_end():
    schedule = demo_clip._schedule(120.0)
    assert {index for _, index in schedule} == set(range(len(demo_clip.SENTENCES)))
    ends = [start + demo_clip._duration_s(index) for start, index in schedule]
    gaps = [start - end for end, (start, _) in zip(ends, schedule[1:], strict=False)]
    assert all(0.89 < gap < 1.21 for gap in gaps)
    assert schedule[0][0] == demo_clip.START_S
    assert ends[-1] <= 120.0 - demo_clip.END_S


@needs_flite
def test_the_same_file_every_time(tmp_path):
    first, second = (make_demo_clip(tmp_path / name, seconds=4).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == second


@needs_flite
@pytest.mark.parametrize(("arguments", "remedy"), [(["--seconds", "1"], "at least"), (["--seconds", "inf"], "finite")])
def test_impossible_lengths_are_one_line_errors(tmp_path, capsys, arguments, remedy):
    assert main([str(tmp_path / "x.mp4"), *arguments]) == 1
    error = capsys.readouterr().err
    assert remedy in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_flite_names_the_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DemoClipError, match="apt-get install flite"):
        demo_clip._flite("hello")
