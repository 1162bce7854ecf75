"""The paper model on cases with known answers, and three real servers behind HAProxy that hold each stream on one."""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from counted import asked_for, served_since
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2_grpc

from polylip.client.errors import InputError
from polylip.client.wire import SequencePosition, infer_request
from polylip.perf import capacity_run
from polylip.perf.capacity_load import Load, due, play, run_load
from polylip.perf.capacity_model import (
    LINES,
    PACED,
    Host,
    Plan,
    Service,
    Work,
    levers,
    server_load,
    servers_needed,
    servers_needed_hashed,
    streams_per_server,
)
from polylip.perf.capacity_proxy import CONFIG, NAMES, find_haproxy, kill, model_counts, running_proxy, running_servers
from polylip.perf.capacity_queues import erlang_c, fullest_holds, paced_tail, paced_wait, random_wait
from polylip.perf.capacity_services import PROFILES, read_perf_analyzer, read_services
from polylip.perf.paced_repository import Pace, paced_repository
from polylip.serving.errors import MissingError
from polylip.serving.launcher import ServerOptions
from polylip.serving.probe import PROBES
from polylip.serving.runtime import find_model_repository

WITH_HAPROXY = pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed; apt-get install haproxy")
FAST = {
    "transcribe": 0.01,
    "translate": 0.01,
    "synthesize": 0.02,
    "detect": 0.004,
    "track": 0.0,
    "mel": 0.0,
    "lips": 0.001,
}
ONE = {"detect": Service(0.04)}


# The queues


@pytest.mark.parametrize(("load", "mean"), [(0.5, 0.5), (0.8, 2.0), (0.9, 4.5)])
def test_the_mean_wait_of_md1_is_that_of_the_textbook(load, mean):
    assert random_wait(load, 1.0).mean_s == pytest.approx(mean)


def test_exponential_services_wait_twice_as_long_and_their_p99_is_that_of_mm1():
    wait = random_wait(0.5, 1.0, scv=1.0)
    assert wait.mean_s == pytest.approx(1.0)
    assert wait.p99_s == pytest.approx(math.log(0.5 / 0.01) / 0.5)


def test_two_instances_wait_as_erlang_says():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert random_wait(1.0, 1.0, 2, scv=1.0).mean_s == pytest.approx(1 / 3)


def test_two_paced_streams_meet_with_the_chance_that_they_overlap():
    assert paced_tail(1, 4.0, 0.0) == pytest.approx(1 / 4), "one other stream works a quarter of the time"
    assert paced_tail(1, 4.0, 0.5) == pytest.approx(1 / 8)
    assert paced_wait(2, 4.0, 1.0).mean_s == pytest.approx(1 / 8)


@pytest.mark.parametrize(("streams", "period"), [(4, 4.4), (10, 12.0)])
def test_paced_waits_are_those_of_a_simulation(streams, period):
    chance, waits = random.Random(1), []  # noqa: S311
    for _ in range(4000):
        instants = sorted(chance.uniform(0, period) for _ in range(streams))
        free = 0.0
        for at in [instant + turn * period for turn in range(3) for instant in instants]:
            start = max(at, free)
            free = start + 1.0
            waits.append((at, start - at))
    settled = sorted(wait for at, wait in waits if at >= 2 * period)
    wait = paced_wait(streams, period, 1.0)
    assert wait.mean_s == pytest.approx(sum(settled) / len(settled), rel=0.05)
    assert wait.p99_s == pytest.approx(settled[int(0.99 * len(settled))], rel=0.05)


def test_random_waits_are_those_of_a_simulation():
    chance, waits, work = random.Random(1), [], 0.0  # noqa: S311
    for _ in range(200_000):
        work = max(0.0, work - chance.expovariate(0.6))
        waits.append(work)
        work += 1.0
    waits.sort()
    assert random_wait(0.6, 1.0).p99_s == pytest.approx(waits[int(0.99 * len(waits))], rel=0.05)


def test_a_queue_beyond_its_load_is_endless():
    assert paced_wait(5, 1.0, 0.21).p99_s == math.inf
    assert random_wait(1.0, 1.0).p99_s == math.inf
    assert paced_wait(1, 1.0, 1.0).p99_s == random_wait(0.0, 1.0).p99_s == 0.0


@settings(deadline=None, max_examples=40)
@given(streams=st.integers(1, 60), service_s=st.floats(1e-3, 0.1), instances=st.integers(1, 4))
def test_a_paced_wait_grows_with_the_streams_and_never_exceeds_the_others_work(streams, service_s, instances):
    wait = paced_wait(streams, 1.0, service_s, instances)
    more = paced_wait(streams + 1, 1.0, service_s, instances)
    assert wait.p99_s <= more.p99_s + 1e-9
    assert wait.mean_s <= more.mean_s + 1e-9
    if math.isfinite(wait.p99_s):
        assert wait.p99_s <= (streams - 1) * service_s / instances + 1e-9


