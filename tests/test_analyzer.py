"""The real perf_analyzer against a real server; and what is around it: finding it, its data, its CSV, its end."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import triton_to_np_dtype

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import InputError, ServerError
from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition
from polylip.perf import analyzer, analyzer_binary, analyzer_runs
from polylip.perf.analyzer import Options, markdown, run, summary
from polylip.perf.analyzer_binary import VERSION, Analyzer, cache_folder, find_analyzer, install
from polylip.perf.analyzer_inputs import (
    CASES,
    LEFT_OUT,
    Case,
    Contract,
    cases,
    contracts,
    read_configs,
    request,
    uncovered,
    write_case,
)
from polylip.perf.analyzer_runs import Run, RunError, command_line, counted, measure, parse_csv, per_request, supervised
from polylip.perf.experiment import Setup
from polylip.perf.streams_material import material
from polylip.serving.doctor import LINES
from polylip.serving.errors import MissingError
from polylip.serving.launcher import Server
from polylip.serving.runtime import find_model_repository

PROFILES = ("lite", "cpu", "onnx", "openvino", "gpu")
CSV = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
    "Avg latency,request/response,response wait\n"
    "2,96.3361,76,9437,2,131,9738,1233,3,15745,26365,39354,108074,20622,79,20383\n"
)


@pytest.fixture(scope="module")
def binary() -> Analyzer:
    try:
        return find_analyzer()
    except MissingError:
        return install()


@pytest.fixture(scope="module")
def lite() -> dict[str, Contract]:
    return contracts(read_configs(find_model_repository(), "lite"))


def asked(server: Server, contract: Contract, folder: Path, *, concurrency: int = 1, latency_ms: float = 1.0) -> Run:
    case = CASES[contract.name](material())
    return Run(server.url, contract, case, write_case(case, folder), folder / "run.csv", concurrency, latency_ms)


# The binary


def test_it_is_the_version_that_fits_the_server(binary):
    assert binary.version == VERSION


def test_a_named_binary_comes_first_then_the_path_then_the_cache(tmp_path, monkeypatch):
    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        program = folder / "perf_analyzer"
        program.write_text(f"#!/bin/sh\necho 'Perf Analyzer Version {folder.name} (commit unknown)' >&2\n")
        program.chmod(0o755)
        return program

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PERF_ANALYZER", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(MissingError, match=r"not installed; run: python -m polylip\.perf\.analyzer --install"):
        find_analyzer()
    cached = make(cache_folder())
    assert find_analyzer().path == cached
    on_path = make(tmp_path / "on_path")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin")
    assert find_analyzer().path == on_path
    named = make(tmp_path / "named")
    monkeypatch.setenv("PERF_ANALYZER", str(named))
    assert find_analyzer() == Analyzer(named, "named", find_analyzer().environment)
    monkeypatch.setenv("PERF_ANALYZER", str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match=r"names .*nothing, which is no program"):
        find_analyzer()


@pytest.mark.parametrize(
    ("library", "remedy"),
    [("libb64.so.0d", "apt-get install libb64-0d"), ("libcudart.so.12", "pip install nvidia-cuda-runtime-cu12")],
)
def test_a_missing_library_is_one_line_with_its_remedy(tmp_path, monkeypatch, library, remedy):
    program = tmp_path / "perf_analyzer"
    program.write_text(
        f"#!/bin/sh\necho 'error while loading shared libraries: {library}: no such file' >&2\nexit 127\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    with pytest.raises(MissingError) as error:
        find_analyzer()
    assert remedy in str(error.value) and "\n" not in str(error.value)


def test_other_platforms_are_told(monkeypatch):
    monkeypatch.setattr(analyzer_binary.platform, "machine", lambda: "aarch64")
    with pytest.raises(MissingError, match="64-bit Linux on x86 only, this is Linux on aarch64"):
        find_analyzer()


# What is sent


@pytest.mark.parametrize("profile", PROFILES)
def test_every_input_of_every_model_is_sent_or_left_out_for_a_reason(profile):
    served = contracts(read_configs(find_model_repository(), profile))
    assert set(CASES) == LINES & set(served) == LINES
    for name, case in cases(material()).items():
        assert uncovered(served[name], case) == set(), name
        assert set(LEFT_OUT.get(name, {})) <= {each for each, optional in served[name].inputs.items() if optional}


def test_a_new_input_is_noticed_and_so_is_one_that_is_gone(lite):
    mel, case = lite["mel"], CASES["mel"](material())
    assert uncovered(replace(mel, inputs=mel.inputs | {"PITCH": True}), case) == {"PITCH"}
    assert uncovered(replace(mel, inputs={"AUDIO": False}), case) == {"FRAME_OFFSETS_MS"}


def test_files_hold_tensors_of_the_types_and_shapes_of_the_configs(tmp_path):
    configs = read_configs(find_model_repository(), "lite")
    for name, case in cases(material()).items():
        data = json.loads(write_case(case, tmp_path).read_text())["data"]
        inputs = {each.name: each for each in configs[name].input}
        steps = [step for stream in data for step in stream] if len(case.streams) > 1 else data
        sent = [step for stream in case.streams for step in stream]
        assert len(steps) == len(sent)
        for step, original in zip(steps, sent, strict=True):
            for tensor, value in step.items():
                dims, shape, content = list(inputs[tensor].dims), value["shape"], value["content"]
                assert len(shape) == len(dims) and all(d in (-1, s) for d, s in zip(dims, shape, strict=True)), tensor
                if not isinstance(content, dict):
                    assert content == [original[tensor]]
                    continue
                kind = configs[name].DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number
                dtype = triton_to_np_dtype(kind[inputs[tensor].data_type].name.removeprefix("TYPE_"))
                array = np.frombuffer(base64.b64decode(content["b64"]), dtype).reshape(shape)
                np.testing.assert_array_equal(array, original[tensor])


def test_the_faces_in_it_are_faces():
    boxes, scores = material().boxes
    assert (scores[:, 0] > 0.5).all() and (boxes[:, 0, 2] - boxes[:, 0, 0] > 80).all()
    assert material().crops.std() > 20


def test_how_a_model_is_called_follows_from_its_config(lite, tmp_path):
    def flags(name: str, latency_ms: float = 1.0) -> list[str]:
        case = Case(name, [], 5 if name == "detect" else 1)
        return command_line(Run("h:1", lite[name], case, tmp_path, tmp_path, 3, latency_ms), Path("perf_analyzer"))

    assert {name for name in LINES if "--streaming" in flags(name)} == {"synthesize", "speech"}
    assert {name for name in LINES if "--sequence-id-range" in flags(name)} == {"track", "faces"}
    assert flags("detect")[flags("detect").index("-b") + 1] == "5"
    assert "time_windows" in flags("mel") and "count_windows" in flags("mel", 500.0)
    first, second = (flags("faces")[flags("faces").index("--sequence-id-range") + 1] for _ in range(2))
    assert first != second  # two loads at once are no one sequence


# What comes back


def test_csv_becomes_milliseconds():
    figures = parse_csv(CSV)
    assert figures["inferences_per_s"] == 96.3361
    assert (figures["p50_ms"], figures["p99_ms"], figures["compute_infer_ms"]) == (15.745, 108.074, 9.738)


@pytest.mark.parametrize(
    "text", ["", CSV.splitlines()[0], CSV.replace("p99 latency", "p98"), CSV + CSV.splitlines()[1]]
)
def test_csv_that_is_not_understood_is_an_error(text):
    with pytest.raises(RunError, match="not understood"):
        parse_csv(text)


def test_composing_models_are_what_the_server_counted_in_between():
    def count(requests: int, inferences: int, executions: int, ms: int) -> dict[str, int]:
        parts = dict.fromkeys(analyzer_runs.PARTS, ms * 1_000_000)
        return {"requests": requests, "failed": 0, "inferences": inferences, "executions": executions, **parts}

    found = per_request({"a": count(10, 10, 10, 5)}, {"a": count(14, 30, 15, 25), "b": count(9, 9, 9, 9)}, ["a"])
    assert set(found) == {"a"}
    assert found["a"]["queue_ms"] == 5.0 and found["a"]["per_execution"] == 4.0 and found["a"]["requests"] == 4


def test_repetitions_become_mean_and_deviation_and_a_failure_stays_visible():
    part = {"mel": {"queue_ms": 1.0}}
    good = {"model": "mel", "batch": 1, "concurrency": 1, "requests": 5, "models": part}
    runs = [
        {**good, "inferences_per_s": speed, "p50_ms": speed, "p95_ms": 2.0, "p99_ms": 3.0} for speed in (10.0, 14.0)
    ]
    (row,) = summary([*runs, {"model": "mel", "concurrency": 1, "error": "no"}])
    assert row["inferences_per_s"] == {"mean": 12.0, "sd": 2.83}
    assert (row["runs"], row["requests"], row["p50_ms"], row["errors"]) == (2, 10, 12.0, ["no"])


# Its end


def test_a_run_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(analyzer_runs, "GRACE_S", 3.0)  # for Python to come to the handler
    marker = tmp_path / "interrupted"
    script = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGINT, lambda *_: pathlib.Path({str(marker)!r}).touch())\n"
        "print('working', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    with pytest.raises(RunError, match="did not end within 3 s and was stopped"):
        supervised([sys.executable, "-c", script], {}, 3.0)
    assert marker.exists()  # asked first; then, as it did not listen, killed


def test_a_run_that_fails_says_why(binary, server, tmp_path):
    command = [str(binary.path), "-m", "nothing", "-u", server.url, "-i", "grpc"]
    with pytest.raises(RunError, match=r"ended with 99: .*nothing"):
        supervised(command, binary.environment, 20.0)


# Real runs


@pytest.mark.parametrize(
    ("name", "concurrency", "latency_ms"),  # a slow model is measured in windows of so many requests
    [("translate", 2, 20.0), ("synthesize", 2, 40.0), ("lips", 2, 10.0), ("faces", 1, 500.0)],
)
def test_a_real_run_of_each_kind_of_model(binary, server, lite, tmp_path, name, concurrency, latency_ms):
    found = measure(asked(server, lite[name], tmp_path, concurrency=concurrency, latency_ms=latency_ms), binary)
    assert found["inferences_per_s"] > 0 and found["requests"] >= 3
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert set(found["models"]) == set(lite[name].steps or (name,))
    for part in found["models"].values():
        assert part["requests"] >= found["requests"] and part["failed"] == 0 and part["compute_infer_ms"] > 0
    assert ("--streaming" in found["command"]) == (name == "synthesize")


@pytest.mark.parametrize("interrupted", [False, True])
def test_sequences_end_with_the_run_even_when_it_is_stopped(binary, server, lite, tmp_path, interrupted):
    wanted = asked(server, lite["track"], tmp_path, concurrency=3)
    command = command_line(wanted, binary.path)
    first = int(command[command.index("--sequence-id-range") + 1])
    with analyzer_runs.server_stub(server.url) as stub:
        before = counted(stub)["track"]["requests"]
        if interrupted:
            command[command.index("--max-trials") + 1] = "1000"
            command[command.index("--stability-percentage") + 1] = "0.0001"
            with pytest.raises(RunError, match="was stopped"):
                supervised(command, binary.environment, 5.0)
        else:
            supervised(command, binary.environment, 30.0)
        sequences = (counted(stub)["track"]["requests"] - before) // len(wanted.case.streams[0]) + 3
    assert sequences > 10
    assert asyncio.run(still_open(server.url, wanted, first, sequences)) == []


async def still_open(url: str, wanted: Run, first: int, count: int) -> list[int]:
    """Ids that the server still knows: it refuses a request of others that does not start a sequence."""
    found = []
    async with TritonClient(url) as client, client.line() as line:
        for sequence in [*range(first, first + min(count, 40)), *range(first + max(0, count - 40), first + count)]:
            try:
                await line.call("track", request(wanted.contract, wanted.case), 10.0, SequencePosition(sequence))
                found.append(sequence)
            except ServerError as error:
                assert error.code is ErrorCode.SEQUENCE_LOST
    return found


def test_an_experiment_goes_on_behind_a_model_that_fails(binary, server, tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, "mel", lambda made: Case("mel", [[{"AUDIO": made.speech[0]}]]))
    options = Options(server.url, ("mel", "track"), csv_folder=tmp_path)
    setup = Setup(quick=True, repetitions=1, warm_up=1, out=tmp_path)
    result = run(setup, options)
    broken, good = sorted(result["data"]["rows"], key=lambda row: row["runs"])
    assert broken["model"] == "mel" and "FRAME_OFFSETS_MS" in broken["errors"][0]
    assert good["model"] == "track" and good["inferences_per_s"]["mean"] > 1
    assert (tmp_path / "track_c1_1.csv").read_text().startswith("Concurrency,")
    table = markdown(result)
    assert "| `track` | 1 | 1 | " in table and "- `mel` at 1: " in table
    json.dumps(result)


def test_an_answer_that_did_no_work_is_a_failure_not_a_fast_model(server, lite, binary, tmp_path, monkeypatch):
    whole = CASES["translate"]
    steps = [dict(step) | {"TARGET_LANGUAGE": "xx"} for step in whole(material()).streams[0]]
    monkeypatch.setitem(CASES, "translate", lambda _made: Case("translate", [steps]))
    setup = Setup(quick=True, repetitions=1, warm_up=1, out=tmp_path)
    result = run(setup, Options(server.url, ("translate",), csv_folder=tmp_path))
    assert "translate ended as unsupported" in result["data"]["rows"][0]["errors"][0]


def test_an_address_without_a_server_is_one_line(binary, tmp_path):
    with pytest.raises(InputError, match=r"no tritonserver answers at 127.0.0.1:9 .*polylip serve"):
        run(Setup(), Options("127.0.0.1:9", csv_folder=tmp_path))


def test_command_line_refuses_a_concurrency_of_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyzer", "--concurrency", "0"])
    with pytest.raises(SystemExit) as ended:
        analyzer.main()
    assert ended.value.code == 2 and "at least 1" in capsys.readouterr().err
