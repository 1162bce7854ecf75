"""The experiment with many streams of `dub`, in small: nothing lost, nothing crossed, nobody broken by a restart."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from polylip.client.segmentation import SPEECH_RATE_HZ
from polylip.client.triton import TritonClient
from polylip.client.wire import rows
from polylip.perf import dub_streams
from polylip.perf.capacity_proxy import find_haproxy
from polylip.perf.dub_load import SHADES, DubLedger, DubLoad, colour, play
from polylip.perf.dub_servers import PACES
from polylip.perf.dub_streams import OFFERED_S, Sample, _growth, markdown, rolling
from polylip.perf.paced_repository import paced_repository
from polylip.serving.launcher import Server, ServerOptions, running_server, start_server

STREAMS, SLOTS = 12, 8
PROMPT_S = 1.0  # a stream that gets no slot knows within this
ROLLING = 6
SPEAKERS, SPOKEN, SPEECH_S = 4, 40, 30.0  # requests of each; seconds for one
REVIVED_S = 120.0  # for an answer, the start of a server on a busy machine included

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paced_repository(REPOSITORY, tmp_path_factory.mktemp("paced"), PACES)


@pytest.fixture(scope="module")
def paced_server(repository: Path):
    with running_server(ServerOptions(model_repository=repository, slots=SLOTS)) as server:
        yield server


def assert_whole(ledger: DubLedger) -> None:
    assert ledger.ended_once and not ledger.crossed
    assert set(ledger.statuses) == {"ok"}


async def test_streams_over_the_slots_go_away_at_once_and_the_others_are_served(paced_server: Server):
    ledger = await play(DubLoad(paced_server.url, STREAMS, OFFERED_S))
    assert_whole(ledger)
    assert len(ledger.refused_s) == STREAMS - SLOTS and max(ledger.refused_s) < PROMPT_S
    assert ledger.answered == SLOTS * round(OFFERED_S / dub_streams.PERIOD_S)
    assert set(ledger.errors) == {"full"} and len(ledger.broken) == STREAMS - SLOTS


async def speak(url: str, number: int, times: int) -> list[str]:
    """What `speech` says it has heard, on one stream, one request after the other."""
    heard = []
    async with TritonClient(url) as client, client.stream() as stream:
        for index in range(times):
            inputs = {"AUDIO": np.zeros(SPEECH_RATE_HZ, np.float32), "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"}
            request = rows(inputs | {"KNOWN_TEXT": f"speaker {number}, {index}"})
            parts = [part async for part in await stream.submit("speech", request, SPEECH_S)]
            heard += [part["SOURCE_TEXT"].item() for part in parts[:1]]
    return heard


async def test_streams_of_dub_and_of_speech_share_a_server(paced_server: Server):
    """Both end in the same decoupled model."""
    async with asyncio.TaskGroup() as group:
        playing = group.create_task(play(DubLoad(paced_server.url, 4, 8.0, period_s=1.0)))
        speakers = [group.create_task(speak(paced_server.url, number, SPOKEN)) for number in range(SPEAKERS)]
    assert_whole(playing.result())
    assert playing.result().answered == 4 * 8 and not playing.result().broken
    assert [speaker.result() for speaker in speakers] == [
        [f"speaker {number}, {index}" for index in range(SPOKEN)] for number in range(SPEAKERS)
    ]


async def test_an_answer_that_is_anothers_is_noticed(paced_server: Server, monkeypatch: pytest.MonkeyPatch):
    others = count()  # words that are never the same twice
    monkeypatch.setattr("polylip.perf.dub_load._Speaker._text", lambda speaker, index: f"{next(others)} {index}")
    ledger = await play(DubLoad(paced_server.url, 2, 4.0))
    assert len(ledger.crossed) == ledger.answered == 2
    monkeypatch.undo()
    monkeypatch.setattr("polylip.perf.dub_load.picture", lambda bgr: np.full((360, 640, 3), 255 - bgr, np.uint8))
    ledger = await play(DubLoad(paced_server.url, 2, 4.0))
    assert len(ledger.crossed) == ledger.answered == 2


async def test_a_server_that_dies_under_streams_breaks_none_that_comes_back_in_time(repository: Path):
    options = ServerOptions(model_repository=repository, slots=SLOTS)
    with running_server(options) as first:
        port = first.ports.grpc
        # Several segments wait while there is no server.
        load = DubLoad(first.url, 3, 24.0, period_s=1.0, answer_s=REVIVED_S, name="revived")
        playing = asyncio.create_task(play(load))
        await asyncio.sleep(6.0)
        await asyncio.to_thread(first.kill)
        again = ServerOptions(model_repository=repository, slots=SLOTS, grpc_port=port)
        second = await asyncio.to_thread(start_server, again)
        try:
            ledger = await playing
        finally:
            await asyncio.to_thread(second.stop)
    assert_whole(ledger)
    assert not ledger.errors and not ledger.broken and ledger.resent >= 1


@pytest.mark.alone
@pytest.mark.skipif(find_haproxy() is None, reason="haproxy is not installed; run: apt-get install haproxy")
def test_a_rolling_restart_of_three_servers_breaks_no_stream(repository: Path):
    found = rolling(repository, ROLLING)
    assert found["broken_streams"] == 0 and not found["errors"] and not found["crossed"] and found["ended_once"]
    assert found["drain_exits"] == [0, 0, 0]
    assert found["links"] >= ROLLING + 3  # streams have moved


def test_every_stream_has_a_colour_of_its_own():
    colours = {tuple(colour(number)) for number in range(SHADES**3)}
    assert len(colours) == SHADES**3
    assert all(0 <= level <= 255 for bgr in colours for level in bgr)


def test_growth_is_that_of_the_last_third():
    samples = [Sample(float(i), 100.0 if i < 6 else 130.0, 5.0) for i in range(9)]
    assert _growth(samples)["memory_mib"] == {"middle": 100.0, "last": 130.0}


def test_the_table_tells_the_losses():
    part = {"streams": 2, "sent": 9, "answered": 7, "crossed": ["x"], "latency_s": {"p50": 0.1, "p99": 0.2, "max": 0.3}}
    flat = {"middle": 10.0, "last": 10.0}
    data = {
        "steady": part | {"seconds": 300.0, "memory_mib": flat, "shm_mib": flat},
        "offered": part | {"slots": 1, "streams_refused": 1, "refused_max_s": 0.5},
        "rolling": part | {"servers": 3, "broken_streams": 1, "resent": 2, "drain_exits": [0, 5, 0]},
        "killed": part | {"broken_streams": 3, "resent": 4, "deaths": {"mel": {"red_s": 0.25, "ready_s": 12.4}}},
    }
    table = markdown({"data": data})
    assert "| steady, 300 s | 2 | 9 | 7 | 2 | 1 | 0.10, 0.20, 0.30 s |" in table
    assert "each of 1 Python models killed once: 3 broken streams, 4 tries to send a segment again" in table
    assert "red within 0.25 s, the server back after 12 to 12 s" in table
    assert "| more than slots | 2 | 9 | 7 | 1 |" in table and "[0, 5, 0]" in table
