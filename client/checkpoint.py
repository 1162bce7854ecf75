"""All that a job needs to go on behind its last part, in a run of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polylip.client.errors import InputError
from polylip.client.journal import Journal
from polylip.client.render_state import PictureState
from polylip.client.snapshot import rebuild
from polylip.client.speech_state import SpeechState


@dataclass(frozen=True)
class JobState:
    """A job behind its last part."""

    picture: PictureState
    speech: SpeechState
    counters: dict[str, int]
    engines: dict[str, str]
    wall_s: float  # of all runs so far
    runs: int


@dataclass(frozen=True)
class Keeper:
    """Where a job keeps its state, and what an earlier run has kept."""

    journal: Journal
    save: Callable[[bytes], None]  # a packed JobState; may take long
    engines: dict[str, str]
    wall_s: Callable[[], float]  # of all runs so far
    earlier: JobState | None = None

    @property
    def runs(self) -> int:
        return 1 + (self.earlier.runs if self.earlier else 0)


def job_state(found: Any, output: Any) -> JobState | None:
    """From what was kept; None where nothing was. Raises InputError."""
    try:
        state: JobState | None = None if found is None else rebuild(JobState, found)
    except (ValueError, TypeError, KeyError):
        raise damaged(output) from None
    return state


def damaged(output: Any) -> InputError:
    """What an earlier run has kept is not all there."""
    return InputError(f"{output}: the earlier run cannot be continued: what it left is damaged; run without --resume")


def check_engines(state: JobState | None, engines: dict[str, str], output: Any) -> None:
    """A dub must not change its voice midway. Raises InputError."""
    changed = [model for model in engines if state is not None and state.engines.get(model) != engines[model]]
    if changed:
        raise InputError(
            f"{output}: the earlier run cannot be continued: the server has another engine for "
            f"{', '.join(changed)}; start it as before, or run without --resume"
        )
