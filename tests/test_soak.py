"""The soak: a short one against a real server loses and mixes nothing, and its verdict tells growth from noise."""

from __future__ import annotations

import asyncio
import runpy
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY

from polylip.perf.soak import SoakOptions, Tally, markdown, run, soak
from polylip.perf.soak_segments import LONGEST_S, SHARES, VOICE_S, Segments
from polylip.perf.steadiness import (
    REGIONS_MIB,
    Regions,
    Sample,
    Watch,
    judge,
    judge_memory,
    judge_regions,
    server_processes,
)
from polylip.serving.doctor import SPEECH_MODELS
from polylip.serving.engines import Status
from polylip.serving.launcher import ServerOptions, running_server

LEAK_MIB_PER_H = 20.0
TIMES_S = np.arange(0, 1800, 5.0)  # half an hour
HOURS = TIMES_S / 3600


@pytest.fixture(scope="module")
def server():
    with running_server(ServerOptions(models=tuple(SPEECH_MODELS))) as running:
        yield running


def test_four_streams_lose_mix_and_double_nothing(server):
    options = SoakOptions(minutes=0.2, streams=4, pace=0, renewed_every=5, sampled_every_s=0.5, largest_first=0)
    result = soak(server, options)
    assert result["problems"] == 0, result["first_problems"]
    sent = sum(result["segments"].values())
    assert sent == sum(result["statuses"].values()) > 8
    assert result["statuses"]["ok"] > 4
    assert result["media_streams"] >= options.streams
    assert result["spoken_s"] > 5
    assert set(result["processes"]) == {"client", "tritonserver", "transcribe", "translate", "synthesize"}
    assert result["shared_memory"]["regions"] == [3]
    assert f"{sent} segments" in markdown(result)


def test_an_ended_process_is_a_problem():
    """One that breaks its server."""
    with running_server(ServerOptions(models=tuple(SPEECH_MODELS))) as running:
        asyncio.run(_kill_soon(running))


async def _kill_soon(running):
    tally = Tally()
    options = SoakOptions(minutes=5, streams=2, pace=0, sampled_every_s=0.2, largest_first=1)
    soaking = asyncio.create_task(run(running, options, tally))
    await asyncio.sleep(2)
    server_processes(running)["tritonserver"].kill()
    await asyncio.wait_for(soaking, 30)
    assert any("ended" in problem or "lost" in problem for problem in tally.problems)


# The judge of one segment


@pytest.fixture(scope="module")
def made():
    """A segment of each kind."""
    segments = Segments(4)
    identity = segments.new_stream(0)
    found = {}
    while found.keys() != SHARES.keys():
        segment = segments.make(identity)
        if segment.kind not in ("heard", "known") or segment.digests is not None:
            found[segment.kind] = segment
    return found


def answer(segment, **changes):
    one = {
        "STATUS": segment.status,
        "STATUS_MESSAGE": "",
        "SOURCE_TEXT": segment.text,
        "TARGET_TEXT": segment.text,
        "AUDIO_CHUNK": np.full(100 if segment.status is Status.OK else 0, 0.1, np.float32),
    }
    return {name: value if name == "AUDIO_CHUNK" else [value] for name, value in {**one, **changes}.items()}


def test_the_largest_segment_is_about_as_long_as_there_are():
    segments = Segments(4)
    largest = segments.make(segments.new_stream(0), largest=True)
    assert largest.kind == "heard" and 6 < largest.seconds <= LONGEST_S
    assert len(largest.inputs["VOICE"]) == VOICE_S[1] * 16_000


@pytest.mark.parametrize("kind", sorted(SHARES.keys() - {"broken"}))
def test_a_right_answer_is_no_problem(made, kind):
    segment = replace(made[kind], digests=None)
    assert segment.judge([answer(segment)], "") == (segment.status, None)


