"""A call of four people who speak in turn, against a real server: each is dubbed in the own output, nothing else is."""

from __future__ import annotations

import asyncio
import html
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import cv2
import grpc
import numpy as np
import pytest
import typer
from clips import Picture, Sound, write_media
from material import RATE_HZ, read_aloud
from playback import play
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from polylip.client.errors import InputError
from polylip.client.faces import AFTER_MS, BEFORE_MS, KEY_FRAMES_PER_CHUNK
from polylip.client.live.call import CallReport, CallStatus, call, check_call
from polylip.client.live.call_command import call as call_command
from polylip.client.live.call_command import paired
from polylip.client.live.leave import participant_page
from polylip.client.live.options import LiveOptions
from polylip.client.results import Status
from polylip.client.server import ServerChoice
from polylip.client.wishes import SpeechWishes
from polylip.perf.demo_clip import SENTENCES, Camera
from polylip.serving.launcher import Server

pytestmark = pytest.mark.alone

NAMES = ("ann", "bob", "cem", "dia")
SPOKEN = (SENTENCES[4], SENTENCES[7], SENTENCES[10], SENTENCES[5])
FPS, SIZE = Fraction(10), (480, 270)  # little work: the machine has this client and its server to run
FIRST_S, STEP_S = 0.6, 3.0  # the turns begin here, and so far apart
SECONDS = FIRST_S + 4 * STEP_S + 0.4
DELAY_S, SHORT_DELAY_S = 18.0, 5.0  # the first one bears a loaded machine
KEY_FRAMES_PER_S = 5  # every second frame
MEASURED_S = 3.0
NEW_LIPS = 15  # grey levels; what the two encoders lose is less


def sound(number: int) -> np.ndarray:
    """The sentence of one, in its turn; the last one hums while the first one speaks. float32 (1, samples)."""
    pcm = np.random.default_rng(number).standard_normal(round(SECONDS * RATE_HZ)) * 0.0003
    spoken, first = read_aloud(SPOKEN[number]), round((FIRST_S + number * STEP_S) * RATE_HZ)
    pcm[first : first + len(spoken)] += spoken
    if number == len(NAMES) - 1:
        times = np.arange(round(0.3 * RATE_HZ)) / RATE_HZ
        hum = sum(np.sin(2 * np.pi * 130 * k * times) / k for k in range(1, 6)) * 0.1 * np.hanning(len(times))
        pcm[round(1.4 * RATE_HZ) :][: len(hum)] += hum
    return pcm[None].astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, camera = tmp_path_factory.mktemp("clips"), Camera(SIZE)
    frames = round(SECONDS * FPS)
    views = [cv2.cvtColor(camera.frame(float(index / FPS)), cv2.COLOR_BGR2RGB) for index in range(frames)]
    picture = Picture(frames, rate=FPS, size=SIZE, draw=lambda index: views[index], options={"preset": "veryfast"})
    return [write_media(folder / f"{name}.mp4", picture, Sound(sound(i), RATE_HZ)) for i, name in enumerate(NAMES)]


def options(clip: Path, sink: Path, server: Server, **changes: object) -> LiveOptions:
    wishes, choice = SpeechWishes("auto", "es"), ServerChoice(server.url)
    return LiveOptions(str(clip), str(sink), wishes, choice, **{"delay_s": DELAY_S, **changes})


def requests(server: Server) -> Counter[str]:
    """How many each model has answered so far, by the server's own statistics."""
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest())
    return Counter({stats.name: stats.inference_stats.success.count for stats in answer.model_stats})


def change(source: Path, output: Path) -> np.ndarray:
    """How much the picture differs where it differs most, frame by frame, in grey levels."""
    lumas = []
    for path in (source, output):
        with av.open(str(path)) as container:
            lumas.append([f.to_ndarray()[: f.height].astype(np.int16) for f in container.decode(video=0)])
    pairs = zip(*lumas, strict=True)
    return np.array([np.sort(cv2.blur(np.abs(a - b), (9, 9)).ravel())[-100:].mean() for a, b in pairs])


class Run:
    def __init__(self, report: CallReport, outputs: list[Path], asked: Counter[str], statuses: list[CallStatus]):
        self.report, self.outputs, self.asked, self.statuses = report, outputs, asked, statuses


