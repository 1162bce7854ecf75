"""Errors of the serving side. Their text reaches the caller, so it names the cause and the remedy in one line."""

from __future__ import annotations


class UnsupportedError(ValueError):
    """A language or a pair that the loaded engine cannot do; the message lists those that it can."""


class UnknownProfileError(ValueError):
    """A profile that this version does not have; the message lists those that it has."""


class MissingError(RuntimeError):
    """Something this machine lacks; the message says what and how to install it."""


class EngineError(RuntimeError):
    """An engine (a program or a network) failed on a valid request."""
