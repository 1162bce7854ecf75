"""Frames per second of `lips` and `detect` through a real tritonserver beside the same engine called in-process."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.pending import Pending
from polylip.client.triton import TritonClient, TritonStream
from polylip.perf.machine import timed_s
from polylip.serving.doctor import PICTURE_MODELS
from polylip.serving.engines.s3fd import S3fd
from polylip.serving.engines.wav2lip import Wav2Lip
from polylip.serving.launcher import ServerOptions, running_server

BATCHES = {"lips": (1, 16), "detect": (1, 5, 16)}  # of detect: a frame, the client's chunk, the largest
IN_FLIGHT = 2  # one request is being computed while the next one travels
FRAMES_PER_TURN = {"lips": 64, "detect": 16}  # about a second of work, so that the first and last travel weigh little
TIMEOUT_S = 120.0

Inputs = dict[str, npt.NDArray[Any]]
Engine = tuple[Callable[[Inputs], object], str]  # with the precision that it chose


def compare_triton(repository: Path, rounds: int) -> list[dict[str, Any]]:
    """One row per model and batch; in-process and through Triton take turns."""
    engines = {"lips": _lips(repository), "detect": _detect(repository)}
    options = ServerOptions(profile="cpu", model_repository=repository, models=tuple(PICTURE_MODELS))
    with running_server(options) as server:
        return asyncio.run(_compare(server.url, engines, rounds))


async def _compare(url: str, engines: dict[str, Engine], rounds: int) -> list[dict[str, Any]]:
    rows = []
    async with TritonClient(url) as client, client.stream() as stream:
        for model, (engine, precision) in engines.items():
            for batch in BATCHES[model]:
                inputs = _inputs(model, batch)
                calls = max(1, FRAMES_PER_TURN[model] // batch)
                own, served = [], []
                for turn in range(rounds + 1):
                    times = timed_s(lambda i=inputs, n=calls, run=engine: [run(i) for _ in range(n)])  # type: ignore[misc]
                    through = await _timed_calls(stream, model, inputs, calls)
                    if turn:  # the first one warms up
                        own.append(calls * batch / times)
                        served.append(calls * batch / through)
                rows.append({"model": model, "batch": batch, "precision": precision, **_figures(own, served)})
    return rows


async def _timed_calls(stream: TritonStream, model: str, inputs: Inputs, calls: int) -> float:
    """Seconds for `calls` requests with IN_FLIGHT of them at the server at once."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    pending: deque[Pending] = deque()
    for _ in range(calls):
        pending.append(await stream.submit(model, inputs, TIMEOUT_S))
        if len(pending) == IN_FLIGHT:
            await pending.popleft().result()
    for request in pending:
        await request.result()
    return loop.time() - started


def _figures(own: list[float], served: list[float]) -> dict[str, float]:
    """Frames per second of both; the share is that of each turn's pair, so that a busy moment hits both sides."""
    return {
        "in_process_fps": round(statistics.median(own), 2),
        "triton_fps": round(statistics.median(served), 2),
        "share": round(statistics.median(s / o for s, o in zip(served, own, strict=True)), 3),
    }


def _lips(repository: Path) -> Engine:
    engine = Wav2Lip({"graph": "wav2lip"}, str(repository / "lips" / "1"))
    return lambda inputs: engine.render(inputs["MEL"], inputs["FACES"]), engine.precision


def _detect(repository: Path) -> Engine:
    engine = S3fd({"graph": "s3fd"}, str(repository / "detect" / "1"))
    engine.detect(_inputs("detect", 1)["FRAMES"])
    return lambda inputs: engine.detect(inputs["FRAMES"]), engine.precision


def _inputs(model: str, batch: int) -> Inputs:
    random = np.random.default_rng(0)
    if model == "detect":
        return {"FRAMES": random.integers(0, 256, (batch, 360, 640, 3), np.uint8)}
    mel = random.uniform(-4, 4, (batch, 80, 16)).astype(np.float32)
    return {"MEL": mel, "FACES": random.integers(0, 256, (batch, 96, 96, 3), np.uint8)}
