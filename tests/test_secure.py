"""A server is closed unless told otherwise: every rule of docs/security.md, seen on the running server."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from echo import echo_servers, wait
from material import milliseconds
from test_tls import Pki, pki
from tritonclient.grpc import service_pb2

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import InputError
from polylip.client.tls import Tls
from polylip.client.triton import STREAM_ID_KEY, TritonClient
from polylip.perf.supervised import supervised
from polylip.serving.errors import MissingError
from polylip.serving.launcher import Server, ServerOptions, running_server
from polylip.serving.probe import is_ready, loaded_models, stub_of
from polylip.serving.server_flags import ServerTls, Tracing
from polylip.serving.supervisor_identity import Endpoint

__all__ = ["pki"]  # the fixture

TIMEOUT_S = 10.0
ATTEMPTS = 4  # tritonserver 2.51 never sends 3 to 5 % of its batches of spans (docs/observability.md)
V4_IN_V6 = "::ffff:"  # as gRPC shows its IPv4 addresses
MEL = {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": milliseconds(0)}
RESTRICTED = {
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=8),
    "SystemSharedMemoryUnregister": service_pb2.SystemSharedMemoryUnregisterRequest(),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "CudaSharedMemoryRegister": service_pb2.CudaSharedMemoryRegisterRequest(name="a", raw_handle=b"a", byte_size=8),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="lips"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="mel"),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}
OPEN = {
    "ServerLive": service_pb2.ServerLiveRequest(),
    "ServerReady": service_pb2.ServerReadyRequest(),
    "ServerMetadata": service_pb2.ServerMetadataRequest(),
    "ModelReady": service_pb2.ModelReadyRequest(name="mel"),
    "ModelMetadata": service_pb2.ModelMetadataRequest(name="mel"),
    "ModelConfig": service_pb2.ModelConfigRequest(name="mel"),
    "ModelStatistics": service_pb2.ModelStatisticsRequest(name="mel"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As it comes, with HTTP besides, which has to be asked for; gRPC on an address of its own."""
    log = tmp_path_factory.mktemp("plain") / "log"
    with running_server(ServerOptions(models=("mel",), listen="127.0.0.2", http_port=0, log_path=log)) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("mutual") / "log"
    tls = ServerTls(*pki.server, pki.ca)
    with running_server(ServerOptions(models=("mel",), tls=tls, log_path=log)) as server:
        yield server


def listening(server: Server) -> set[tuple[str, int]]:
    """Addresses and ports that tritonserver, or anything it started, listens on."""
    below = psutil.Process(server.guard_pid).children(recursive=True)
    found = [entry for process in below for entry in process.net_connections() if entry.status == psutil.CONN_LISTEN]
    return {(entry.laddr.ip.removeprefix(V4_IN_V6), entry.laddr.port) for entry in found}


# What listens, and where


def test_nothing_listens_but_what_was_asked_for_each_on_its_own_address(plain: Server, mutual: Server):
    grpc_port, http_port, metrics_port = plain.ports.grpc, plain.ports.http, plain.ports.metrics
    assert listening(plain) == {
        ("127.0.0.2", grpc_port),
        ("127.0.0.1", http_port),
        ("127.0.0.1", metrics_port),
    }
    assert listening(mutual) == {("127.0.0.1", mutual.ports.grpc), ("127.0.0.1", mutual.ports.metrics)}
    assert urllib.request.urlopen(plain.metrics_url, timeout=TIMEOUT_S).status == 200  # noqa: S310


def test_the_server_is_a_process_without_more_rights_than_its_user(plain: Server):
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", plain.ports.grpc), TIMEOUT_S)
    [tritonserver] = psutil.Process(plain.guard_pid).children()
    assert set(tritonserver.uids()) == {os.geteuid()}


def test_listening_to_others_without_TLS_is_warned_of():  # noqa: N802
    with supervised("--models", "mel", "--listen", "0.0.0.0") as server:  # noqa: S104  that is the point
        server.wait_until_ready()
        [line] = server.said
        assert line.startswith("polylip: warning: 0.0.0.0 without TLS: ") and "--tls-cert, --tls-key" in line
        open_to = {entry.laddr.ip for entry in server.tritonserver().net_connections() if entry.status == "LISTEN"}
        assert "127.0.0.1" in open_to and len(open_to) == 2, "the metrics stay on loopback"


