"""The stable codes of `dub`: refusals, which end a request with an error, and statuses, which are part of an answer.

docs/protocol.md shows both tables.
"""

from __future__ import annotations

import re
from enum import StrEnum

_CODE = re.compile(r"\bcode=([a-z_]+)")
_RETRY = re.compile(r"\bretry_after_ms=(\d+)")


class Refusal(StrEnum):
    """Why the gate took a request not at all. The values never change their meaning."""

    FULL = "full"
    DRAINING = "draining"
    TAKEN = "taken"
    SEQUENCE_LOST = "sequence_lost"
    BAD_REQUEST = "bad_request"


class DubStatus(StrEnum):
    """How a segment ended. The values never change their meaning."""

    OK = "ok"
    NO_SPEECH = "no_speech"
    UNSUPPORTED = "unsupported"
    BAD_AUDIO = "bad_audio"
    BAD_FRAMES = "bad_frames"
    SPEECH_FAILED = "speech_failed"
    PICTURE_FAILED = "picture_failed"
    CANCELLED = "cancelled"


REFUSALS = {
    Refusal.FULL: (
        "every slot is taken",
        "wait `retry_after_ms`, then ask with a new `x-stream-id`: a proxy may know another server",
    ),
    Refusal.DRAINING: (
        "the server takes no new streams, it is about to stop",
        "ask at once with a new `x-stream-id` on a new connection: a proxy knows another server",
    ),
    Refusal.TAKEN: (
        "START with the id of a live stream, which goes on unless the request had END too",
        "draw another id",
    ),
    Refusal.SEQUENCE_LOST: (
        "no START came before, the stream has ended, or was idle for longer than its budget",
        "START with a new id",
    ),
    Refusal.BAD_REQUEST: ("START without a timeout, or an id that is 0", "mend the client"),
}
STATUSES = {
    DubStatus.OK: ("spoken; mouths for every frame that shows the face", "all"),
    DubStatus.NO_SPEECH: ("nothing was said, or nothing that can be trusted", "no voice, no mouths; tracks"),
    DubStatus.UNSUPPORTED: ("a language or pair that the engines lack; MESSAGE lists what they have", "tracks"),
    DubStatus.BAD_AUDIO: ("AUDIO, VOICE or an option cannot be used; MESSAGE says why", "texts are empty; tracks"),
    DubStatus.BAD_FRAMES: ("a frame is not the JPEG that it must be, or its time goes back", "texts and voice"),
    DubStatus.SPEECH_FAILED: ("an engine of the speech branch failed", "tracks"),
    DubStatus.PICTURE_FAILED: ("detection or lips failed", "texts and voice"),
    DubStatus.CANCELLED: ("nobody waits for it any more", "nothing"),
}


class RefusedError(ValueError):
    """The gate's answer to a request that it does not take. The text is what clients read the code from."""

    def __init__(self, code: Refusal, message: str, retry_after_ms: int | None = None) -> None:
        retry = "" if retry_after_ms is None else f" retry_after_ms={retry_after_ms}"
        super().__init__(f"code={code}{retry}: {message}")
        self.code = code


def read_refusal(message: str) -> tuple[str, int | None]:
    """The code in an error of the server, empty where there is none, and how long to wait before the next try."""
    code, retry = _CODE.search(message), _RETRY.search(message)
    return code[1] if code else "", int(retry[1]) if retry else None


def refusals_markdown() -> str:
    """The table of docs/protocol.md."""
    rows = [f"| `{code}` | {what} | {remedy} |" for code, (what, remedy) in REFUSALS.items()]
    return "\n".join(["| code | what happened | what to do |", "|---|---|---|", *rows])


def statuses_markdown() -> str:
    """The table of docs/protocol.md."""
    rows = [f"| `{status}` | {what} | {parts} |" for status, (what, parts) in STATUSES.items()]
    return "\n".join(["| STATUS | what happened | what the answer holds |", "|---|---|---|", *rows])