@settings(deadline=None, max_examples=40)
@given(load=st.floats(0.01, 0.98), more=st.floats(0.001, 0.5), instances=st.integers(1, 4), scv=st.floats(0, 2))
def test_a_random_wait_grows_with_the_load(load, more, instances, scv):
    wait = random_wait(load * instances, 1.0, instances, scv)
    busier = random_wait((load + more) * instances, 1.0, instances, scv)
    assert wait.mean_s <= busier.mean_s
    assert wait.p99_s <= busier.p99_s + 1e-6


@settings(deadline=None, max_examples=40)
@given(streams=st.integers(2, 40), service_s=st.floats(1e-3, 0.02))
def test_paced_streams_wait_less_than_random_ones_of_the_same_load(streams, service_s):
    assert paced_wait(streams, 1.0, service_s).mean_s <= random_wait(streams, service_s).mean_s


def test_a_hash_deals_three_streams_to_three_servers_evenly_in_two_of_nine_cases():
    assert fullest_holds(3, 3, 1) == pytest.approx(2 / 9)
    assert fullest_holds(4, 3, 4) == pytest.approx(1.0)
    assert fullest_holds(4, 3, 1) == 0.0


# The plan


def test_a_detector_of_40_ms_carries_four_streams_and_is_the_limit():
    plan = Plan(capacity_run.SERVICES | ONE)
    assert streams_per_server(plan) == 4
    assert list(server_load(plan, 5).failures) == ["detect"]
    assert server_load(plan, 4).bottleneck == "detect"
    assert server_load(plan, 4).engines["detect"].load == pytest.approx(4 * 5 * 0.04)


def test_arrivals_at_random_would_carry_half_as_many():
    plan = Plan(capacity_run.SERVICES)
    assert (streams_per_server(plan), streams_per_server(replace(plan, paced=()))) == (4, 2)


def test_an_engine_that_dominates_decides_alone():
    services = {name: Service(1e-6) for names in LINES.values() for name in names} | {"lips": Service(0.01)}
    load = server_load(Plan(services), 7)
    assert load.bottleneck == "lips"
    assert load.engines["lips"].load == pytest.approx(7 * 20 * 0.01)
    assert streams_per_server(Plan(services)) == 4, "5 would be 100 % busy"
    assert levers(Plan(services))[0].per_server > 4


def test_a_stream_that_is_too_much_is_carried_by_no_server():
    plan = Plan({"detect": Service(0.25)})
    assert streams_per_server(plan) == 0
    assert "detect would be 125% busy" in server_load(plan, 1).failures["detect"]


def test_only_the_slowest_engine_of_a_line_is_waited_for():
    load = server_load(Plan(capacity_run.SERVICES), 4)
    waits = {name: engine.wait.p99_s > 0 for name, engine in load.engines.items()}
    assert {name for name, has in waits.items() if has} == {"synthesize", "detect", "lips"}
    services_s = 5 * (capacity_run.SERVICES["detect"].seconds + capacity_run.SERVICES["track"].seconds)
    assert load.lines["faces"].p99_s == pytest.approx(services_s + load.engines["detect"].wait.p99_s)


def test_calls_that_jobs_share_cost_less_but_answer_later():
    alone = Plan({"detect": Service(0.01, call_seconds=0.1, batch=5)})
    shared = Plan({"detect": Service(0.01, call_seconds=0.1, batch=15)})
    assert server_load(alone, 2).engines["detect"].job_s == pytest.approx(0.15)
    assert server_load(shared, 2).engines["detect"].job_s == pytest.approx(0.05 + 0.1 / 3)
    assert streams_per_server(shared) > streams_per_server(alone)


def test_engines_on_one_resource_slow_each_other_and_end_at_its_limit():
    services = {"detect": Service(0.02, on="gpus"), "lips": Service(0.02, on="gpus")}
    free, shared = Plan(services), Plan(services, host=Host(gpus=1))
    assert server_load(shared, 1).resources["gpus"] == pytest.approx(5 * 0.02 + 20 * 0.02)
    assert server_load(shared, 1).engines["lips"].job_s > server_load(free, 1).engines["lips"].job_s
    assert streams_per_server(shared) < streams_per_server(free)
    assert streams_per_server(replace(shared, host=Host(gpus=8))) == streams_per_server(free)


