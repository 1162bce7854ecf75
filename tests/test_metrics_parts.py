"""Metrics without a server: they are never in the way, their labels are bounded, and the page has them all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from polylip.serving import metrics
from polylip.serving.metrics import FAMILIES, REFUSED, STAGE, WORK, ModelMetrics, span_s
from polylip.serving.sweeping import Sweeping
from polylip.serving.tracking import Tracker, TrackerPool, Tracks, faceless

# Never in the way


class Broken:
    """A backend whose metrics cannot be had."""

    COUNTER = GAUGE = HISTOGRAM = None
    tries = 0

    def __init__(self, **kwargs: object) -> None:
        Broken.tries += 1
        raise RuntimeError("no metrics today")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    for name in ("_families", "_series", "_broken"):
        monkeypatch.setattr(metrics, name, type(getattr(metrics, name))())

    def use(family: type) -> None:
        monkeypatch.setattr(metrics, "_backend", lambda: SimpleNamespace(MetricFamily=family))

    return use


def test_metrics_that_cannot_be_had_fail_no_request_and_are_tried_once(backend, caplog: pytest.LogCaptureFixture):
    backend(Broken)
    with ModelMetrics("mel").stage(3, audio_s=1.0):
        pass
    tried = Broken.tries
    with ModelMetrics("mel").stage(3, audio_s=1.0):
        pass
    assert tried == Broken.tries == 5
    assert len(caplog.records) == 5 and "polylip_stage_seconds is no longer kept" in caplog.text


class Memory:
    """A backend that remembers the label values it was asked for."""

    COUNTER = GAUGE = HISTOGRAM = None
    seen: list[dict[str, str]]

    def __init__(self, **kwargs: object) -> None:
        Memory.seen = []

    def Metric(self, labels: dict[str, str], **kwargs: object) -> SimpleNamespace:  # noqa: N802  Triton's name
        Memory.seen.append(labels)
        return SimpleNamespace(increment=lambda amount: None, observe=lambda value: None)


def test_a_label_is_never_text_and_their_number_is_bounded(backend):
    backend(Memory)
    gate = ModelMetrics("gate")
    for code in ("full", "My house has a door", "Ω", "", "x" * 33, 'a"b', *map(str, range(200))):
        gate.refused(code)
    codes = [labels["code"] for labels in Memory.seen]
    assert codes[:2] == ["full", "other"] and codes.count("other") == 1
    assert len(codes) == metrics.MAX_SERIES
    assert {labels["model"] for labels in Memory.seen} == {"gate"}


def test_an_engine_that_raises_did_no_work(backend):
    backend(Memory)
    assert not metrics._series
    with pytest.raises(ValueError, match="no"), ModelMetrics("mel").stage(1):
        raise ValueError("no")
    ModelMetrics("mel").worked(1.0, 0)
    assert not metrics._series


def test_outside_triton_nothing_is_kept():
    with ModelMetrics("mel").stage(1):
        ModelMetrics("mel").start("1", "python", (*WORK, REFUSED), ("full",))
    assert not metrics._series


# Counting


def test_the_length_of_video_includes_the_last_frame():
    assert span_s(np.arange(0, 1000, 40)) == pytest.approx(1.0)
    assert span_s(np.array([], np.int64)) == span_s(np.array([7])) == 0


def test_a_pool_knows_which_faces_are_gone():
    def seen(*scores: list[float]) -> Tracks:
        table = np.array(scores, np.float32)
        ids = np.arange(1, table.shape[1] + 1, dtype=np.int32)
        return Tracks(np.zeros((*table.shape, 4), np.float32), ids, table, np.ones(len(ids), np.float32))

    pool = TrackerPool(Tracker, ttl_s=90)
    pool.get(7, True, 0.0)
    assert pool.lost(7, seen([0.9, 0.8], [0.9, 0.8])) == 0
    assert pool.lost(7, seen([0.9, 0.1], [0.9, 0.0])) == 1
    assert pool.lost(7, seen([0.9, 0.0], [0.9, 0.0])) == 0, "once"
    assert pool.lost(7, Tracks(np.zeros((0, 0, 4)), np.zeros(0, np.int32), np.zeros((0, 0)), np.zeros(0))) == 0
    assert pool.lost(7, Tracks(np.zeros((1, 0, 4)), np.zeros(0, np.int32), np.zeros((1, 0)), np.zeros(0))) == 1
    assert pool.lost(8, seen([0.9])) == 0, "no such stream"


def test_a_pool_counts_whom_it_gave_up():
    pool = TrackerPool(Tracker, ttl_s=10)
    for sequence in (1, 2, 3):
        pool.get(sequence, True, 0.0)
    pool.end(3)
    with pytest.raises(ValueError, match="not running here"):
        pool.get(1, False, 20.0)
    assert pool.sweep(20.0) == 1
    assert (pool.started, pool.swept, len(pool)) == (3, 2, 0)


class Counting:
    """Sequences that begin while they are being counted."""

    def __init__(self) -> None:
        self.started, self.swept = 0, 0
        self.in_sweep, self.go_on = threading.Event(), threading.Event()

    def __len__(self) -> int:
        if not self.in_sweep.is_set():
            self.in_sweep.set()
            self.go_on.wait(1.0)
            return 0
        return self.started

    def sweep(self, now_s: float) -> None:
        pass


def test_the_newest_figures_are_told_last():
    held, told = Counting(), []
    sweeping = Sweeping(SimpleNamespace(sequences=lambda *figures: told.append(figures)), held, every_s=60.0)
    try:
        first = threading.Thread(target=sweeping.look)
        first.start()
        held.in_sweep.wait()
        held.started = 1
        second = threading.Thread(target=sweeping.look)
        second.start()
        second.join(0.2)  # it would tell now, were it let
        held.go_on.set()
        first.join()
        second.join()
    finally:
        sweeping.stop()
    assert told[-1] == (1, 1, 0)


def test_key_frames_with_nobody():
    assert faceless(np.array([[0.9, 0.1], [0.4, 0.3], [0.0, 0.0]], np.float32)) == 2
    assert faceless(np.zeros((3, 0), np.float32)) == 3


# The page


def test_names_follow_the_conventions_of_prometheus():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.name.startswith("polylip_") and not family.help.endswith(".")
        assert (family.kind is metrics.Kind.COUNTER) == family.name.endswith("_total")
        assert bool(family.buckets) == (family.kind is metrics.Kind.HISTOGRAM)
    assert list(STAGE.buckets) == sorted(STAGE.buckets)


def test_the_page_has_the_table_of_metrics():
    assert metrics.markdown() in (Path(__file__).parents[1] / "docs" / "observability.md").read_text()
