"""The parts that a resumed job stands on: readers that begin midway, state that comes back, packets in order."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import Picture, Sound, noise, write_media
from material import read_aloud

from polylip.client.errors import InputError
from polylip.client.journal import Journal
from polylip.client.media_in import AudioReader, MediaInfo, VideoReader, probe_media
from polylip.client.media_resume import PicturesFrom, SoundFrom
from polylip.client.mix import LevelMatch
from polylip.client.options import DubOptions
from polylip.client.results import FaceChoice, SegmentResult
from polylip.client.segmentation import Segment, Segmenter, SegmenterState
from polylip.client.snapshot import pack, rebuild, unpack, write_durable
from polylip.client.speech_state import ActiveDub, SpeechState, restored_dubs
from polylip.client.vad import VadChoice, make_vad, silero_installed
from polylip.client.workplace import Marks, Workplace, is_resumable, workplace_folder

UNEVEN_S = [Fraction(3 * index + index % 3, 90) for index in range(90)]  # a phone's: the distance changes
SHORT_GROUPS = {"g": "12", "bf": "3"}
CLIPS = {
    "even.mp4": Picture(frames=90, options=SHORT_GROUPS),
    "uneven.mkv": Picture(times_s=UNEVEN_S, time_base=Fraction(1, 90_000), options=SHORT_GROUPS),
    "late.mp4": Picture(frames=90, start_s=Fraction(3, 5), options=SHORT_GROUPS),
    "stream.ts": Picture(frames=90, options=SHORT_GROUPS),
    "no-index.avi": Picture(frames=90, codec="mpeg4", options={"g": "12"}),
    "one-group.mp4": Picture(frames=90, options={"g": "1000", "bf": "3"}),
}


@pytest.fixture(params=list(CLIPS))
def info(request: pytest.FixtureRequest, tmp_path: Path) -> MediaInfo:
    sound = Sound(noise(4.0)[None], start_s=0)
    return probe_media(write_media(tmp_path / request.param, CLIPS[request.param], sound))


def told(reader: VideoReader | PicturesFrom) -> list[tuple[float, int, int]]:
    """(time, duration, brightness) of all pictures."""
    found = []
    while pictures := reader.read(7):
        found += [(time_ms, frame.duration, int(frame.to_ndarray(format="gray")[0, 0])) for time_ms, frame in pictures]
    reader.close()
    return found


@pytest.mark.parametrize("written", [1, 25, 61, 89, 90])
def test_pictures_go_on_behind_the_last_one(info: MediaInfo, written: int):
    whole = told(VideoReader(info, info.planar_format))
    assert len(whole) == 90
    last_ms = whole[written - 1][0]
    assert told(PicturesFrom(info, info.planar_format, last_ms, written)) == whole[written:]
    lead = told(PicturesFrom(info, info.planar_format, last_ms, written, lead=4))
    assert lead == whole[max(0, written - 4) :]


def test_pictures_are_counted_where_none_has_the_time(info: MediaInfo):
    whole = told(VideoReader(info, info.planar_format))
    assert told(PicturesFrom(info, info.planar_format, whole[60][0] - 1e-3, 61)) == whole[61:]


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_sound_goes_on_sample_by_sample(rate_hz: int, tmp_path: Path):
    info = probe_media(write_media(tmp_path / "talk.mp4", Picture(frames=100), Sound(noise(4.0)[None])))

    def heard(reader: AudioReader | SoundFrom) -> tuple[np.ndarray, np.ndarray]:
        pieces = []
        while (piece := reader.read(0.5)) is not None:
            pieces.append(piece)
        reader.close()
        return np.concatenate([native for native, _ in pieces], axis=1), np.concatenate([mono for _, mono in pieces])

    native, mono = heard(AudioReader(info, rate_hz, 1))
    first, heard_before = round(1.3 * rate_hz), 40_000
    later = heard(SoundFrom(AudioReader(info, rate_hz, 1), first, heard_before))
    assert np.array_equal(later[0], native[:, first:]) and np.array_equal(later[1], mono[heard_before:])


@pytest.mark.parametrize("choice", [VadChoice.ENERGY, VadChoice.SILERO])
def test_a_segmenter_goes_on_as_if_nothing_had_been(choice: VadChoice):
    if choice is VadChoice.SILERO and not silero_installed():
        pytest.skip("silero is not installed")
    pause = np.zeros(11_200, np.float32)
    words = read_aloud("The old bridge is the most famous place in the city.")
    sound = np.concatenate([pause, words, pause, words, pause]) + noise(60.0)[: 3 * len(pause) + 2 * len(words)] * 1e-3

    def told(segments: list[Segment]) -> list[tuple[int, int, int, bytes]]:
        return [(s.index, s.start_ms, s.end_ms, s.audio.tobytes()) for s in segments]

    def closed(segmenter: Segmenter, sound: np.ndarray) -> list[Segment]:
        return [item for item in segmenter.push(sound) if isinstance(item, Segment)]

    unbroken = Segmenter(make_vad(choice))
    expected = told([*closed(unbroken, sound), *[s for s in unbroken.flush() if isinstance(s, Segment)]])
    assert len(expected) == 2
    for cut in range(5_000, len(sound), 17_777):
        first, second = Segmenter(make_vad(choice)), Segmenter(make_vad(choice))
        before = closed(first, sound[:cut])
        state: SegmenterState = rebuild(SegmenterState, unpack(pack(first.state())))
        assert state.samples == cut
        second.restore(state)
        after = [*closed(second, sound[cut:]), *[s for s in second.flush() if isinstance(s, Segment)]]
        assert told([*before, *after]) == expected


def test_a_segment_whose_face_was_chosen_before_its_voice_had_come_keeps_it(tmp_path: Path):
    """Who goes on does not choose again: the choice is that of the pictures' part."""
    segment = Segment(0, 1000, 2000, np.zeros(16_000, np.float32))
    chosen = SegmentResult(segment.id, 1000, 2000, face_id=7, face_choice=FaceChoice.SPEAKING, target_text="Hola")
    segmenter = Segmenter(make_vad(VadChoice.ENERGY)).state()
    silent, active = np.zeros(0, np.float32), [ActiveDub(0, segment)]
    state = SpeechState(segmenter, [chosen], active, LevelMatch().levels, silent, "en", "a")
    [dub] = restored_dubs(state, Journal(tmp_path))
    assert dub.result is state.results[0]
    assert (dub.result.face_id, dub.result.face_choice, dub.result.target_text) == (7, FaceChoice.SPEAKING, "")


