"""Requests that failed through no fault of their own are sent again, a few times and within their deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_any,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

from polylip.client.error_codes import ErrorCode
from polylip.client.errors import ServerError, ServerLostError

TRIES = 3  # in all
FIRST_WAIT_S = 0.1  # twice as long before the third try; the line itself waits for a server that is away
JITTER_S = 0.1  # at most: requests that failed together do not come back together

T = TypeVar("T")


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    *,
    deadline: float,
    on_retry: Callable[[], None] = lambda: None,
    also: Collection[ErrorCode] = (),
) -> T:
    """What the first attempt that succeeds returns. `deadline` is event-loop time; behind it none starts.

    Errors that another try cannot mend, unless they are in `also`, and the last one are raised.
    """

    def worth_it(error: BaseException) -> bool:
        if isinstance(error, ServerLostError) and error.for_good:
            return False
        return isinstance(error, ServerError) and (error.code.retry or error.code in also)

    def count(_: RetryCallState) -> None:
        on_retry()

    async def once() -> T:  # tenacity awaits nothing else
        return await attempt()

    left_s = deadline - asyncio.get_running_loop().time()
    tries = AsyncRetrying(
        stop=stop_any(stop_after_attempt(TRIES), stop_before_delay(left_s)),
        wait=wait_exponential(FIRST_WAIT_S) + wait_random(0, JITTER_S),
        retry=retry_if_exception(worth_it),
        before_sleep=count,
        reraise=True,
    )
    try:
        return await tries(once)
    finally:
        tries.iter_state.reset()  # its steps and itself hold each other, and with them what the request was made of
