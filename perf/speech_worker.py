"""The engines of the speech line called in-process, each in a process of its own, as Triton's Python backend has them.

The work is that of the models' own `execute`, without Triton: the same steps around the same engine.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from polylip.serving import steps
from polylip.serving.engines import Passage, Status, Utterance, load_engine
from polylip.serving.speaking import Line, Speaking

CLOSE_S = 10.0

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What one model is asked, `batch` times at once."""

    model: str
    audio: Float32 | None = None  # (samples,) at 16 kHz, for `transcribe` and `speech`
    text: str = ""  # for `translate` and `synthesize`
    source: str = "en"
    target: str = "es"
    batch: int = 1


@dataclass(frozen=True)
class Timing:
    """How long it took, and what came of it."""

    seconds: float  # until the last answer
    first_s: float  # until the first sound, for `synthesize` and `speech`; else as `seconds`
    spoken_s: float  # of sound
    text: str


class Worker:
    """One engine in a process of its own. Use as a context manager."""

    def __init__(self, model: str, parameters: Mapping[str, str], version_dir: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (model, dict(parameters), str(version_dir), theirs)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        self._answer()  # the engine is loaded
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(CLOSE_S)
        self._process.kill()
        self._process.join()

    def run(self, job: Job) -> Timing:
        """Do it and wait for it. Raises RuntimeError with what went wrong."""
        self._pipe.send(job)
        timing = self._answer()
        assert isinstance(timing, Timing)  # noqa: S101  what `_work` sends
        return timing

    @property
    def peak_mib(self) -> float:
        """Highest resident memory so far."""
        return peak_mib(self._process.pid or 0)

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the engine's process has ended; look above for its last words") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def peak_mib(pid: int) -> float:
    """Highest resident memory of a process so far."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def run_job(engine: Any, job: Job) -> Timing:
    """A job with its model's loaded engine; of `synthesize`, that is a `Speaking`. Raises RuntimeError on a status."""
    started = time.perf_counter()
    first_s = spoken_s = 0.0
    text, status, message = job.text, Status.OK, ""
    if job.model == "transcribe":
        assert job.audio is not None  # noqa: S101  its job has one
        heard = steps.transcribe(engine, [Utterance(job.audio, job.source)] * job.batch)[-1]
        text, status, message = heard.text, heard.status, heard.message
    elif job.model == "translate":
        said = steps.translate(engine, [Passage(job.text, job.source, job.target)] * job.batch)[-1]
        text, status, message = said.text, said.status, said.message
    else:
        for item in steps.speak(engine, Line(job.text, job.target)):
            first_s = first_s or time.perf_counter() - started
            spoken_s += item.chunk.seconds
            status, message = item.status, item.message
    seconds = time.perf_counter() - started
    if status is not Status.OK:
        raise RuntimeError(f"{job.model} ended as {status}: {message}")
    return Timing(seconds, first_s or seconds, spoken_s, text)


def load(model: str, parameters: Mapping[str, str], version_dir: str) -> Any:
    """What `run_job` takes."""
    engine = load_engine(model, parameters, version_dir)
    return Speaking(engine) if model == "synthesize" else engine


def _work(model: str, parameters: Mapping[str, str], version_dir: str, pipe: Connection) -> None:
    """Load, say so, then do jobs until nobody sends any more."""
    try:
        engine = load(model, parameters, version_dir)
        pipe.send(None)
    except Exception as error:
        pipe.send(f"{model}: {error}")
        return
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(run_job(engine, job))
        except Exception as error:
            pipe.send(str(error))
