"""The clients in Node and Go: the golden files, live segments, refusals, TLS; servers that drain, freeze and die."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from docker_programs import program
from echo import until_ready
from pki import SERVER_NAME, Pki, make_pki
from tritonclient.grpc import service_pb2

from polylip.client.dub_stream import DubSegment, DubStream
from polylip.client.protocol_golden import FOLDER as GOLDEN
from polylip.client.protocol_golden import SEQUENCE, read_answer
from polylip.client.segment_folder import read_segment, write_answer, write_json, write_wav
from polylip.client.tls import Tls
from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, new_sequence_id
from polylip.serving import launcher
from polylip.serving.launcher import Server, ServerOptions, running_server
from polylip.serving.server_flags import ServerTls

CLIENTS = Path(__file__).parents[1] / "client"
NODE, GO = CLIENTS / "node", CLIENTS / "go"
BUILD_S = 170.0  # from nothing on two busy cores; 25 s on idle ones, 2 s where it was built before
RUN_S = 60.0
ALL_TOOLS = ("CI", "POLYLIP_ALL_TOOLS")  # with one of these set, a missing tool is a failure
DEADLINE_S = 5.0  # of an empty segment, which takes 10 ms; and of a frozen server
# It stands in for `dub` where only the way there is tested, and says what came.
SAYS_PARAMETERS = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError(request.parameters())) for request in requests]
"""
ITS_CONFIG = """
name: "dub"
backend: "python"
max_batch_size: 0
input [
  { name: "AUDIO" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "SOURCE_LANGUAGE" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "TARGET_LANGUAGE" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "FRAMES" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "FRAME_MS" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "AUDIO_MS" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "MOUTH_FORMAT" data_type: TYPE_STRING dims: [ 1 ] }
]
output [ { name: "NOTHING" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@dataclass(frozen=True)
class Client:
    """The commands of one language."""

    folder: Path
    dub: tuple[str, ...]
    follow: tuple[str, ...]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*self.dub, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)

    def live(self, url: str, out: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """The golden segment, dubbed by a server."""
        return self.run(GOLDEN, "--to", "es", "--url", url, "-o", out, *words)


@pytest.fixture(scope="session")
def clients() -> dict[str, Client]:
    """Both, built by the commands that docs/clients.md names."""
    if missing := program("debian_packages").missing_for_clients():
        remedy = f"the clients in Node and Go need Debian packages: apt-get install {' '.join(missing)}"
        if any(os.environ.get(name) for name in ALL_TOOLS):
            pytest.fail(remedy, pytrace=False)
        pytest.skip(remedy)
    for folder in (NODE, GO):
        make(folder, "all")
    node, go = NODE / "build", GO / "build"
    return {
        "node": Client(NODE, ("node", str(node / "dub.js")), ("node", str(node / "follow.js"))),
        "go": Client(GO, (str(go / "polylip-dub"),), (str(go / "polylip-follow"),)),
    }


def make(folder: Path, target: str, **environment: str) -> str:
    done = subprocess.run(
        ["make", "--silent", "-C", str(folder), target],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=["node", "go"])
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    return clients[request.param]


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, pattern: str) -> None:
    assert done.returncode == code, done
    assert re.fullmatch(rf"polylip: [^\n]*{pattern}[^\n]*\n", done.stderr), done.stderr
    assert done.stdout == ""


def assert_same_files(folder: Path, expected: Path) -> None:
    """Byte for byte, but for pictures, which are compressed in more ways than one."""
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        if name.endswith(".png"):
            assert np.array_equal(cv2.imread(str(folder / name), -1), cv2.imread(str(expected / name), -1)), name
        else:
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_the_golden_segment_makes_the_golden_request(client: Client, tmp_path: Path):
    path = tmp_path / "request.bin"
    done = client.run(GOLDEN, "--to", "es", "--golden", "--write-request", path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    made, golden = (
        service_pb2.ModelInferRequest.FromString(file.read_bytes()) for file in (path, GOLDEN / "request.bin")
    )
    assert made.parameters["sequence_id"].int64_param == SEQUENCE.id
    assert made == golden


def test_the_golden_response_is_read_as_python_reads_it(client: Client, tmp_path: Path):
    response = service_pb2.ModelInferResponse.FromString((GOLDEN / "response.bin").read_bytes())
    for folder in (tmp_path / "python", tmp_path / "theirs"):
        folder.mkdir()
        for name in ("mouth-00000.jpg", "mouth-99999.png", "mouth.txt"):  # of an older answer, and somebody else's
            (folder / name).write_text("old")
    write_answer(read_answer(response), tmp_path / "python")
    assert (tmp_path / "python" / "mouth.txt").exists()
    assert not any((tmp_path / "python" / name).exists() for name in ("mouth-00000.jpg", "mouth-99999.png"))
    done = client.run("--read-response", GOLDEN / "response.bin", "-o", tmp_path / "theirs")
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done
    assert_same_files(tmp_path / "theirs", tmp_path / "python")
    assert (tmp_path / "theirs" / "answer.json").read_bytes() == (GOLDEN / "response.json").read_bytes()


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def dubbed(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A format, and the folder with what the client in Python made of the golden segment."""
    folder = tmp_path_factory.mktemp("python")

    async def dub() -> None:
        segment, language = read_segment(GOLDEN)
        async with DubStream(server.url, language, "es", timeout_s=RUN_S) as stream:
            await stream.send(replace(segment, options={"MOUTH_FORMAT": request.param}))
            write_answer(await stream.answer(), folder)

    asyncio.run(dub())
    return request.param, folder


