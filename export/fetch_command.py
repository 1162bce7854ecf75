"""The command `polylip fetch`: lists the public weights, and brings them into a folder with a record of each model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from polylip.client.errors import InputError
from polylip.client.files import write_atomic
from polylip.export.manifest import MANIFEST, PROFILES, Model, WeightFile, read_manifest
from polylip.export.weight_files import (
    Fetched,
    MismatchError,
    demand_hash,
    find_files,
    hash_file,
    need_space,
    take,
)

FOLDER_VARIABLE = "POLYLIP_WEIGHTS"
FOLDER = Path("weights")
ALL = "all"
RECORD_FORMAT = 1
ACCEPTED = "accepted_non_commercial_at"  # key of the record
EXIT_INTERRUPTED = 130

Action = Literal["downloaded", "taken", "present"]
Get = Callable[[Model, WeightFile], Fetched]
err = Console(stderr=True)


@dataclass(frozen=True)
class Held:
    """One file of a model that is in its folder."""

    name: str
    action: Action
    bytes: int
    sha256: str
    sha256_stated: bool  # whether the manifest stated it; if not, this is the value that was found
    source: str
    revision: str | None
    mirror: bool


def fetch(
    models: Annotated[list[str] | None, typer.Argument(help="Names from the list, or `all`; none: the list")] = None,
    profile: Annotated[str | None, typer.Option(help="What a profile needs: cpu, onnx or gpu")] = None,
    to: Annotated[Path | None, typer.Option(help="Target folder; default $POLYLIP_WEIGHTS, else ./weights")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Take the files from here; no network")] = None,
    accept: Annotated[
        bool, typer.Option("--accept-non-commercial", help="Accept licences that forbid commercial use")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the files that are there already")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and stop")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output")] = False,
    manifest: Annotated[Path, typer.Option(help="Another manifest of this form", show_default=False)] = MANIFEST,
) -> None:
    """Download public weights, or list them.

    Each file is checked against its size and SHA-256, and each licence is printed and recorded. Interrupted downloads
    go on where they stopped.

    Example: polylip fetch s3fd wav2lip --accept-non-commercial
    """
    known = read_manifest(manifest)
    folder = to or Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)
    wanted = _chosen(known, models or [], profile)
    if not wanted or dry_run:
        _list(wanted or list(known.values()), folder, as_json)
        return
    for model in wanted:
        _show_licence(model)
    _demand_acceptance(wanted, folder, accept)
    try:
        with _getter(wanted, folder, source) as (action, get):
            _need_space_for(wanted, folder)
            results = [_hold(model, folder, verify, accept, action, get) for model in wanted]
    except KeyboardInterrupt as error:
        err.print(
            f"polylip: interrupted; what arrived is kept in {folder}, the same command goes on from there",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except OSError as error:
        raise InputError(f"cannot use {folder}: {error}") from error
    if as_json:
        content = [{"name": model.name, "files": list(map(asdict, held))} for model, held in results]
        print(json.dumps({"folder": str(folder), "models": content}))


def _chosen(known: dict[str, Model], names: list[str], profile: str | None) -> list[Model]:
    """The models asked for, in the order of the manifest."""
    if profile is not None and profile not in PROFILES:
        raise InputError(f"profile {profile!r} fetches nothing; those that do: {', '.join(PROFILES)}")
    unknown = [name for name in names if name != ALL and name not in known]
    if unknown:
        raise InputError(f"no weights are named {', '.join(unknown)}; there are: {', '.join(known)}")
    return [
        model
        for model in known.values()
        if ALL in names or model.name in names or (profile is not None and profile in model.profiles)
    ]


def _list(models: list[Model], folder: Path, as_json: bool) -> None:
    """One line per model; as JSON the same facts and more."""
    rows = [
        {
            "name": model.name,
            "kind": model.kind,
            "title": model.title,
            "bytes": model.known_bytes,
            "bytes_complete": model.all_sizes_known,
            "licence": model.licence.name,
            "licence_url": model.licence.url,
            "commercial_use": model.licence.commercial_use,
            "profiles": list(model.profiles),
            "page": model.page,
            "note": model.note,
            "present": _state(model, folder),
        }
        for model in models
    ]
    if as_json:
        print(json.dumps({"folder": str(folder), "models": rows}))
        return
    print(f"{'model':<22}{'size':>9}  {'commercial use':<16}{'here':<12}licence")
    for model, row in zip(models, rows, strict=True):
        use = "yes" if model.licence.commercial_use else "NO"
        print(f"{model.name:<22}{size_text(model):>9}  {use:<16}{row['present']:<12}{model.licence.name}")
    print(f"here: {folder}; fetch models by name, with --profile cpu, onnx or gpu, or all of them with `all`")


def size_text(model: Model) -> str:
    """`436 MB`; with `>` where not every size is known."""
    if not model.known_bytes:
        return "unknown"
    return f"{'' if model.all_sizes_known else '> '}{model.known_bytes / 1e6:.0f} MB"


def _state(model: Model, folder: Path) -> str:
    there = [_has_size(file, folder / model.name / file.name) for file in model.files]
    if not any(there):
        return "absent"
    return "present" if all(there) else "incomplete"


def _has_size(file: WeightFile, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == (file.bytes or path.stat().st_size)


def _show_licence(model: Model) -> None:
    licence = model.licence
    use = "" if licence.commercial_use else " - NO COMMERCIAL USE"
    _say(f"{model.name}: {licence.name}, {licence.url}{use}")
    if model.note:
        _say(f"  {model.note}")


def _demand_acceptance(models: list[Model], folder: Path, accept: bool) -> None:
    """Once: an acceptance is in the model's record."""
    closed = [
        model.name
        for model in models
        if not model.licence.commercial_use and not _read_record(_record(model, folder)).get(ACCEPTED)
    ]
    if closed and not accept:
        raise InputError(
            f"{', '.join(closed)} must not be used commercially; "
            "if you accept that, run the command again with --accept-non-commercial"
        )


