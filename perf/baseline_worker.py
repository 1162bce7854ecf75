"""A contender in a process of its own, so that its memory and its CPU time are nobody else's."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from polylip.client.errors import PolylipError
from polylip.perf.baseline import Baseline
from polylip.perf.baseline_runs import BASELINE, Timed, run_baseline, run_pipeline

CLOSE_S = 10.0


@dataclass(frozen=True)
class Worker:
    """A process that dubs the clips it is told."""

    pid: int
    pipe: Any  # multiprocessing's Connection

    def dub(self, clip: Path) -> Timed:
        """Raises PolylipError with what went wrong there."""
        self.pipe.send(clip)
        timed = _answer(self.pipe)
        assert isinstance(timed, Timed)  # noqa: S101  what `_work` sends
        return timed


@contextmanager
def worker(name: str, profile: str, repository: Path | None, url: str) -> Iterator[Worker]:
    """One of baseline and pipeline, loaded and waiting. Raises PolylipError."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(name, profile, repository, url, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        _answer(ours)
        yield Worker(process.pid or 0, ours)
    finally:
        ours.close()
        process.join(CLOSE_S)
        process.kill()
        process.join()


def _answer(pipe: Any) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise PolylipError("a contender's process has ended; look above for its last words") from None
    if isinstance(answer, str):
        raise PolylipError(answer)
    return answer


def _work(name: str, profile: str, repository: Path | None, url: str, pipe: Connection) -> None:
    """Load, say so, then dub until nobody asks any more."""
    try:
        baseline = Baseline(profile, repository) if name == BASELINE else None
        pipe.send(None)
    except Exception as error:
        pipe.send(f"{name}: {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                clip = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(
                    run_baseline(baseline, clip, Path(folder)) if baseline else run_pipeline(url, clip, Path(folder))
                )
            except Exception as error:
                pipe.send(f"{name}: {error}")
