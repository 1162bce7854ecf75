"""Whether a running server can work: `python -m polylip.serving.healthcheck [URL]` infers and exits with 0 or 1.

Each ensemble that is served is called once, and with it every model; readiness alone stays true when a Python model
has died. For a container's HEALTHCHECK; what it costs is in docs/docker.md.
"""

from __future__ import annotations

import argparse
import sys
import time

from polylip.serving.errors import MissingError
from polylip.serving.probe import is_ready, loaded_models, probe_models
from polylip.serving.runtime import find_model_repository

URL = "127.0.0.1:8001"
TIMEOUT_S = 20.0  # of the whole check: a segment of 10 s that is being worked on comes first in its queue
ENSEMBLES = ("faces", "lipsync", "speech")  # together they hold every model


def find_failure(url: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """What is wrong with the server, in one line; None when every ensemble answered within the time."""
    deadline = time.monotonic() + timeout_s
    if not is_ready(url):
        return f"the server at {url} is not ready"
    for name in [name for name in ENSEMBLES if name in loaded_models(url)]:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return f"not done within {timeout_s:g} s; next was {name}"
        failure = probe_models(url, find_model_repository(), left_s, [name])
        if failure is not None:
            return failure
    return None


def main() -> int:
    """0 when the server works, else 1 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m polylip.serving.healthcheck", description=find_failure.__doc__)
    parser.add_argument("url", nargs="?", default=URL, help=f"host:port of the server's gRPC; default {URL}")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help=f"seconds in all; default {TIMEOUT_S:g}")
    arguments = parser.parse_args()
    try:
        failure = find_failure(arguments.url, arguments.timeout)
    except MissingError as error:
        failure = str(error)
    if failure is not None:
        print(failure, file=sys.stderr)
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
