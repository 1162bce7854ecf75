"""How many streams a tritonserver still serves, read from its metrics endpoint."""

from __future__ import annotations

import http.client
import re
import urllib.request
from dataclasses import dataclass

TIMEOUT_S = 2.0
POLL_S = 0.5  # between two looks at a server that drains
# Models that hold a state per stream of the same caller: the gate and the join of `dub` count its streams twice.
_LIVE = re.compile(r'^polylip_live_sequences\{(?:[^}]*,)?model="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)
_PENDING = re.compile(r"^nv_inference_pending_request_count\{[^}]*\} (\S+)$", re.MULTILINE)
ONE_STREAM = ("gate", "join")


@dataclass(frozen=True)
class Load:
    """What would be cut off if the server ended now; requests in flight are ended by tritonserver itself."""

    streams: int  # sequences that live; a client's own between two segments too
    waiting: int  # requests in queues

    @property
    def idle(self) -> bool:
        return self.streams == 0 and self.waiting == 0


def read_load(metrics_url: str) -> Load:
    """Raises OSError when the endpoint does not answer."""
    return parse_load(read_metrics(metrics_url))


def read_metrics(url: str) -> str:
    """Raises OSError when the endpoint does not answer."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the environment's proxy is for the web
    try:
        with direct.open(url, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except http.client.HTTPException as error:
        raise OSError(f"{url} speaks no HTTP ({type(error).__name__})") from None


def parse_load(metrics: str) -> Load:
    """From the text of the endpoint. A gauge that is not there counts as 0."""
    live: dict[str, int] = {}
    for model, value in _LIVE.findall(metrics):
        live[model] = live.get(model, 0) + round(float(value))
    dub = max((live.pop(model, 0) for model in ONE_STREAM), default=0)
    return Load(dub + sum(live.values()), sum(round(float(value)) for value in _PENDING.findall(metrics)))