@contextmanager
def _getter(models: list[Model], folder: Path, source: Path | None) -> Iterator[tuple[Action, Get]]:
    """How a missing file is got: from `source`, or from the network with a progress bar."""
    if source is not None:
        names = {name for model in models for file in model.files for name in (file.name, *file.aliases)}
        found = find_files(source, names)

        def taken(model: Model, file: WeightFile) -> Fetched:
            there = [path for name in (file.name, *file.aliases) for path in found.get(name, [])]
            return take(model, file, there, source, folder / model.name)

        yield "taken", taken
        return
    try:
        from polylip.export.fetch import Patience, download, new_client  # noqa: PLC0415  needs the extra `fetch`
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; run: pip install 'polylip[fetch]'") from error
    patience = Patience()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        new_client(patience) as client,
        Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar,
    ):

        def downloaded(model: Model, file: WeightFile) -> Fetched:
            shown = bar.add_task(f"{model.name}/{file.name}", total=file.bytes)

            def show(there: int, total: int | None) -> None:
                bar.update(shown, completed=there, total=total)

            try:
                return download(client, model, file, folder / model.name, patience, show, _say)
            finally:
                bar.remove_task(shown)

        yield "downloaded", downloaded


def _need_space_for(models: list[Model], folder: Path) -> None:
    """Before anything is fetched, so that a full disk is not found out after an hour."""
    missing = 0
    for model in models:
        for file in model.files:
            path = folder / model.name / file.name
            part = path.with_name(f"{path.name}.part")
            if not path.exists():
                missing += max(0, (file.bytes or 0) - (part.stat().st_size if part.exists() else 0))
    if missing:
        need_space(folder, missing)


def _hold(model: Model, folder: Path, verify: bool, accept: bool, action: Action, get: Get) -> tuple[Model, list[Held]]:
    """Every file of the model in its folder, checked, and the record beside the folder."""
    record = _record(model, folder)
    before = _read_record(record)
    recorded: dict[str, dict[str, Any]] = {file["name"]: file for file in before.get("files", [])}
    held: list[Held] = []
    for file in model.files:
        path = folder / model.name / file.name
        if path.exists():
            held.append(_present(file, path, recorded.get(file.name), verify))
        else:
            held.append(_held(file, action, get(model, file)))
        _report(model, held[-1])
    accepted = before.get(ACCEPTED) or (_now() if accept and not model.licence.commercial_use else None)
    if accepted != before.get(ACCEPTED) or any(recorded.get(file.name) != _facts(file) for file in held):
        _write_record(record, model, held, accepted)
    return model, held


def _present(file: WeightFile, path: Path, recorded: dict[str, Any] | None, verify: bool) -> Held:
    """A file that is there: its size is compared, its hash where asked for or not yet recorded. Changes nothing."""
    size = path.stat().st_size
    before = recorded or {}
    expected = file.bytes or before.get("bytes", size)
    if not path.is_file() or size != expected:
        raise MismatchError(f"{path} has {size} bytes, expected {expected}; move it away and run the command again")
    known = before.get("sha256")
    if verify or known is None or (file.sha256 is not None and known != file.sha256):
        found = hash_file(path)
        demand_hash(file, found, str(path))
        if file.sha256 is None and known is not None and found != known:
            raise MismatchError(f"{path} has SHA-256 {found}, expected {known} as recorded when it was fetched")
        known = found
    return Held(
        file.name,
        "present",
        size,
        known,
        file.sha256 is not None,
        before.get("source", "was there already"),
        before.get("revision"),
        bool(before.get("mirror", False)),
    )


def _held(file: WeightFile, action: Action, got: Fetched) -> Held:
    stated = file.sha256 is not None
    return Held(file.name, action, got.bytes, got.sha256, stated, got.source, got.revision, got.mirror)


def _report(model: Model, held: Held) -> None:
    origin = " from a mirror" if held.mirror and held.action == "downloaded" else ""
    _say(f"{held.action}{origin}: {model.name}/{held.name}, {held.bytes} bytes")
    if not held.sha256_stated and held.action != "present":
        _say(f"  no SHA-256 is stated for it; found {held.sha256}, recorded for next time but compared with nothing")


def _facts(held: Held) -> dict[str, Any]:
    """What is recorded of a file; not what this run did."""
    return {key: value for key, value in asdict(held).items() if key != "action"}


def _record(model: Model, folder: Path) -> Path:
    return folder / f"{model.name}.json"


def _read_record(record: Path) -> dict[str, Any]:
    """An earlier record; empty when there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return content if content["format"] == RECORD_FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_record(record: Path, model: Model, held: list[Held], accepted: str | None) -> None:
    content = {
        "format": RECORD_FORMAT,
        "model": model.name,
        "page": model.page,
        "licence": asdict(model.licence),
        ACCEPTED: accepted,
        "fetched_at": _now(),
        "files": list(map(_facts, held)),
    }
    write_atomic(record, (json.dumps(content, indent=2) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(message: str) -> None:
    """To standard error: standard output is for the list and for JSON."""
    err.print(message, markup=False, highlight=False, soft_wrap=True)
