"""Real servers for the tests: one for the session, own ones for tests that break them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from polylip.export.lips_lite import write_graph
from polylip.serving.doctor import LIPS_LITE
from polylip.serving.guard import SHM
from polylip.serving.launcher import Server, ServerOptions, start_server
from polylip.serving.runtime import find_model_repository

# A shell that starts the suite in the background has it ignore Ctrl-C, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine takes as long as it takes for an example: no time is claimed there. The same examples in every run;
# `--hypothesis-profile=search` looks for others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("same")

REPOSITORY = Path(__file__).parents[1] / "model_repository"
REAL_CLIP = Path(__file__).parents[2] / "shared" / "media" / "interview_en.mp4"


@pytest.fixture(scope="session", autouse=True)
def _lips_graph() -> None:
    write_graph(find_model_repository() / LIPS_LITE)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A shared server of profile lite. A test that hurts it must use `own_server`."""
    running = start_server(ServerOptions())
    yield running
    running.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers for one test: `own_server()`, or with changed configs: `own_server({"track": (old, new)})`.

    Several changes to one config are a list of pairs.
    """
    started: list[Server] = []

    def start(changes: dict[str, tuple[str, str] | list[tuple[str, str]]] | None = None) -> Server:
        repository = tmp_path / f"repository-{len(started)}"
        shutil.copytree(REPOSITORY, repository)
        for model, pairs in (changes or {}).items():
            config = repository / model / "config.pbtxt"
            for old, new in pairs if isinstance(pairs, list) else [pairs]:
                text = config.read_text()
                assert old in text, f"{old!r} is not in the config of {model}"
                config.write_text(text.replace(old, new))
        running = start_server(ServerOptions(model_repository=repository, log_path=tmp_path / "server.log"))
        started.append(running)
        return running

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's own input: a face, three sentences of English and more."""
    from polylip.perf.demo_clip import make_demo_clip  # noqa: PLC0415

    return make_demo_clip(tmp_path_factory.mktemp("demo") / "input.mp4")


@pytest.fixture(scope="session")
def generated_repository(tmp_path_factory: pytest.TempPathFactory, demo_clip: Path) -> Path:
    """A model repository with full-size graphs of generated weights and the speech of profile lite.

    S3FD is fitted to the faces of the clips.
    """
    from polylip.export.generated_faces import generated_detector  # noqa: PLC0415  torch takes 2 s to import
    from polylip.perf.generated_repository import make_generated_repository, speak_like_lite  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("generated") / "repository"
    clips = [demo_clip, *([REAL_CLIP] if REAL_CLIP.is_file() else [])]
    make_generated_repository(folder, detector=generated_detector(*clips))
    speak_like_lite(folder)
    return folder


@pytest.fixture(scope="session")
def xtts_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `xtts-v2` with small generated weights."""
    from polylip.export.generated_xtts import make_xtts  # noqa: PLC0415  torch and coqui take seconds to import

    return make_xtts(tmp_path_factory.mktemp("weights") / "xtts-v2")


@pytest.fixture(scope="session")
def real_clip() -> Path:
    """A real clip of a man at a webcam, where the machine has it."""
    if not REAL_CLIP.is_file():
        pytest.skip("the real clip is not on this machine")
    return REAL_CLIP


def shared_memory_of(server: Server) -> list[str]:
    """Names of the shared-memory regions that belong to a server."""
    return [name for name in os.listdir(SHM) if name.startswith(server.shm_prefix)]
