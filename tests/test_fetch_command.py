"""`polylip fetch` as a person runs it, its record, its manifest, and the page about it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from weight_site import BODY, COMMIT, DIGEST, Site

from polylip.client.cli import app
from polylip.client.errors import InputError
from polylip.export.fetch_command import size_text
from polylip.export.manifest import ManifestError, read_manifest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "POLYLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def entry(url: str, commercial: bool = True, **changes: Any) -> dict[str, Any]:
    """A manifest of one model with one file."""
    file = {"name": "net.pth", "bytes": len(BODY), "sha256": DIGEST, "sha256_checked": False, "stated_by": ["a page"]}
    place = {"url": f"{url}/{{file}}?{{revision}}", "revision": None, "revision_checked": False, "mirror": False}
    licence = {"name": "A licence", "url": "https://example.com/licence", "commercial_use": commercial}
    return {
        "format": 1,
        "models": [
            {"name": "net", "kind": "lips", "title": "A net", "page": "https://example.com/net", "licence": licence,
             "profiles": ["cpu"], "note": "", "places": [place], "files": [file | changes]}
        ],
    }  # fmt: skip


def run(tmp_path: Path, content: dict[str, Any], *arguments: str) -> Any:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(content))
    return CliRunner().invoke(app, ["fetch", *arguments, "--manifest", str(manifest), "--to", str(tmp_path / "w")])


def test_the_command_records_what_it_fetched_and_then_fetches_nothing(site: Site, tmp_path: Path):
    site.answers.commit = COMMIT
    content = entry(site.url, commercial=False)
    refused = run(tmp_path, content, "net")
    assert isinstance(refused.exception, InputError) and "--accept-non-commercial" in str(refused.exception)
    assert site.requests == []
    done = run(tmp_path, content, "--profile", "cpu", "--accept-non-commercial", "--json")
    assert done.exit_code == 0, done.exception
    assert "net: A licence, https://example.com/licence - NO COMMERCIAL USE" in done.stderr
    result = json.loads(done.stdout)["models"][0]["files"][0]
    record = json.loads((tmp_path / "w" / "net.json").read_text())
    assert record["licence"]["commercial_use"] is False
    assert re.match(r"\d{4}-\d\d-\d\dT", record["accepted_non_commercial_at"])
    assert record["files"] == [{key: value for key, value in result.items() if key != "action"}]
    assert result == {
        "name": "net.pth", "action": "downloaded", "bytes": len(BODY), "sha256": DIGEST, "sha256_stated": True,
        "source": f"{site.url}/net.pth?main", "revision": COMMIT, "mirror": False,
    }  # fmt: skip
    again = run(tmp_path, content, "net", "--verify", "--json")  # the acceptance is in the record
    assert json.loads(again.stdout)["models"][0]["files"][0]["action"] == "present"
    assert len(site.requests) == 1
    assert json.loads((tmp_path / "w" / "net.json").read_text()) == record


def test_an_unstated_hash_is_reported_and_held_from_then_on(site: Site, tmp_path: Path):
    content = entry(site.url, bytes=None, sha256=None, stated_by=[])
    done = run(tmp_path, content, "net")
    assert f"no SHA-256 is stated for it; found {DIGEST}" in done.stderr
    assert json.loads((tmp_path / "w" / "net.json").read_text())["files"][0]["sha256_stated"] is False
    target = tmp_path / "w" / "net" / "net.pth"
    target.write_bytes(bytes(len(BODY)))
    assert run(tmp_path, content, "net").exit_code == 0  # the size alone is compared
    changed = run(tmp_path, content, "net", "--verify")
    assert f"expected {DIGEST} as recorded" in str(changed.exception)
    assert target.exists()


def test_a_file_of_the_user_with_another_size_is_kept_and_named(site: Site, tmp_path: Path):
    target = tmp_path / "w" / "net" / "net.pth"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"mine")
    done = run(tmp_path, entry(site.url), "net")
    assert f"has 4 bytes, expected {len(BODY)}; move it away" in str(done.exception)
    assert target.read_bytes() == b"mine" and site.requests == []
    target.write_bytes(bytes(len(BODY)))  # right size, never fetched: hashed without being asked to
    assert f"expected {DIGEST}" in str(run(tmp_path, entry(site.url), "net").exception)


def test_a_full_disk_is_found_out_before_the_download(site: Site, tmp_path: Path):
    content = entry(site.url, bytes=10**18)
    done = run(tmp_path, content, "net")
    assert "MB are needed" in str(done.exception) and isinstance(done.exception, InputError)
    assert site.requests == []


def test_a_folder_that_cannot_be_used_is_one_line(site: Site, tmp_path: Path):
    (tmp_path / "w").write_text("a file where the folder should be")
    done = run(tmp_path, entry(site.url), "net")
    assert isinstance(done.exception, InputError) and "cannot use" in str(done.exception)


def test_the_command_takes_files_without_network(site: Site, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.pth").write_bytes(BODY)
    done = run(tmp_path, entry(site.url), "net", "--from", str(tmp_path / "mine"))
    assert done.exit_code == 0, done.exception
    record = json.loads((tmp_path / "w" / "net.json").read_text())
    assert record["files"][0]["source"].endswith("mine/net.pth")
    assert site.requests == []


def test_the_list_and_the_dry_run_need_no_network(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listed = json.loads(run(tmp_path, entry(site.url), "--json").stdout)["models"]
    assert [(row["name"], row["bytes"], row["present"]) for row in listed] == [("net", len(BODY), "absent")]
    assert "net" in run(tmp_path, entry(site.url), "net", "--dry-run").stdout
    monkeypatch.setenv("POLYLIP_WEIGHTS", str(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in CliRunner().invoke(app, ["fetch"]).stdout
    for arguments, message in (
        (["nothing"], "no weights are named nothing"),
        (["--profile", "lite"], "cpu, onnx, gpu"),
    ):
        assert message in str(run(tmp_path, entry(site.url), *arguments).exception)
    assert site.requests == []


def test_ctrl_c_keeps_the_part_and_the_same_command_goes_on(site: Site, tmp_path: Path):
    site.answers.stall = True
    (tmp_path / "manifest.json").write_text(json.dumps(entry(site.url)))
    command = [sys.executable, "-m", "polylip.client.cli", "fetch", "net"]
    command += ["--manifest", str(tmp_path / "manifest.json"), "--to", str(tmp_path / "w")]
    environment = {**os.environ, "HF_TOKEN": "secret"}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    part = tmp_path / "w" / "net" / "net.pth.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    first.send_signal(signal.SIGINT)
    out, said = first.communicate(timeout=20)
    assert first.returncode == 130, said
    assert "interrupted; what arrived is kept" in said and out == "" and "secret" not in said
    kept = part.stat().st_size
    site.answers.stall = False
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert second.returncode == 0, second.stderr
    assert site.ranges() == [None, f"bytes={kept}-"]
    assert (tmp_path / "w" / "net" / "net.pth").read_bytes() == BODY


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_the_committed_manifest_says_where_everything_is_from():
    models = read_manifest()
    assert {"faster-whisper-small", "opus-mt-en-es", "xtts-v2", "s3fd", "wav2lip", "syncnet"} <= set(models)
    closed = {name for name, model in models.items() if not model.licence.commercial_use}
    assert closed == {"xtts-v2", "wav2lip", "wav2lip-gan", "syncnet"}
    for model in models.values():
        assert all(place.url.startswith("https://") for place in model.places)
        assert model.page.startswith("https://") and model.licence.url.startswith("https://")
        assert model.kind in {"recogniser", "translator", "voice", "detector", "lips", "measure"}
        unknown = [file.name for file in model.files if file.sha256 is None]
        assert not unknown or model.kind == "translator"


def test_each_production_profile_has_every_kind_of_engine():
    for profile in ("cpu", "onnx", "gpu"):
        kinds = {model.kind for model in read_manifest().values() if profile in model.profiles}
        assert kinds == {"recogniser", "translator", "voice", "detector", "lips"}


def test_a_manifest_of_another_form_is_refused_with_its_entry_named(tmp_path: Path):
    good = entry("https://example.com")
    breaks: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda m: m.update(name="../net"), "no plain file name"),
        (lambda m: m["files"][0].update(name="/etc/passwd"), "no plain file name"),
        (lambda m: m["files"][0].update(name=".."), "no plain file name"),
        (lambda m: m["files"][0].update(aliases=["a/b"]), "no plain file name"),
        (lambda m: m["files"][0].update(sha256="abc"), "64 lower-case"),
        (lambda m: m["files"][0].update(sha256=None, sha256_checked=True), "cannot be checked"),
        (lambda m: m["files"][0].update(stated_by=[]), "who states"),
        (lambda m: m["files"][0].update(name="net-00000000.pth"), "begin with the digits"),
        (lambda m: m["files"][0].update(bytes=0), "no size"),
        (lambda m: m["places"][0].update(url="http://example.com/{file}"), "no https address"),
        (lambda m: m["places"][0].update(url="https://user:pass@example.com/{file}"), "no https address"),
        (lambda m: m["places"][0].update(url="https://example.com/net"), "where the file name goes"),
        (lambda m: m["places"][0].update(revision_checked=True), "unknown revision"),
        (lambda m: m.pop("licence"), "'licence' is missing"),
        (lambda m: m.update(profiles=["lite"]), "profiles must be"),
    ]
    path = tmp_path / "manifest.json"
    for change, message in breaks:
        content = json.loads(json.dumps(good))
        change(content["models"][0])
        path.write_text(json.dumps(content))
        with pytest.raises(ManifestError, match=message):
            read_manifest(path)
    path.write_text("{")
    with pytest.raises(ManifestError, match="cannot read"):
        read_manifest(path)
    path.write_text(json.dumps(good))
    assert list(read_manifest(path)) == ["net"]


def test_the_table_of_the_page_is_the_manifest():
    page = (ROOT / "docs" / "weights.md").read_text()
    for model in read_manifest().values():
        use = "yes" if model.licence.commercial_use else "**no**"
        row = f"| [`{model.name}`]({model.page}) | {model.title} | {size_text(model)} | {use} | {model.licence.name} |"
        assert row in page
