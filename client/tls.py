"""TLS to the server: which certificates to trust, and which to show. Wrong files are refused before any connection."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from polylip.client.errors import InputError


@dataclass(frozen=True)
class Tls:
    """PEM files. With certificate and key the client proves who it is (mTLS)."""

    ca: Path | None = None  # that signed the server's certificate; None: the public ones that gRPC brings along
    certificate: Path | None = None  # of this client, with those between it and its CA
    key: Path | None = None  # of that certificate, not encrypted
    server_name: str | None = None  # that the server's certificate must have; None: the host of the address

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InputError for a file that is missing, unreadable or does not fit."""
        if (self.certificate is None) != (self.key is None):
            raise InputError("a client's TLS certificate and its key belong together: name both, or neither")
        ca, certificate, key = (
            _read(path, what) for path, what in ((self.ca, "CA"), (self.certificate, "certificate"), (self.key, "key"))
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError:
                raise InputError(f"the TLS CA file {self.ca} holds no PEM certificate") from None
        if self.certificate is not None:
            self._check_pair(context)
        return grpc.ssl_channel_credentials(ca, key, certificate)

    @property
    def options(self) -> list[tuple[str, str]]:
        """Channel arguments."""
        return [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]

    def _check_pair(self, context: ssl.SSLContext) -> None:
        def refuse_password() -> str:
            raise InputError(f"the TLS key {self.key} is encrypted; decrypt it first, for example with openssl pkey")

        assert self.certificate is not None  # noqa: S101  the caller has looked
        try:
            context.load_cert_chain(self.certificate, self.key, refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InputError(f"the TLS key {self.key} is not that of the certificate {self.certificate}") from None
            raise InputError(
                f"the TLS certificate {self.certificate} or its key {self.key} is no PEM file of its kind"
            ) from None


def _read(path: Path | None, what: str) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the TLS {what} file {path} ({error.strerror}); name a PEM file") from None


def refusal(url: str, status: grpc.StatusCode, details: str, *, secure: bool) -> InputError:
    """What to say of a server that cannot be reached; `secure`: TLS was asked for."""
    for pattern, reason in _REFUSALS:
        if secure and re.search(pattern, details):
            return InputError(f"the TLS handshake with the server at {url} failed: {reason}")
    if re.search(r"Socket closed|[Cc]onnection reset|[Bb]roken pipe", details):
        remedy = "it may want a client's certificate signed by a CA of its own" if secure else "it may want TLS"
        return InputError(f"the server at {url} ended the connection at once; {remedy}")
    return InputError(f"no tritonserver answers at {url} ({status.name}); start one with: polylip serve")


# What gRPC says -> what it means.
_REFUSALS = (
    (r"WRONG_VERSION_NUMBER", "it speaks no TLS; connect without, or start it with its certificate"),
    (r"Hostname Verification", "its certificate is for another name; give that name, or the address it is for"),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "its certificate is not signed by the CA, or has expired; name the CA that signed it",
    ),
    (r"[Hh]andshake failed|SSL_ERROR|verification check", "it is refused; check the CA, the certificate and the key"),
)
