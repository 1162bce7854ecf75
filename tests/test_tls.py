"""TLS in both its forms against a real server, and every way in which it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from echo import echo_servers, wait
from pki import Pki, make_pki
from proxy import Proxy

from polylip.client.errors import InputError
from polylip.client.retry import retrying
from polylip.client.tls import Tls
from polylip.client.triton import TritonClient
from polylip.serving.launcher import Server

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    with echo_servers(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def secure(echo_server: Callable[..., Server], pki: Pki) -> Server:
    """Wants the client's certificate too."""
    return echo_server(
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={pki.server[0]}",
        f"--grpc-server-key={pki.server[1]}",
        f"--grpc-root-cert={pki.ca}",
        tls=Tls(pki.ca, *pki.client),
    )


@pytest.fixture(scope="module")
def one_sided(echo_server: Callable[..., Server], pki: Pki) -> Server:
    return echo_server(
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={pki.server[0]}",
        f"--grpc-server-key={pki.server[1]}",
        tls=Tls(pki.ca),
    )


async def test_requests_travel_over_TLS_in_both_its_forms(secure: Server, one_sided: Server, pki: Pki):  # noqa: N802
    for url, tls in (
        (one_sided.url, Tls(pki.ca)),
        (one_sided.url, Tls(pki.ca, server_name="lips.example")),
        (secure.url, Tls(pki.ca, *pki.client)),
    ):
        async with TritonClient(url, tls=tls) as client, client.line() as line:
            assert (await line.call("echo", wait(0), TIMEOUT_S))["PARAMETERS"].size == 1


async def test_a_line_over_TLS_reopens(secure: Server, pki: Pki):  # noqa: N802
    tls = Tls(pki.ca, *pki.client)
    async with (
        Proxy(secure.url) as proxy,
        TritonClient(proxy.url, tls=tls) as client,
        client.line(decoupled=True) as line,
    ):
        await line.call("echo", wait(0), TIMEOUT_S)
        proxy.reset()
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        assert await retrying(lambda: line.call("echo", wait(0), TIMEOUT_S), deadline=deadline)
        assert line.reopened == 1


@pytest.mark.parametrize(
    ("mutual", "make", "message"),
    [
        (False, lambda pki: Tls(pki.other_ca), "handshake .* failed: .*not signed by the CA"),
        (False, lambda pki: Tls(), "handshake .* failed: .*not signed by the CA"),
        (False, lambda pki: Tls(pki.ca, server_name="other.example"), "handshake .* failed: .*another name"),
        (False, lambda pki: None, "ended the connection at once; it may want TLS"),
        (True, lambda pki: Tls(pki.ca), "it may want a client's certificate"),
        (True, lambda pki: Tls(pki.ca, *pki.stranger), "it may want a client's certificate"),
    ],
)
async def test_a_refused_handshake_is_one_line(
    secure: Server, one_sided: Server, pki: Pki, mutual: bool, make: Callable[[Pki], Tls | None], message: str
):
    url = secure.url if mutual else one_sided.url
    with pytest.raises(InputError, match=message) as caught:
        async with TritonClient(url, tls=make(pki)):
            pass
    assert len(str(caught.value).splitlines()) == 1 and url in str(caught.value)


async def test_a_server_without_TLS_is_told_apart(echo_server: Callable[..., Server], pki: Pki):  # noqa: N802
    plain = await asyncio.to_thread(echo_server)
    with pytest.raises(InputError, match=r"handshake .* failed: it speaks no TLS"):
        async with TritonClient(plain.url, tls=Tls(pki.ca)):
            pass


def test_wrong_files_are_refused_in_one_line_without_their_content(pki: Pki, tmp_path: Path):
    rubbish, secret = tmp_path / "rubbish.pem", tmp_path / "secret.key"
    rubbish.write_text("no PEM")
    encrypted = serialization.load_pem_private_key(pki.client[1].read_bytes(), None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    secret.write_bytes(encrypted)
    for tls, message in (
        (Tls(tmp_path / "none.pem"), "cannot read the TLS CA file .*none.pem .No such file"),
        (Tls(tmp_path), "cannot read the TLS CA file .*Is a directory"),
        (Tls(rubbish), "holds no PEM certificate"),
        (Tls(pki.ca, pki.client[0]), "belong together"),
        (Tls(pki.ca, None, pki.client[1]), "belong together"),
        (Tls(pki.ca, pki.client[0], pki.stranger[1]), "is not that of the certificate"),
        (Tls(pki.ca, pki.client[0], rubbish), "is no PEM file of its kind"),
        (Tls(pki.ca, rubbish, pki.client[1]), "is no PEM file of its kind"),
        (Tls(pki.ca, pki.client[0], secret), "is encrypted"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            TritonClient("127.0.0.1:1", tls=tls)
        said = str(caught.value)
        assert len(said.splitlines()) == 1
        assert not any(line in said for line in pki.client[1].read_text().splitlines())
