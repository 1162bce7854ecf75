"""Every query of the dashboard and the rules, run by a real Prometheus on a real server; every alert, seen to fire."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from conftest import REPOSITORY
from live_run import stub
from material import chunk, face_at, face_crop, milliseconds, read_aloud
from ruamel.yaml import YAML
from tritonclient.grpc import service_pb2_grpc

from polylip.client.errors import ServerError
from polylip.client.triton import TritonClient
from polylip.client.wire import SequencePosition, infer_request, new_sequence_id, rows
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.metrics import DEGRADE_PARAMETER, FAMILIES

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "docker" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = YAML(typ="safe").load(MONITORING / "rules.yaml")["groups"]
TIMEOUT_S = 30.0
PATIENCE_S = 30.0  # of a busy machine: a scrape each second, and rules each second
SCRAPES = 4  # before anything is asked: a rate needs two

RECORDS = {rule["record"]: rule["expr"] for group in RULES for rule in group["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule["expr"] for group in RULES for rule in group["rules"] if "alert" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']}, {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}
PENDING = 'ALERTS{{alertname="{alert}", alertstate="pending"}}'  # firing would take minutes
NO_GPU = re.compile(r"\bnv_gpu_")  # what returns nothing on a server without one


def program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing; run: apt-get install --no-install-recommends prometheus"
    return found


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        url = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310  of this machine
            return json.load(reply)["data"]

    def values(self, expression: str) -> list[float]:
        """What a query returns now, without what is not a number."""
        found = [float(sample["value"][1]) for sample in self.ask("/api/v1/query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]

    def until(self, expression: str, least: float = 0.0) -> list[float]:
        """What it returns as soon as one of it is so large: a scrape that came too late leaves it empty for a while."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                values = self.values(expression)
            except OSError:  # it is starting
                values = []
            if any(value >= least for value in values):
                return values
            assert time.monotonic() < deadline, f"{expression}: {values}"
            time.sleep(0.2)


