"""Errors of the client. Each is one line for a person, naming the cause and the remedy, and has an exit code."""

from __future__ import annotations

from polylip.client.error_codes import ErrorCode


class PolylipError(Exception):
    """Base of all errors that the client raises on purpose."""

    exit_code = 1


class InputError(PolylipError):
    """The caller's input cannot be used: a file, a language, an output path, an address."""

    exit_code = 2


class ServerError(PolylipError):
    """The server answered a request with an error; the stream lives on."""

    exit_code = 3

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        super().__init__(message)
        self.code = code


class DeadlineError(ServerError):
    """The server did not answer a request within its deadline."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.DEADLINE)


class ServerLostError(ServerError):
    """The connection to the server is gone: every request still open on it has failed."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.SERVER_LOST, *, for_good: bool = False) -> None:
        """`for_good`: nobody waits for it any more."""
        super().__init__(message, code)
        self.for_good = for_good
