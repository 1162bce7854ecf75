"""Languages: what people write for one, what each engine can do with it, and the command and pages that say so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import REPOSITORY
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from polylip.client.cli import app
from polylip.client.errors import PolylipError
from polylip.client.languages_command import page_section, readme_lines
from polylip.export.manifest import read_manifest
from polylip.serving import abilities as table
from polylip.serving.abilities import Abilities, Need, ProfileAbilities, commands, pairs, pairs_of, profile_abilities
from polylip.serving.engines import ENGINES
from polylip.serving.engines.apertium import installed_modes
from polylip.serving.engines.espeak import installed_languages
from polylip.serving.engines.opus_mt import PACKAGES as OPUS_PACKAGES
from polylip.serving.engines.pocketsphinx import LANGUAGE
from polylip.serving.errors import UnknownProfileError, UnsupportedError
from polylip.serving.languages import (
    LISTED,
    UnknownLanguageError,
    best_variant,
    language_name,
    listed,
    normalise,
    parse_language,
    unsupported_pair,
    unsupported_source,
    unsupported_target,
)
from polylip.serving.opus_pairs import FILES as OPUS_FILES
from polylip.serving.opus_pairs import installed_pairs
from polylip.serving.weights import WEIGHTS_VARIABLE
from polylip.serving.xtts_languages import LANGUAGES as XTTS

ROOT = Path(__file__).parents[1]
SPEECH_MODELS = ("transcribe", "translate", "synthesize")
HEAVY = ("torch", "TTS", "ctranslate2", "faster_whisper", "pocketsphinx", "transformers", "onnxruntime", "openvino")

TAGS = {
    "es-MX": "es", "pt_BR": "pt", "zh-Hant-TW": "zh", "zh-cn": "zh", "cmn": "zh", "yue": "yue", "zh-yue": "yue",
    "iw": "he", "in": "id", "jw": "jv", "no": "nb", "nb-NO": "nb", "nn": "nn", "fil": "tl", "tl": "tl", "arb": "ar",
    "EN": "en", "eng": "en", "ger": "de", " es ": "es", "es_ES.UTF-8": "es", "spanish": "es", "Norwegian": "nb",
    "greek": "el", "Deutsch": "de", "haw": "haw",
}  # fmt: skip


@pytest.mark.parametrize(("written", "code"), TAGS.items())
def test_what_people_write_becomes_the_shared_code(written: str, code: str):
    assert normalise(written) == code


@pytest.mark.parametrize(
    ("written", "guess"),
    [("jp", "ja (Japanese)"), ("cn", "zh"), ("spanisch", "es"), ("englsh", "en"), ("es-", "es"), ("norwegain", "nb")],
)
def test_an_unknown_language_is_refused_with_the_nearest(written: str, guess: str):
    with pytest.raises(UnknownLanguageError, match=f"'{written}' is not a language code; did you mean ") as caught:
        normalise(written)
    assert f"did you mean {guess}" in str(caught.value)


@pytest.mark.parametrize(
    "written", ["", "xx", "a", "auto", "und", "mul", "zxx", "qaa", "x-foo", "-", "e" * 5000, "es\0"]
)
def test_what_is_no_language_is_refused_in_one_short_line(written: str):
    with pytest.raises(UnknownLanguageError) as caught:
        normalise(written)
    assert "for example: es" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


subtags = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
tags = st.lists(subtags, min_size=1, max_size=4).map("-".join)


@given(st.one_of(st.text(max_size=30), tags, st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=3)))
def test_any_text_is_a_language_or_refused_and_a_code_stays_what_it_is(text: str):
    try:
        language = parse_language(text)
    except UnknownLanguageError:
        return
    assert normalise(language.code) == language.code
    assert parse_language(language.tag) == language


@given(st.sampled_from(sorted(set(XTTS) | table.ESPEAK)), st.sampled_from(["", "-US", "-419", "-Latn", "_Hant-TW"]))
def test_a_region_or_script_never_changes_the_language(code: str, suffix: str):
    assert normalise(f"{code}{suffix}") == normalise(code) == code


def espeak_voices() -> list[str]:
    done = subprocess.run(["espeak-ng", "--voices"], capture_output=True, text=True, check=True)
    return [line.split()[1] for line in done.stdout.splitlines()[1:]]


@pytest.mark.parametrize(
    ("tag", "voice"),
    [
        ("es-MX", "es-419"),
        ("es-AR", "es-419"),
        ("es", "es"),
        ("es-ES", "es"),
        ("pt-BR", "pt-br"),
        ("pt", "pt"),
        ("pt-AO", "pt"),
        ("en-US", "en-us"),
        ("en-GB", "en-gb"),
        ("en-AU", "en-gb"),
        ("fr-CH", "fr-ch"),
        ("zh-TW", "cmn"),
        ("no", "nb"),
        ("fa", "fa"),
        ("ast", None),
    ],
)
def test_the_nearest_voice_of_espeak_is_taken(tag: str, voice: str | None):
    assert best_variant(tag, espeak_voices()) == voice


def test_an_engine_is_called_by_its_own_code():
    assert best_variant("nb", {"en", "no", "nn"}) == "no"
    assert best_variant("zh-Hant", XTTS.values()) == "zh-cn"
    assert best_variant("he", ["iw"]) == "iw"
    assert best_variant("yue", ["zh-cn"]) is None


def test_messages_name_the_language_and_cut_long_lists():
    assert unsupported_source("pocketsphinx", "fi", ["en"]) == (
        "source language 'fi' (Finnish) is not supported by pocketsphinx; supported: en"
    )
    assert unsupported_target("xtts-v2", "fi", XTTS).startswith(
        "target language 'fi' (Finnish) has no voice in xtts-v2; supported: ar, cs"
    )
    assert unsupported_pair("apertium", "en", "fi", [("en", "es"), ("en", "ca")]).endswith("supported: en->ca, en->es")
    assert unsupported_pair("apertium", "en", "ca", [], "run apt-get x").endswith("none; run apt-get x")
    line = listed(sorted(table.ESPEAK))
    assert line.count(",") == LISTED
    assert line.endswith("... (polylip languages shows all)")


def test_every_engine_of_the_speech_models_is_in_the_table():
    assert {model: set(engines) for model, engines in table.ENGINE_ABILITIES.items()} == {
        model: set(ENGINES[model]) for model in SPEECH_MODELS
    }


@pytest.mark.parametrize("path", sorted(path for m in SPEECH_MODELS for path in (REPOSITORY / m).glob("**/*.pbtxt")))
def test_the_parameters_are_read_from_the_configs_as_triton_reads_them(path: Path):
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    expected = {key: value.string_value for key, value in config.parameters.items()}
    assert dict(table.PARAMETER.findall(path.read_text())) == expected
    assert expected["engine"] in table.ENGINE_ABILITIES[config.name]


def test_the_table_agrees_with_the_engines_that_are_here():
    assert {LANGUAGE} == table.POCKETSPHINX
    assert table.OPUS_PACKAGES == OPUS_PACKAGES
    assert installed_languages() >= table.ESPEAK
    version = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    if " 1.51 " in version:  # the one that the table is of
        assert installed_languages() == table.ESPEAK
    modes = installed_modes()
    lite = profile_abilities("lite")
    assert {pair for pair, needs in lite.translates.pairs.items() if not needs} == set(modes)
    assert {pair for pair in table.APERTIUM_PACKAGES if pair in modes} >= {("en", "es"), ("es", "en")}


def test_lite_is_ready_for_english_to_spanish_and_says_how_to_get_catalan():
    found = {(pair.source, pair.target): pair for pair in pairs("lite")}
    assert found["en", "es"].ready
    if ("en", "ca") not in installed_modes():
        assert commands(found["en", "ca"].needs) == ["apt-get install apertium-eng-cat"]


def test_unknown_profiles_are_refused():
    with pytest.raises(UnknownProfileError, match="this version has: lite, cpu, gpu"):
        profile_abilities("tpu")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights."""
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    return tmp_path


