"""The experiments that compare the baseline with the pipeline: their figures, what they say, and what they measure."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from polylip.client.closing import Policy
from polylip.client.media_in import probe_media
from polylip.perf import efficiency, experiment, latency, overhead
from polylip.perf.baseline import Baseline
from polylip.perf.baseline_metrics import GPU_MEMORY, GPU_USE, gpu_of
from polylip.perf.baseline_paced import Arriving, paced_baseline, paced_pipeline
from polylip.perf.baseline_runs import BASELINE, PIPELINE, Timed, cpu_seconds, make_clip, run_pipeline
from polylip.perf.efficiency import Sampler, Watched
from polylip.perf.experiment import Setup
from polylip.perf.overhead import Round
from polylip.perf.server_work import ModelWork
from polylip.serving.launcher import Server


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest that is compared."""
    return make_clip(tmp_path_factory.mktemp("latency") / "talk.mp4", 1.0)


def timed(closed_s: float, stages_s: dict[str, float], cpu_s: float = 4.0) -> Timed:
    """A run whose stages worked one after another."""
    spans, at_s = [], 0.0
    for stage, seconds in stages_s.items():
        spans.append({"stage": stage, "start_s": at_s, "end_s": at_s + seconds})
        at_s += seconds
    work_s = sum(stages_s.values())
    return Timed(
        closed_s=closed_s,
        first_frame_s=closed_s / 2,
        total_s=closed_s + 0.5,
        start_s=0.1,
        cpu_s=cpu_s,
        frames=200,
        frames_lipsynced=100,
        texts=("hola",),
        stages_s=stages_s,
        busy_s=min(work_s, closed_s),
        work_s=work_s,
        spans=tuple(spans),
    )


SEQUENTIAL = {"decode": 1.0, "transcribe": 3.0, "detect": 2.0, "lips": 1.0, "encode": 1.0}
SERVED = {"queue": 9.0, "translate_speak": 3.0, "faces": 2.5, "lips": 1.0, "blend": 0.5, "encode": 1.0}


def latency_result(clip: Path, **pipeline: float) -> experiment.Result:
    """8 s of clip take the baseline 8 s and the pipeline what is said, by default 4."""
    runs = {
        seconds: {
            BASELINE: [timed(seconds * share, SEQUENTIAL) for share in (0.9, 1.1)],
            PIPELINE: [timed(pipeline.get("closed_s", 4.0) * seconds / 8 * share, SERVED) for share in (1.2, 0.8)],
        }
        for seconds in (4.0, 8.0)
    }
    data = latency.summary(runs, dict.fromkeys(runs, clip))
    return {**experiment.head("latency", latency.TITLE, Setup()), "data": json.loads(json.dumps(data))}


def test_factor_floor_and_rest_follow_from_the_runs(clip: Path):
    data = latency_result(clip)["data"]
    last, parts = data["clips"][-1], data["longest"]
    assert last["factor"][PIPELINE] == pytest.approx(2.0)
    assert last["latency_s"][BASELINE]["mean"] == pytest.approx(8.0)
    assert last["latency_s"][BASELINE]["raw"] == pytest.approx([7.2, 8.8])
    assert last["latency_s"][BASELINE]["sd"] == pytest.approx(1.131, abs=0.001)
    served = parts[PIPELINE]
    assert served["slowest"] == "recognise, translate, speak" and served["slowest_s"] == pytest.approx(3.0)
    assert "queue" not in latency.GROUPS[1][2]
    assert served["cpu_floor_s"] == pytest.approx(4.0 / (os.cpu_count() or 1))
    assert served["floor_s"] == pytest.approx(max(3.0, served["cpu_floor_s"]))
    assert served["synchronisation_s"] == pytest.approx(4.0 - served["floor_s"])
    assert [span["stage"] for span in data["spans"][BASELINE]] == list(SEQUENTIAL)


def test_the_explanation_says_who_is_faster_and_what_holds_the_pipeline_up(clip: Path):
    faster, slower = (" ".join(latency.explanation(latency_result(clip, closed_s=c))) for c in (4.0, 16.0))
    assert "2.00 times as fast" in faster and "slower" not in faster
    assert "slower by a factor of 2.00" in slower
    assert "8.00 s, as long" in " ".join(latency.explanation(latency_result(clip, closed_s=8.0)))
    assert "recognise, translate, speak with 38%" in faster
    row = latency.short_table(latency_result(clip)).splitlines()[3]
    assert row.startswith("| 8 s, ") and "| 8.00 ± 1.13 | 4.00 ± 1.13 | **2.00** |" in row


