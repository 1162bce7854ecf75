"""What a live job shows while it runs: one line that says how it stands, and the figures behind it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TextIO

from rich.console import Console
from rich.text import Text

LATE_MS = 100  # of a packet: from here on a player may stutter


@dataclass(frozen=True)
class LiveStatus:
    """One look at a live job. Times are seconds or milliseconds as named."""

    state: str  # what it is doing
    media_s: float = 0.0  # of the source, as far as it has come
    delay_s: float = 0.0  # fixed: source to output
    lag_ms: float = 0.0  # of the newest packet sent, behind its time; must not grow
    ready_s: float = 0.0  # rendered and waiting for its time
    level: str = "full"  # of the ladder
    segments: int = 0
    dubbed: int = 0
    captioned: int = 0
    passed: int = 0  # segments whose original passed, for whatever reason
    pictures_without_lips: int = 0  # under a dub, as the mouths did not come in time
    packets_dropped: int = 0  # by the source's ring and by the receiver

    def line(self) -> Text:
        """For a terminal."""
        minutes, seconds = divmod(int(self.media_s), 60)
        text = Text(f"{self.state}  {minutes}:{seconds:02d}  delay {self.delay_s:g} s  ")
        text.append(f"lag {self.lag_ms:.0f} ms", style="red" if self.lag_ms > LATE_MS else "")
        text.append(f"  ready {self.ready_s:.1f} s  ")
        text.append(self.level.replace("_", " "), style="green" if self.level == "full" else "yellow")
        text.append(f"  dubbed {self.dubbed}/{self.segments}")
        for name, count in (
            ("captions", self.captioned),
            ("passed", self.passed),
            ("without lips", self.pictures_without_lips),
            ("dropped", self.packets_dropped),
        ):
            if count:
                text.append(f"  {name} {count}", style="yellow")
        return text


class StatusDisplay:
    """Shows each status in one line of a terminal, or as lines of JSON where a program reads them."""

    EVERY = 20  # statuses between two lines where neither a terminal nor JSON is asked for

    def __init__(self, console: Console, json_lines: TextIO | None = None) -> None:
        self._console = console
        self._json = json_lines
        self._count = 0
        self._shown = console.status("starting") if console.is_terminal and json_lines is None else None

    def __enter__(self) -> StatusDisplay:
        if self._shown is not None:
            self._shown.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown is not None:
            self._shown.stop()

    def show(self, status: LiveStatus) -> None:
        """The newest one."""
        if self._json is not None:
            self._json.write(json.dumps(asdict(status)) + "\n")
            self._json.flush()
        elif self._shown is not None:
            self._shown.update(status.line())
        elif self._count % self.EVERY == 0:
            self._console.print(status.line(), soft_wrap=True)
        self._count += 1