def put(folder: Path, files: list[str]) -> None:
    folder.mkdir()
    for file in files:
        (folder / file).touch()


def put_fetched(weights: Path, name: str) -> None:
    put(weights / name, [file.name for file in read_manifest()[name].files])


def needed(profile: str, source: str, target: str) -> list[str]:
    """The commands for a pair, without those for Python packages that this machine may lack."""
    found = table.require_pair(profile_abilities(profile), source, target)
    return [command for command in commands(found.needs) if not command.startswith("pip install")]


def test_each_thing_that_arrives_is_needed_no_more(weights: Path):
    assert needed("cpu", "es", "fr") == [
        "polylip fetch faster-whisper-small xtts-v2 opus-mt-es-en opus-mt-en-fr --accept-non-commercial",
        "polylip export opus-mt es-en",
        "polylip export opus-mt en-fr",
    ]
    put_fetched(weights, "faster-whisper-small")
    put_fetched(weights, "xtts-v2")
    put_fetched(weights, "opus-mt-es-en")
    assert needed("cpu", "es", "fr")[0] == "polylip fetch opus-mt-en-fr"
    assert needed("cpu", "es", "fr")[1:] == ["polylip export opus-mt es-en", "polylip export opus-mt en-fr"]
    put(weights / "opus-mt-es-en-ct2", list(OPUS_FILES))
    put(weights / "opus-mt-en-fr-ct2", list(OPUS_FILES))
    assert needed("cpu", "es", "fr") == []
    if all(map(find_spec, table.WHISPER_PACKAGES + table.OPUS_PACKAGES + table.XTTS_OWN_PACKAGES)):
        found = {(pair.source, pair.target) for pair in pairs("cpu") if pair.ready}
        assert found == {("es", "fr"), ("es", "en"), ("en", "fr")} == installed_pairs(str(weights))


