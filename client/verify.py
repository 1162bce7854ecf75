"""What a media file says of its making: whether it is marked as AI-dubbed, by whom, and whether it was changed since.

Nothing is fetched from the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import av
import typer
from c2pa import C2paError, Context, Reader
from cryptography import x509

from polylip.client.errors import InputError
from polylip.client.marking import (
    FACTS_LABEL,
    FORMATS,
    MATROSKA,
    OFFLINE,
    SOURCE_TYPES,
    TAG_COMMENT,
    TAG_SOURCE_TYPE,
    sidecar_path,
)
from polylip.client.media_probe import reason

DUB_ACTIONS = ("c2pa.dubbed", "c2pa.translated")
AI_SOURCE_TYPES = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "compositeSynthetic")
MANY_PARENTS = 1000  # a chain of sources longer than this is a loop

# Of the signer, not of the content: C2PA counts them as failures, we say them in words.
UNTRUSTED, EXPIRED = "signingCredential.untrusted", "signingCredential.expired"
ABOUT_THE_SIGNER = (UNTRUSTED, EXPIRED, "claimSignature.outsideValidity", "signingCredential.ocsp", "timeStamp.")


class State(StrEnum):
    """What can be said of a file."""

    INTACT = "intact"  # marked as AI-dubbed, and nothing was changed since it was signed
    UNMARKED = "unmarked"  # no mark, or one that says nothing of an AI dub
    CHANGED = "changed"  # its manifest does not fit it
    UNSIGNED = "unsigned"  # only tags say that it is AI-dubbed, which anyone can write


EXIT_CODES = {State.INTACT: 0, State.UNMARKED: 4, State.CHANGED: 5, State.UNSIGNED: 6}


@dataclass(frozen=True)
class Signer:
    """Who signed, as the certificate says."""

    name: str
    organisation: str
    trusted: bool  # issued by one of the certificates that were given as trusted
    expired: bool
    time: str | None  # from a time stamp authority


@dataclass(frozen=True)
class Verdict:
    """What a file says of its making."""

    state: State
    ai_dubbed: bool
    digital_source_types: tuple[str, ...] = ()  # URIs
    generators: tuple[str, ...] = ()  # newest first: what made the file, then what made its sources
    facts: dict[str, Any] = field(default_factory=dict)  # of the dub, as polylip writes them
    signer: Signer | None = None
    problems: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]


def verify(
    file: Annotated[Path, typer.Argument(help="A video that may be marked")],
    trust: Annotated[Path | None, typer.Option(help="Certificates (PEM) of signers that you trust")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON")] = False,
) -> None:
    """Say whether FILE is marked as AI-dubbed, by whom, and whether it was changed since.

    Exit codes: 0 marked and intact; 2 unreadable; 4 not marked; 5 changed since it was marked; 6 marked by tags only.

    Example: polylip verify talk.es.mp4
    """
    verdict = verify_file(file, trust)
    if as_json:
        print(json.dumps({"file": str(file), **asdict(verdict)}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(describe(verdict)))
    if verdict.exit_code:
        raise typer.Exit(verdict.exit_code)


def verify_file(file: Path, trust: Path | None = None) -> Verdict:
    """Raises InputError for what is no readable media file, or no certificate."""
    if not file.is_file():
        raise InputError(f"{file}: is not a file; name a video")
    anchors = None if trust is None else _anchors(trust)
    try:
        return _judge(_read(file, anchors))
    except C2paError as error:
        tags = _tags(file)
        if isinstance(error, C2paError.ManifestNotFound | C2paError.NotSupported):
            return _judge_tags(tags)
        return replace(_judge_tags(tags), state=State.CHANGED, problems=(f"damaged manifest: {_first_line(error)}",))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def describe(verdict: Verdict) -> list[str]:
    """Lines for a person; a file's own words cannot steer the terminal."""
    facts = verdict.facts
    lines = [f"AI-dubbed:      {_claim(verdict)}"]
    if verdict.digital_source_types:
        lines.append(
            f"source type:    {', '.join(uri.removeprefix(SOURCE_TYPES) for uri in verdict.digital_source_types)}"
        )
    if facts:
        names = facts.get("engines")
        engines = ", ".join([f"profile {facts.get('profile')}", *map(str, names if isinstance(names, list) else [])])
        lips = "re-rendered" if facts.get("lips_rendered") else "as recorded"
        lines.append(f"voice, lips:    {facts.get('voice')}, {lips} ({engines})")
    if verdict.generators:
        lines.append(f"made with:      {', before that '.join(verdict.generators)}")
    lines.append(f"signature:      {_signature(verdict)}")
    if verdict.signer is not None:
        lines.append(f"signer:         {_signer(verdict.signer)}")
    return ["".join(letter if letter.isprintable() else "?" for letter in line) for line in lines]


def _claim(verdict: Verdict) -> str:
    if not verdict.ai_dubbed:
        return "the file does not say so"
    facts = verdict.facts
    if not facts:
        return "yes"
    count = facts.get("dubbed_segments")
    return f"yes, from {facts.get('source_language')} to {facts.get('target_language')} ({count} segments)"


def _signature(verdict: Verdict) -> str:
    if verdict.state is State.CHANGED:
        return f"NOT VALID: the file was changed since it was signed ({'; '.join(verdict.problems)})"
    if verdict.signer is None:
        return "none" if verdict.state is State.UNMARKED else "none: these are tags, which anyone can write or remove"
    return "valid: the file is as it was signed"


