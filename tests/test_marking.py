"""Dubs are marked for machines, the mark is found again, changes show, and a mark that fails costs no video."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import av
import c2pa
import numpy as np
import pytest
import typer
from clips import Picture, make_clip, noise
from cryptography import x509
from marked import FACTS, finished_dub, keep_state_in
from typer.testing import CliRunner

from polylip.client import marking_keys
from polylip.client.errors import InputError
from polylip.client.marking import (
    drop_sidecar,
    mark_video,
    sidecar_path,
)
from polylip.client.marking_keys import load_identity, state_folder
from polylip.client.verify import State, describe, verify, verify_file

BIG = Picture(
    120,
    size=(640, 480),
    draw=lambda index: np.random.default_rng(index % 5).integers(0, 256, (480, 640, 3), np.uint8),
    options={"preset": "ultrafast", "qp": "1"},
)
EXIT_CODES = {State.INTACT: 0, State.UNMARKED: 4, State.CHANGED: 5, State.UNSIGNED: 6}


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_state_in(tmp_path / "state", monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "talk.mp4", seconds=1, sound=noise(1))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A finished dub by its name, in a folder of its own."""
    return lambda name="talk.es.mp4", *rest: finished_dub(tmp_path / "out" / name, *rest)


def decoded(path: Path) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
    """Times and content of all pictures and all sound."""
    found = []
    for kind in ("video", "audio"):
        with av.open(str(path)) as container:
            frames = container.decode(**{kind: 0})
            found.append([(frame.pts, frame.to_ndarray().tobytes()) for frame in frames])
    return found[0], found[1]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["talk.es.mp4", "talk.es.m4v", "talk.es.mov", "talk.es.mkv"])
def test_a_marked_dub_says_what_was_done_and_plays_as_before(name: str, source: Path, make: Callable[..., Path]):
    video = make(name)
    before, files = decoded(video), set(video.parent.iterdir())
    assert mark_video(video, source, FACTS, load_identity()) == []
    assert decoded(video) == before
    beside = {sidecar_path(video)} if name.endswith("mkv") else set()
    assert set(video.parent.iterdir()) - files == beside

    verdict = verify_file(video)
    assert verdict.state is State.INTACT and verdict.ai_dubbed
    assert verdict.digital_source_types == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
    )
    assert verdict.facts["source_language"] == "en" and verdict.facts["target_language"] == "es"
    assert verdict.facts["voice"] == "stock" and verdict.facts["lips_rendered"]
    assert verdict.facts["dubbed_segments"] == 5 and verdict.facts["engines"] == ["xtts", "wav2lip"]
    assert verdict.generators[0].startswith("polylip ")
    assert verdict.signer is not None and not verdict.signer.trusted
    text = "\n".join(describe(verdict))
    assert "yes, from en to es" in text and "the file is as it was signed" in text and "no list of trusted" in text


def test_the_index_stays_in_front(source: Path, make: Callable[..., Path]):
    video = make()
    mark_video(video, source, FACTS, load_identity())
    content = video.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_the_mark_names_no_file_folder_or_person(tmp_path: Path, make: Callable[..., Path]):
    source = make_clip(tmp_path / "Jane Roe interview.mp4", seconds=1, sound=noise(1))
    video = make()
    mark_video(video, source, FACTS, load_identity())
    content = video.read_bytes()
    for private in (b"Jane", str(tmp_path).encode(), b"talk.es"):
        assert private not in content
    for certificate in x509.load_pem_x509_certificates(load_identity().chain):
        assert re.fullmatch(
            r"CN=polylip local \w+ [0-9a-f]{8},O=polylip\\, self-signed", certificate.subject.rfc4514_string()
        )


