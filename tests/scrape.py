"""One look at the metrics endpoint of a real server: values by name and labels."""

from __future__ import annotations

import re
import urllib.request

from polylip.serving.launcher import Server

_LINE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Scrape:
    """What one server says of itself now."""

    def __init__(self, server: Server) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=10) as reply:
            self.text = reply.read().decode()
        lines = [_LINE.fullmatch(line) for line in self.text.splitlines() if not line.startswith("#")]
        self.values = {
            (match["name"], frozenset(_LABEL.findall(match["labels"] or ""))): float(match["value"])
            for match in lines
            if match
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The value of one series; KeyError where there is none."""
        return self.values[f"polylip_{name}", frozenset(labels.items())]

    def labels(self, name: str) -> set[frozenset[tuple[str, str]]]:
        """The label sets of a family."""
        return {labels for found, labels in self.values if found == f"polylip_{name}"}