def _signer(signer: Signer) -> str:
    who = f"{signer.name} ({signer.organisation})"
    if signer.expired:
        who += ", whose certificate has expired: nothing shows that it signed before"
    if signer.time:
        who += f", {signer.time}"
    if signer.trusted:
        return f"{who}, on the given list"
    return f"{who}, on no list of trusted signers: it shows that nothing was changed, not who made the file"


def _anchors(trust: Path) -> str:
    try:
        text = trust.read_text(encoding="ascii")
        x509.load_pem_x509_certificates(text.encode())
    except (OSError, ValueError):
        raise InputError(f"{trust}: holds no certificates; name a PEM file") from None
    return text


def _read(file: Path, anchors: str | None) -> dict[str, Any]:
    """The manifest store in the file or beside it, checked against it. Raises C2paError."""
    settings = OFFLINE if anchors is None else {**OFFLINE, "trust": {"user_anchors": anchors}}
    sidecar = sidecar_path(file)
    kind = FORMATS.get(file.suffix.lower())
    apart = sidecar.read_bytes() if kind == MATROSKA and sidecar.is_file() else None
    with (
        Context.from_dict(settings) as context,
        file.open("rb") as stream,
        Reader(kind, stream, apart, context=context) as reader,
    ):
        store: dict[str, Any] = json.loads(reader.json())
    return store


def _judge(store: dict[str, Any]) -> Verdict:
    """The newest manifest is checked; what says that the file is AI-dubbed may be it or one of its sources'."""
    chain = list(_line(store))
    dubs = [manifest for manifest in chain if _is_ai_dub(manifest)]
    failures = store.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    problems = tuple(
        f"{failure['code']}: {failure.get('explanation', '')}"
        for failure in failures
        if not failure["code"].startswith(ABOUT_THE_SIGNER)
    )
    codes = {failure["code"] for failure in failures}
    state = State.INTACT if dubs else State.UNMARKED
    signature = chain[0].get("signature_info") or {}
    return Verdict(
        State.CHANGED if problems else state,
        ai_dubbed=bool(dubs),
        digital_source_types=tuple(dict.fromkeys(_source_types((dubs or chain)[0]))),
        generators=tuple(_generator(manifest) for manifest in chain),
        facts=_facts(dubs[0]) if dubs else {},
        signer=Signer(
            str(signature.get("common_name", "no name")),
            str(signature.get("issuer", "no organisation")),
            trusted=UNTRUSTED not in codes,
            expired=EXPIRED in codes,
            time=signature.get("time"),
        ),
        problems=problems,
    )


def _judge_tags(tags: dict[str, str]) -> Verdict:
    comment = tags.get(TAG_COMMENT.upper(), "")
    uris = tuple(word for word in [tags.get(TAG_SOURCE_TYPE, ""), *comment.split()] if word.startswith(SOURCE_TYPES))
    if not comment.startswith("AI-dubbed"):
        return Verdict(State.UNMARKED, ai_dubbed=False, digital_source_types=tuple(dict.fromkeys(uris)))
    return Verdict(
        State.UNSIGNED,
        ai_dubbed=True,
        digital_source_types=tuple(dict.fromkeys(uris)),
        generators=(comment.partition(" by ")[2].partition(";")[0],),
    )


def _line(store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The newest manifest, that of its parent, and so on."""
    manifests = store["manifests"]
    label = store["active_manifest"]
    for _ in range(MANY_PARENTS):
        if label not in manifests:
            return
        manifest = manifests[label]
        yield manifest
        parents = [item for item in manifest.get("ingredients", []) if item.get("relationship") == "parentOf"]
        label = parents[0].get("active_manifest") if parents else None


def _is_ai_dub(manifest: dict[str, Any]) -> bool:
    """By polylip's own words; of other tools, a dub made with AI."""
    facts = _facts(manifest)
    if "ai_dubbed" in facts:
        return facts["ai_dubbed"] is True
    ai = any(uri.removeprefix(SOURCE_TYPES) in AI_SOURCE_TYPES for uri in _source_types(manifest))
    return ai and any(action.get("action") in DUB_ACTIONS for action in _actions(manifest))


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    found = [item["data"] for item in manifest.get("assertions", []) if item["label"] == FACTS_LABEL]
    return found[0] if found and isinstance(found[0], dict) else {}


def _actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions", []):
        if assertion["label"].startswith("c2pa.actions"):
            yield from assertion["data"].get("actions", [])


def _source_types(manifest: dict[str, Any]) -> Iterator[str]:
    return (action["digitalSourceType"] for action in _actions(manifest) if "digitalSourceType" in action)


def _generator(manifest: dict[str, Any]) -> str:
    info = (manifest.get("claim_generator_info") or [{}])[0]
    name = info.get("name") or manifest.get("claim_generator") or "an unnamed tool"
    return f"{name} {info.get('version', '')}".strip()


def _tags(file: Path) -> dict[str, str]:
    """Tags of the container, under names in capitals as Matroska has them. Raises InputError for no media file."""
    try:
        with av.open(f"file:{file}") as container:
            return {name.upper(): text for name, text in container.metadata.items()}
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{file}: is no media file that can be read ({reason(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