def test_a_model_that_nobody_can_fetch_is_asked_for_as_such(weights: Path, tmp_path: Path):
    repository = tmp_path / "repository"
    for model in SPEECH_MODELS:
        text = (REPOSITORY / model / "config.pbtxt").read_text()
        (repository / model).mkdir(parents=True)
        (repository / model / "config.pbtxt").write_text(text.replace("faster-whisper-small", "our-own-whisper"))
    heard = profile_abilities("gpu", repository).hears
    assert f"copy its weights into {weights / 'our-own-whisper'}" in commands(heard.needs)


FETCHABLE = (Need("polylip fetch", "x"),)
HEARS = Abilities("ear", frozenset({"de", "en", "es"}))
SPEAKS = Abilities("voice", frozenset({"en", "es"}), more_needs={"es": (Need("pip install", "tildes"),)})


@pytest.mark.parametrize(
    ("direct", "halves", "through", "ready"),
    [
        ((), (), None, True),
        (FETCHABLE, (), "en", True),
        (FETCHABLE, FETCHABLE, None, False),
        (None, FETCHABLE, "en", False),
    ],
)
def test_a_pair_takes_what_is_ready_then_what_is_direct(direct, halves, through, ready):
    links = {("de", "en"): halves, ("en", "es"): halves}
    links |= {} if direct is None else {("de", "es"): direct}
    voice = Abilities("voice", SPEAKS.languages)
    found = table.require_pair(
        ProfileAbilities(HEARS, Abilities("tongue", pairs=links, through_english=True), voice), "de", "es"
    )
    assert (found.through, found.ready) == (through, ready)


def test_a_language_with_packages_of_its_own_needs_them_as_target_only():
    abilities = ProfileAbilities(HEARS, Abilities("tongue", pairs={("en", "es"): (), ("es", "en"): ()}), SPEAKS)
    assert {(pair.source, pair.target): commands(pair.needs) for pair in pairs_of(abilities)} == {
        ("en", "es"): ["pip install tildes"],
        ("es", "en"): [],
    }