def test_a_snapshot_is_refused_when_it_is_none(tmp_path: Path):
    write_durable(tmp_path / "state.zip", pack({"a": np.arange(3)}))
    content = (tmp_path / "state.zip").read_bytes()
    assert unpack(content)["a"].tolist() == [0, 1, 2]
    for broken in (b"", content[:40], content[:-30]):
        with pytest.raises(ValueError, match="no snapshot"):
            unpack(broken)
    assert [path.name for path in tmp_path.iterdir()] == ["state.zip"]


def test_every_output_has_a_folder_of_its_own(tmp_path: Path):
    long = "n" * 200
    names = {workplace_folder(tmp_path / name).name for name in ("a.mp4", "a.mkv", f"{long}1.mp4", f"{long}2.mp4")}
    assert len(names) == 4 and max(map(len, names)) < 100


ENGINES = {"transcribe": "whisper", "synthesize": "tones"}


def options(tmp_path: Path, **more: bool) -> DubOptions:
    if not (tmp_path / "talk.mp4").exists():
        (tmp_path / "talk.mp4").write_bytes(b"anything")
    return DubOptions(tmp_path / "talk.mp4", tmp_path / "out.mp4", "es", **more)


def test_two_jobs_do_not_write_one_output(tmp_path: Path):
    first, second = (Workplace(options(tmp_path)) for _ in range(2))
    first.enter()
    with pytest.raises(InputError, match="another job is writing it"):
        second.enter()
    second.leave()
    assert first.folder.is_dir()
    first.leave()
    assert not first.folder.exists()