# What may be called


@pytest.mark.parametrize("call", RESTRICTED)
def test_what_no_client_needs_is_refused(plain: Server, call: str):
    with plain.endpoint.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        getattr(stub_of(channel), call)(RESTRICTED[call], timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "This protocol is restricted" in caught.value.details()


def test_what_clients_need_is_open(plain: Server):
    with plain.endpoint.channel() as channel:
        for call, request in OPEN.items():
            getattr(stub_of(channel), call)(request, timeout=TIMEOUT_S)
        assert loaded_models(stub_of(channel)) == {"mel"}


async def test_a_model_that_was_to_be_unloaded_works_on(plain: Server):
    async with TritonClient(plain.url) as client, client.line() as line:
        assert (await line.call("mel", MEL, TIMEOUT_S))["MEL"].shape == (1, 80, 16)


def test_whoever_reads_the_key_in_the_process_list_cannot_send_it(plain: Server):
    """gRPC takes no header with capitals, not even from a client that keeps to no rule."""
    [flag] = [part for part in arguments_of(plain) if part.startswith("--grpc-restricted-protocol=")]
    name, _, value = flag.rpartition(":")[2].partition("=")
    assert name == "NOBODY" and len(value) == 32
    refused, wrong = (raw_index(plain, f"triton-grpc-protocol-{name}", value) for name in ("nobody", "NOBODY"))
    assert b"This protocol is restricted" in refused
    assert wrong and b"mel" not in wrong and b"grpc-status" in wrong


def test_HTTP_is_restricted_as_gRPC_is(plain: Server):  # noqa: N802
    for path, body in (("v2/repository/index", b"{}"), ("v2/systemsharedmemory/region/a/register", b"{}")):
        request = urllib.request.Request(f"http://127.0.0.1:{plain.ports.http}/{path}", body, method="POST")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        assert caught.value.code == 403
        assert "This API is restricted" in json.loads(caught.value.read())["error"]


def test_two_servers_never_share_a_key(plain: Server, mutual: Server):
    keys = [next(part for part in arguments_of(server) if "grpc-restricted" in part) for server in (plain, mutual)]
    assert keys[0] != keys[1]


def arguments_of(server: Server) -> list[str]:
    [tritonserver] = psutil.Process(server.guard_pid).children()
    return tritonserver.cmdline()


def raw_index(server: Server, key: str, value: str) -> bytes:
    """What comes back for RepositoryIndex, sent as raw HTTP/2 so that no library minds the header."""

    def literal(name: str, text: str) -> bytes:
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(text)]) + text.encode()

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/RepositoryIndex",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
        key: value,
    }
    block = b"".join(literal(*header) for header in headers.items())
    answer = b""
    with socket.create_connection(("127.0.0.2", server.ports.grpc), TIMEOUT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block))
        connection.sendall(frame(0, 1, 1, bytes(5)))
        while not is_whole(answer) and (part := connection.recv(65536)):
            answer += part
    return answer


def is_whole(answer: bytes) -> bool:
    """Whether its frames hold the end of the one stream."""
    while len(answer) >= 9:
        length, kind, flags = int.from_bytes(answer[:3]), answer[3], answer[4]
        if len(answer) >= 9 + length and (kind == 3 or (kind in (0, 1) and flags & 1)):  # RST_STREAM, or END_STREAM
            return True
        answer = answer[9 + length :]
    return False


async def test_a_restricted_call_is_no_lost_server_to_the_client(plain: Server):
    async with TritonClient(plain.url) as client:
        with pytest.raises(grpc.RpcError) as caught:
            await client._unary("RepositoryIndex", service_pb2.RepositoryIndexRequest())
    from polylip.client.error_codes import error_code  # noqa: PLC0415

    assert error_code(caught.value.code(), caught.value.details()) is ErrorCode.BAD_REQUEST


