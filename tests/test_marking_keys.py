"""Who signs a mark: one identity per machine, or certificates of the user's own, refused early if they cannot sign."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from clips import make_clip, noise
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from marked import FACTS, finished_dub, keep_state_in

from polylip.client import marking_keys
from polylip.client.errors import InputError
from polylip.client.marking import (
    mark_video,
    prepare_identity,
)
from polylip.client.marking_keys import Identity, load_identity, state_folder
from polylip.client.verify import State, verify_file


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_state_in(tmp_path / "state", monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "talk.mp4", seconds=1, sound=noise(1))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A finished dub by its name, in a folder of its own."""
    return lambda name="talk.es.mp4", *rest: finished_dub(tmp_path / "out" / name, *rest)


def write_pem(identity: Identity, folder: Path) -> dict[str, str]:
    folder.mkdir()
    (folder / "chain.pem").write_bytes(identity.chain)
    (folder / "key.pem").write_bytes(identity.key)
    return {"POLYLIP_MARK_CERT": str(folder / "chain.pem"), "POLYLIP_MARK_KEY": str(folder / "key.pem")}


def test_jobs_that_start_at_once_share_one_identity(tmp_path: Path):
    code = "from polylip.client.marking_keys import load_identity as i; print(i().certificate.serial_number)"
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    serials = {job.communicate(timeout=120)[0] for job in jobs}
    with ThreadPoolExecutor(4) as pool:
        serials |= {f"{i.certificate.serial_number}\n" for i in pool.map(lambda _: load_identity(), range(4))}
    assert len(serials) == 1
    folder = state_folder()
    assert stat.S_IMODE((folder / "identity.pem").stat().st_mode) == 0o600
    assert sorted(file.name for file in folder.iterdir()) == ["identity.pem", "lock", "trust.pem"]


def test_an_identity_is_kept_and_renewed_at_half_time(monkeypatch: pytest.MonkeyPatch):
    first = load_identity()
    assert load_identity().chain == first.chain
    monkeypatch.setattr(marking_keys, "RENEW_BEFORE_END", marking_keys.LIFE)
    second = load_identity()
    assert second.chain != first.chain
    monkeypatch.undo()


def test_a_damaged_identity_is_replaced():
    load_identity()
    (state_folder() / "identity.pem").write_bytes(b"damaged")
    assert load_identity().chain == load_identity().chain


def test_without_a_state_folder_the_dub_is_marked_with_a_warning(
    source: Path, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "occupied").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "occupied"))
    video = make()
    (warning,) = mark_video(video, source, FACTS, load_identity())
    assert "cannot be kept" in warning and "\n" not in warning
    assert verify_file(video).state is State.INTACT


def test_own_certificates_come_from_the_environment(source: Path, make: Callable[..., Path], tmp_path: Path):
    chain, key, root = marking_keys._new_identity()
    own = write_pem(marking_keys._parse(chain, key, local=True, authority=None), tmp_path / "own")
    identity = prepare_identity(own)
    assert not identity.local and not state_folder().exists()
    assert "PRIVATE" not in repr(identity)
    video = make()
    assert mark_video(video, source, FACTS, identity) == []
    (tmp_path / "root.pem").write_bytes(root)
    verdict = verify_file(video, tmp_path / "root.pem")
    assert verdict.signer is not None and verdict.signer.trusted
    name = x509.load_pem_x509_certificate(chain).subject.rfc4514_string()
    assert verdict.signer.name in name


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "es384"),
        (ec.generate_private_key(ec.SECP521R1()), "es512"),
        (rsa.generate_private_key(65537, 2048), "ps256"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
    ],
    ids=["P-384", "P-521", "RSA", "Ed25519"],
)
def test_own_certificates_may_have_any_kind_of_key(
    key, algorithm: str, source: Path, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = iter([ec.generate_private_key(ec.SECP256R1()), key])
    monkeypatch.setattr(marking_keys.ec, "generate_private_key", lambda curve: next(keys))
    chain, pem, _ = marking_keys._new_identity()
    identity = marking_keys._parse(chain, pem, local=True, authority=None)
    own = prepare_identity(write_pem(identity, tmp_path / "own"))
    assert own.algorithm == algorithm
    video = make()
    assert mark_video(video, source, FACTS, own) == []
    assert verify_file(video).state is State.INTACT


def test_own_certificates_that_cannot_sign_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chain, key, root = marking_keys._new_identity()
    other = marking_keys._new_identity()[1]
    good = marking_keys._parse(chain, key, local=True, authority=None)
    own = write_pem(good, tmp_path / "own")
    mixed = write_pem(replace(good, key=other), tmp_path / "mixed")
    with pytest.raises(InputError, match="set both"):
        prepare_identity({**own, "POLYLIP_MARK_KEY": ""})
    with pytest.raises(InputError, match="cannot be read"):
        prepare_identity({**own, "POLYLIP_MARK_CERT": str(tmp_path / "none.pem")})
    with pytest.raises(InputError, match="not that of the first certificate"):
        prepare_identity(mixed)
    with pytest.raises(InputError, match="is not a URL"):
        prepare_identity({**own, "POLYLIP_MARK_TSA": "stamps"})
    authority = write_pem(replace(good, chain=root), tmp_path / "authority")
    with pytest.raises(InputError, match="cannot sign"):
        prepare_identity(authority)
    monkeypatch.setattr(marking_keys, "LIFE", timedelta(hours=-1))
    chain, key, _ = marking_keys._new_identity()
    with pytest.raises(InputError, match="is valid from"):
        prepare_identity(write_pem(replace(good, chain=chain, key=key), tmp_path / "expired"))


def test_a_certificate_for_another_use_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        marking_keys.ExtendedKeyUsageOID, "EMAIL_PROTECTION", marking_keys.ExtendedKeyUsageOID.SERVER_AUTH
    )
    chain, key, _ = marking_keys._new_identity()
    identity = marking_keys._parse(chain, key, local=True, authority=None)
    with pytest.raises(InputError, match="C2PA refuses the certificate"):
        prepare_identity(write_pem(identity, tmp_path / "own"))
