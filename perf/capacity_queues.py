"""Waiting in front of an engine, from its load alone: the mean and the 99th percentile, by formula.

Two kinds of arrivals. Paced: each of n streams sends a job of the same length once per period, at a moment of its own
(the queue nD/D/1). Random: jobs come independently of each other (M/G/c). Random is right for speech, whose segments
end when somebody pauses; for pictures, which come by the clock, it would promise far less than there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

P99 = 0.99
STEPS = 200  # of the mean's integral
HALVINGS = 40  # of the quantile's search: below a millionth of a service
EXACT_SERVICES = 3.0  # waiting: up to here by the exact sum for M/D/1


@dataclass(frozen=True)
class Wait:
    """Before the service begins, in seconds."""

    mean_s: float
    p99_s: float


NO_WAIT = Wait(0.0, 0.0)
ENDLESS = Wait(math.inf, math.inf)


def paced_wait(streams: int, period_s: float, service_s: float, instances: int = 1) -> Wait:
    """Of a job among `streams` that each send one per period.

    A job finds the work of the `streams - 1` others. Several instances count as one that is as many times as fast,
    which is right for the work that is waiting, and off by less than a service.
    """
    own_s = service_s / instances
    if own_s <= 0.0 or streams < 2:
        return NO_WAIT if own_s * streams <= period_s else ENDLESS
    if streams * own_s > period_s:
        return ENDLESS
    others, period = streams - 1, period_s / own_s

    def tail(services: float) -> float:
        return paced_tail(others, period, services)

    step = others / STEPS
    mean = step * (sum(tail(i * step) for i in range(1, STEPS)) + tail(0.0) / 2)
    return Wait(mean * own_s, _quantile(tail, others) * own_s)


def paced_tail(streams: int, period: float, work: float) -> float:
    """The chance that more than `work` is waiting at any moment, times in services: the exact formula for nD/D/1.

    Roberts and Virtamo, The superposition of periodic cell arrival streams in an ATM multiplexer (1991). To have so
    much waiting, for some k the last k jobs must have come within k - work services; the last factor is the chance that
    it is so for no larger k.
    """
    if work >= streams:
        return 0.0
    k = np.arange(math.floor(work) + 1, streams)
    share = (k - work) / period
    # By logarithms, as the binomial coefficients of a thousand streams are no floats.
    logs = _log_ways(streams)[k] + k * np.log(share) + (streams - k) * np.log1p(-share)
    last = (period - streams + work) / (period - k + work)
    return min(1.0, float(np.sum(np.exp(logs) * last)) + ((streams - work) / period) ** streams)


@cache
def _log_ways(n: int) -> npt.NDArray[np.float64]:
    """Logarithms of the ways to take 0 to n out of n."""
    factorials = np.cumsum(np.log(np.maximum(1, np.arange(n + 1))))
    return np.asarray(factorials[-1] - factorials - factorials[::-1])


def random_wait(jobs_per_s: float, service_s: float, instances: int = 1, scv: float = 0.0) -> Wait:
    """Of jobs that come at random; `scv` is the squared coefficient of variation of a service, 0 where all are alike.

    The mean of one instance is that of Pollaczek and Khinchine, exact; that of several is Lee and Longton's share of
    the M/M/c queue. The percentile of one instance with services all alike is that of M/D/1; else the tail is taken for
    an exponential with this mean and the right chance of no wait, which is exact for M/M/c.
    """
    offered = jobs_per_s * service_s
    if offered == 0.0:
        return NO_WAIT
    if offered >= instances:
        return ENDLESS
    chance = erlang_c(instances, offered)
    mean_s = (1.0 + scv) / 2.0 * chance * service_s / (instances - offered)
    if instances == 1 and scv == 0.0:
        decay = _md1_decay(offered)
        highest = EXACT_SERVICES + math.log(1.0 / (1.0 - P99)) / decay
        return Wait(mean_s, _quantile(lambda work: md1_tail(offered, decay, work), highest) * service_s)
    return Wait(mean_s, max(0.0, mean_s / chance * math.log(chance / (1.0 - P99))))


def md1_tail(load: float, decay: float, work: float) -> float:
    """The chance that more than `work` is waiting, times in services, for M/D/1 with its rate of decay.

    Erlang's sum up to EXACT_SERVICES; beyond, where its terms cancel, the exponential that it has become.
    """
    if work > EXACT_SERVICES:
        return (1.0 - load) / (load * math.exp(decay) - 1.0) * math.exp(-decay * work)
    total = 0.0
    for k in range(math.floor(work) + 1):
        gap = load * (k - work)
        total += gap**k / math.factorial(k) * math.exp(-gap)
    return 1.0 - (1.0 - load) * total


def _md1_decay(load: float) -> float:
    """Of the tail, per service: the positive root of load (e^x - 1) = x."""
    low, high = 0.0, 1.0
    while load * math.expm1(high) < high:
        low, high = high, 2.0 * high
    low = low or 1e-9
    for _ in range(2 * HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if load * math.expm1(middle) < middle else (low, middle)
    return high


def erlang_c(instances: int, offered: float) -> float:
    """The chance that a random arrival has to wait for one of `instances`, of which `offered` are busy on average."""
    blocked = 1.0
    for k in range(1, instances + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1.0 - offered / instances * (1.0 - blocked))


def fullest_holds(streams: int, servers: int, per_server: int) -> float:
    """The chance that no server gets more than `per_server` when a hash deals the streams out."""
    # Ways to deal them with at most so many each, as coefficients of (sum of x^i / i!)^servers, over all ways.
    one = [1.0 / math.factorial(i) for i in range(min(per_server, streams) + 1)]
    ways = [1.0]
    for _ in range(servers):
        longer = [0.0] * min(streams + 1, len(ways) + len(one) - 1)
        for i, a in enumerate(ways):
            for j, b in enumerate(one[: len(longer) - i]):
                longer[i + j] += a * b
        ways = longer
    if streams >= len(ways) or ways[streams] == 0.0:
        return 0.0
    return min(1.0, math.exp(math.log(ways[streams]) + math.lgamma(streams + 1) - streams * math.log(servers)))


def _quantile(tail: Callable[[float], float], highest: float) -> float:
    """Where a falling tail reaches 1 - P99."""
    if tail(0.0) <= 1.0 - P99:
        return 0.0
    low, high = 0.0, highest
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if tail(middle) > 1.0 - P99 else (low, middle)
    return high