def test_a_live_segment_is_dubbed_as_python_dubs_it(
    client: Client, server: Server, dubbed: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # for the web: nobody asks it
    form, expected = dubbed
    done = client.live(server.url, tmp_path, "--format", form)
    assert done.returncode == 0 and "ok, " in done.stdout, done
    assert len(list(expected.glob("mouth-*.png" if form == "raw" else "mouth-*.jpg"))) > 0
    assert_same_files(tmp_path, expected)


def test_content_that_cannot_be_dubbed_is_answered_all_the_same(client: Client, server: Server, tmp_path: Path):
    done = client.run(GOLDEN, "--to", "xx", "--url", server.url, "-o", tmp_path)
    assert_one_line(done, 2, "the server answered unsupported: ")
    told = json.loads((tmp_path / "answer.json").read_text())
    assert told["status"] == "unsupported" and told["samples"] == 0 and told["track_ids"]


async def test_the_id_of_a_live_stream_is_taken(client: Client, server: Server, tmp_path: Path):
    sequence = new_sequence_id()
    async with TritonClient(server.url) as holder, holder.stream() as stream:
        empty = DubSegment(np.zeros(0, np.float32)).inputs("en", "es")
        await stream.call("dub", empty, RUN_S, SequencePosition(sequence, start=True, timeout_s=RUN_S))
        words = (server.url, tmp_path / "out", "--sequence-id", str(sequence))
        assert_one_line(await asyncio.to_thread(client.live, *words), 3, "taken: a stream with this id is live")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_said_in_one_line(client: Client, tmp_path: Path):
    nowhere, read = ("--to", "es", "-o", tmp_path / "out", "--url", "127.0.0.1:1"), "--read-response"
    (tmp_path / "segment.json").write_text('{"audio": "audio.wav", "frames": [], "frame_ms": [0.5], "audio_ms": 0}')
    (tmp_path / "not.pem").write_text("no certificate")
    for words, code, pattern in (
        ((GOLDEN, *nowhere), 3, "server_lost: no connection to a tritonserver at 127.0.0.1:1"),
        ((tmp_path / "none", *nowhere), 2, "is no segment folder .*polylip segment CLIP"),
        ((tmp_path, *nowhere), 2, "is no segment folder"),
        ((), 2, "give a segment folder; --help"),
        ((GOLDEN, "-o", "out"), 2, "give --to LANGUAGE"),
        ((GOLDEN, "--to", "es"), 2, "give -o OUT"),
        ((GOLDEN, *nowhere, "--nope"), 2, "-nope.*; --help lists the options"),
        ((GOLDEN, *nowhere, "--format", "png"), 2, "--format png: give raw or jpeg"),
        ((GOLDEN, *nowhere, "--timeout", "0"), 2, "--timeout 0: give seconds"),
        ((GOLDEN, *nowhere, "--sequence-id", "0"), 2, "--sequence-id 0: give a whole number"),
        ((GOLDEN, *nowhere, "--stream-id", "a b"), 2, "--stream-id: give"),
        ((GOLDEN, *nowhere, "--tls-ca", tmp_path / "not.pem"), 2, "TLS"),
        ((GOLDEN, *nowhere, "--tls-ca", tmp_path / "none.pem"), 2, "none.pem"),
        ((GOLDEN, *nowhere, "--tls-key", tmp_path / "not.pem"), 2, "--tls-cert and --tls-key belong together"),
        ((read, GOLDEN / "audio.wav", "-o", tmp_path), 2, "audio.wav: is no "),
        ((read, GOLDEN / "request.bin", "-o", tmp_path), 2, "request.bin: is no "),
        ((read, GOLDEN / "response.bin", "-o", "/proc/x"), 2, "/proc/x: cannot be written .*; name another folder"),
        ((GOLDEN, *nowhere[:-1], "18001"), 2, "'18001' is not host:port, for example: "),
    ):
        assert_one_line(client.run(*words), code, pattern)


def test_the_help_names_every_option(client: Client):
    done = client.run("--help")
    assert (done.returncode, done.stderr, "Exit codes" in done.stdout) == (0, "", True)
    assert {"--to", "--out", "--url", "--format", "--timeout", "--tls-ca", "--golden", "--read-response"} <= set(
        re.findall(r"--[a-z-]+", done.stdout)
    )


def test_the_tests_and_checks_of_the_languages_pass(clients: dict[str, Client], server: Server):
    """The types of the Node client were checked when it was built."""
    assert json.loads((NODE / "tsconfig.json").read_text())["compilerOptions"]["strict"] is True
    with ThreadPoolExecutor() as pool:
        node = pool.submit(make, NODE, "test", POLYLIP_URL=server.url)
        make(GO, "check")
        said = make(GO, "test", POLYLIP_URL=server.url)
        assert re.match(r"ok\s+polylip/dub\s", said), said
        assert re.search(r"\bskipped 0\n", node.result()), node.result()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Server]:
    """Wants the client's certificate too; its model says which parameters a request came with."""
    folder = tmp_path_factory.mktemp("secure")
    (folder / "repository" / "dub" / "1").mkdir(parents=True)
    (folder / "repository" / "dub" / "config.pbtxt").write_text(ITS_CONFIG)
    (folder / "repository" / "dub" / "1" / "model.py").write_text(SAYS_PARAMETERS)
    options = ServerOptions(
        model_repository=folder / "repository",
        log_path=folder / "log",
        metrics_port=None,
        tls=ServerTls(*pki.server, client_ca=pki.ca),
    )
    running = launcher._spawn(options)  # without the launcher's own wait, which knows no such model
    try:
        asyncio.run(until_ready(running, Tls(pki.ca, *pki.client)))
        yield running
    finally:
        running.stop()


