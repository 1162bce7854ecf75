"""The supervisor's parts by themselves: how load is read, how models are asked, and when one counts as dead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import numpy as np
import psutil
from conftest import REPOSITORY
from material import RATE_HZ, read_aloud

from polylip.client.triton import TritonClient
from polylip.client.wire import rows
from polylip.serving.drain import Load, parse_load, read_load
from polylip.serving.launcher import Server
from polylip.serving.probe import PROBES, repository_models, stub_of
from polylip.serving.supervisor import LONGEST_WAIT_S, _wait_s
from polylip.serving.supervisor_probe import TRIES, DeepProbe, Route, _counts, routes
from polylip.serving.supervisor_watch import watch_stubs

TIMEOUT_S = 60.0
METRICS = """
# HELP polylip_live_sequences Sequences that have a state now
polylip_live_sequences{model="gate"} 3
polylip_live_sequences{model="join"} 2
polylip_live_sequences{model="track"} 1
polylip_live_sequences{node="a",model="later"} 4.0
polylip_slots{model="gate"} 8
nv_inference_pending_request_count{model="mel",version="1"} 2
nv_inference_pending_request_count{model="lips",version="1"} 1
"""


def test_a_stream_of_dub_counts_once_and_others_add_up():
    assert parse_load(METRICS) == Load(streams=3 + 1 + 4, waiting=3)
    assert parse_load("") == Load(0, 0) and parse_load("").idle
    assert not Load(0, 1).idle and not Load(1, 0).idle


def test_an_idle_server_has_no_load(own_server: Callable[..., Server]):
    assert read_load(own_server().metrics_url) == Load(0, 0)


def test_restarts_in_a_row_wait_longer_and_longer():
    assert [_wait_s(failures) for failures in range(1, 9)] == [0, 1, 2, 4, 8, 16, LONGEST_WAIT_S, LONGEST_WAIT_S]


# Who is asked how


def test_a_model_is_asked_by_its_own_probe_or_by_that_of_an_ensemble():
    steps = {"detect": (), "track": (), "faces": ("detect", "track"), "mel": (), "lonely": ()}
    assert routes(steps) == [Route("detect", ("detect",)), Route("mel", ("mel",)), Route("faces", ("detect", "track"))]


def test_every_model_of_the_client_is_asked(server: Server):
    probe = DeepProbe(server.endpoint)
    assert probe.look() is None
    asked = {model for route in probe._routes for model in route.models}
    assert asked >= {"transcribe", "translate", "synthesize", "detect", "track", "mel", "lips"}
    assert set(PROBES) <= repository_models(REPOSITORY)


def test_a_model_that_answers_others_is_not_asked(server: Server):
    probe = DeepProbe(server.endpoint)
    assert [probe.look(), probe.look()] == [None, None]
    with server.endpoint.channel() as channel:
        before = _counts(stub_of(channel))["mel"].good
        asyncio.run(_mel(server))
        assert probe.look() is None
        assert _counts(stub_of(channel))["mel"].good == before + 1, "somebody's request, and no probe"
        assert probe.look() is None
        assert _counts(stub_of(channel))["mel"].good == before + 2, "a probe, as nobody else asked"


async def _mel(server: Server) -> None:
    inputs = {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": np.zeros(1, np.int64)}
    async with TritonClient(server.url) as client, client.line() as line:
        await line.call("mel", inputs, TIMEOUT_S)


# Busy, or dead


async def test_a_busy_model_is_never_taken_for_dead(server: Server):
    """The probe waits behind a queue for longer than it has, round after round; the model goes on finishing."""
    spoken = np.tile(read_aloud("My brother has two children and the sun is very strong today."), 3)[: 10 * RATE_HZ]
    probe = DeepProbe(server.endpoint, deadline_s=1.5)
    assert await asyncio.to_thread(probe.look) is None
    stop = asyncio.Event()

    async def keep_busy() -> None:
        async with TritonClient(server.url) as client, client.line() as line:
            while not stop.is_set():
                with contextlib.suppress(Exception):
                    inputs = rows({"AUDIO": spoken[: 2 * RATE_HZ], "SOURCE_LANGUAGE": "en"})
                    await line.call("transcribe", inputs, TIMEOUT_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(keep_busy())
        verdicts, suspected = [], set()
        for _ in range(TRIES + 2):
            verdicts.append(await asyncio.to_thread(probe.look))
            suspected |= set(probe._failures)
        stop.set()
    assert verdicts == [None] * (TRIES + 2)
    # The probes that were given up come to `join` during later ones, and fail there.
    assert not suspected & {"model join", "model mouth"}


def test_a_model_that_stands_still_is_dead_at_the_third_look_and_named(own_server: Callable[..., Server]):
    """`track` has no probe of its own: `faces` is asked, and the model in it that stands still is the one."""
    server = own_server()
    probe = DeepProbe(server.endpoint, deadline_s=2.0)
    assert [probe.look(), probe.look()] == [None, None]
    assert not probe.suspicious
    stubs = watch_stubs(server.guard_pid)
    [process] = [process for model, process in stubs.stubs if model == "track"]
    psutil.Process(process.pid).suspend()
    assert [probe.look() for _ in range(TRIES - 1)] == [None] * (TRIES - 1)
    assert probe.suspicious and stubs.first_dead() is None, "its process is there"
    said = probe.look()
    assert said is not None and said.startswith("model track: ")
    psutil.Process(process.pid).kill()  # going on, it would take tritonserver 2.51 with it
    psutil.wait_procs([psutil.Process(process.pid)], timeout=1)
    assert stubs.first_dead() == "track"
    server.kill()
