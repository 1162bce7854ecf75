"""Marks a finished dub as such, for machines: a signed C2PA manifest in .mp4 and .mov, beside .mkv, and plain tags."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from c2pa import Builder, C2paError, C2paSignerInfo, Context, Signer

from polylip.client.errors import InputError
from polylip.client.files import write_atomic
from polylip.client.marking_keys import CERTIFICATE_VARIABLE, Identity, load_identity

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"  # IPTC's vocabulary
FACTS_LABEL = "polylip.dub"  # our own assertion
TAG_SOURCE_TYPE = "DIGITAL_SOURCE_TYPE"  # Matroska only: MP4 has no place for tags of one's own
TAG_COMMENT = "comment"

FORMATS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska"}
MATROSKA = FORMATS[".mkv"]
OTHER_FORMATS = {".webm": "video/webm", ".avi": "video/avi", ".m4a": "audio/mp4", ".wav": "audio/wav"}  # of sources
SIDECAR = ".c2pa"

CHUNKS = {"merkle_tree_chunk_size_in_kb": 1024, "merkle_tree_max_proofs": 0}  # one hash for each MiB, all in one list
CHUNKED_FROM_BYTES = 64 << 20  # below it one hash, which more readers know; the library holds what one hash covers
NAME_LENGTH = 40  # characters of the video's name in the temporary one, so that a long name stays short enough
OFFLINE: dict[str, Any] = {  # nothing of C2PA asks the network: no remote manifests, revocation lists or hosts
    "version": 1,
    "verify": {"verify_after_sign": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "core": {"allowed_network_hosts": [], "backing_store_memory_threshold_in_mb": 16},
}


class VoiceKind(StrEnum):
    """Whose voice speaks."""

    STOCK = "stock"
    CLONED_WITH_CONSENT = "cloned with consent"


@dataclass(frozen=True)
class DubFacts:
    """What a mark says. No names, paths or texts: the file may go anywhere."""

    source_language: str  # ISO 639-1
    target_language: str  # ISO 639-1
    dubbed_segments: int
    lips_rendered: bool
    voice: VoiceKind
    generative: bool  # voice or lips come from trained networks; say True when unknown
    profile: str
    engines: tuple[str, ...] = ()  # names of voice and lips, and of whatever else took part

    @property
    def source_type(self) -> str:
        """URI of the IPTC digital source type."""
        return source_type(self.generative)


def source_type(generative: bool) -> str:
    """Trained networks: edited with generative AI. None: a composite of a recording and of what rules made."""
    return SOURCE_TYPES + ("compositeWithTrainedAlgorithmicMedia" if generative else "composite")


def container_tags(target_language: str, *, generative: bool) -> dict[str, str]:
    """Tags for the container, written before the first frame; they outlive copies that lose the manifest."""
    uri = source_type(generative)
    comment = f"AI-dubbed into {target_language} by polylip {version('polylip')}; digital source type {uri}"
    return {TAG_COMMENT: comment, TAG_SOURCE_TYPE: uri}


def sidecar_path(video: Path) -> Path:
    """Where the manifest of a file lies whose container holds none."""
    return video.with_suffix(SIDECAR)


def prepare_identity(environment: Mapping[str, str] = os.environ) -> Identity:
    """The identity, tried on a signature: own certificates that C2PA refuses are an InputError before any work."""
    identity = load_identity(environment)
    if identity.local:
        return identity
    trial = {**_manifest(None, "", MATROSKA), "ingredients": [_parent(MATROSKA)]}
    try:
        with (
            Context.from_dict(OFFLINE) as context,
            Builder(json.dumps(trial), context=context) as builder,
            _signer(identity, None) as signer,
        ):
            _sign_apart(builder, signer, MATROSKA, BytesIO(b"trial"))
    except C2paError as error:
        raise InputError(
            f"C2PA refuses the certificate of {CERTIFICATE_VARIABLE} ({_reason(error)}); it must be issued by an "
            "authority, for digital signatures, with an extended use such as e-mail protection"
        ) from None
    return identity


def mark_video(video: Path, source: Path, facts: DubFacts, identity: Identity) -> list[str]:
    """Sign a finished file, in one step, with `source` as its parent. Returns warnings and raises nothing.

    On any failure the video stays as it was: a mark is never worth a dub.
    """
    warnings = [identity.warning] if identity.warning else []
    try:
        warnings += _mark(video, source, facts, identity)
    except Exception as error:  # whatever it is: the dub is finished and must come through
        warnings.append(f"{video} is NOT MARKED as AI-dubbed ({_reason(error)}): say so wherever you publish it")
        drop_sidecar(video)
    return warnings


def drop_sidecar(video: Path) -> None:
    """Remove the manifest of an earlier file of this name: it does not fit one that is not marked."""
    if FORMATS.get(video.suffix.lower()) == MATROSKA:
        with suppress(OSError):
            sidecar_path(video).unlink(missing_ok=True)


def _mark(video: Path, source: Path, facts: DubFacts, identity: Identity) -> list[str]:
    """With a time stamp if one is wanted; without, and a warning, where none is to be had."""
    if identity.time_authority is None:
        return _mark_once(video, source, facts, identity, None)
    try:
        return _mark_once(video, source, facts, identity, identity.time_authority)
    except C2paError as error:
        host = urlsplit(
            identity.time_authority
        ).hostname  # the rest of the address, and what errors quote, may be secret
        warning = f"no time stamp from {host} ({type(error).__name__.strip('_')}): the mark is signed without"
        return [warning, *_mark_once(video, source, facts, identity, None)]


def _mark_once(video: Path, source: Path, facts: DubFacts, identity: Identity, authority: str | None) -> list[str]:
    kind = FORMATS[video.suffix.lower()]
    manifest = _manifest(facts, _sha256(source), kind)
    with (
        Context.from_dict(_settings(video)) as context,
        _signer(identity, authority) as signer,
        video.open("rb") as finished,
    ):
        builder, warnings = _builder_with_parent(manifest, source, context)
        with builder:
            if kind == MATROSKA:
                write_atomic(sidecar_path(video), _sign_apart(builder, signer, kind, finished))
                return warnings
            with _temporary(video) as (path, target):
                builder.sign(signer, kind, finished, target)
                os.fchmod(target.fileno(), video.stat().st_mode & 0o777)
                target.close()
                path.replace(video)
    return warnings


def _builder_with_parent(manifest: dict[str, Any], source: Path, context: Context) -> tuple[Builder, list[str]]:
    """A builder that holds what the source says of itself, if it says anything; and warnings."""
    builder = Builder(json.dumps(manifest), context=context)
    parent = _parent(_source_format(source))
    try:
        with source.open("rb") as stream:
            builder.add_ingredient(json.dumps(parent), parent["format"], stream)
    except C2paError as error:
        builder.close()
        warning = f"the source's own manifest is damaged and not kept ({_reason(error)})"
        return Builder(json.dumps({**manifest, "ingredients": [parent]}), context=context), [warning]
    return builder, []


def _sign_apart(builder: Builder, signer: Signer, kind: str, stream: IO[bytes]) -> bytes:
    """The manifest of a file that is left alone: the copy that the library makes goes nowhere."""
    builder.set_no_embed()
    with open(os.devnull, "w+b") as sink:
        return bytes(builder.sign(signer, kind, stream, sink))


def _signer(identity: Identity, authority: str | None) -> Signer:
    return Signer.from_info(C2paSignerInfo(identity.algorithm, identity.chain, identity.key, authority))


@contextmanager
def _temporary(video: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    path = video.with_name(f".{video.stem[:NAME_LENGTH]}.{os.getpid()}.marking{video.suffix}")
    try:
        with path.open("w+b") as target:
            yield path, target
    finally:
        path.unlink(missing_ok=True)


def _settings(video: Path) -> dict[str, Any]:
    big = video.stat().st_size > CHUNKED_FROM_BYTES
    actions = {name: {"enabled": False} for name in ("auto_created_action", "auto_opened_action", "auto_placed_action")}
    core = {**OFFLINE["core"], **(CHUNKS if big else {})}
    return {**OFFLINE, "core": core, "builder": {"thumbnail": {"enabled": False}, "actions": actions}}


def _parent(kind: str) -> dict[str, str]:
    """The source as an ingredient, without its file's name, which is often a person's."""
    return {"title": "source", "relationship": "parentOf", "label": "source", "format": kind}


def _manifest(facts: DubFacts | None, source_sha256: str, kind: str) -> dict[str, Any]:
    """The definition for the library; without facts, one to try a signature with."""
    generator = {"name": "polylip", "version": version("polylip")}
    actions: list[dict[str, Any]] = [{"action": "c2pa.opened", "parameters": {"ingredientIds": ["source"]}}]
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions.v2", "data": {"actions": actions}}]
    if facts is not None:
        actions += _dub_actions(facts, generator)
        assertions.append({"label": FACTS_LABEL, "data": _assertion(facts, source_sha256)})
    actions.append({"action": "c2pa.transcoded"})
    return {"claim_generator_info": [generator], "format": kind, "assertions": assertions}


def _dub_actions(facts: DubFacts, generator: dict[str, str]) -> list[dict[str, Any]]:
    """Nothing is claimed that was not done: a clip without speech has none of these."""
    made = {"digitalSourceType": facts.source_type, "softwareAgent": generator}
    languages = {"sourceLanguage": facts.source_language, "targetLanguage": facts.target_language}
    actions: list[dict[str, Any]] = []
    if facts.dubbed_segments:
        actions.append({"action": "c2pa.dubbed", "description": "speech replaced by synthetic speech", **made})
        actions.append({"action": "c2pa.translated", "parameters": languages, "softwareAgent": generator})
    if facts.lips_rendered:
        actions.append({"action": "c2pa.edited", "description": "mouths re-rendered to the new speech", **made})
    return actions


def _assertion(facts: DubFacts, source_sha256: str) -> dict[str, Any]:
    return {
        "ai_dubbed": facts.dubbed_segments > 0,
        "source_language": facts.source_language,
        "target_language": facts.target_language,
        "dubbed_segments": facts.dubbed_segments,
        "lips_rendered": facts.lips_rendered,
        "voice": str(facts.voice),
        "profile": facts.profile,
        "engines": list(facts.engines),
        "source_sha256": source_sha256,
    }


def _source_format(source: Path) -> str:
    """By its first bytes where they tell: a manifest under a wrong name would be lost."""
    with source.open("rb") as file:
        if file.read(8)[4:] == b"ftyp":
            return FORMATS[".mp4"]
    return {**FORMATS, **OTHER_FORMATS}.get(source.suffix.lower(), "application/octet-stream")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """One line of what a library or the system says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0]