def test_broken_sound_must_be_refused(made):
    assert made["broken"].judge([], "transcribe: AUDIO holds NaN or infinite samples") == ("refused", None)
    assert made["broken"].judge([answer(made["broken"])], "")[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"SOURCE_TEXT": "the words of somebody else"},
        {"TARGET_TEXT": "El número 999999 está en la página 10003."},
        {"STATUS": "no_speech"},
        {"AUDIO_CHUNK": np.zeros(0, np.float32)},
        {"AUDIO_CHUNK": np.full(9, np.nan, np.float32)},
    ],
    ids=["source", "target", "status", "silent", "NaN"],
)
def test_a_wrong_answer_is_a_problem(made, changes):
    segment = replace(made["known"], digests=None)
    assert segment.judge([answer(segment, **changes)], "")[1] is not None


def test_lost_and_refused_segments_are_problems(made):
    assert made["heard"].judge([], "")[1] == "ended without an answer"
    assert made["heard"].judge([], "no answer within its deadline")[1] == "no answer within its deadline"


def test_the_same_words_must_sound_the_same(made):
    segment = replace(made["heard"], digests={})
    assert segment.judge([answer(segment)], "")[1] is None
    assert segment.judge([answer(segment)], "")[1] is None
    other = answer(segment, AUDIO_CHUNK=np.full(100, 0.2, np.float32))
    assert "unlike before" in segment.judge([other], "")[1]


# The verdict on series


def noise(mib: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, mib, len(TIMES_S))


@pytest.mark.parametrize(
    "mib",
    [
        np.full(len(TIMES_S), 120.0),
        120 + noise(2.0),
        120 + 40 * (1 - np.exp(-TIMES_S / 60)),  # a cache that fills while it warms up
        120 - 30 * HOURS,
        120 + 5 * np.sin(TIMES_S / 20),
    ],
    ids=["constant", "noisy", "warms up", "shrinks", "swings"],
)
def test_memory_that_does_not_grow_is_flat(mib):
    assert judge_memory(TIMES_S, mib).flat


@pytest.mark.parametrize(
    "mib",
    [
        120 + LEAK_MIB_PER_H * HOURS,
        120 + LEAK_MIB_PER_H * HOURS + noise(0.5),
        120 + 15 * np.floor(TIMES_S / 600),
        120 + np.where(TIMES_S > 1300, 8.0, 0.0),
    ],
    ids=["grows", "grows in noise", "steps", "late step"],
)
def test_memory_that_grows_is_not_flat(mib):
    assert not judge_memory(TIMES_S, mib).flat


def test_threads_and_files_that_come_and_go_are_constant_and_leaked_ones_are_not():
    calm = [Sample(50.0, 4 + i % 3, 10 + i % 5) for i in range(len(TIMES_S))]
    assert judge(TIMES_S, calm)["flat"]
    assert not judge(TIMES_S, [replace(s, files=s.files + i // 60) for i, s in enumerate(calm)])["flat"]
    assert not judge(TIMES_S, [replace(s, threads=s.threads + i // 60) for i, s in enumerate(calm)])["flat"]


def test_shared_memory_may_grow_while_it_warms_up_only():
    assert judge_regions([Regions(3, 3.0)] * 70 + [Regions(3, 4.0)] * 20)["within"]
    assert not judge_regions([Regions(3, 3.0)] * 89 + [Regions(3, REGIONS_MIB + 1.0)])["within"]
    assert not judge_regions([Regions(3, 3.0)] * 89 + [Regions(4, 3.0)])["within"]


def test_the_allowed_shared_memory_is_the_computed():
    script = runpy.run_path(str(REPOSITORY.parent / "docker" / "shm.py"))
    script["PICTURES"]["RIDE"] = 0  # only `dub` has a picture ride along
    regions = script["regions_mib"]("lite")
    assert sum(regions[model] for model in ("transcribe", "translate", "synthesize")) == REGIONS_MIB


def test_processes_are_told_apart_by_id(server):
    watch = Watch(server)
    watch.sample()
    assert all(len(samples) == 1 and samples[0].private_mib > 1 for samples in watch.samples.values())
    assert len({process.pid for process in server_processes(server).values()}) == 4
