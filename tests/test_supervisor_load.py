"""Python models that die while the real client is at work: the probe is red at once, and nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from polylip.client.job import DubOptions, Progress, dub
from polylip.client.results import Status
from polylip.perf.demo_clip import make_demo_clip
from polylip.perf.supervised import START_S, is_red, supervised
from polylip.serving.supervisor import Exit

RED_S = 3.0  # from the death of a model to a red probe: what is promised
SECONDS = 9
MODELS = "speech,faces,lipsync"
KILLED_UNDER_LOAD = {"translate": 10, "track": 100}  # frames that the job has written by then


@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_models_killed_in_the_middle_of_a_dub_cost_nothing_but_time(tmp_path: Path):
    """One of the speech branch, one of the picture branch: the client's requests resume by themselves."""
    clip = make_demo_clip(tmp_path / "talk.mp4", seconds=SECONDS, size=(640, 360))
    to_kill = dict(KILLED_UNDER_LOAD)
    seen: list[Future[float]] = []
    with supervised("--models", MODELS, "--restart", "2") as server, ThreadPoolExecutor() as pool:
        url = await asyncio.to_thread(server.wait_until_ready)

        def kill(progress: Progress) -> None:
            if not to_kill or progress.frames < next(iter(to_kill.values())):
                return
            for death in seen:
                death.result()
            # The job, which takes a second for the rest, stands still until the supervisor says so too.
            server.until(lambda status: not is_red(status), START_S)
            model = next(iter(to_kill))
            del to_kill[model]
            server.stubs()[model].kill()
            seen.append(pool.submit(server.until, is_red, RED_S))

        result = await dub(DubOptions(clip, tmp_path / "out" / "o.mp4", "es", url=url), kill)
        assert [death.result() < RED_S for death in seen] == [True] * len(KILLED_UNDER_LOAD)
        for _ in KILLED_UNDER_LOAD:
            assert await asyncio.to_thread(server.wait_until_ready) == url
        server.signal(signal.SIGTERM)
        code, said = await asyncio.to_thread(server.ended)
    report = result.report
    assert result.complete and {segment.status for segment in report.segments} == {Status.DUBBED}
    assert [segment.id for segment in report.segments] == list(dict.fromkeys(segment.id for segment in report.segments))
    assert all(segment.error_code is None for segment in report.segments)
    assert report.counters["failed_faces_chunks"] == report.counters["failed_lipsync_calls"] == 0
    assert report.frames_without_face == 0
    assert report.counters["server_reconnects"] >= len(KILLED_UNDER_LOAD)
    assert code == Exit.STOPPED
    assert [line.split(" died: its process is gone; ")[0] for line in said[:2]] == [
        f"polylip: model {model}" for model in KILLED_UNDER_LOAD
    ]
    assert [line.rpartition("; ")[2] for line in said[:2]] == ["starting again (1 of 2)", "starting again (2 of 2)"]
