"""Who signs the mark of a dubbed file: certificates of the environment, else an identity made once per machine."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from polylip.client.errors import InputError
from polylip.client.files import write_atomic

CERTIFICATE_VARIABLE, KEY_VARIABLE = "POLYLIP_MARK_CERT", "POLYLIP_MARK_KEY"  # PEM files: chain, leaf first; key
TIME_VARIABLE = "POLYLIP_MARK_TSA"  # URL of an RFC 3161 time stamp authority

# Without a time stamp a signature counts only while its certificate does, so a local one lives long
# and is replaced at half time: every mark can be verified for 5 years at least.
LIFE = timedelta(days=3652)
RENEW_BEFORE_END = timedelta(days=1826)
CLOCK_SLACK = timedelta(days=1)  # of the start of validity: clocks of other machines may be behind

PRIVATE_FILE, PUBLIC_FILE, LOCK_FILE = "identity.pem", "trust.pem", "lock"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}  # curve -> C2PA signature algorithm


@dataclass(frozen=True)
class Identity:
    """What signs: the private key never shows in a message or a log."""

    chain: bytes  # PEM: the signer's certificate, then those above it
    key: bytes = field(repr=False)  # PEM, PKCS #8
    algorithm: str  # as C2PA names it
    local: bool  # made by this machine: nobody vouches for it
    time_authority: str | None = field(default=None, repr=False)  # may hold a password
    warning: str | None = None

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this machine's identity lies."""
    state = environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "polylip" / "marking"


def load_identity(environment: Mapping[str, str] = os.environ) -> Identity:
    """The identity to sign with. Raises InputError when the environment names certificates that cannot be used."""
    authority = _time_authority(environment)
    named = [environment.get(name, "") for name in (CERTIFICATE_VARIABLE, KEY_VARIABLE)]
    if any(named):
        return _own(Path(named[0]), Path(named[1]), authority)
    return _local(state_folder(environment), authority)


def _time_authority(environment: Mapping[str, str]) -> str | None:
    url = environment.get(TIME_VARIABLE)
    if url and not url.startswith(("http://", "https://")):
        raise InputError(
            f"{TIME_VARIABLE} is not a URL; set it to one that starts with http:// or https://, or unset it"
        )
    return url or None


def _own(certificate: Path, key: Path, authority: str | None) -> Identity:
    """From two PEM files of the user's."""
    if not (certificate.name and key.name):
        raise InputError(f"set both {CERTIFICATE_VARIABLE} and {KEY_VARIABLE}, or none for a local identity")
    try:
        identity = _parse(certificate.read_bytes(), key.read_bytes(), local=False, authority=authority)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}); see {CERTIFICATE_VARIABLE}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{certificate}, {key}: cannot sign ({_first_line(error)})") from None
    now = datetime.now(UTC)
    leaf = identity.certificate
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise InputError(f"{certificate}: is valid from {leaf.not_valid_before_utc} to {leaf.not_valid_after_utc} only")
    return identity


def _parse(chain: bytes, key: bytes, *, local: bool, authority: str | None, warning: str | None = None) -> Identity:
    """Raises ValueError for PEM that is damaged or does not belong together, TypeError for a key with a password."""
    private = serialization.load_pem_private_key(key, password=None)
    certificates = x509.load_pem_x509_certificates(chain)
    if certificates[0].public_key() != private.public_key():
        raise ValueError("the key is not that of the first certificate")
    bare = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)
    return Identity(bare, _private_pem(private), _algorithm(private), local, authority, warning)


def _algorithm(key: PrivateKeyTypes) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise ValueError("the key must be P-256, P-384, P-521, RSA or Ed25519")


def _local(folder: Path, authority: str | None) -> Identity:
    """This machine's identity; where it cannot be kept, one for this job alone, with a warning."""
    try:
        with _locked(folder):
            return _kept(folder, authority) or _make(folder, authority)
    except OSError as error:
        chain, key, _ = _new_identity()
        warning = (
            f"{folder}: the signing identity cannot be kept there ({error.strerror}), so this file has one of its own"
        )
        return _parse(chain, key, local=True, authority=authority, warning=warning)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two jobs that start at once make one identity."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kept(folder: Path, authority: str | None) -> Identity | None:
    """None when there is none yet, or it is damaged, or near its end."""
    try:
        content = (folder / PRIVATE_FILE).read_bytes()
        identity = _parse(content, content, local=True, authority=authority)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return identity if identity.certificate.not_valid_after_utc > datetime.now(UTC) + RENEW_BEFORE_END else None


def _make(folder: Path, authority: str | None) -> Identity:
    """Key and chain in one file, so that they cannot come apart; the authority's certificate is there to be given."""
    chain, key, root = _new_identity()
    write_atomic(folder / PUBLIC_FILE, root)
    partial = folder / f".{PRIVATE_FILE}.{os.getpid()}.partial"
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key + chain)
        partial.replace(folder / PRIVATE_FILE)
    finally:
        partial.unlink(missing_ok=True)
    return _parse(chain, key, local=True, authority=authority)


def _new_identity() -> tuple[bytes, bytes, bytes]:
    """(chain, key, root certificate), all PEM.

    C2PA refuses a signer that certifies itself, so a small authority of its own does, whose key is then forgotten.
    The names hold a random number and nothing of the machine or its user.
    """
    number = secrets.token_hex(4)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, name = _name(f"polylip local authority {number}"), _name(f"polylip local signer {number}")
    root_usage, usage = _usage(certifies=True), _usage(certifies=False)
    root = (
        _certificate(root_name, root_name, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(root_usage, critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        _certificate(name, root_name, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    root_pem = root.public_bytes(serialization.Encoding.PEM)
    return leaf.public_bytes(serialization.Encoding.PEM) + root_pem, _private_pem(key), root_pem


def _name(common: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "polylip, self-signed")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        key_cert_sign=certifies,
        crl_sign=certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
