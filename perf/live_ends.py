"""The two ends of a live run: a camera that plays a clip in real time, over and over, and a player that takes times.

`python -m polylip.perf.live_ends camera CLIP URL SECONDS` sends the clip's own packets as MPEG-TS.
`python -m polylip.perf.live_ends player URL OUT.jsonl` writes a line per packet: stream, time in the stream, arrival.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

OPEN_TIMEOUT_S = 60.0  # of the player: a live job says nothing before its delay is over
ROUND_GAP_S = Fraction(1, 5)  # between rounds: the first packets of a clip have times before 0
CONNECT_S = 120.0  # for which the camera tries to reach its receiver


def camera(clip: Path, url: str, seconds: float) -> None:
    """Send `clip` again and again for `seconds`, each packet at its time."""
    with av.open(str(clip)) as source:
        out, streams = _connected(url, [source.streams.video[0], source.streams.audio[0]])
        started = time.monotonic()
        with out:
            for packet, at_s in _packets(clip, set(streams), seconds):
                time.sleep(max(0.0, started + at_s - time.monotonic()))
                packet.stream = streams[packet.stream.index]
                out.mux_one(packet)


def _connected(url: str, sources: list[Any]) -> tuple[Any, dict[int, Any]]:
    """The open output and its streams by the sources' numbers; its receiver may come a little later."""
    until = time.monotonic() + CONNECT_S
    while True:
        out = av.open(url, "w", format="mpegts", options={"flush_packets": "1"})
        streams = {source.index: out.add_stream_from_template(source) for source in sources}
        try:
            out.start_encoding()
            return out, streams
        except av.FFmpegError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _packets(clip: Path, indices: set[int], seconds: float) -> Iterator[tuple[Any, float]]:
    """Packets with rising times over all rounds, each with the second at which it is to be sent."""
    round_s = Fraction(0)
    while True:
        end_s = round_s
        with av.open(str(clip)) as container:
            for packet in container.demux():
                if packet.dts is None or packet.stream.index not in indices:
                    continue
                shift = round(round_s / packet.time_base)
                packet.dts += shift
                packet.pts += shift
                end_s = max(end_s, (packet.pts + (packet.duration or 0)) * packet.time_base)
                at_s = float(packet.dts * packet.time_base)
                if at_s >= seconds:
                    return
                yield packet, at_s
        round_s = end_s + ROUND_GAP_S


def player(url: str, out: Path) -> None:
    """Read until the stream ends, decoding nothing."""
    timeout = (OPEN_TIMEOUT_S, OPEN_TIMEOUT_S)
    with out.open("w", encoding="utf-8") as lines, suppress(av.FFmpegError), av.open(url, timeout=timeout) as container:
        for packet in container.demux():
            if packet.pts is not None:
                time_s = float(packet.pts * packet.time_base)
                line = {"stream": packet.stream.type, "time_s": time_s, "arrived_s": time.monotonic()}
                lines.write(json.dumps(line) + "\n")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["camera", clip, url, seconds]:
            camera(Path(clip), url, float(seconds))
        case ["player", url, out]:
            player(url, Path(out))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