def test_slope_is_that_of_the_line_through_all_runs():
    rows = [{"seconds": seconds, "latency_s": {BASELINE: {"raw": [0.5 + 1.5 * seconds] * 2}}} for seconds in (1.0, 3.0)]
    assert latency._slope(rows, BASELINE) == pytest.approx({"s_per_s": 1.5, "constant_s": 0.5})


def test_contenders_take_turns_and_warm_up_runs_are_dropped(clip: Path):
    order: list[str] = []

    def contender(name: str) -> Callable[[Path], Timed]:
        return lambda _: order.append(name) or timed(1.0, SEQUENTIAL)

    runs = latency.measure({name: contender(name) for name in "ab"}, {1.0: clip}, warm_up=1, repetitions=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(found) for name, found in runs[1.0].items()} == {"a": 2, "b": 2}


def test_the_shortest_clip_has_speech_that_the_pipeline_dubs(clip: Path, server: Server, tmp_path: Path):
    info = probe_media(clip)
    assert info.duration_s == pytest.approx(1.0, abs=0.05)
    run = run_pipeline(server.url, clip, tmp_path)
    assert len(run.texts) == 1 and run.texts[0] and run.frames == 25
    assert 0 < run.start_s < run.first_frame_s < run.closed_s < run.total_s
    assert {"faces", "lips", "blend", "encode", "translate_speak"} <= set(run.stages_s)
    assert all(0 < span["start_s"] <= span["end_s"] < run.total_s for span in run.spans)
    silence = run_pipeline(server.url, clip, tmp_path, Policy.SILENCE)
    assert "recognise" not in silence.stages_s


def test_a_clip_that_arrives_is_dubbed_behind_its_end_by_both(clip: Path, server: Server, tmp_path: Path):
    late_s = {
        BASELINE: [paced_baseline(Baseline(), clip, tmp_path)],
        PIPELINE: [paced_pipeline(server.url, clip, tmp_path)],
    }
    assert all(values[0] > 0 for values in late_s.values())
    for name in ("sequential", "pipelined"):
        assert 0.95 < (probe_media(tmp_path / f"{name}.mp4").duration_s or 0) < 2  # a dub may end behind the picture
    [row] = latency.paced_rows({1.0: late_s})
    assert row["factor"] == pytest.approx(late_s[BASELINE][0] / late_s[PIPELINE][0])


def test_arriving_media_are_not_there_before_their_time(clip: Path):
    source = Arriving(probe_media(clip))
    try:
        source.arrival.started = time.perf_counter()
        times_ms: list[float] = []
        while pictures := source.analysis.read(10):
            times_ms += [time_ms for time_ms, _ in pictures]
            assert time.perf_counter() - source.arrival.started >= pictures[-1][0] / 1000
        assert len(times_ms) == 25 and times_ms == sorted(times_ms)
        assert source.sound.read(10.0) is not None
    finally:
        source.close()


def test_cpu_seconds_count_this_process_and_those_below_it():
    before = cpu_seconds()
    while cpu_seconds() - before < 0.1:
        sum(range(100_000))
    process = psutil.Popen(["python3", "-c", "sum(range(20_000_000))"])
    process.wait()
    assert cpu_seconds() - before > 0.2


def test_the_requests_of_a_segment_are_those_of_the_client(server: Server, tmp_path: Path):
    with overhead.recorded() as requests:
        segment = overhead.make_segment_clip(tmp_path)
        run = run_pipeline(server.url, segment, tmp_path)
    kinds = [request.model for request in requests]
    assert kinds.count("speech") == 1
    assert kinds.count("lipsync") == sum(span["stage"] == "lips" for span in run.spans)
    assert kinds.count("faces") == sum(span["stage"] == "faces" for span in run.spans)
    frames = sum(len(request.inputs["FACES"]) for request in requests if request.model == "lipsync")
    assert run.frames == 75 and frames >= run.frames_lipsynced > 50
    anew = overhead._anew(requests)
    ids = [{r.sequence.id for r in some if r.sequence} for some in (requests, anew)]
    assert len(ids[0]) == len(ids[1]) == 1 and ids[0] != ids[1]
    engines = overhead.Engines("lite", fp32=False)
    [one] = asyncio.run(overhead._play(server.url, anew, overhead.Direct(engines), 1))
    assert len(one.direct_ms) == len(one.served_ms) == len(requests)
    assert set(one.models_ms) == set(overhead.MODELS) and all(ms > 0 for ms in one.models_ms.values())
    assert all(one.compute_ms[model] > 0 for model in overhead.MODELS)


def rounds(added_ms: float) -> list[Round]:
    """Three of one `lipsync` and two `faces` requests; one round met a busy moment."""
    ms = dict.fromkeys(overhead.MODELS, 1.0)
    busy = [[400.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 90.0, 0.0]]
    return [
        Round([10.0, 20.0, 30.0], [s + added_ms + b for s, b in zip((10.0, 20.0, 30.0), more, strict=True)], ms, ms, ms)
        for more in busy
    ]