@pytest.fixture(scope="module")
def run(clips: list[Path], server: Server, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("outputs")
    outputs = [folder / f"{name}.mp4" for name in NAMES]
    before, statuses = requests(server), []
    (folder / "broken.mp4").write_bytes(b"no picture")
    eve = options(folder / "broken.mp4", folder / "eve.mp4", server)
    participants = {
        name: options(clip, out, server, report=participant_page(folder / "call.json", name))
        for name, clip, out in zip(NAMES, clips, outputs, strict=True)
    }
    report = asyncio.run(call({**participants, "eve": eve}, statuses.append))
    return Run(report, outputs, requests(server) - before, statuses)


def test_each_has_the_floor_once_and_in_turn(run: Run):
    assert [turn["participant"] for turn in run.report.turns] == list(NAMES)
    for number, turn in enumerate(run.report.turns):
        spoken_s = len(read_aloud(SPOKEN[number])) / RATE_HZ
        assert turn["start_s"] == pytest.approx(FIRST_S + number * STEP_S, abs=0.5)
        assert turn["end_s"] == pytest.approx(FIRST_S + number * STEP_S + spoken_s, abs=0.6)
    assert {status.floor for status in run.statuses} == {"", *NAMES}


def test_each_one_s_own_turn_is_dubbed_in_the_own_output(run: Run, clips: list[Path]):
    for number, name in enumerate(NAMES):
        report = run.report.participants[name]
        dubbed = [s for s in report.segments if s.status is Status.DUBBED]
        assert [s.source_text.lower() for s in dubbed] == [SPOKEN[number].strip(".").lower()]
        assert all(s.status is Status.PASSED for s in report.segments if s not in dubbed)
        assert report.counters["frames_lipsynced"] >= 3
        source, shown = play(clips[number]), play(run.outputs[number])
        segment = dubbed[0]
        inside = slice(*(round(t * source.rate_hz / 1000) for t in (segment.start_ms, segment.end_ms)))
        assert np.corrcoef(source.pcm[inside], shown.pcm[inside])[0, 1] < 0.5, "another voice"


def test_everything_else_passes_as_it_came(run: Run, clips: list[Path]):
    for number, name in enumerate(NAMES):
        [segment] = [s for s in run.report.participants[name].segments if s.status is Status.DUBBED]
        source, shown = play(clips[number]), play(run.outputs[number])
        assert [round(float(t), 3) for t in shown.times_s] == [round(float(t), 3) for t in source.times_s]
        assert len(shown.pcm) >= len(source.pcm) - 2048  # a dub may end behind the picture
        length = min(len(shown.pcm), len(source.pcm))
        times_ms = np.arange(length) * 1000 / shown.rate_hz
        outside = (times_ms < segment.start_ms - 100) | (times_ms > max(segment.end_ms, segment.dub_end_ms) + 100)
        outside &= times_ms < SECONDS * 1000 - 200
        quiet = shown.pcm[:length][outside] - source.pcm[:length][outside]
        assert np.sqrt((quiet**2).mean()) < 0.003, "the sound of others is not in it"
        changed = change(clips[number], run.outputs[number])
        frame_ms = np.arange(len(changed)) * 1000 / float(FPS)
        own = (frame_ms >= segment.start_ms - 40) & (frame_ms < max(segment.end_ms, segment.dub_end_ms))
        assert changed[own].max() > NEW_LIPS > changed[~own].max(), "lips move in the own turn only"


def test_the_server_is_asked_for_the_one_who_has_the_floor_alone(run: Run):
    """Requests grow with the speech: nobody costs any outside of the own turn, but for a margin around it."""
    asked = run.report.asked
    for number, name in enumerate(NAMES):
        turn = run.report.turns[number]
        around_s = turn["end_s"] - turn["start_s"] + (BEFORE_MS + AFTER_MS) / 1000
        chunk_s = KEY_FRAMES_PER_CHUNK / KEY_FRAMES_PER_S
        assert asked[name]["faces"] <= around_s / chunk_s + 4  # one at each end, one more, and dense key frames
        assert asked[name]["frames_without_asking"] >= (SECONDS - around_s - 4 * chunk_s) * FPS
        assert asked[name]["speech"] == 1
        assert 1 <= asked[name]["recogniser"] <= 15  # its pauses, and pieces of a segment that goes on
    total = sum((Counter(each) for each in asked.values()), Counter())
    assert total["speech"] == len(NAMES)
    for model in ("faces", "lipsync"):
        assert 0 < run.asked[model] <= total[model], "by the server's own count"
    assert 0 < run.asked["speech"] <= total["speech"] + 2  # whether the languages can be done at all
    assert run.asked["transcribe"] <= total["recogniser"] + run.asked["speech"]


def test_each_leaves_a_page_of_the_own_segments(run: Run):
    folder = run.outputs[0].parent
    assert sorted(path.name for path in folder.glob("call.*")) == [f"call.{name}.html" for name in NAMES]
    for name in NAMES:
        page = participant_page(folder / "call.json", name).read_text()
        [said] = [s for s in run.report.participants[name].segments if s.status is Status.DUBBED]
        assert html.escape(said.source_text) in page and html.escape(said.target_text) in page


def test_nothing_is_late_and_all_have_the_same_delay(run: Run):
    assert list(run.report.errors) == ["eve"] and "broken.mp4" in run.report.errors["eve"], "who fails leaves alone"
    assert {part.delay_s for part in run.report.participants.values()} == {run.report.delay_s} == {DELAY_S}
    for part in run.report.participants.values():
        assert part.lag["p50_ms"] < 100
        assert part.counters["sink_packets_dropped"] == 0


async def test_the_cost_is_one_speaker_and_a_cheap_pass_for_each_other(
    clips: list[Path], server: Server, tmp_path: Path, record_property
):
    """The first one speaks. CPU time of this client, and requests."""
    cpu_s, asked = {}, {}
    for count in (1, 2, 4):
        participants = {
            name: options(clip, tmp_path / f"{count}-{name}.mp4", server, duration_s=MEASURED_S, delay_s=SHORT_DELAY_S)
            for name, clip in list(zip(NAMES, clips, strict=True))[:count]
        }
        report = await call(participants)
        cpu_s[count] = report.cpu_s
        asked[count] = sum((Counter(each) for each in report.asked.values()), Counter())
        assert [turn["participant"] for turn in report.turns] == ["ann"]
    record_property("cpu_s", cpu_s)
    print(f"CPU seconds of the client: {cpu_s}; requests: {asked}")
    assert (cpu_s[4] - cpu_s[2]) / 2 < 1.6 * (cpu_s[2] - cpu_s[1]) + 0.15, "the fourth costs as much as the second"
    assert cpu_s[4] < 4.5 * cpu_s[1]
    for what in ("faces", "speech", "lipsync"):
        counts = [asked[count][what] for count in asked]
        assert max(counts) - min(counts) <= 4, f"{what}: {counts} requests do not grow with the participants"


async def test_a_call_that_nobody_can_join_says_why(server: Server, tmp_path: Path):
    with pytest.raises(InputError, match="missing"):
        await call({"eve": options(tmp_path / "missing.mp4", tmp_path / "e.mp4", server)})


def test_what_cannot_be_a_call_is_refused(server: Server, tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"not looked at")
    a, b, p = (str(tmp_path / name) for name in ("a.mp4", "b.mp4", "p.mp4"))
    one = options(tmp_path / "a.mp4", tmp_path / "o.mp4", server)
    with pytest.raises(InputError, match="same sink"):
        check_call({"ann": one, "bob": one})
    with pytest.raises(InputError, match="too short for a call"):
        check_call({"ann": LiveOptions(a, p, SpeechWishes("auto", "es"), delay_s=4.0)})
    with pytest.raises(InputError, match="one server and one delay"):
        check_call({"ann": one, "bob": LiveOptions(b, p, SpeechWishes("auto", "es"))})
    with pytest.raises(InputError, match="no name"):
        check_call({"a b": one})


def test_the_options_of_the_command_pair_up():
    assert paired(["ann=rtmp://h/a?k=v", "b.mp4"], ["a.mp4", "o.mp4"], ["es"]) == [
        ("ann", "rtmp://h/a?k=v", "a.mp4", "es"),
        ("2", "b.mp4", "o.mp4", "es"),
    ]
    assert [each[3] for each in paired(["a", "b"], ["c", "d"], ["es", "en"])] == ["es", "en"]
    assert paired(["rtmp://h/a?k=v"], ["o.mp4"], ["es"])[0][:2] == ("1", "rtmp://h/a?k=v")
    for wrong in ((["a", "b"], ["c"], ["es"]), (["a"], ["c"], ["es", "en"]), (["x=a", "x=b"], ["c", "d"], ["es"])):
        with pytest.raises(InputError):
            paired(*wrong)


def test_the_command_says_how_and_refuses_what_does_not_pair_up():
    app = typer.Typer()
    app.command()(call_command)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120", "TERM": "dumb"}).output
    assert all(option in shown for option in ("--in", "--out", "--to", "Example: polylip call --to es --in ann="))
    refused = CliRunner().invoke(app, ["--to", "es", "--in", "a.mp4", "--in", "b.mp4", "--out", "o.mp4"])
    assert isinstance(refused.exception, InputError) and "one --out for each --in" in str(refused.exception)
