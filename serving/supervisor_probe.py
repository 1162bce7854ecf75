"""The deep probe of a server that is at work: a model that answers somebody is well, an idle one is asked itself.

Whoever waits behind a long segment is not dead: a probe counts against a model only when the model has finished nothing
meanwhile, and only several in a row do. Statistics of tritonserver say what each model has finished.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from polylip.serving.dub.codes import Refusal, read_refusal
from polylip.serving.probe import NO_ANSWER, PROBES, probe_model, stub_of
from polylip.serving.supervisor_identity import Endpoint

DEADLINE_S = 15.0  # of one probe: longer than a segment of 10 s takes at the speed of speech
CALL_S = 5.0  # of a question about the server itself
TRIES = 3  # in a row without an answer and without progress
# What tritonserver says of a process that is gone, and of one that it found standing still for a second.
_STUB = re.compile(r"stub process '(\w+)_\d+_\d+'", re.IGNORECASE)
# What the gate of `dub` says when its slots are taken, or the server drains: it is well, and others ask the rest.
_REFUSED = (Refusal.FULL, Refusal.DRAINING)
SERVER = "tritonserver"


@dataclass(frozen=True)
class Route:
    """A probe, and the models that it goes through, in order."""

    probe: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """Requests that a model has finished."""

    good: int = 0
    bad: int = 0


def routes(steps: dict[str, tuple[str, ...]]) -> list[Route]:
    """How each model is asked: by its own probe, or by that of an ensemble which it is a part of.

    `steps`: all loaded models, with the steps of those that are ensembles.
    """
    found: list[Route] = []
    single = sorted(model for model, parts in steps.items() if not parts)
    for model in single:
        if model in PROBES:
            found.append(Route(model, (model,)))
            continue
        for ensemble, parts in steps.items():
            if model in parts and ensemble in PROBES and not any(route.probe == ensemble for route in found):
                found.append(Route(ensemble, parts))
                break
    return sorted(found, key=lambda route: len(route.models))  # an ensemble is asked when its parts have been


class DeepProbe:
    """One per server; `look` now and then."""

    def __init__(self, endpoint: Endpoint, deadline_s: float = DEADLINE_S) -> None:
        self._endpoint = endpoint
        self._deadline_s = deadline_s
        self._routes: list[Route] | None = None
        self._before: dict[str, Count] = {}
        self._failures: dict[str, int] = {}
        self._busy: set[str] = set()  # in this look: models that others use, or whose own probe was not answered

    @property
    def suspicious(self) -> bool:
        """Whether something has not answered; the next look should be soon."""
        return bool(self._failures)

    def look(self) -> str | None:
        """What is dead, in one line; None while nothing is known to be. Takes as long as the probes do."""
        with self._endpoint.channel() as channel:
            stub = stub_of(channel)
            self._busy.clear()
            try:
                if self._routes is None:
                    self._routes = routes(_steps(stub))
                for route in self._routes:
                    if (dead := self._ask(stub, route)) is not None:
                        return dead
                self._before = _counts(stub)
                self._failures.pop(SERVER, None)
            except grpc.RpcError as error:
                return self._failed(SERVER, f"{error.code().name}: {error.details()}")
        return None

    def _ask(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, route: Route) -> str | None:
        at_first = _counts(stub)
        used = [model for model in route.models if _good(at_first, model) > _good(self._before, model)]
        self._busy.update(used)
        if len(used) == len(route.models):
            self._forgive(route.models)
            return None
        failure = probe_model(stub, route.probe, self._deadline_s)
        if failure is None:
            self._forgive(route.models)
        if failure is None or read_refusal(failure)[0] in _REFUSED:
            return None
        now = _counts(stub)
        named = _STUB.findall(failure)
        # Without an answer, what a model has failed meanwhile was not this probe: an earlier one that was given up may
        # come to the last steps of an ensemble only now.
        answered = not failure.startswith(NO_ANSWER)
        answered_badly = [model for model in route.models if answered and _bad(now, model) > _bad(at_first, model)]
        # Behind a model that others use, or that took its time with its own probe, the rest may not have got this one.
        waited = self._busy.intersection(route.models)
        stuck = [] if waited else [model for model in route.models if now.get(model) == at_first.get(model)]
        if len(route.models) == 1:
            self._busy.update(route.models)
        suspects = named or answered_badly or stuck
        self._forgive(model for model in route.models if model not in suspects)
        return self._failed(f"model {suspects[0]}", failure) if suspects else None

    def _failed(self, who: str, failure: str) -> str | None:
        self._failures[who] = self._failures.get(who, 0) + 1
        return f"{who}: {failure}" if self._failures[who] >= TRIES else None

    def _forgive(self, models: Iterable[str]) -> None:
        for model in models:
            self._failures.pop(f"model {model}", None)


def _steps(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> dict[str, tuple[str, ...]]:
    """Of each loaded model; none where it is no ensemble."""
    found = {}
    for name in sorted(_counts(stub)):
        config = stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=CALL_S).config
        found[name] = tuple(step.model_name for step in config.ensemble_scheduling.step)
    return found


def _counts(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> dict[str, Count]:
    answer = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=CALL_S)
    return {
        model.name: Count(model.inference_stats.success.count, model.inference_stats.fail.count)
        for model in answer.model_stats
    }


def _good(counts: dict[str, Count], model: str) -> int:
    return counts.get(model, Count()).good


def _bad(counts: dict[str, Count], model: str) -> int:
    return counts.get(model, Count()).bad
