"""The trace of a media stream: all its requests share one trace id, which follows from the stream's id.

So whoever has the id of a stream, from a report or a log line, finds its spans. See docs/observability.md.
"""

from __future__ import annotations

from hashlib import sha256

TRACEPARENT_KEY = (
    "traceparent"  # metadata, as W3C Trace Context has it; tritonserver takes it as the parent of its spans
)
SAMPLED = "01"


def trace_id(stream_id: str) -> str:
    """32 hexadecimal digits."""
    return traceparent(stream_id).split("-")[1]


def traceparent(stream_id: str) -> str:
    """The value of the metadata."""
    digits = sha256(stream_id.encode()).hexdigest()
    return f"00-{digits[:32]}-{digits[32:48]}-{SAMPLED}"