def listening_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The one that a program has taken for itself."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        sockets = psutil.Process(process.pid).net_connections("tcp")
        if ports := [one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN]:
            return ports[0]
        time.sleep(0.1)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one slot, so that the second stream is refused. The first keeps it until all has been asked."""
    repository = tmp_path_factory.mktemp("watched") / "repository"
    shutil.copytree(REPOSITORY, repository)
    config, idle = repository / "gate" / "config.pbtxt", 'key: "idle_s" value: { string_value: "%d" }'
    assert idle % 60 in config.read_text()
    config.write_text(config.read_text().replace(idle % 60, idle % 600))
    running = start_server(ServerOptions(model_repository=repository, slots=1))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def prometheus(watched: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the example's own configuration, faster, on that server; it has seen load."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = YAML(typ="safe").load(MONITORING / "prometheus.yml")
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(MONITORING / "rules.yaml")]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{watched.ports.metrics}"]
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which YAML can read
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            running = Prometheus(listening_port(process, folder / "log"))
            answered = "sum(sum_over_time(up[10m]))"
            running.until(answered, SCRAPES)
            asyncio.run(load(watched))
            [scraped] = running.values(answered)
            running.until(answered, scraped + SCRAPES)
            yield running
        finally:
            process.terminate()


async def load(server: Server) -> None:
    """A little of everything, with a failure, a refusal and a degraded client among it."""
    async with TritonClient(server.url) as client:
        client.level = lambda: 1
        async with client.line(decoupled=True) as line:
            inputs = {"AUDIO": read_aloud("The house is big."), "SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es"}
            assert [part async for part in await line.submit("speech", rows(inputs), TIMEOUT_S)]
        async with client.line() as line:
            sequence = new_sequence_id()
            for index in range(2):
                at_ms = 1000 * index
                inputs = chunk([face_at(0)] * 2, [at_ms, at_ms + 500], list(range(at_ms, at_ms + 1000, 100)))
                await line.call("faces", inputs, TIMEOUT_S, SequencePosition(sequence, index == 0, index == 1))
            lips = {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": milliseconds(0)}
            await line.call("lipsync", {**lips, "FACES": face_crop()[None]}, TIMEOUT_S)
            with pytest.raises(ServerError):
                await line.call("mel", {**lips, "AUDIO": np.full(9, np.nan, np.float32)}, TIMEOUT_S)
        heard = rows({"AUDIO": np.zeros(0, np.float32), "SOURCE_LANGUAGE": "en", "KNOWN_TEXT": "a"})
        request = infer_request("transcribe", heard)
        request.parameters[DEGRADE_PARAMETER].int64_param = 1
        stub: service_pb2_grpc.GRPCInferenceServiceStub = client._stub
        await stub.ModelInfer(request, timeout=TIMEOUT_S)
        await _begin(stub)
        with pytest.raises(grpc.RpcError, match="code=full"):
            await _begin(stub)


async def _begin(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """Ask the gate to let a stream in."""
    inputs = {
        "AUDIO": np.zeros(8000, np.float32),
        "SOURCE_LANGUAGE": "en",
        "TARGET_LANGUAGE": "es",
        "FRAMES": np.zeros(0, np.object_),
        "FRAME_MS": milliseconds(),
    }
    request = infer_request("gate", inputs, "1", SequencePosition(new_sequence_id(), start=True))
    request.parameters["timeout"].int64_param = 30_000_000  # microseconds
    await stub.ModelInfer(request, timeout=TIMEOUT_S)


def filled(expression: str) -> str:
    """A query of the dashboard as Grafana sends it when all servers are chosen."""
    for variable, value in (("$__rate_interval", "5m"), ("$job", ".+"), ("$instance", ".+")):
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


# On a real server


@pytest.mark.parametrize("record", RECORDS)
def test_a_recorded_series_is_there(prometheus: Prometheus, record: str):
    prometheus.until(record)


@pytest.mark.parametrize("title", QUERIES)
def test_a_panel_shows_something(prometheus: Prometheus, title: str):
    expression = filled(QUERIES[title])
    if NO_GPU.search(expression):
        assert prometheus.values(expression) == []  # it can be read
    else:
        prometheus.until(expression)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_looks_at_something_that_is_there(prometheus: Prometheus, alert: str):
    compared = re.fullmatch(r"(.+) (==|>=|>|<) [\d.]+", ALERTS[alert])
    if compared is None:
        assert prometheus.ask("/api/v1/query", query=ALERTS[alert])["resultType"] == "vector"
    else:
        prometheus.until(compared[1])


def test_the_choices_of_the_dashboard_are_there(prometheus: Prometheus):
    asked = [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    assert len(asked) == 2
    for definition in asked:
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", definition).groups()
        assert prometheus.ask(f"/api/v1/label/{label}/values", **{"match[]": filled(selector)})


def test_the_marks_of_the_dashboard_are_alerts(prometheus: Prometheus):
    [marks] = [entry["expr"] for entry in DASHBOARD["annotations"]["list"]]
    prometheus.until(marks.replace('"firing"', '".+"').replace("alertstate=", "alertstate=~"))  # some are pending


def test_the_figures_are_those_of_the_load(prometheus: Prometheus):
    assert prometheus.until("polylip:slots_taken:ratio") == [1.0]
    assert prometheus.until("sum(polylip_refused_total{code='full'})") == [1.0]
    assert prometheus.until("polylip:live_streams:sum") == [1.0]
    assert prometheus.until("polylip:degrade_level:avg5m") == [1.0]


def test_every_rule_was_evaluated_without_an_error(prometheus: Prometheus):
    rules = [rule for group in prometheus.ask("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RECORDS) + len(ALERTS)
    assert {rule["health"] for rule in rules} == {"ok"}


async def test_a_model_whose_process_died_raises_its_alert(prometheus: Prometheus, watched: Server):
    stub(watched, "lips").kill()
    async with TritonClient(watched.url) as client, client.line() as line:
        lips = {"AUDIO": np.zeros(8000, np.float32), "FRAME_OFFSETS_MS": milliseconds(0), "FACES": face_crop()[None]}
        for _ in range(4):
            with pytest.raises(ServerError, match="not healthy"):
                await line.call("lipsync", lips, TIMEOUT_S)
    await asyncio.to_thread(prometheus.until, PENDING.format(alert="PolylipModelFailing") + ' and ALERTS{model="lips"}')


def test_a_server_that_stops_raises_its_alert(prometheus: Prometheus, watched: Server):
    """Last, as it takes the server away."""
    watched.stop()
    prometheus.until(PENDING.format(alert="PolylipServerDown"))


# On paper


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"),
        ("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"),
        ("test", "rules", "rules_test.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_has_nothing_to_say(arguments: tuple[str, ...]):
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout and "warn" not in (done.stdout + done.stderr).lower()


def test_every_alert_is_seen_to_fire_and_is_explained():
    fired = YAML(typ="safe").load(MONITORING / "rules_test.yaml")["tests"]
    seen = re.findall(r'alertname="(\w+)", alertstate="firing"', json.dumps(fired).replace("\\", ""))
    assert sorted(seen) == sorted(ALERTS)
    page = (ROOT / "docs" / "observability.md").read_text()
    for alert in ALERTS:
        assert f"`{alert}`" in page


def test_only_metrics_that_exist_are_asked_for():
    """A name that is misspelt would only be an empty panel."""
    ours = {family.name + suffix for family in FAMILIES for suffix in ("", "_sum", "_count", "_bucket")}
    for expression in [*QUERIES.values(), *RECORDS.values(), *ALERTS.values()]:
        assert set(re.findall(r"\bpolylip_\w+", expression)) <= ours
        assert set(re.findall(r"\bpolylip:[\w:]+", expression)) <= set(RECORDS)


def test_panels_have_a_unit_a_description_and_a_place_of_their_own():
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
