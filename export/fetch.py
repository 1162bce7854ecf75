"""Downloading one file of weights from the places that have it.

A download goes into `<name>.part`, goes on where it stopped, and becomes the file only when size and SHA-256 are right.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from polylip.client.errors import InputError, PolylipError
from polylip.export.manifest import LOOPBACK, SHA256, Model, Place, WeightFile
from polylip.export.weight_files import (
    Fetched,
    MismatchError,
    demand_hash,
    feed,
    hash_file,
    need_space,
    replace,
)

UNSTATED_LIMIT_BYTES = 1 << 30  # for files whose size nobody stated: the largest Opus-MT model has a third of it
MAX_REDIRECTS = 5
MAX_PAUSE_S = 60.0
COMMIT = re.compile(r"[0-9a-f]{40}")
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that pass by themselves
TOKEN_HOST = "huggingface.co"  # noqa: S105  the only host that is sent the token
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105  the name of a variable

Progress = Callable[[int, int | None], None]  # bytes there, bytes in all
Tell = Callable[[str], None]  # one line for a person, before a pause


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try one place."""

    tries: int = 5
    first_pause_s: float = 1.0  # doubled after each try
    connect_s: float = 15.0
    read_s: float = 60.0


@dataclass(frozen=True)
class Trail:
    """What is known of a `.part` file: which content of which address it is the start of."""

    url: str
    etag: str | None = None  # strong ones only
    linked_etag: str | None = None  # Hugging Face's name of what is behind its redirect; the SHA-256 of large files
    commit: str | None = None


class FetchError(PolylipError):
    """No place gave the file; the message says what each one answered and how to get it by hand."""

    exit_code = 3


class _RefusedError(Exception):
    """This place cannot give the file; another one may."""


class _AgainError(Exception):
    """The place may give it later."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


def new_client(patience: Patience) -> httpx.Client:
    """A client for `download`; redirects are followed there, where each address is looked at first."""
    timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
    headers = {"Accept-Encoding": "identity", "User-Agent": "polylip"}
    return httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)


def download(
    client: httpx.Client,
    model: Model,
    file: WeightFile,
    folder: Path,
    patience: Patience,
    progress: Progress,
    tell: Tell,
) -> Fetched:
    """`file` from the first of the model's places that gives it. Raises FetchError; keeps what arrived in the .part."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = []
    path = folder / f"{file.name}.part"
    with _held(path) as part:
        for place in model.places:
            try:
                return _Download(client, place, file, part, path, patience, progress, tell).run()
            except _RefusedError as refusal:
                answers.append(f"{urlsplit(place.url).hostname}: {refusal}")
    raise FetchError(
        f"{file.name} of {model.name} was not fetched ({'; '.join(answers)}); "
        f"get it from {model.page} and run: polylip fetch {model.name} --from FOLDER"
    )


