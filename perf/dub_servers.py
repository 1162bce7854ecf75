"""Servers as an orchestrator keeps them: each a `polylip serve` of its own, drained, stopped and started again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from polylip.perf.paced_repository import Pace
from polylip.perf.supervised import Supervised, state_folder
from polylip.serving.runtime import MODEL_REPOSITORY_VARIABLE
from polylip.serving.server_flags import LOOPBACK

# Engines that sleep: long enough to overlap, short enough that 64 streams fit on two cores.
PACES = {"translate": Pace(0.002), "synthesize": Pace(0.004), "detect": Pace(0.001), "lips": Pace(0.0003)}
END_S = 60.0


class Member:
    """One server and its supervisor, on a port that it keeps."""

    def __init__(self, state_dir: Path, repository: Path, slots: int) -> None:
        self._state_dir, self._repository, self._slots = state_dir, repository, slots
        self._now: Supervised | None = None
        self._port = "0"  # any, the first time

    @property
    def url(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    def start(self) -> None:
        """Until it is ready. Raises EngineError."""
        self._now = Supervised(
            self._state_dir,
            *("--grpc-port", self._port, "--slots", str(self._slots)),
            **{MODEL_REPOSITORY_VARIABLE: str(self._repository)},
        )
        self._port = self._now.wait_until_ready().rpartition(":")[2]

    def drain(self, timeout_s: float) -> int:
        """Exit status of `polylip drain`: 0 when every stream had ended."""
        if self._now is None:
            return 0
        done = self._now.ask("drain", "--timeout", str(timeout_s), timeout_s=timeout_s + END_S)
        self._now.ended()
        return done.returncode

    def close(self) -> None:
        """End it, however it is."""
        if self._now is not None:
            self._now.close()


@contextmanager
def members(repository: Path, count: int, slots: int) -> Iterator[Sequence[Member]]:
    """So many, started one after the other. Raises EngineError."""
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            member = Member(stack.enter_context(state_folder()), repository, slots)
            stack.callback(member.close)
            member.start()
            started.append(member)
        yield started