# TLS


async def test_a_client_of_the_authority_gets_through_and_all_others_do_not(mutual: Server, pki: Pki):
    async with TritonClient(mutual.url, tls=Tls(pki.ca, *pki.client)) as client, client.line() as line:
        assert (await line.call("mel", MEL, TIMEOUT_S))["MEL"].shape == (1, 80, 16)
    for tls in (None, Tls(pki.ca), Tls(pki.ca, *pki.stranger)):
        with pytest.raises(InputError, match="ended the connection at once"):
            async with TritonClient(mutual.url, tls=tls):
                pass
    assert not await asyncio.to_thread(is_ready, mutual.url)
    with mutual.endpoint.channel() as channel:
        assert stub_of(channel).ServerReady(OPEN["ServerReady"], timeout=TIMEOUT_S).ready


async def test_one_sided_TLS_takes_no_plain_client(tmp_path: Path, pki: Pki):  # noqa: N802
    options = ServerOptions(models=("mel",), tls=ServerTls(*pki.server), log_path=tmp_path / "log")
    with running_server(options) as server:
        async with TritonClient(server.url, tls=Tls(pki.ca)):
            pass
        with pytest.raises(InputError, match="it may want TLS"):
            async with TritonClient(server.url):
                pass


def test_the_key_made_for_the_supervisor_is_in_no_file_and_no_argument(mutual: Server):
    [authorities] = [part for part in arguments_of(mutual) if part.startswith("--grpc-root-cert=")]
    trusted = Path(authorities.partition("=")[2])
    assert trusted.read_text().count("BEGIN CERTIFICATE") == 2 and "PRIVATE" not in trusted.read_text()
    assert trusted.stat().st_mode & 0o077 == 0
    assert not any("PRIVATE" in part for part in arguments_of(mutual))
    assert not any("PRIVATE" in path.read_text("utf-8", "replace") for path in trusted.parent.glob("*.pem"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda pki, _: ServerTls(Path("/nowhere.pem"), pki.server[1]),
            "cannot read the TLS certificate file /nowhere",
        ),
        (lambda pki, rubbish: ServerTls(rubbish, pki.server[1]), "is no PEM file of its kind"),
        (lambda pki, rubbish: ServerTls(*pki.server, rubbish), "holds no PEM certificate"),
    ],
)
def test_files_of_no_use_are_refused_in_one_line_before_the_start(
    pki: Pki,
    tmp_path: Path,
    make,
    message: str,
):
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no PEM")
    options = ServerOptions(models=("mel",), tls=make(pki, rubbish), log_path=tmp_path / "log")
    with pytest.raises(MissingError, match=message) as caught, running_server(options):
        pass
    assert "\n" not in str(caught.value)


def test_an_endpoint_without_credentials_is_plain():
    assert Endpoint("127.0.0.1:1").credentials is None


# What is passed on


async def test_the_stream_id_reaches_the_models(tmp_path_factory: pytest.TempPathFactory):
    with echo_servers(tmp_path_factory) as start:
        server = await asyncio.to_thread(start)
        async with TritonClient(server.url, stream_id="talk-7") as client, client.line() as line:
            said = await line.call("echo", wait(0), TIMEOUT_S)
    assert json.loads(said["PARAMETERS"][0])[STREAM_ID_KEY] == "talk-7"


async def test_traces_go_where_they_are_wanted(tmp_path: Path):
    got = threading.Event()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            if b"polylip" in body and b"mel" in body:
                got.set()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        tracing = Tracing(f"http://127.0.0.1:{collector.server_port}/v1/traces", rate=1)
        with running_server(ServerOptions(models=("mel",), tracing=tracing, log_path=tmp_path / "log")) as server:
            for _ in range(ATTEMPTS):
                async with TritonClient(server.url) as client, client.line() as line:
                    await line.call("mel", MEL, TIMEOUT_S)
                if await asyncio.to_thread(got.wait, TIMEOUT_S):
                    break
        collector.shutdown()
    assert got.is_set()