class _Download:
    """One file from one place: tries, resumes, checks and publishes."""

    def __init__(
        self,
        client: httpx.Client,
        place: Place,
        file: WeightFile,
        part: io.FileIO,
        path: Path,
        patience: Patience,
        progress: Progress,
        tell: Tell,
    ) -> None:
        self._client = client
        self._place = place
        self._file = file
        self._part = part
        self._path = path
        self._progress = progress
        self._patience = patience
        self._tell = tell
        self._url = place.url_of(file.name)
        self._resumed = False

    def run(self) -> Fetched:
        for _ in range(2):  # once more from the beginning when what was there before began something else
            self._resumed = False
            digest, trail = self._with_tries()
            try:
                return self._publish(digest, trail)
            except MismatchError as error:
                mismatch = error
                self._discard()
            if not self._resumed:
                break
        raise _RefusedError(str(mismatch)) from mismatch

    def _with_tries(self) -> tuple[str, Trail]:
        pause_s = self._patience.first_pause_s
        for left in reversed(range(self._patience.tries)):
            try:
                return self._transfer()
            except (httpx.TransportError, httpx.InvalidURL, _AgainError) as error:
                reason = str(error) or type(error).__name__
                if not left:
                    kept = self._path.stat().st_size
                    tail = f"; {kept} bytes are kept in {self._path.name}, run the same command again" if kept else ""
                    raise _RefusedError(f"{reason}, {self._patience.tries} tries{tail}") from error
                asked = error.pause_s if isinstance(error, _AgainError) else None
                wait_s = min(asked if asked is not None else pause_s, MAX_PAUSE_S)
                self._tell(f"{self._file.name}: {reason}; again in {wait_s:.0f} s")
                time.sleep(wait_s)
                pause_s *= 2
        raise AssertionError("unreachable: the last try raises")

    def _transfer(self) -> tuple[str, Trail]:
        """Bring the .part to its full length; the SHA-256 of it and its trail."""
        start = self._start_of_part()
        trail = _read_trail(self._path)
        if trail is not None and start and start == self._file.bytes:
            self._resumed = True
            return hash_file(self._path), trail
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if trail is not None and trail.etag and trail.url == self._url:
                headers["If-Range"] = trail.etag
        response, now = self._open(headers)
        try:
            if start and not _continues(response, start, trail, now):
                if response.status_code != HTTPStatus.OK:
                    self._discard()
                    raise _AgainError("the file there has changed", 0.0)
                start = 0
            self._resumed = self._resumed or start > 0
            if not start:
                self._discard()
                _write_trail(self._path, now)
            total = self._total(response, start)
            need_space(self._path.parent, (total or start) - start)
            return self._receive(response, start, total), now
        finally:
            response.close()

    def _start_of_part(self) -> int:
        """Bytes of the .part to go on from; 0 where it may be the start of something else."""
        start = self._path.stat().st_size
        trail = _read_trail(self._path)
        if trail is None or start > (self._file.bytes or start):
            return 0
        same = trail.url == self._url and bool(trail.etag or trail.linked_etag)
        return start if self._file.sha256 is not None or same else 0

    def _open(self, headers: Mapping[str, str]) -> tuple[httpx.Response, Trail]:
        """The answer to a GET after its redirects, none of which may leave https."""
        url, commit, linked = self._url, None, None
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request("GET", url, headers={**headers, **token_header(url)})
            response = self._client.send(request, stream=True)
            commit = commit or _commit_of(response)
            linked = linked or response.headers.get("x-linked-etag")
            if not response.has_redirect_location:
                self._check_status(response, commit)
                etag = response.headers.get("etag")
                strong = etag if etag and not etag.startswith("W/") else None
                return response, Trail(self._url, strong, linked, commit)
            response.close()
            url = urljoin(url, response.headers["location"])
            if not _permitted(url, self._url):
                raise _RefusedError("it redirects to an address without https")
        raise _RefusedError(f"more than {MAX_REDIRECTS} redirects")

    def _check_status(self, response: httpx.Response, commit: str | None) -> None:
        status = response.status_code
        reason = f"{status} {response.reason_phrase}".strip()
        pinned = self._place.revision if COMMIT.fullmatch(self._place.revision or "") else None
        try:
            if status in RETRIED:
                asked = response.headers.get("retry-after", "")
                raise _AgainError(reason, float(asked) if asked.isdecimal() else None)
            if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                hint = f"; set {TOKEN_VARIABLE}" if urlsplit(self._url).hostname == TOKEN_HOST else ""
                raise _RefusedError(reason + hint)
            ranged = status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "range" in response.request.headers
            if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT} and not ranged:
                raise _RefusedError(reason)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _RefusedError("it sends the file in another encoding")
            if pinned and commit and commit != pinned:
                raise _RefusedError(f"it answers with revision {commit} instead of {pinned}")
        except (_RefusedError, _AgainError):
            response.close()
            raise

    def _total(self, response: httpx.Response, start: int) -> int | None:
        length = response.headers.get("content-length", "")
        total = start + int(length) if length.isdecimal() else None
        limit = self._file.bytes or UNSTATED_LIMIT_BYTES
        if total is not None and (total > limit or (self._file.bytes is not None and total != self._file.bytes)):
            self._discard()
            expected = f"{self._file.bytes} are stated" if self._file.bytes else f"at most {limit} are taken"
            raise _RefusedError(f"it offers {total} bytes, {expected}")
        if total is None and self._file.bytes is None and self._file.sha256 is None:
            raise _RefusedError("it does not say how long the file is, so a cut one would not be noticed")
        return total or self._file.bytes

    def _receive(self, response: httpx.Response, start: int, total: int | None) -> str:
        limit = self._file.bytes or UNSTATED_LIMIT_BYTES
        digest = sha256()
        self._part.seek(0)
        feed(self._part, digest)
        there = start
        self._progress(there, total)
        for (
            chunk
        ) in response.iter_raw():  # as they come: a chunk size would hold back what a dropped connection brought
            there += len(chunk)
            if there > limit:
                self._discard()
                raise _RefusedError(f"it sends more than {limit} bytes")
            self._part.write(chunk)
            digest.update(chunk)
            self._progress(there, total)
        if total is not None and there < total:
            raise _AgainError(f"it stopped after {there} of {total} bytes")
        return digest.hexdigest()

    def _publish(self, digest: str, trail: Trail) -> Fetched:
        demand_hash(self._file, digest, self._file.name)
        linked = (trail.linked_etag or "").strip('"')
        if SHA256.fullmatch(linked) and linked != digest:
            raise MismatchError(f"{self._file.name} has SHA-256 {digest}, the place itself states {linked}")
        os.fsync(self._part.fileno())
        size = self._path.stat().st_size
        replace(self._path, self._path.with_name(self._file.name))
        _trail_path(self._path).unlink(missing_ok=True)
        return Fetched(size, digest, self._url, trail.commit or self._place.revision, self._place.mirror)

    def _discard(self) -> None:
        self._part.seek(0)
        self._part.truncate()
        _trail_path(self._path).unlink(missing_ok=True)


