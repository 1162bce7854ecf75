"""Downloading and taking files of weights, against real HTTP servers on loopback that do what servers do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from weight_site import BODY, COMMIT, DIGEST, Behaviour, Site

from polylip.client.errors import InputError
from polylip.export.fetch import FetchError, Patience, download, new_client, token_header
from polylip.export.manifest import Licence, Model, Place, WeightFile
from polylip.export.weight_files import Fetched, MismatchError, find_files, take

ONE_TRY = Patience(tries=1, first_pause_s=0.0)
TRIES = Patience(tries=4, first_pause_s=0.01)


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "POLYLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


STATED = WeightFile("net.pth", len(BODY), DIGEST, False, ("a page",))
UNSTATED = WeightFile("net.pth", None, None, False, ())


def model_of(*urls: str, file: WeightFile = STATED, revision: str | None = None) -> Model:
    places = tuple(Place(f"{url}/{{file}}?{{revision}}", revision, False, False) for url in urls)
    return Model("net", "lips", "A net", "https://example.com/net", Licence("MIT", "https://example.com/l", True),
                 (), places, (file,), "")  # fmt: skip


def get(model: Model, folder: Path, patience: Patience = TRIES) -> Fetched:
    with new_client(patience) as client:
        return download(client, model, model.files[0], folder, patience, lambda *_: None, lambda _: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_nothing_else_stays(site: Site, tmp_path: Path):
    got = get(model_of(site.url), tmp_path)
    assert (got.bytes, got.sha256) == (len(BODY), DIGEST)
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert names(tmp_path) == ["net.pth"]


def test_a_dropped_connection_goes_on_where_it_stopped(site: Site, tmp_path: Path):
    site.answers.cuts = [300_000, 600_000]
    get(model_of(site.url), tmp_path)
    assert site.ranges() == [None, "bytes=300000-", "bytes=600000-"]
    assert (tmp_path / "net.pth").read_bytes() == BODY


def test_what_arrived_is_kept_for_the_next_run(site: Site, tmp_path: Path):
    site.answers.cuts = [300_000]
    with pytest.raises(FetchError, match=r"300000 bytes are kept in net\.pth\.part"):
        get(model_of(site.url), tmp_path, ONE_TRY)
    assert (tmp_path / "net.pth.part").stat().st_size == 300_000
    assert not (tmp_path / "net.pth").exists()
    get(model_of(site.url), tmp_path, ONE_TRY)
    assert site.ranges() == [None, "bytes=300000-"]
    assert site.requests[1][1]["if-range"] == '"one"'
    assert (tmp_path / "net.pth").read_bytes() == BODY


def test_a_server_without_ranges_restarts_cleanly(site: Site, tmp_path: Path):
    site.answers.cuts, site.answers.ranges = [300_000], False
    get(model_of(site.url), tmp_path)
    assert site.ranges() == [None, "bytes=300000-"]
    assert (tmp_path / "net.pth").read_bytes() == BODY


@pytest.mark.parametrize(
    ("now", "answers"),
    [
        (Behaviour(etag='"two"'), 1),
        (Behaviour(etag='"two"', if_range=False), 2),
        (Behaviour(etag=None, if_range=False), 2),
    ],
    ids=["if-range obeyed", "another etag seen", "only the hash tells"],
)
def test_a_file_that_changed_meanwhile_restarts(site: Site, tmp_path: Path, now: Behaviour, answers: int):
    site.answers = Behaviour(body=bytes(len(BODY)), cuts=[300_000])
    with pytest.raises(FetchError):
        get(model_of(site.url), tmp_path, ONE_TRY)
    site.answers = now
    get(model_of(site.url), tmp_path)
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert names(tmp_path) == ["net.pth"]
    assert len(site.requests) == 1 + answers


def test_a_part_without_trail_is_not_trusted(site: Site, tmp_path: Path):
    (tmp_path / "net.pth.part").write_bytes(bytes(1000))
    get(model_of(site.url), tmp_path)
    assert site.ranges() == [None]


def test_an_unstated_hash_does_not_resume_without_etag(site: Site, tmp_path: Path):
    site.answers = Behaviour(etag=None, cuts=[300_000])
    get(model_of(site.url, file=UNSTATED), tmp_path)
    assert site.ranges() == [None, None]


def test_a_wrong_hash_names_both_and_leaves_nothing(site: Site, tmp_path: Path):
    wrong = replace(STATED, sha256="0" * 64)
    with pytest.raises(FetchError, match=f"SHA-256 {DIGEST}, expected {'0' * 64} .stated by a page, never"):
        get(model_of(site.url, file=wrong), tmp_path)
    assert names(tmp_path) == []
    assert len(site.requests) == 1


def test_digits_in_the_name_are_demanded_where_no_hash_is_stated(site: Site, tmp_path: Path):
    with pytest.raises(FetchError, match="does not begin with the digits in its name"):
        get(model_of(site.url, file=replace(UNSTATED, name="net-0123456789.pth")), tmp_path)
    get(model_of(site.url, file=replace(UNSTATED, name=f"net-{DIGEST[:10]}.pth")), tmp_path)


@pytest.mark.parametrize(
    ("stated", "length", "message"),
    [
        (len(BODY) - 1, True, f"offers {len(BODY)} bytes, {len(BODY) - 1} are stated"),
        (len(BODY) + 1, True, f"offers {len(BODY)} bytes, {len(BODY) + 1} are stated"),
        (len(BODY) - 1, False, f"sends more than {len(BODY) - 1} bytes"),
        (len(BODY) + 1, False, f"stopped after {len(BODY)} of {len(BODY) + 1} bytes"),
        (None, False, "does not say how long the file is"),
    ],
)
def test_a_wrong_size_is_refused(site: Site, tmp_path: Path, stated: int | None, length: bool, message: str):
    site.answers.length = length
    file = replace(STATED if stated else UNSTATED, bytes=stated)
    with pytest.raises(FetchError, match=message):
        get(model_of(site.url, file=file), tmp_path, ONE_TRY)
    assert not (tmp_path / "net.pth").exists()


def test_the_next_place_is_tried_and_the_last_one_says_what_to_do(site: Site, tmp_path: Path):
    other = Site()
    try:
        other.answers.statuses = [404, 404]
        got = get(model_of(other.url, site.url), tmp_path)
        assert got.source.startswith(site.url)
        with pytest.raises(FetchError, match=r"404 Not Found.*https://example.com/net and run: polylip fetch net --fr"):
            get(model_of(other.url), tmp_path / "new")
    finally:
        other.close()


def test_a_mirror_goes_on_with_what_the_first_place_sent(site: Site, tmp_path: Path):
    mirror = Site()
    try:
        site.answers.cuts, mirror.answers.etag = [300_000], '"other"'
        get(model_of(site.url, mirror.url), tmp_path, ONE_TRY)
        assert mirror.ranges() == ["bytes=300000-"] and "if-range" not in mirror.requests[0][1]
        assert (tmp_path / "net.pth").read_bytes() == BODY
        site.answers.cuts, mirror.answers.statuses = [300_000], [404]
        with pytest.raises(FetchError, match=r"300000 bytes are kept.*404"):
            get(model_of(site.url, mirror.url, file=UNSTATED), tmp_path / "new", ONE_TRY)
        assert (tmp_path / "new" / "net.pth.part").stat().st_size == 300_000
        site.answers.statuses = [404]
        get(model_of(site.url, mirror.url, file=UNSTATED), tmp_path / "new", ONE_TRY)
        assert mirror.ranges()[-1] is None  # without a hash, two places may have two files
    finally:
        mirror.close()


def test_a_busy_server_is_asked_again_and_a_dead_one_is_given_up(site: Site, tmp_path: Path):
    site.answers.statuses = [503, 429]
    get(model_of(site.url), tmp_path)
    assert len(site.requests) == 3
    site.answers.statuses = [503] * 9
    with pytest.raises(FetchError, match="503 Service Unavailable, 4 tries"):
        get(model_of(site.url), tmp_path / "new")
    assert len(site.requests) == 3 + TRIES.tries


def test_redirects_stay_within_https_and_loopback(site: Site, tmp_path: Path):
    site.answers.location = "/behind/net.pth"
    get(model_of(site.url), tmp_path)
    site.answers.location = "http://192.0.2.1/behind"
    with pytest.raises(FetchError, match="redirects to an address without https"):
        get(model_of(site.url), tmp_path / "new")
    site.answers.location = "/again"
    with pytest.raises(FetchError, match="more than 5 redirects"):
        get(model_of(site.url), tmp_path / "loop")


def test_the_hash_that_hugging_face_states_is_demanded_too(site: Site, tmp_path: Path):
    site.answers.location, site.answers.linked = "/behind/net.pth", f'"{DIGEST}"'
    get(model_of(site.url, file=UNSTATED), tmp_path)
    site.answers.linked = '"' + "0" * 64 + '"'
    with pytest.raises(FetchError, match=f"SHA-256 {DIGEST}, the place itself states {'0' * 64}"):
        get(model_of(site.url, file=UNSTATED), tmp_path / "new")
    assert names(tmp_path / "new") == []


def test_the_token_is_for_hugging_face_alone(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    get(model_of(site.url), tmp_path)
    assert "authorization" not in site.requests[0][1]
    assert token_header("https://huggingface.co/a/b") == {"Authorization": "Bearer secret"}
    for url in ("http://huggingface.co/a", "https://huggingface.co.example.com/a", "https://cdn.example.com/a"):
        assert token_header(url) == {}


def test_an_unknown_revision_is_recorded_and_a_pinned_one_is_held(site: Site, tmp_path: Path):
    site.answers.commit = COMMIT
    assert get(model_of(site.url), tmp_path).revision == COMMIT
    assert site.requests[0][0] == "/net.pth?main"
    assert get(model_of(site.url, revision=COMMIT), tmp_path).revision == COMMIT
    with pytest.raises(FetchError, match=f"answers with revision {COMMIT} instead of {'d' * 40}"):
        get(model_of(site.url, revision="d" * 40), tmp_path / "new")


def test_two_fetches_do_not_write_one_file(site: Site, tmp_path: Path):
    site.answers.stall = True
    errors: list[Exception] = []

    def first() -> None:
        try:
            get(model_of(site.url), tmp_path, Patience(tries=1, read_s=1.0))
        except FetchError as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert site.stalled.wait(10)
    with pytest.raises(InputError, match="another fetch is writing"):
        get(model_of(site.url), tmp_path)
    thread.join(10)
    assert [type(error) for error in errors] == [FetchError]


# --- files that are there already -----------------------------------------------------------------------------------


def taken(file: WeightFile, source: Path, folder: Path) -> Fetched:
    model = model_of("https://example.com", file=file)
    found = find_files(source, {file.name, *file.aliases})
    return take(model, file, [path for paths in found.values() for path in paths], source, folder)


def test_taking_finds_the_right_one_of_several_and_keeps_them(tmp_path: Path):
    for place, body in (("a", bytes(len(BODY))), ("b/deep", BODY), ("c", b"short")):
        (tmp_path / "mine" / place).mkdir(parents=True)
        (tmp_path / "mine" / place / "old.pth").write_bytes(body)
    got = taken(replace(STATED, aliases=("old.pth",)), tmp_path / "mine", tmp_path / "net")
    assert got.source.endswith("b/deep/old.pth")
    assert (tmp_path / "net" / "net.pth").read_bytes() == BODY
    assert names(tmp_path / "net") == ["net.pth"]
    assert len(list((tmp_path / "mine").rglob("old.pth"))) == 3


def test_taking_a_wrong_file_names_both_hashes_and_keeps_it(tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "net.pth").write_bytes(bytes(len(BODY)))
    with pytest.raises(MismatchError, match=f"{sha256(bytes(len(BODY))).hexdigest()}, expected {DIGEST}"):
        taken(STATED, mine, tmp_path / "net")
    assert (mine / "net.pth").exists() and names(tmp_path / "net") == []
    (mine / "net.pth").write_bytes(b"short")
    with pytest.raises(MismatchError, match=f"has 5 bytes, net.pth must have {len(BODY)}"):
        taken(STATED, mine, tmp_path / "net")
    with pytest.raises(MismatchError, match="is not under"):
        taken(replace(STATED, name="other.pth"), mine, tmp_path / "net")


def test_taking_an_unstated_file_needs_a_folder_that_names_the_model(tmp_path: Path):
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_bytes(BODY)
    for folder in ("models--else", "models--me--net"):
        (tmp_path / "cache" / folder).mkdir()
        (tmp_path / "cache" / folder / "net.pth").symlink_to(blobs / "abc")
    with pytest.raises(MismatchError, match="must lie in a folder named net"):
        taken(UNSTATED, tmp_path / "cache" / "models--else", tmp_path / "out")
    taken(UNSTATED, tmp_path / "cache", tmp_path / "out")
    target = tmp_path / "out" / "net.pth"
    assert target.read_bytes() == BODY and not target.is_symlink()
