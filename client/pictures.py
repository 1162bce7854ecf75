"""Where the branches get their pictures from: a file, or a live source."""

from __future__ import annotations

from typing import Any, Protocol


class PictureReader(Protocol):
    """Decoded pictures in presentation order."""

    damaged: int  # packets skipped so far

    def read(self, count: int) -> list[tuple[float, Any]]:
        """Up to `count` further (time_ms, av.VideoFrame), at least one; none at the end."""