def token_header(url: str) -> dict[str, str]:
    """Hugging Face's token from the environment, for Hugging Face itself and nobody it redirects to."""
    parts = urlsplit(url)
    token = os.environ.get(TOKEN_VARIABLE)
    if not token or parts.scheme != "https" or parts.hostname != TOKEN_HOST:
        return {}
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def _held(path: Path) -> Iterator[io.FileIO]:
    """The .part file, for this process alone; removed at the end when nothing is in it."""
    with io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another fetch is writing {path}; wait until it has ended") from error
        try:
            yield part
        finally:
            if path.exists() and not path.stat().st_size:
                path.unlink()
                _trail_path(path).unlink(missing_ok=True)


def _continues(response: httpx.Response, start: int, before: Trail | None, now: Trail) -> bool:
    """Whether the answer is the rest of the very content that the .part begins with."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT or before is None:
        return False
    if not response.headers.get("content-range", "").startswith(f"bytes {start}-"):
        return False
    pairs = ((before.linked_etag, now.linked_etag), (before.etag, now.etag)) if before.url == now.url else ()
    return next((old == new for old, new in pairs if old and new), True)


def _permitted(url: str, first: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    return parts.scheme == "http" and parts.hostname in LOOPBACK and urlsplit(first).hostname in LOOPBACK


def _commit_of(response: httpx.Response) -> str | None:
    value = response.headers.get("x-repo-commit", "")
    return value if COMMIT.fullmatch(value) else None


def _trail_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_trail(part: Path) -> Trail | None:
    try:
        content: dict[str, Any] = json.loads(_trail_path(part).read_text(encoding="utf-8"))
        return Trail(**content)
    except (OSError, ValueError, TypeError):
        return None


def _write_trail(part: Path, trail: Trail) -> None:
    _trail_path(part).write_text(json.dumps(asdict(trail)), encoding="utf-8")
