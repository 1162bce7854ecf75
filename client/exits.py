"""How commands end: exit codes, one line for what went wrong, and Ctrl-C in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

EXIT_UNUSABLE = 2
EXIT_SERVER = 3
EXIT_INTERRUPTED = 130

err = Console(stderr=True)


@contextmanager
def interruptible(message: str | Callable[[], str], code: int) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block in order, with one line."""
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        fail(message if isinstance(message, str) else message(), code)


def say(message: str) -> None:
    """One line on standard error."""
    err.print(f"polylip: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Say it, and end the command."""
    say(message)
    raise typer.Exit(code)
