"""Files that a job would mark, and what the tests of marking share."""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import Picture, Sound, noise, write_media

from polylip.client.marking import DubFacts, VoiceKind, container_tags

FACTS = DubFacts(
    source_language="en",
    target_language="es",
    dubbed_segments=5,
    lips_rendered=True,
    voice=VoiceKind.STOCK,
    generative=True,
    profile="cpu",
    engines=("xtts", "wav2lip"),
)


def keep_state_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identities of a test stay in its folder, and the user's certificates out of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    for name in ("POLYLIP_MARK_CERT", "POLYLIP_MARK_KEY", "POLYLIP_MARK_TSA"):
        monkeypatch.delenv(name, raising=False)


def finished_dub(path: Path, picture: Picture | None = None, seconds: float = 1.0) -> Path:
    """A file as the writer leaves it: with tags, not signed yet."""

    def tag(container) -> None:
        container.metadata.update(container_tags("es", generative=True))

    options = {} if path.suffix == ".mkv" else {"movflags": "+faststart"}
    path.parent.mkdir(exist_ok=True)
    return write_media(path, picture or Picture(25), Sound(noise(seconds)[None]), options=options, finish=tag)
