"""How many live streams: the search and its verdict, the rhythm of a stream, and real streams against a real server."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import InputError, ServerError
from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition
from polylip.perf import streams, streams_load
from polylip.perf.experiment import Setup
from polylip.perf.streams import Options, markdown, run
from polylip.perf.streams_load import BATCH_S, CHUNK_S, KINDS, Probe, plan, run_probe
from polylip.perf.streams_material import FPS, Material, Talk, batches, chunk_plan, material
from polylip.perf.streams_search import Found, Outcome, allowed_misses, judge, percentile, search

LENGTHS_S = (3.0, 4.0, 3.2, 3.5)


# The search


@pytest.mark.parametrize("limit", [1, 2, 5, 8, 21])
def test_the_search_finds_every_answer_and_asks_nothing_twice(limit):
    for most in range(limit + 3):
        asked: list[int] = []

        def probe(count: int, most: int = most, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count <= most

        found = search(limit, probe)
        assert found == Found(min(most, limit), most + 1 if most < limit else None)
        assert len(asked) == len(set(asked)) and all(1 <= count <= limit for count in asked)
        assert len(asked) <= 2 * math.log2(max(2, found.good)) + 2


def test_the_answer_was_probed_itself():
    seen = {}
    search(64, lambda count: seen.setdefault(count, count <= 23))
    assert seen[23] and not seen[24]


# The verdict


def outcome(latency_s: float | None, kind: str = "faces", length_s: float = 1.0) -> Outcome:
    return Outcome(kind, 5.0, length_s, latency_s, error="" if latency_s is not None else f"{kind}: broken")


def test_percentiles_are_values_that_occurred():
    assert [percentile(range(1, 101), percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert percentile([3.0, 1.0], 99) == 3.0
    assert percentile([], 99) is None


@pytest.mark.parametrize(
    ("in_time", "late", "sustained"), [(99, 1, True), (98, 2, False), (98, 1, False), (1, 0, True)]
)
def test_the_99th_percentile_decides(in_time, late, sustained):
    verdict = judge([outcome(0.2)] * in_time + [outcome(1.0)] * late, ["faces"])
    figures = verdict["kinds"]["faces"]
    assert verdict["sustained"] is sustained and figures["missed"] == late
    assert (figures["p99_ms"] < figures["limit_ms"]) is sustained
    assert (late <= allowed_misses(in_time + late)) is sustained


def test_one_failure_is_too_many():
    verdict = judge([outcome(0.2)] * 1000 + [outcome(None)], ["faces"])
    assert not verdict["sustained"] and verdict["errors"] == ["faces: broken"]
    assert verdict["kinds"]["faces"]["failed"] == 1


def test_each_request_has_its_own_limit():
    slow = [outcome(3.0, "speech", 4.0), outcome(2.5, "speech", 2.0)]
    assert judge(slow, ["speech"])["kinds"]["speech"]["missed"] == 1


def test_a_kind_that_was_not_seen_is_not_sustained():
    verdict = judge([outcome(0.2)], ["faces", "speech"])
    assert not verdict["sustained"] and verdict["kinds"]["speech"]["sustained"] is None


# The rhythm


def test_chunks_ask_for_every_frame_once_and_know_what_comes_behind():
    chunks = chunk_plan(250)
    asked = [frame for chunk in chunks for frame in chunk.queries]
    assert asked == list(range(len(asked))) and len(asked) > 200
    for before, chunk in pairwise(chunks):
        assert chunk.sent_at - before.sent_at == FPS * CHUNK_S or before is chunks[0]
        assert (len(chunk.keys), chunk.keys[-1] - chunk.queries[-1]) == (5, 10)
        assert chunk.keys[-1] < chunk.sent_at


def test_batches_cover_a_dub_once_at_the_size_of_the_client():
    frames = [frame for first, count in batches(3.1) for frame in range(first, first + count)]
    assert frames == list(range(78))
    assert {count for _, count in batches(3.1)[:-1]} == {16}


def test_talk_goes_round_and_can_be_looked_at_anywhere():
    talk = Talk(LENGTHS_S)
    once = talk.sentences(0, talk.cycle_s)
    assert [sentence for sentence, _, _ in once] == [0, 1, 2, 3]
    later = talk.sentences(talk.cycle_s, 2 * talk.cycle_s)
    np.testing.assert_allclose(np.array(later)[:, 1:], np.array(once)[:, 1:] + talk.cycle_s)
    for (_, _, end_s), (_, start_s, _) in pairwise(once):
        assert 0.5 < start_s - end_s < 2


def test_dubs_do_not_overlap():
    made = material().lengths_s
    for lengths_s in (LENGTHS_S, made):
        for (_, start_s, end_s), (_, _, next_end_s) in pairwise(Talk(lengths_s).sentences(0, 60)):
            assert next_end_s >= end_s + (end_s - start_s)


def test_a_stream_sends_as_a_live_client_does():
    probe = Probe("", 4, warm_up_s=2.0, window_s=60.0)
    requests = plan(probe, 0, LENGTHS_S)
    due = [request.due_s for request in requests]
    assert due == sorted(due) and due[0] >= 0 and due[-1] < probe.seconds
    kinds = Counter(request.kind for request in requests)
    assert kinds["faces"] == pytest.approx(62 / CHUNK_S, abs=2)
    spoken = [request for request in requests if request.kind == "speech"]
    assert all(request.length_s == pytest.approx(LENGTHS_S[request.sentence]) for request in spoken)
    for segment in spoken[:-2]:  # its dub is rendered in real time behind it
        lips = [r for r in requests if r.kind == "lipsync" and 0 <= r.due_s - segment.due_s < segment.length_s]
        dubbed = sum(r.count for r in lips if r.sentence == segment.sentence)
        assert dubbed == round(segment.length_s * FPS)
        assert lips[1].due_s - lips[0].due_s == pytest.approx(BATCH_S)


def test_phases_are_random_and_come_from_the_seed():
    probe = Probe("", 2, window_s=30.0)
    assert plan(probe, 0, LENGTHS_S) == plan(probe, 0, LENGTHS_S)
    starts = [plan(replace(probe, seed=seed), stream, LENGTHS_S)[0].due_s for seed in (1, 2) for stream in (0, 1)]
    assert len(set(starts)) == 4


def test_only_the_wanted_kinds_are_sent():
    assert {r.kind for r in plan(Probe("", 1, ("speech",), window_s=30.0), 0, LENGTHS_S)} == {"speech"}


# Real streams


@pytest.fixture
def sequences(monkeypatch) -> list[int]:
    """The ids that the generator uses."""
    used: list[int] = []
    make = streams_load.new_sequence_id
    monkeypatch.setattr(streams_load, "new_sequence_id", lambda: used.append(make()) or used[-1])
    return used


async def still_open(url: str, ids: list[int]) -> list[int]:
    """Those that the server still knows: it refuses a request of others that does not start a sequence."""
    found = []
    inputs = material().faces(chunk_plan(60)[1])
    async with TritonClient(url) as client, client.line() as line:
        for sequence in ids:
            try:
                await line.call("faces", inputs, 30.0, SequencePosition(sequence))
                found.append(sequence)
            except ServerError as error:
                assert error.code is ErrorCode.SEQUENCE_LOST
    return found


def test_two_paced_streams_are_answered_and_end_their_sequences(server, sequences, monkeypatch):
    monkeypatch.setattr(streams_load._Ledger, "enter", _enter_all)
    probe = Probe(server.url, 2, warm_up_s=0.5, window_s=3.5, seed=17)  # a seed with all kinds in it
    outcomes = run_probe(probe)
    assert {outcome.kind for outcome in outcomes} == set(KINDS)
    assert not [outcome.error for outcome in outcomes if outcome.latency_s is None]
    assert all(outcome.due_s >= 0.5 and outcome.latency_s > outcome.lag_s >= 0 for outcome in outcomes)
    chunks = sum(outcome.kind == "faces" for outcome in outcomes)
    assert 6 <= chunks <= 8  # one a second and stream, however slowly they were answered
    assert len(sequences) == 2
    assert asyncio.run(still_open(server.url, sequences)) == []


def _enter_all(self, request, latency_s, lag_s, error=""):
    """Without the early end, which a loaded machine would bring about."""
    if request.due_s >= self._probe.warm_up_s:
        self.outcomes.append(Outcome(request.kind, request.due_s, request.length_s, latency_s, lag_s, error))


def test_a_failure_ends_the_probe_and_still_the_sequence(server, sequences, monkeypatch):
    whole = Material.faces

    def broken(self, chunk):
        inputs = dict(whole(self, chunk))
        if len(chunk.keys) == 5:  # all but the first and the one that ends the sequence
            inputs["KEYFRAME_MS"] = inputs["KEYFRAME_MS"][:2]
        return inputs

    monkeypatch.setattr(Material, "faces", broken)
    outcomes = run_probe(Probe(server.url, 1, ("faces",), warm_up_s=0.0, window_s=60.0))
    assert max(outcome.due_s for outcome in outcomes) < 10  # of 60 s
    verdict = judge(outcomes, ["faces"])
    assert not verdict["sustained"] and verdict["kinds"]["faces"]["failed"] >= 1
    monkeypatch.undo()
    assert asyncio.run(still_open(server.url, list(sequences))) == []


def test_an_interrupted_probe_ends_its_sequence_too(server, sequences):
    async def interrupted() -> None:
        probe = Probe(server.url, 1, ("faces",), warm_up_s=60.0, window_s=1.0)
        running = asyncio.create_task(streams_load._run(probe, threading.Event(), material()))
        while not sequences and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.wait_for(running, 1.5)

    with pytest.raises(TimeoutError):
        asyncio.run(interrupted())
    assert len(sequences) == 1
    assert asyncio.run(still_open(server.url, sequences)) == []


def test_many_streams_are_paced_by_several_processes(server):
    probe = Probe(server.url, 2, ("lipsync",), warm_up_s=0.5, window_s=3.0)
    outcomes = run_probe(probe, per_process=1)
    due = [r.due_s for stream in (0, 1) for r in plan(probe, stream, material().lengths_s) if r.due_s >= 0.5]
    seen = [outcome.due_s for outcome in outcomes]
    assert len(due) > 4 and seen and set(seen) <= set(due)
    assert len(seen) == len(due) or not judge(outcomes, ["lipsync"])["sustained"]


def test_the_experiment_answers_with_all_its_probes(server, monkeypatch):
    def probed(probe: Probe) -> list[Outcome]:
        return [Outcome("lipsync", 5.0, BATCH_S, 0.1 * probe.streams, 0.001)]

    monkeypatch.setattr(streams, "run_probe", probed)
    result = run(Setup(repetitions=1), Options(server.url, 16, 10.0, ("lipsync",)))
    data = result["data"]
    assert data["streams"] == 6 and data["searches"][0]["first_bad"] == 7
    assert [probe["streams"] for probe in data["searches"][0]["probes"]] == [1, 2, 4, 8, 6, 7]
    table = markdown(result)
    assert table.startswith("**6** live streams; windows of 10 s.")
    assert "| 7 | `lipsync` | no | 640 | 700 | 700 | 700 | 1 | 1 | 0 |" in table
    json.dumps(result)


def test_an_address_without_a_server_is_one_line():
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9"):
        run(Setup(repetitions=1), Options("127.0.0.1:9"))


@pytest.mark.parametrize("wrong", [["--max", "0"], ["--window-s", "2"], ["--only", "mel"]])
def test_wrong_options_are_refused(monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["streams", *wrong])
    with pytest.raises(SystemExit) as ended:
        streams.main()
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err