@settings(deadline=None, max_examples=15)
@given(
    seconds=st.floats(0.001, 0.1), instances=st.integers(1, 4), streams=st.integers(1, 30), share=st.floats(0.05, 1.0)
)
def test_what_holds_with_more_streams_holds_with_fewer(seconds, instances, streams, share):
    plan = Plan(capacity_run.SERVICES | {"detect": Service(seconds, instances)}, Work(speech_share=share))
    most = streams_per_server(plan)
    assert server_load(plan, streams).holds == (streams <= most)


def test_servers_for_a_number_of_streams_with_one_down():
    assert servers_needed(60, 4) == 16
    assert servers_needed(61, 4) == 17
    assert servers_needed(60, 30) == 3
    assert servers_needed_hashed(60, 30) > servers_needed(60, 30), "luck needs room"


def test_levers_are_changes_that_help_and_the_best_comes_first():
    plan = Plan(capacity_run.SERVICES)
    found = levers(plan)
    assert all(lever.per_server > streams_per_server(plan) for lever in found)
    assert found == sorted(found, key=lambda lever: -lever.per_server)
    assert any("key frames" in lever.change for lever in found)


# The command


def calculate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polylip.perf.capacity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_streams_servers_and_levers(tmp_path: Path):
    (tmp_path / "times.json").write_text(json.dumps({"detect": {"seconds": 0.012, "instances": 1, "batch": 5}}))
    done = calculate("--streams", "60", "--services", str(tmp_path / "times.json"))
    assert done.returncode == 0, done.stderr
    assert "**15 streams per server.**" in done.stdout
    assert "**5 servers for 60 streams**" in done.stdout
    assert "2 instances of detect: 31 per server" in done.stdout


def test_times_come_from_a_result_and_from_perf_analyzer(tmp_path: Path):
    (tmp_path / "result.json").write_text(
        json.dumps({"experiment": "capacity", "data": {"services": {"lips": {"seconds": 0.006}}}})
    )
    assert read_services(tmp_path / "result.json", Work(), {}) == {"lips": Service(0.006)}
    (tmp_path / "detect.csv").write_text(
        "Concurrency,Inferences/Second,Server Queue,Server Compute Input,Server Compute Infer,Server Compute Output\n"
        "1,10,5,1000,58000,1000\n2,12,5000,1000,90000,1000\n"
    )
    assert read_perf_analyzer(tmp_path / "detect.csv", 5).seconds == pytest.approx(0.012)


def test_times_of_a_perf_analyzer_result_take_the_place_of_a_profiles(tmp_path: Path):
    def row(model: str, batch: int, concurrency: int, infer_ms: float) -> dict[str, object]:
        times = {"compute_input_ms": 1.0, "compute_infer_ms": infer_ms, "compute_output_ms": 1.0}
        return {"model": model, "batch": batch, "concurrency": concurrency, "runs": 1, "models": {model: times}}

    rows = [
        row("detect", 5, 1, 58.0),
        row("detect", 5, 2, 90.0),
        row("transcribe", 1, 1, 318.0),
        row("faces", 1, 1, 9.0),
    ]
    rows += [row("synthesize", 1, 1, 2.0), {"model": "lips", "concurrency": 1, "runs": 0, "errors": ["it failed"]}]
    (tmp_path / "result.json").write_text(json.dumps({"experiment": "perf_analyzer", "data": {"rows": rows}}))
    found = read_services(tmp_path / "result.json", Work(), PROFILES["lite"])
    assert found["detect"] == replace(PROFILES["lite"]["detect"], seconds=pytest.approx(0.012))
    assert found["transcribe"].seconds == pytest.approx(0.1), "a segment is 3.2 s"
    assert {name for name in found if found[name] != PROFILES["lite"][name]} == {"detect", "transcribe"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read"),
        ("{}", "holds no service times"),
        ('{"detects": {"seconds": 1}}', "there is no engine detects"),
        ('{"detect": {"instances": 1}}', "needs `seconds`"),
        ('{"detect": {"seconds": -1}}', "times are 0 or more"),
    ],
)
def test_times_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, content, said):
    (tmp_path / "times.json").write_text(content)
    with pytest.raises(InputError, match=said):
        read_services(tmp_path / "times.json", Work(), {})


# Servers and proxy


def test_a_missing_haproxy_is_one_line_that_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with (
        pytest.raises(MissingError, match="haproxy is not installed; run: apt-get install haproxy"),
        running_proxy(["127.0.0.1:1"] * 3),
    ):
        pass


def test_a_load_without_a_server_ends_with_one_plain_error():
    with pytest.raises(InputError, match="no tritonserver answers at"):
        run_load(Load("127.0.0.1:1", 2))


def test_a_model_without_stand_in_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no stand-in for speech"):
        paced_repository(find_model_repository(), tmp_path, {"speech": Pace(0.1)})