@pytest.mark.parametrize("name", ["talk.es.mp4", "talk.es.mkv"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_one_changed_byte_shows(name: str, share: float, source: Path, make: Callable[..., Path]):
    video = make(name)
    mark_video(video, source, FACTS, load_identity())
    flip(video, int(video.stat().st_size * share))
    verdict = verify_file(video)
    assert verdict.state is State.CHANGED and verdict.problems
    assert "NOT VALID" in "\n".join(describe(verdict))


def test_a_changed_index_and_a_cut_end_show(source: Path, make: Callable[..., Path]):
    video = make()
    mark_video(video, source, FACTS, load_identity())
    content = video.read_bytes()
    flip(video, content.find(b"mvhd") + 30)
    assert verify_file(video).state is State.CHANGED
    video.write_bytes(content[:-500])
    assert verify_file(video).state is State.CHANGED


def test_a_file_beside_is_not_taken_for_that_of_a_later_video(source: Path, make: Callable[..., Path]):
    video = make("talk.es.mkv")
    mark_video(video, source, FACTS, load_identity())
    make("talk.es.mkv", None, 0.5)
    assert verify_file(video).state is State.CHANGED
    mark_video(video, source.with_name("gone.mp4"), FACTS, load_identity())
    assert verify_file(video).state is State.UNSIGNED
    mark_video(video, source, FACTS, load_identity())
    drop_sidecar(video)
    assert verify_file(video).state is State.UNSIGNED


def test_a_changed_manifest_shows(source: Path, make: Callable[..., Path]):
    video = make()
    mark_video(video, source, FACTS, load_identity())
    content = video.read_bytes()
    for found in (b"target_language", b"c2pa.dubbed", b"compositeWith"):
        video.write_bytes(content.replace(found, found[::-1]))
        assert verify_file(video).state is State.CHANGED


def test_without_its_manifest_only_tags_are_left(source: Path, make: Callable[..., Path]):
    for name in ("talk.es.mp4", "talk.es.mov", "talk.es.mkv"):
        verdict = verify_file(make(name))
        assert verdict.state is State.UNSIGNED and verdict.ai_dubbed and verdict.signer is None
        assert verdict.digital_source_types[0].endswith("compositeWithTrainedAlgorithmicMedia")
    assert verify_file(source).state is State.UNMARKED


def test_a_clip_that_nothing_was_dubbed_in_is_not_called_dubbed(source: Path, make: Callable[..., Path]):
    video = make()
    mark_video(video, source, replace(FACTS, dubbed_segments=0, lips_rendered=False), load_identity())
    verdict = verify_file(video)
    assert verdict.state is State.UNMARKED and not verdict.ai_dubbed and not verdict.digital_source_types


def test_voices_by_rule_are_not_called_generative(source: Path, make: Callable[..., Path]):
    video = make()
    mark_video(video, source, replace(FACTS, generative=False), load_identity())
    verdict = verify_file(video)
    assert verdict.state is State.INTACT and verdict.ai_dubbed
    assert verdict.digital_source_types == ("http://cv.iptc.org/newscodes/digitalsourcetype/composite",)


def test_the_manifest_of_the_source_is_kept(source: Path, make: Callable[..., Path]):
    identity = load_identity()
    mark_video(source, source, replace(FACTS, dubbed_segments=0, lips_rendered=False), identity)
    first = make("talk.es.mp4")
    mark_video(first, source, FACTS, identity)
    assert len(verify_file(first).generators) == 2
    second = make("talk.fr.mp4")
    assert mark_video(second, first, replace(FACTS, source_language="es", target_language="fr"), identity) == []
    verdict = verify_file(second)
    assert verdict.state is State.INTACT and len(verdict.generators) == 3
    assert verdict.facts["target_language"] == "fr"


def test_a_dub_that_was_worked_on_afterwards_is_still_a_dub(source: Path, make: Callable[..., Path]):
    dub, cut = make("talk.es.mp4"), make("cut.mp4")
    mark_video(dub, source, FACTS, load_identity())
    mark_video(cut, dub, replace(FACTS, dubbed_segments=0, lips_rendered=False), load_identity())
    content = cut.read_bytes()
    assert b"polylip.dub" in content
    verdict = verify_file(cut)
    assert verdict.state is State.INTACT and verdict.ai_dubbed and len(verdict.generators) == 2


def test_a_damaged_manifest_of_the_source_costs_a_warning_only(source: Path, make: Callable[..., Path]):
    mark_video(source, source, FACTS, load_identity())
    content = source.read_bytes()
    source.write_bytes(content.replace(b"polylip", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9"))
    video = make()
    (warning,) = mark_video(video, source, FACTS, load_identity())
    assert "source's own manifest is damaged" in warning
    assert verify_file(video).state is State.INTACT


@pytest.mark.parametrize(
    ("action", "kind", "state"),
    [
        ("c2pa.dubbed", "compositeWithTrainedAlgorithmicMedia", State.INTACT),
        ("c2pa.dubbed", "digitalCapture", State.UNMARKED),
        ("c2pa.edited", "compositeWithTrainedAlgorithmicMedia", State.UNMARKED),
    ],
)
def test_marks_of_other_tools_are_read(action: str, kind: str, state: State, make: Callable[..., Path], tmp_path: Path):
    uri = f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
    actions = [{"action": "c2pa.created", "digitalSourceType": uri}, {"action": action, "digitalSourceType": uri}]
    manifest = {
        "claim_generator_info": [{"name": "Other \x1b[31mtool", "version": "2"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    identity, signed = load_identity(), tmp_path / "other.mp4"
    info = c2pa.C2paSignerInfo(identity.algorithm, identity.chain, identity.key, None)
    with c2pa.Builder(manifest) as builder, c2pa.Signer.from_info(info) as signer:
        builder.sign_file(make(), signed, signer)
    verdict = verify_file(signed)
    assert verdict.state is state and verdict.ai_dubbed is (state is State.INTACT)
    assert verdict.digital_source_types == (uri,)
    text = "\n".join(describe(verdict))
    assert "Other ?[31mtool 2" in text and "valid: the file is as it was signed" in text


def test_other_files_are_told_apart(tmp_path: Path):
    for content in (b"", b"no video", np.random.default_rng(0).bytes(5000)):
        path = tmp_path / "x.mp4"
        path.write_bytes(content)
        with pytest.raises(InputError, match="no media file"):
            verify_file(path)
    with pytest.raises(InputError, match="not a file"):
        verify_file(tmp_path / "missing.mp4")


def test_exit_codes_and_json(source: Path, make: Callable[..., Path]):
    app = typer.Typer()
    app.command()(verify)
    marked, changed, tagged = make("a.mp4"), make("b.mp4"), make("c.mp4")
    for video in (marked, changed):
        mark_video(video, source, FACTS, load_identity())
    flip(changed, changed.stat().st_size - 3000)
    for video, state in (
        (marked, State.INTACT),
        (changed, State.CHANGED),
        (tagged, State.UNSIGNED),
        (source, State.UNMARKED),
    ):
        answer = CliRunner().invoke(app, [str(video), "--json"])
        assert answer.exit_code == EXIT_CODES[state]
        assert json.loads(answer.stdout)["state"] == state
    answer = CliRunner().invoke(app, [str(source.with_name("missing.mp4"))])
    assert isinstance(answer.exception, InputError) and answer.exception.exit_code == 2


def test_a_signer_on_the_given_list_is_trusted(source: Path, make: Callable[..., Path]):
    video = make()
    mark_video(video, source, FACTS, load_identity())
    trust = state_folder() / "trust.pem"
    verdict = verify_file(video, trust)
    assert verdict.signer is not None and verdict.signer.trusted
    other = trust.with_name("other.pem")
    other.write_bytes(marking_keys._new_identity()[2])
    verdict = verify_file(video, other)
    assert verdict.state is State.INTACT and verdict.signer is not None and not verdict.signer.trusted
    with pytest.raises(InputError, match="no certificates"):
        verify_file(video, video)


def test_a_mark_that_fails_leaves_the_video_as_it_was(
    source: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    for name in ("talk.es.mp4", "talk.es.mkv"):
        video = make(name)
        content, files = video.read_bytes(), set(video.parent.iterdir())
        monkeypatch.setattr(marking_keys, "LIFE", timedelta(hours=-1))
        chain, key, _ = marking_keys._new_identity()
        expired = marking_keys._parse(chain, key, local=True, authority=None)
        (warning,) = mark_video(video, source, FACTS, expired)
        assert "NOT MARKED" in warning and "\n" not in warning
        (warning,) = mark_video(video, source.with_name("gone.mp4"), FACTS, load_identity())
        assert "NOT MARKED" in warning and "No such file" in warning
        assert video.read_bytes() == content and set(video.parent.iterdir()) == files


def test_without_room_the_video_stays_as_it_was(source: Path, make: Callable[..., Path]):
    video = make()
    content = video.read_bytes()
    load_identity()
    code = (
        "import resource, sys; from pathlib import Path; from polylip.client.marking import *;"
        "from polylip.client.marking_keys import load_identity; i = load_identity();"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(content) // 2}, {len(content) // 2}));"
        "f = DubFacts('en', 'es', 5, True, VoiceKind.STOCK, True, 'cpu');"
        "print(mark_video(Path(sys.argv[1]), Path(sys.argv[2]), f, i))"
    )
    done = subprocess.run([sys.executable, "-c", code, video, source], capture_output=True, text=True, check=True)
    assert "NOT MARKED" in done.stdout
    assert video.read_bytes() == content
    assert list(video.parent.iterdir()) == [video]


def test_a_certificate_that_expired_since_is_said_and_the_file_is_still_intact(
    source: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    video = make()  # first: the certificate has to live until the file is signed
    monkeypatch.setattr(marking_keys, "CLOCK_SLACK", timedelta(seconds=1))
    monkeypatch.setattr(marking_keys, "LIFE", timedelta(seconds=6))
    chain, key, _ = marking_keys._new_identity()
    identity = marking_keys._parse(chain, key, local=True, authority=None)
    assert mark_video(video, source, FACTS, identity) == []
    while datetime.now(UTC) <= identity.certificate.not_valid_after_utc + timedelta(seconds=1):
        time.sleep(0.1)
    verdict = verify_file(video)
    assert verdict.state is State.INTACT
    assert verdict.signer is not None and verdict.signer.expired
    assert "has expired" in "\n".join(describe(verdict))


def test_without_the_time_authority_the_mark_is_signed_without_its_stamp(source: Path, make: Callable[..., Path]):
    video = make()
    identity = load_identity({**os.environ, "POLYLIP_MARK_TSA": "http://user:secret@127.0.0.1:9/"})
    assert "secret" not in repr(identity)
    (warning,) = mark_video(video, source, FACTS, identity)
    assert "no time stamp from 127.0.0.1" in warning and "secret" not in warning
    assert verify_file(video).state is State.INTACT


def test_big_files_need_little_memory_and_time(make: Callable[..., Path]):
    video = make("big.mp4", BIG, 5)
    size_mib = video.stat().st_size >> 20
    assert size_mib > 64
    before = decoded(video)[0][-1]
    load_identity()
    code = (
        "import re, sys, time; from pathlib import Path; from polylip.client.marking import *;"
        "from polylip.client.marking_keys import load_identity; from polylip.client.verify import verify_file;"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10;"
        "f = DubFacts('en', 'es', 5, True, VoiceKind.STOCK, True, 'cpu'); p = Path(sys.argv[1]);"
        "i = load_identity(); first = peak(); start = time.monotonic(); w = mark_video(p, p, f, i);"
        "middle = time.monotonic(); s = verify_file(p).state;"
        "print(peak() - first, middle - start, time.monotonic() - middle, s, len(w))"
    )
    done = subprocess.run([sys.executable, "-c", code, video], capture_output=True, text=True, check=True)
    grown_mib, mark_s, verify_s, state, warnings = done.stdout.split()
    print(f"{size_mib} MiB: marked in {mark_s} s, verified in {verify_s} s, {grown_mib} MiB more memory")
    assert state == State.INTACT and warnings == "0"
    assert int(grown_mib) < 24  # MiB; 4 to 8 of them are the library's code
    assert float(mark_s) < 10
    assert decoded(video)[0][-1] == before
    flip(video, video.stat().st_size // 2)
    assert verify_file(video).state is State.CHANGED
