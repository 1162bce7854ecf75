"""How the process that starts a tritonserver with TLS gets through to it: the server's own certificate is trusted, and
a certificate made for this one start is shown where the server wants one."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from polylip.client.wire import CHANNEL_OPTIONS
from polylip.serving.errors import MissingError
from polylip.serving.server_flags import ServerTls

LIFETIME = datetime.timedelta(days=3650)  # longer than a server runs; its key is never written anywhere


@dataclass(frozen=True)
class Endpoint:
    """The gRPC address of a server, and how to talk to it."""

    url: str  # host:port
    credentials: grpc.ChannelCredentials | None = None
    name: str = ""  # that the server's certificate has

    def channel(self) -> Any:
        """A new channel; a context manager."""
        if self.credentials is None:
            return grpc.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        options = [*CHANNEL_OPTIONS, *([("grpc.ssl_target_name_override", self.name)] if self.name else [])]
        return grpc.secure_channel(self.url, self.credentials, options=options)


@dataclass(frozen=True)
class Identity:
    """What a start with TLS needs: the flags' files, and the credentials of the starter."""

    tls: ServerTls  # as the server is to be told
    credentials: grpc.ChannelCredentials
    name: str

    def endpoint(self, url: str) -> Endpoint:
        return Endpoint(url, self.credentials, self.name)


def make_identity(tls: ServerTls, folder: Path) -> Identity:
    """Writes the authorities that the server is to trust into `folder`. Raises MissingError for files of no use."""
    certificate, private = _read(tls.certificate, "certificate"), _read(tls.key, "key")
    try:
        served = x509.load_pem_x509_certificates(certificate)[0]
        secret = serialization.load_pem_private_key(private, None)
    except (ValueError, TypeError):
        raise MissingError(f"{tls.certificate} or {tls.key} is no PEM file of its kind, or is encrypted") from None
    if secret.public_key() != served.public_key():
        raise MissingError(f"{tls.certificate} and {tls.key} do not belong together; name the certificate's own key")
    if tls.client_ca is None:
        return Identity(tls, grpc.ssl_channel_credentials(certificate), _name_of(served))
    authorities = _read(tls.client_ca, "client CA")
    try:
        x509.load_pem_x509_certificates(authorities)
    except ValueError:
        raise MissingError(f"{tls.client_ca} holds no PEM certificate") from None
    own, key = _own_certificate()
    trusted = folder / "client-ca.pem"
    trusted.touch(0o600)
    trusted.write_bytes(authorities.rstrip() + b"\n" + own)
    credentials = grpc.ssl_channel_credentials(certificate, key, own)
    return Identity(ServerTls(tls.certificate, tls.key, trusted), credentials, _name_of(served))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingError(f"cannot read the TLS {what} file {path} ({error.strerror}); name a PEM file") from None


def _name_of(certificate: x509.Certificate) -> str:
    """A name that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common[0].value) if common else ""
    hosts = [name.replace("*", "host", 1) for name in names.get_values_for_type(x509.DNSName)]
    return [*hosts, *map(str, names.get_values_for_type(x509.IPAddress)), ""][0]


def _own_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for a client, and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"polylip supervisor {os.getpid()}")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return certificate.public_bytes(pem), key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
