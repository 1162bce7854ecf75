"""What the models write to the server's log about a request: where it failed and for which stream, never its content.

The message of an exception may quote what was said, so it goes to the caller alone.
"""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of this project's packages
NOBODY = "-"  # in place of a stream's id
DEPTH = 3  # causes that are named
_STREAM_ID = re.compile(r"[!-~]{1,128}")  # as the client's: printable, no spaces, so a line stays a line


def cause(error: BaseException) -> str:
    """The classes of an exception and of what led to it, each with the line that raised it; without their messages."""
    found: list[str] = []
    link: BaseException | None = error
    while link is not None and len(found) < DEPTH:
        found.append(_one(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return ", caused by ".join(found)


def named(stream: str) -> str:
    """How a log line names a stream."""
    return f"stream {stream if _STREAM_ID.fullmatch(stream) else NOBODY}"


def _one(error: BaseException) -> str:
    said = type(error).__name__
    if isinstance(error, OSError) and error.errno:
        said += f" ({os.strerror(error.errno)})"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return said
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    places = dict.fromkeys(_place(frame) for frame in (*ours[-1:], frames[-1]))
    return f"{said} at {', in '.join(places)}"


def _place(frame: traceback.FrameSummary) -> str:
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