def test_both_sides_prove_who_they_are_and_the_stream_is_named(
    client: Client, secure: Server, pki: Pki, tmp_path: Path
):
    certificate, key = pki.client
    mine = ("--tls-cert", certificate, "--tls-key", key, "--stream-id", "speaker-7")
    for named in ((), ("--tls-server-name", SERVER_NAME)):
        done = client.live(secure.url, tmp_path, "--tls-ca", pki.ca, *mine, *named)
        assert_one_line(done, 3, 'fault: .*"x-stream-id":"speaker-7"')
    stranger = ("--tls-cert", pki.stranger[0], "--tls-key", pki.stranger[1])
    for words in (
        (),
        ("--tls-ca", pki.ca),
        ("--tls-ca", pki.ca, *stranger),
        ("--tls-ca", pki.other_ca, *mine),
        ("--tls-ca", pki.ca, *mine, "--tls-server-name", "other.example"),
    ):
        assert_one_line(
            client.live(secure.url, tmp_path, *words),
            3,
            "server_lost: no connection.*start a server with: polylip serve",
        )


class Follow:
    """The example at work: a speaker who goes on."""

    def __init__(self, command: tuple[str, ...], url: str, folder: Path) -> None:
        self._folder = folder
        self.process = subprocess.Popen(
            [*command, url, "en", "es", str(DEADLINE_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def say(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{self._folder}\n")
        self.process.stdin.flush()

    def told(self) -> dict:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


@contextmanager
def following(command: tuple[str, ...], url: str, folder: Path) -> Iterator[Follow]:
    follow = Follow(command, url, folder)
    try:
        yield follow
        assert follow.process.stdin
        follow.process.stdin.close()
        assert follow.process.wait(RUN_S) == 3, "for segments without an answer"
    finally:
        follow.process.kill()
        follow.process.wait()


@pytest.fixture
def silence(tmp_path: Path) -> Path:
    """A segment folder with nothing in it, as a speaker who pauses sends it."""
    folder = tmp_path / "silence"
    folder.mkdir()
    write_wav(folder / "audio.wav", np.zeros(0, np.float32), 16_000)
    manifest = {"audio": "audio.wav", "frames": [], "frame_ms": [], "audio_ms": 0, "source_language": "en"}
    write_json(folder / "segment.json", manifest)
    return folder


def test_a_server_that_is_full_drains_freezes_and_dies(clients: dict[str, Client], silence: Path, tmp_path: Path):
    options = ServerOptions(slots=2, log_path=tmp_path / "log")
    with running_server(options) as server, ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        follows = [stack.enter_context(following(each.follow, server.url, silence)) for each in clients.values()]
        (triton,) = psutil.Process(server.guard_pid).children()

        def ask() -> list[dict]:
            for follow in follows:
                follow.say()
            return [follow.told() for follow in follows]

        def dub(each: Client) -> subprocess.CompletedProcess[str]:
            return each.live(server.url, tmp_path / "out", "--timeout", str(DEADLINE_S))

        began = ask()
        assert [(told.get("status"), told.get("move_ms")) for told in began] == [("no_speech", 0)] * 2, began
        for done in pool.map(dub, clients.values()):
            assert_one_line(done, 3, "full: all 2 slots .*; try again in 2 ?s")

        server.drain_file.touch()
        moved = ask()
        assert all(told["move_ms"] > 1000 for told in moved)
        assert [told["stream"] for told in moved] == [told["stream"] for told in began]
        assert ask() == [{"error": "draining", "retry_after_ms": 0}] * 2
        server.drain_file.unlink()
        anew = ask()
        assert [told.get("status") for told in anew] == ["no_speech"] * 2, anew
        assert not {told["stream"] for told in anew} & {told["stream"] for told in began}

        triton.send_signal(signal.SIGSTOP)
        asked = time.monotonic()
        frozen = pool.map(dub, clients.values())
        assert [told.get("error") for told in ask()] == ["deadline"] * 2
        for done in frozen:
            assert_one_line(done, 3, "deadline: ")
        assert time.monotonic() - asked < 4 * DEADLINE_S
        triton.kill()
        server.wait()
        assert [told.get("error") for told in ask()] == ["server_lost"] * 2
    assert not (tmp_path / "out").exists()
