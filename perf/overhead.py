"""What Triton, gRPC and the client add to a segment: `python -m polylip.perf.overhead [--profile lite]`.

The requests that the client sends for one segment are recorded, and then answered one at a time, in turns: by the same
engines in this process, and by the server over the client's lines. See docs/baseline.md.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polylip.client.errors import PolylipError
from polylip.client.job import DubOptions, dub
from polylip.client.lines import Line as ServerLine
from polylip.client.pending import Pending
from polylip.client.results import Report, Status
from polylip.client.triton import TritonClient
from polylip.client.wire import Inputs, SequencePosition, new_sequence_id
from polylip.perf import experiment, server_work
from polylip.perf.baseline_engines import Engines
from polylip.perf.baseline_runs import SOURCE, TARGET, cut_clip
from polylip.perf.demo_clip import START_S, make_demo_clip
from polylip.perf.experiment import Result, Setup
from polylip.serving import steps
from polylip.serving.isochrony import Slot, parse_fit
from polylip.serving.launcher import running_server
from polylip.serving.mel import mel_windows
from polylip.serving.speaking import Line
from polylip.serving.tracking import Tracker

TITLE = "What the server adds to a segment"
SEGMENT_S = 3.0  # a sentence of the demo clip, with 75 frames
WHOLE_S = 6.0  # of the demo clip that it is cut from
TIMEOUT_S = 120.0
ALLOWED_MS, ALLOWED_SHARE = 20.0, 0.05  # of the segment's duration: the target is either of them
MODELS = ("transcribe", "translate", "synthesize", "detect", "track", "mel", "lips")


@dataclass(frozen=True)
class Request:
    """What the client sent."""

    model: str
    inputs: Inputs
    sequence: SequencePosition | None

    @property
    def sent_bytes(self) -> int:
        """Of its tensors."""
        return sum(np.asarray(value).nbytes for value in self.inputs.values())


@contextmanager
def recorded() -> Iterator[list[Request]]:
    """The requests that any client sends over its lines meanwhile."""
    requests: list[Request] = []
    lines: Any = ServerLine
    submit = ServerLine.submit

    async def noted(
        line: ServerLine, model: str, inputs: Inputs, timeout_s: float, sequence: SequencePosition | None = None
    ) -> Pending:
        requests.append(Request(model, inputs, sequence))
        return await submit(line, model, inputs, timeout_s, sequence)

    lines.submit = noted
    try:
        yield requests
    finally:
        lines.submit = submit


class Direct:
    """Answers requests in this process, as the models and ensembles of the repository do."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._tracker = Tracker()
        self.models_ms: defaultdict[str, float] = defaultdict(float)

    def answer(self, request: Request) -> None:
        """All of it, the time of each model noted."""
        inputs = {name: np.asarray(value) for name, value in request.inputs.items()}
        if request.model == "faces":
            self._faces(inputs, starts=request.sequence is None or request.sequence.start)
        elif request.model == "lipsync":
            self._lipsync(inputs)
        else:
            self._speech(inputs, hear_only=request.model == "transcribe")

    def _speech(self, inputs: dict[str, Any], *, hear_only: bool) -> None:
        engines, known = self._engines, _text(inputs, "KNOWN_TEXT")
        source, target = _text(inputs, "SOURCE_LANGUAGE"), _text(inputs, "TARGET_LANGUAGE")
        with self._timed("transcribe"):
            if known:
                heard = steps.known(engines.transcriber, known, source)
            else:
                heard = engines.transcribe(inputs["AUDIO"][0], source)
        if hear_only:
            return
        with self._timed("translate"):
            said = engines.translate(heard, target)
        slot = Slot(int(inputs["SLOT_MS"][0, 0]), int(inputs["LIMIT_MS"][0, 0]), parse_fit(_text(inputs, "FIT")))
        line = Line(said.text, target, stream=_text(inputs, "STREAM_ID"), slot=slot)
        with self._timed("synthesize"):
            engines.synthesize(line, said.status, said.message)

    def _faces(self, inputs: dict[str, Any], *, starts: bool) -> None:
        if starts:
            self._tracker = Tracker()
        with self._timed("detect"):
            boxes, scores = self._engines.detect(inputs["FRAMES"])
        with self._timed("track"):
            self._tracker.update(boxes, scores, inputs["KEYFRAME_MS"], inputs["QUERY_MS"])

    def _lipsync(self, inputs: dict[str, Any]) -> None:
        with self._timed("mel"):
            mel = mel_windows(inputs["AUDIO"], inputs["FRAME_OFFSETS_MS"])
        with self._timed("lips"):
            self._engines.lips(mel, inputs["FACES"])

    @contextmanager
    def _timed(self, model: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.models_ms[model] += (time.perf_counter() - started) * 1000


class Served:
    """Answers requests by the server, over lines as the client has them."""

    def __init__(self, client: TritonClient) -> None:
        self._stack = AsyncExitStack()
        self._client = client

    async def __aenter__(self) -> Served:
        enter = self._stack.enter_async_context
        self._speech = await enter(self._client.line(decoupled=True))
        self._others = await enter(self._client.line())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def answer(self, request: Request) -> None:
        """All of it, to the last part."""
        line = self._speech if request.model == "speech" else self._others
        async for _ in await line.submit(request.model, request.inputs, TIMEOUT_S, request.sequence):
            pass


@dataclass(frozen=True)
class Round:
    """All requests once on either side, in milliseconds."""

    direct_ms: list[float]  # by request
    served_ms: list[float]
    models_ms: dict[str, float]  # in this process
    compute_ms: dict[str, float]  # as the server tells it, by model
    queue_ms: dict[str, float]

    @property
    def on_the_way_ms(self) -> float:
        """Served, but neither computed nor queued: client, gRPC, ensembles. `synthesize` speaks beside the count."""
        told = sum(self.compute_ms.values()) + sum(self.queue_ms.values())
        return sum(self.served_ms) - told - self.models_ms.get("synthesize", 0.0)


def run(setup: Setup) -> Result:
    """Record the requests of one segment, then play them back on either side."""
    result = experiment.head("overhead", TITLE, setup)
    with tempfile.TemporaryDirectory() as name, running_server(setup.server) as server:
        folder = Path(name)
        clip = make_segment_clip(folder)
        with recorded() as requests:
            report = asyncio.run(dub(DubOptions(clip, folder / "out.mp4", TARGET, SOURCE, url=server.url))).report
        direct = Direct(Engines(setup.profile, setup.repository, fp32=False))
        rounds = asyncio.run(_play(server.url, requests, direct, setup.warm_up + setup.repetitions))
        return {**result, "data": summary(rounds[setup.warm_up :], requests, report)}


def make_segment_clip(folder: Path) -> Path:
    """One sentence of the demo clip, from just before its first word on."""
    whole = make_demo_clip(folder / "whole.mp4", WHOLE_S)
    return cut_clip(whole, folder / "segment.mp4", START_S - 0.1, SEGMENT_S)


async def _play(url: str, requests: Sequence[Request], direct: Direct, rounds: int) -> list[Round]:
    async with TritonClient(url) as client, Served(client) as served:
        return [await _round(url, _anew(requests), direct, served, own_first=i % 2 == 0) for i in range(rounds)]


def _anew(requests: Sequence[Request]) -> list[Request]:
    """The same requests with sequences that the server has not seen."""
    ids: dict[int, int] = {}
    return [
        replace(r, sequence=r.sequence and replace(r.sequence, id=ids.setdefault(r.sequence.id, new_sequence_id())))
        for r in requests
    ]


async def _round(url: str, requests: Sequence[Request], direct: Direct, served: Served, *, own_first: bool) -> Round:
    times: dict[bool, list[float]] = {True: [], False: []}  # in this process, through the server
    direct.models_ms.clear()
    before = await asyncio.to_thread(server_work.look, url)
    for request in requests:
        for own in (own_first, not own_first):
            started = time.perf_counter()
            if own:
                direct.answer(request)
            else:
                await served.answer(request)
            times[own].append((time.perf_counter() - started) * 1000)
    done = server_work.since(before, await asyncio.to_thread(server_work.look, url))
    return Round(
        times[True],
        times[False],
        dict(direct.models_ms),
        {model: done[model].compute_ms for model in MODELS},
        {model: done[model].queue_ms for model in MODELS},
    )


def summary(rounds: Sequence[Round], requests: Sequence[Request], report: Report) -> dict[str, Any]:
    """`data` of the result. Raises PolylipError where the clip was not one dubbed segment."""
    if len(report.segments) != 1 or report.segments[0].status is not Status.DUBBED:
        raise PolylipError("the clip is not one dubbed segment; look at the server's log")
    segment = report.segments[0]
    duration_ms = segment.end_ms - segment.start_ms
    kinds = [request.model for request in requests]
    asked = {
        kind: {
            "requests": kinds.count(kind),
            "sent_bytes": sum(request.sent_bytes for request in requests if request.model == kind),
            **_compared(rounds, [index for index, model in enumerate(kinds) if model == kind]),
        }
        for kind in dict.fromkeys(kinds)
    }
    total = _compared(rounds, range(len(requests)))
    added_ms = total["added_ms"]["median"]
    return {
        "duration_ms": duration_ms,
        "frames": report.frames,
        "frames_lipsynced": report.frames_lipsynced,
        "asked": asked,
        "models": {
            model: {
                "in_process_ms": _spread([r.models_ms.get(model, 0.0) for r in rounds]),
                "server_compute_ms": _spread([r.compute_ms[model] for r in rounds]),
                "server_queue_ms": _spread([r.queue_ms[model] for r in rounds]),
            }
            for model in MODELS
        },
        "total": total,
        "on_the_way_ms": _spread([r.on_the_way_ms for r in rounds]),
        "share_of_segment": added_ms / duration_ms,
        "share_of_work": added_ms / total["in_process_ms"]["median"],
        "allowed_ms": ALLOWED_MS,
        "allowed_share": ALLOWED_SHARE,
        "within_ms": added_ms <= ALLOWED_MS,
        "within_share": added_ms <= ALLOWED_SHARE * duration_ms,
    }


def _compared(rounds: Sequence[Round], indexes: Sequence[int]) -> dict[str, Any]:
    """Some of the requests together.

    What is added is the sum of each request's median difference: the two sides of a request are neighbours in time, so
    a busy moment hits both, or is no median.
    """
    direct = [[r.direct_ms[index] for r in rounds] for index in indexes]
    served = [[r.served_ms[index] for r in rounds] for index in indexes]
    added = [[s - d for d, s in zip(own, other, strict=True)] for own, other in zip(direct, served, strict=True)]
    return {
        "in_process_ms": _summed(direct),
        "served_ms": _summed(served),
        "added_ms": _summed(added),
    }


def _summed(by_request: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Sum over requests: of the medians, and of every round."""
    rounds = [sum(values) for values in zip(*by_request, strict=True)]
    return {**_spread(rounds), "median": sum(map(statistics.median, by_request))}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "raw": list(values)}


def markdown(result: Result) -> str:
    """By request and by model, and whether the target holds."""
    data = result["data"]
    return "\n\n".join([_asked_table(data), _models_table(data), sentence(result)])


def _asked_table(data: dict[str, Any]) -> str:
    lines = ["| the client asks for | requests | in process, ms | served, ms | added, ms |", "|---|---|---|---|---|"]
    rows = [*data["asked"].items(), ("all of the segment", data["total"])]
    lines += [
        f"| {name if name == 'all of the segment' else f'`{name}`'} | {row.get('requests', '')} "
        f"| {row['in_process_ms']['median']:.1f} | {row['served_ms']['median']:.1f} | {_range(row['added_ms'])} |"
        for name, row in rows
    ]
    return "\n".join(lines)


def _models_table(data: dict[str, Any]) -> str:
    lines = [
        "| model | in process, ms | in the server: computing, ms | and waiting in its queue, ms |",
        "|---|---|---|---|",
    ]
    keys = ("in_process_ms", "server_compute_ms", "server_queue_ms")
    for model, row in data["models"].items():
        cells = " | ".join(f"{row[key]['median']:.1f}" for key in keys)
        lines.append(f"| `{model}` | {cells} |")
    return "\n".join(lines)


def _range(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.1f} ({spread['lowest']:.1f} to {spread['highest']:.1f})"


def sentence(result: Result) -> str:
    """Whether the target holds."""
    data = result["data"]
    added, allowed_ms, allowed = data["total"]["added_ms"], data["allowed_ms"], data["allowed_share"]
    added_ms, share = added["median"], data["share_of_segment"]
    if data["within_ms"]:
        verdict = f"the target of {allowed_ms:.0f} ms is met"
    elif data["within_share"]:
        verdict = f"the target of {allowed_ms:.0f} ms is missed, that of {allowed:.0%} of its duration is met"
    else:
        verdict = f"the targets of {allowed_ms:.0f} ms and of {allowed:.0%} of its duration are both missed"
    return (
        f"Triton, gRPC and the client add {added_ms:.0f} ms (median; {added['lowest']:.0f} to {added['highest']:.0f} "
        f"from round to round, which is the machine's noise) to a segment of {data['duration_ms'] / 1000:.2f} s with "
        f"{data['frames_lipsynced']} of {data['frames']} frames re-lipped: {share:.1%} of its duration, "
        f"{data['share_of_work']:.1%} of the time of its engines; {verdict}. By the server's own count "
        f"{data['on_the_way_ms']['median']:.0f} ms are neither computed nor queued: the way between client, server and "
        f"models. Profile `{result['profile']}`."
    )


def _text(inputs: dict[str, Any], name: str) -> str:
    """Of a STRING tensor [1, 1]; empty where it was not sent."""
    return str(inputs[name][0, 0], "utf-8") if name in inputs else ""


def main() -> None:
    """Measure, print the tables, write the result."""
    experiment.command(__doc__, run, markdown)


if __name__ == "__main__":
    main()
