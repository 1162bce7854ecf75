"""What servers and a proxy have counted of a load: they count a request a moment after they have answered it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from polylip.perf.capacity_proxy import Asked, BalancedProxy, ModelCount, model_counts
from polylip.serving.launcher import Server

COUNTED_S = 10.0  # at most

Counts = TypeVar("Counts")


def asked_for(proxy: BalancedProxy, calls: int) -> Asked:
    """What the proxy was asked, once it knows of so many calls that were answered well."""
    return _once(proxy.asked, lambda asked: asked.calls.total() >= calls)


def served_since(
    before: Sequence[Mapping[str, ModelCount]], servers: Sequence[Server], requests: Mapping[str, int]
) -> list[dict[str, int]]:
    """By server and model, what was answered since `before`, once it is as many requests in all as given."""

    def served() -> list[dict[str, int]]:
        after = [model_counts(server.url) for server in servers]
        return [
            {model: new[model].requests - old[model].requests for model in requests}
            for old, new in zip(before, after, strict=True)
        ]

    return _once(served, lambda now: all(sum(own[model] for own in now) >= requests[model] for model in requests))


def _once(read: Callable[[], Counts], true: Callable[[Counts], bool]) -> Counts:
    deadline = time.monotonic() + COUNTED_S
    while not true(found := read()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