def test_a_job_starts_anew_unless_it_is_told_to_go_on(tmp_path: Path):
    earlier = Workplace(options(tmp_path))
    earlier.enter()
    earlier.pictures.write_bytes(b"12345")
    earlier.sound.write_bytes(b"1234")
    earlier.begin(ENGINES)
    earlier.journal.keep(3, b"dub")
    earlier.save(Marks(4, 4, 7), pack({"a": 1}))
    earlier.leave()

    later = Workplace(options(tmp_path, resume=True))
    assert (later.marks, later.state) == (Marks(4, 4, 7), {"a": 1})
    later.enter()
    later.begin(ENGINES)
    assert 3 in later.journal and later.runs == 2
    later.leave()
    assert is_resumable(tmp_path / "out.mp4")

    anew = Workplace(options(tmp_path))
    anew.enter()
    assert anew.state is None and list(anew.folder.iterdir()) == []
    anew.leave()
    assert not is_resumable(tmp_path / "out.mp4")


@pytest.fixture
def begun(tmp_path: Path) -> Workplace:
    """A job that was killed before its first checkpoint, with one dub whole."""
    earlier = Workplace(options(tmp_path))
    earlier.enter()
    earlier.begin(ENGINES)
    assert not earlier.resumable and not is_resumable(tmp_path / "out.mp4")
    earlier.pictures.write_bytes(b"12345")
    earlier.sound.write_bytes(b"1234")
    (earlier.folder / "segment-1.zip.new").write_bytes(b"du")
    earlier.journal.keep(0, b"dub")
    assert earlier.resumable and is_resumable(tmp_path / "out.mp4")
    earlier.leave()
    return earlier


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_whole_dub_outlives_a_job_without_a_checkpoint(begun: Workplace, tmp_path: Path):
    for runs in (2, 3):
        later = Workplace(options(tmp_path, resume=True))
        later.enter()
        assert names(later.folder) == {"begun.zip", "segment-0.zip"}
        later.begin(ENGINES)
        assert (later.state, later.marks, later.runs) == (None, Marks(), runs) and 0 in later.journal
        later.leave()
    later = Workplace(options(tmp_path, resume=True))
    later.enter()
    later.leave()  # as where the server cannot be reached
    assert names(later.folder) == {"begun.zip", "segment-0.zip"}


def test_a_dub_of_other_engines_is_not_used(begun: Workplace, tmp_path: Path):
    later = Workplace(options(tmp_path, resume=True))
    later.enter()
    later.begin(ENGINES | {"synthesize": "another"})
    assert 0 not in later.journal and later.runs == 1 and names(later.folder) == {"begun.zip"}
    later.leave()
    assert not later.folder.exists()


def test_without_resume_an_early_dub_goes_too(begun: Workplace, tmp_path: Path):
    anew = Workplace(options(tmp_path))
    anew.enter()
    assert names(anew.folder) == set()
    anew.begin(ENGINES)
    assert anew.runs == 1
    anew.leave()


@pytest.mark.parametrize("change", ["input", "options", "damaged"])
def test_an_early_dub_of_another_job_is_refused(change: str, begun: Workplace, tmp_path: Path):
    before = names(begun.folder)
    if change == "input":
        (tmp_path / "talk.mp4").write_bytes(b"something else")
    elif change == "damaged":
        (begun.folder / "begun.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=f"cannot be continued: .*{change}.*without --resume"):
        Workplace(options(tmp_path, resume=True, mark=change != "options"))
    assert names(begun.folder) == before


def test_another_job_starts_anew_where_no_dub_came(begun: Workplace, tmp_path: Path):
    (begun.folder / "segment-0.zip").unlink()
    later = Workplace(options(tmp_path, resume=True, mark=False))
    later.enter()
    later.begin(ENGINES)
    assert later.runs == 1
    later.leave()