@pytest.mark.parametrize(
    ("source", "target", "cause"),
    [("it", "es", "is not supported by ear"), ("es", "de", "has no voice in voice"), ("en", "en", "en->en is not")],
)
def test_a_pair_that_cannot_be_names_the_engine_that_cannot(source: str, target: str, cause: str):
    abilities = ProfileAbilities(HEARS, Abilities("tongue", pairs={("en", "es"): ()}), SPEAKS)
    with pytest.raises(UnsupportedError, match=cause):
        table.require_pair(abilities, source, target)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def polylip(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs `polylip languages` in this process: ten starts of Python would take most of the time."""

    def run(*options: str) -> Done:
        refusal = ""
        try:
            code = app(["languages", *options], standalone_mode=False) or 0
        except PolylipError as error:
            code, refusal = error.exit_code, str(error)
        return Done(code, capsys.readouterr().out, refusal)

    return run


def test_the_command_lists_a_row_per_source_and_what_brings_the_rest(weights: Path, polylip: Callable[..., Done]):
    done = polylip("--profile", "cpu")
    assert done.returncode == 0
    rows = done.stdout.splitlines()
    sources = [row.split()[0] for row in rows if "faster-whisper (missing)" in row]
    assert sources == ["de", "en", "es", "fr", "it"]
    assert next(row.split(maxsplit=1)[1] for row in rows if row.startswith("en->fr ")).endswith(
        "polylip fetch opus-mt-en-fr && polylip export opus-mt en-fr"
    )
    assert max(map(len, rows[: rows.index("for what is not ready:")])) <= 120


def test_the_command_answers_yes_and_no_with_its_exit_code(weights: Path, polylip: Callable[..., Done]):
    yes = polylip("--from", "English", "--to", "es-MX")
    assert (yes.returncode, yes.stdout) == (0, "en->es is ready: pocketsphinx, apertium, espeak-ng\n")
    later = polylip("--profile", "cpu", "--from", "de", "--to", "it")
    assert later.returncode == 2
    assert later.stdout.startswith("de->it is possible through English, but not ready; run: ")
    assert later.stdout.endswith(" && polylip export opus-mt de-en && polylip export opus-mt en-it\n")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--from", "en", "--to", "fi"), "language pair en->fi is not supported by apertium here; supported: en->"),
        (("--from", "en", "--to", "de"), "; other profiles can: cpu"),
        (("--from", "fi", "--json"), "source language 'fi' (Finnish) is not supported by pocketsphinx"),
        (("--to", "yo"), "target language 'yo' (Yoruba) has no voice in espeak-ng"),
        (("--to", "fi"), "apertium has no pair to fi"),
        (("--from", "jp"), "did you mean ja (Japanese)?"),
    ],
)
def test_the_command_refuses_in_one_line(options: tuple[str, ...], cause: str, polylip: Callable[..., Done]):
    done = polylip(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert cause in done.stderr
    assert "\n" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "cause"),
    [
        (("--from", "en", "--to", "spa"), 0, ""),
        (("--to", "jp"), 2, "'jp' is not a language code; did you mean ja (Japanese)?"),
        (("--profile", "tpu"), 2, "unknown profile 'tpu'; this version has: lite"),
    ],
)
def test_the_installed_command_ends_in_order(options: tuple[str, ...], code: int, cause: str):
    command = [Path(sys.executable).with_name("polylip"), "languages", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, bool(done.stdout)) == (code, code == 0)
    assert cause in done.stderr
    assert done.stderr.count("\n") == (code != 0)


def test_the_json_says_the_same_as_the_table(weights: Path, polylip: Callable[..., Done]):
    done = polylip("--profile", "cpu", "--from", "de", "--json")
    content = json.loads(done.stdout)
    assert done.returncode == 0
    assert len(content["hears"]["languages"]) == 99
    assert content["speaks"]["languages"] == sorted(XTTS)
    assert [(pair["from"], pair["to"], pair["through"], pair["ready"]) for pair in content["pairs"]] == [
        ("de", "en", None, False),
        ("de", "es", "en", False),
        ("de", "fr", "en", False),
        ("de", "it", "en", False),
    ]
    assert content["pairs"][0]["run"][-1] == "polylip export opus-mt de-en"


def test_the_command_loads_no_engine():
    code = f"import sys, polylip.client.languages_command; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_pages_list_the_pairs_of_the_table():
    page, readme = (ROOT / "docs" / "languages.md").read_text(), (ROOT / "README.md").read_text()
    assert page.endswith(f"-->\n{page_section()}"), f"docs/languages.md should end with:\n{page_section()}"
    for line in readme_lines():
        assert line in readme, f"README.md lacks the line:\n{line}"


def test_every_listed_language_has_a_name():
    known = {code for profile in table.profiles() for code in profile_abilities(profile, look=False).hears.languages}
    assert len(known) == 99
    assert all(language_name(code) != code for code in known | table.ESPEAK | set(XTTS))
