"""The log of live jobs: in a call each line begins with the name of the participant whom it is about."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

log = logging.getLogger("polylip.live")


class NamedLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the name in front; without one, lines stay as they are."""

    def __init__(self, name: str | None) -> None:
        super().__init__(log, {})
        self._front = f"{name}: " if name is not None else ""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return f"{self._front}{msg}", kwargs