def test_streams_are_paced_by_the_clock_and_speak_at_random():
    load = Load("", 1, warm_up_s=0.0, window_s=400.0)
    by_kind = {kind: [r.at_s for r in due(load, 0) if r.kind == kind] for kind in LINES}
    assert len(by_kind["faces"]) == 400
    assert len(by_kind["lipsync"]) == 500
    assert len(by_kind["speech"]) == pytest.approx(100, abs=40)
    assert due(load, 0) == due(load, 0) != due(load, 1)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Addresses of three servers with fast stand-ins, and the servers; a test that kills one comes last."""
    folder = tmp_path_factory.mktemp("trio")
    paces = {model: Pace(seconds) for model, seconds in FAST.items()}
    repository = paced_repository(find_model_repository(), folder, paces)
    options = [ServerOptions(model_repository=repository, log_path=folder / name) for name in NAMES]
    with running_servers(options) as servers:
        yield servers


@WITH_HAPROXY
def test_each_stream_stays_on_one_server_and_the_servers_have_the_same_number(trio):
    before = [model_counts(server.url) for server in trio]
    with running_proxy([server.url for server in trio]) as proxy:
        ledger = run_load(Load(proxy.url, 6, warm_up_s=0.0, window_s=4.0, stops_early=False))
        sent = {line: sum(outcome.kind == line for outcome in ledger.all) for line in PACED}
        asked = asked_for(proxy, sum(sent.values()))
    assert not [outcome for outcome in ledger.all if outcome.error]
    assert asked.streams == {"one": 2, "two": 2, "three": 2} and asked.split == []
    assert [len(chunks) for chunks in ledger.sequences.values()] == [1] * 6, "a sequence that moved would begin anew"
    assert all(sum(chunks) == 4 for chunks in ledger.sequences.values())
    for name, served in zip(NAMES, served_since(before, trio, sent | {"track": 6 * 4}), strict=True):
        assert sum(served[line] for line in PACED) == asked.calls[name]
        assert served["faces"] == 2 * 4, "all chunks of two streams, and no other"
        assert served["track"] == 2 * 4


@WITH_HAPROXY
def test_a_caller_without_an_id_is_served_and_keeps_its_connections_server(trio):
    with running_proxy([server.url for server in trio]) as proxy:
        for sequence in range(1, 4):
            with grpc.insecure_channel(proxy.url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for number in range(4):
                    instant = np.array([number * 200])
                    inputs = PROBES["faces"] | {"KEYFRAME_MS": instant, "QUERY_MS": instant}
                    place = SequencePosition(sequence, number == 0, number == 3)
                    stub.ModelInfer(infer_request("faces", inputs, "", place), timeout=20.0)
        asked = asked_for(proxy, 3 * 4)
    assert [sum(by.values()) for by in asked.servers.values()] == [4, 4, 4] and asked.split == []
    assert all(stream.startswith("127.0.0.1:") for stream in asked.servers) and set(asked.streams) == set(NAMES)


@WITH_HAPROXY
async def test_streams_of_a_killed_server_go_on_elsewhere_and_the_others_notice_nothing(trio):
    with running_proxy([server.url for server in trio]) as proxy:
        load = Load(proxy.url, 6, warm_up_s=0.0, window_s=9.0, seed=2, name="killed", stops_early=False)
        async with asyncio.TaskGroup() as group:
            began_s = time.monotonic()
            playing = group.create_task(play(load))
            await asyncio.sleep(2.5)
            await asyncio.to_thread(kill, trio[0])
            settled_s = time.monotonic() - began_s + 4.0  # the moved streams have a new server by then
        found = capacity_run.killed_summary(playing.result(), proxy, settled_s)
    assert found["moved"] == 2 and found["errors_of_others"] == 0 and found["sequences_of_others"] == [1] * 4
    assert sum(found["errors_of_moved"].values()) >= 2, "each stream is told that its sequence or server is gone"
    assert set(found["errors_of_moved"]) <= {"sequence_lost", "server_lost"}
    assert all(count >= 2 for count in found["sequences_of_moved"])
    assert sum(found["streams_after"].values()) == 6 and found["after"]["errors"] == []
    assert found["after"]["kinds"]["faces"]["failed"] == 0


def test_the_config_of_the_proxy_is_for_loopback_and_checks_readiness():
    text = CONFIG.read_text()
    assert "presetenv POLYLIP_LISTEN   127.0.0.1:8001" in text
    assert 'bind "${POLYLIP_LISTEN}"' in text and text.count("bind ") == 1
    sent = bytes.fromhex("".join(line.split()[-1] for line in text.splitlines() if "send-binary" in line))
    assert sent.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert b"/inference.GRPCInferenceService/ServerReady" in sent
