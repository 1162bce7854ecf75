"""The child of a live sink: NUT on standard input, preceded by one line of JSON, goes out to a URL unchanged.

It exists to be killed: FFmpeg's output protocols cannot be interrupted in the process that encodes.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

import av

from polylip.client.media_probe import reason

PROBE_BYTES = "5000000"  # most that is read before the streams are known: their header, and the first picture


class _Input:
    """What comes is handed on at once, not when a buffer is full."""

    def __init__(self, stream: Any) -> None:
        self.read = stream.read1


def relay(stream: BinaryIO) -> None:
    """Until the input ends. Raises av.FFmpegError and OSError."""
    order = json.loads(stream.readline())
    source = av.open(_Input(stream), format="nut", options={"probesize": PROBE_BYTES, "analyzeduration": "0"})
    target = av.open(order["url"], "w", format=order["format"], options=order["options"])
    target.metadata.update(order["tags"])
    streams = {stream.index: target.add_stream_from_template(stream, opaque=True) for stream in source.streams}
    target.start_encoding()
    print("r", end="", flush=True)  # connected
    for packet in source.demux():
        if packet.size:
            packet.stream = streams[packet.stream_index]
            target.mux(packet)
    target.close()


def main() -> int:
    """Exit status; the reason of a failure is the last line on standard error."""
    try:
        relay(sys.stdin.buffer)
    except av.error.ProtocolNotFoundError:
        print("this build of FFmpeg lacks the protocol; for srt send udp:// to srt-live-transmit", file=sys.stderr)
        return 1
    except (av.FFmpegError, OSError, ValueError) as error:
        print(reason(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
