"""A web server on loopback that serves one file, well or badly, and logs what it was asked."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

BODY = Random(7).randbytes(900_000)  # noqa: S311  any bytes
DIGEST = sha256(BODY).hexdigest()
HALF = len(BODY) // 2
COMMIT = "c" * 40


@dataclass
class Behaviour:
    """How the server answers; `cuts` are the bytes after which the next answers break off."""

    body: bytes = BODY
    ranges: bool = True
    etag: str | None = '"one"'
    if_range: bool = True  # whether If-Range is obeyed
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # answered first, one per request
    location: str | None = None
    length: bool = True
    commit: str | None = None
    linked: str | None = None
    stall: bool = False  # stop sending after half until the client has gone


class Site:
    """A server on loopback with its own log of requests."""

    def __init__(self) -> None:
        self.answers = Behaviour()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stalled = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
                site.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        how = self.answers
        if how.statuses:
            to.send_response(how.statuses.pop(0))
            to.send_header("Retry-After", "0")
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        if how.location and not to.path.startswith("/behind"):
            to.send_response(302)
            to.send_header("Location", how.location)
            if how.linked:
                to.send_header("X-Linked-Etag", how.linked)
            to.end_headers()
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range", ""))
        fits = not how.if_range or to.headers.get("If-Range", how.etag) == how.etag
        if asked and how.ranges and fits:
            start = int(asked[1])
        to.send_response(206 if start else 200)
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(how.body) - 1}/{len(how.body)}")
        if how.length:
            to.send_header("Content-Length", str(len(how.body) - start))
        if how.etag:
            to.send_header("ETag", how.etag)
        if how.commit:
            to.send_header("X-Repo-Commit", how.commit)
        to.end_headers()
        end = how.cuts.pop(0) if how.cuts else len(how.body)
        if how.stall:
            to.wfile.write(how.body[:HALF])
            self.stalled.set()
            to.connection.settimeout(20)
            to.connection.recv(1)  # returns when the client has gone
            return
        to.wfile.write(how.body[start:end])

    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