def test_what_the_server_adds_is_a_sum_of_medians_that_busy_moments_leave_alone():
    found = overhead._compared(rounds(2.0), range(3))
    assert found["added_ms"]["median"] == pytest.approx(6.0)
    assert found["added_ms"]["highest"] == pytest.approx(406.0)
    assert found["in_process_ms"]["median"] == pytest.approx(60.0)
    assert rounds(2.0)[1].on_the_way_ms == pytest.approx(66.0 - 14.0 - 1.0)  # 7 models, each computed and queued 1 ms


@pytest.mark.parametrize(
    ("added_ms", "says"),
    [
        (6.0, "the target of 20 ms is met"),
        (60.0, "the target of 20 ms is missed, that of 5% of its duration is met"),
        (160.0, "the targets of 20 ms and of 5% of its duration are both missed"),
    ],
)
def test_the_verdict_names_both_limits(added_ms: float, says: str):
    spread = {"median": added_ms, "lowest": added_ms - 5, "highest": added_ms + 9}
    data = {
        "duration_ms": 3000,
        "frames": 75,
        "frames_lipsynced": 70,
        "total": {"added_ms": spread},
        "on_the_way_ms": {"median": 7.5},
        "share_of_segment": added_ms / 3000,
        "share_of_work": added_ms / 1000,
        "allowed_ms": 20.0,
        "allowed_share": 0.05,
        "within_ms": added_ms <= 20,
        "within_share": added_ms <= 150,
    }
    text = overhead.sentence({"profile": "lite", "data": data})
    assert f"; {says}. " in text and "8 ms are neither computed nor queued" in text
    assert f"add {added_ms:.0f} ms (median; {added_ms - 5:.0f} to {added_ms + 9:.0f}" in text


def sampled(name: str, memory_mib: float) -> Sampler:
    """Two seconds in which one core was at work in the first."""
    sampler = Sampler({name: []})
    sampler.times_s = [0.0, 1.0, 2.0, 3.0]
    sampler.cpu_s = {name: [5.0, 6.0, 6.0, 9.0]}
    sampler.memory_mib = {name: [memory_mib, memory_mib + 1, memory_mib, 999.0]}
    sampler.cut(1.5)  # of what comes behind, the first sample ends the run
    return sampler


def test_efficiency_is_counted_up_to_the_closed_video():
    own = Watched(timed(1.5, SEQUENTIAL), sampled("baseline", 100.0))
    work = {model: ModelWork(inferences=5, passes=1, compute_ms=250.0) for model in efficiency.COMPUTING}
    served = Watched(timed(1.5, SERVED), sampled("client", 50.0), work)
    data = efficiency.summary({BASELINE: [own], PIPELINE: [served]})
    figures = data["contenders"][BASELINE]
    assert figures["wall_s"]["mean"] == pytest.approx(2.0) and figures["cpu_s"]["mean"] == pytest.approx(1.0)
    assert figures["cpu_share"]["mean"] == pytest.approx(0.5 / data["cores"])
    assert figures["cpu_share_peak"]["mean"] == pytest.approx(1.0 / data["cores"])
    assert figures["memory_mib_peak"]["mean"] == pytest.approx(101.0)
    assert figures["frames_per_cpu_s"]["mean"] == pytest.approx(200.0)
    assert figures["computing_s"]["mean"] == pytest.approx(3.0 + 2.0 + 1.0)
    assert data["contenders"][PIPELINE]["computing_s"]["mean"] == pytest.approx(0.25 * 7)
    assert len(figures["series"]["times_s"]) == len(figures["series"]["cpu_share"]["baseline"]) == 2
    table = efficiency.markdown({"data": json.loads(json.dumps(data))})
    assert "| `client` | 1.00 s |" in table


def test_a_sampler_sees_a_process_at_work():
    with Sampler({"own": [psutil.Process()]}) as sampler:
        sum(range(10_000_000))
    assert sampler.cpu_s["own"][-1] > sampler.cpu_s["own"][0]
    assert len(sampler.times_s) == len(sampler.memory_mib["own"]) >= 2
    assert max(sampler.shares("own", 1)) > 0


def test_the_gpu_is_read_from_the_metrics_and_may_be_missing():
    text = (
        "# HELP nv_gpu_utilization GPU utilization rate\n"
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.4\nnv_gpu_utilization{gpu_uuid="GPU-2"} 0.6\n'
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1048576\n'
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-2"} 2097152.000000\n'
    )
    assert gpu_of(text) == {GPU_USE: 0.5, GPU_MEMORY: 3 * 1048576.0}
    assert gpu_of('nv_inference_count{model="mel",version="1"} 3\n') == {}
