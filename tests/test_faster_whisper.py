"""The recogniser of the real profiles: Whisper on CTranslate2, with generated checkpoints in the genuine format."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polylip.export.generated_whisper import PHRASES, SAMPLE_RATE_HZ, make_whisper, sounds
from polylip.serving.engines import Status, Transcript, Utterance, load_engine
from polylip.serving.engines.faster_whisper import CONTEXT_TOKENS, FasterWhisper
from polylip.serving.errors import EngineError, MissingError, UnsupportedError
from polylip.serving.whisper_guards import Doubt
from polylip.serving.whisper_languages import LANGUAGES, LONGER_CODES, code_of, whisper_code

HELLO = sounds("hello friend")
GREEN = sounds("the water is green", hum=True)
SECOND = SAMPLE_RATE_HZ


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of weights: one that knows the PHRASES, and a random one for English."""
    root = tmp_path_factory.mktemp("weights")
    make_whisper(root / "taught", taught=True)
    make_whisper(root / "random.en", english_only=True)
    return root


@pytest.fixture(scope="module")
def engine(weights: Path) -> FasterWhisper:
    return load_engine("transcribe", {"engine": "faster-whisper", "model": "taught"}, str(weights))


@pytest.fixture(scope="module")
def english(weights: Path) -> FasterWhisper:
    return FasterWhisper({"model": "random.en"}, str(weights))


class Watched:
    """An object whose calls are counted; `broken` calls raise."""

    def __init__(self, watched: object, broken: dict[str, object] | None = None) -> None:
        self.watched, self.calls, self.broken = watched, [], broken or {}

    def __getattr__(self, name: str) -> object:
        inner = getattr(self.watched, name)
        if not callable(inner):
            return inner

        def call(*arguments: object, **options: object) -> object:
            self.calls.append(name)
            if name in self.broken and self.broken[name](*arguments):
                raise RuntimeError(f"{name} broke\nin two lines")
            return inner(*arguments, **options)

        return call


@pytest.fixture
def watched(engine, monkeypatch) -> Watched:
    """The engine's network, watched."""
    watched = Watched(engine._model.model)
    monkeypatch.setattr(engine._model, "model", watched)
    return watched


def cancelled_after(checks: int):
    """`cancelled` that says yes after that many times no."""
    left = iter(range(checks))
    return lambda: next(left, None) is None


def noise(seconds: float, level: float = 0.05) -> np.ndarray:
    return np.random.default_rng(1).normal(0, level, round(seconds * SECOND)).astype(np.float32)


# What is heard


@pytest.mark.parametrize("phrase", ["hello friend", "the water is green", "water"])
@pytest.mark.parametrize(("hum", "language"), [(False, "en"), (True, "es")])
def test_words_are_written_down_with_their_times_and_language(engine, phrase, hum, language):
    audio = sounds(phrase, hum=hum, lead_s=0.17)
    (heard,) = engine.transcribe([Utterance(audio, "auto")])
    assert (heard.text, heard.language, heard.status) == (phrase, language, Status.OK)
    assert " ".join(heard.words) == phrase
    times = [time for span in heard.spans_ms for time in span]
    assert times == sorted(times) and len(heard.spans_ms) == len(heard.words)
    assert times[0] >= 0 and times[-1] <= round(len(audio) * 1000 / SECOND)
    assert all(type(time) is int for time in times)
    assert times[0] < times[-1]
    assert 0.5 < heard.confidence <= 1


def test_several_utterances_give_what_each_gives_alone(engine):
    """Of different lengths, languages, contexts and outcomes, more than one pass takes."""
    utterances = [
        Utterance(HELLO, "auto"),
        Utterance(GREEN, "auto", context="we saw them again"),
        Utterance(GREEN, "es", context="it was good"),
        Utterance(np.concatenate([HELLO, np.zeros(31 * SECOND, np.float32), HELLO]), "en"),
        Utterance(np.zeros(SECOND, np.float32), "auto"),
        Utterance(HELLO, "xx"),
        Utterance(noise(2), "auto"),
        Utterance(sounds("water"), "en"),
        Utterance(sounds("water", hum=True), "auto"),
        Utterance(HELLO, "de"),
    ]
    together = engine.transcribe(utterances)
    alone = [engine.transcribe([utterance])[0] for utterance in utterances]
    assert [replace(one, confidence=0.0) for one in together] == [replace(one, confidence=0.0) for one in alone]
    assert [one.confidence for one in together] == pytest.approx([one.confidence for one in alone], abs=1e-3)
    assert {one.status for one in together} == {Status.OK, Status.NO_SPEECH, Status.UNSUPPORTED}


def test_utterances_share_passes_and_every_run_gives_the_same(engine, watched):
    utterances = [Utterance(HELLO, "en"), Utterance(GREEN, "es"), Utterance(sounds("water"), "en")]
    first = engine.transcribe(utterances)
    assert [one.status for one in first] == [Status.OK] * 3
    assert watched.calls.count("encode") == watched.calls.count("generate") == 1
    assert watched.calls.count("align") == 2  # one per language
    assert engine.transcribe(utterances) == first


def test_a_minute_of_audio_is_heard_to_its_end(engine):
    audio = np.zeros(60 * SECOND, np.float32)
    for start_s, phrase in ((0, "hello friend"), (30, "the water is green")):
        sound = sounds(phrase, lead_s=0.15)
        audio[start_s * SECOND : start_s * SECOND + len(sound)] = sound
    (heard,) = engine.transcribe([Utterance(audio, "en")])
    assert heard.text == "hello friend the water is green"
    assert heard.words == ("hello", "friend", "the", "water", "is", "green")
    assert heard.spans_ms[1][1] < 3000 and heard.spans_ms[2][0] >= 29_900 and heard.spans_ms[-1][1] < 33_000


def test_an_utterance_has_one_language_even_over_several_passes(engine, monkeypatch):
    audio = np.concatenate([GREEN, np.zeros(30 * SECOND - len(GREEN), np.float32), HELLO])
    monkeypatch.setattr(engine, "_max_batch", 1)
    (heard,) = engine.transcribe([Utterance(audio, "auto")])
    assert heard.language == "es" and heard.text.startswith("the water is green")


def test_an_utterance_of_a_few_samples_is_no_error(engine):
    for audio in (np.zeros(0, np.float32), noise(0.0005, 0.5), noise(0.05, 0.5), noise(0.1, 0.5), HELLO[:3000]):
        (heard,) = engine.transcribe([Utterance(audio, "en")])
        assert heard.status in (Status.OK, Status.NO_SPEECH), heard
    assert engine.transcribe([]) == []


def test_a_short_window_is_cheaper_and_optional(weights):
    short = FasterWhisper({"model": "taught", "window_s": "10"}, str(weights))
    assert short._mel(HELLO).shape == (80, 1000)
    assert short.transcribe([Utterance(HELLO, "en")])[0].status in (Status.OK, Status.NO_SPEECH)


def test_silence_behind_the_words_is_that_of_padded_audio(engine):
    padded = np.pad(HELLO, (0, 30 * SECOND - len(HELLO)))
    assert np.allclose(engine._mel(HELLO), engine._mel(padded), atol=1e-5)


# What is not heard


def test_silence_never_reaches_the_network(engine, watched):
    quiet = noise(3, level=1e-4)
    for heard in engine.transcribe([Utterance(np.zeros(3 * SECOND, np.float32), "auto"), Utterance(quiet, "en")]):
        assert (heard.status, heard.text, heard.words) == (Status.NO_SPEECH, "", ())
        assert "silence" in heard.message and "dBFS" in heard.message
    assert watched.calls == []


def test_a_loop_is_not_trusted(engine, watched):
    phrase = next(phrase for phrase in PHRASES if phrase.startswith("thank you"))
    (heard,) = engine.transcribe([Utterance(sounds(phrase), "en")])
    assert (heard.status, heard.text) == (Status.NO_SPEECH, "")
    assert heard.message.startswith("not trusted: ") and "\n" not in heard.message
    assert "align" not in watched.calls


@pytest.mark.parametrize(("beam_size", "context", "passes"), [(1, "", 2), (5, "", 1), (5, "we saw them", 2)])
def test_a_second_pass_is_made_only_where_it_can_differ(engine, watched, monkeypatch, beam_size, context, passes):
    monkeypatch.setattr(engine, "_beam_size", beam_size)
    monkeypatch.setattr("polylip.serving.engines.faster_whisper.doubt", lambda *_: Doubt("never trusted"))
    (heard,) = engine.transcribe([Utterance(HELLO, "en", context)])
    assert (heard.status, heard.message) == (Status.NO_SPEECH, "not trusted: never trusted")
    assert watched.calls.count("generate") == passes


def test_what_a_random_network_says_of_noise_is_not_trusted(english):
    (heard,) = english.transcribe([Utterance(noise(2), "en")])
    assert heard.status == Status.NO_SPEECH
    assert heard.message.startswith("not trusted: ")


def test_nothing_said_is_no_speech(engine, monkeypatch):
    monkeypatch.setattr(engine, "_suppressed", range(engine._tokenizer("en").eot))  # leaves only the end to be said
    (heard,) = engine.transcribe([Utterance(HELLO, "en")])
    assert (heard.status, heard.text) == (Status.NO_SPEECH, "")


# The context


def test_the_context_is_bounded_and_cannot_spell_special_tokens(engine, watched):
    long = " ".join(["we saw them again"] * 100)
    assert len(engine._context(long)) == CONTEXT_TOKENS
    assert engine._context("") == engine._context("  ") == []
    end = engine._tokenizer("en").eot
    hostile = engine._context("we saw <|startoftranscript|><|endoftext|> them <|notimestamps|>")
    assert hostile and all(token < end for token in hostile)
    (heard,) = engine.transcribe([Utterance(HELLO, "en", "<|endoftext|> it was good")])
    assert heard.text == "hello friend"
    assert engine.transcribe([Utterance(HELLO, "en", long)])[0].status in (Status.OK, Status.NO_SPEECH)


# Languages


def test_unsupported_languages_are_refused_with_the_list(engine):
    refused, heard = engine.transcribe([Utterance(HELLO, "tlh"), Utterance(HELLO, "en")])
    assert (refused.status, refused.text, heard.text) == (Status.UNSUPPORTED, "", "hello friend")
    assert "'tlh'" in refused.message and "supported: af, am" in refused.message and "\n" not in refused.message
    with pytest.raises(UnsupportedError, match="supported: af"):
        engine.resolve_language("tlh")
    with pytest.raises(UnsupportedError, match="yue"):  # only large-v3 has a token for it
        engine.resolve_language("yue")
    with pytest.raises(UnsupportedError, match="name it"):
        engine.resolve_language("auto")
    assert [engine.resolve_language(code) for code in ("en", "jv", "haw")] == ["en", "jv", "haw"]
    assert engine.resolve_language("nb") == "no", "Whisper's own code for it"


def test_an_english_model_does_english_alone(english):
    assert english.resolve_language("auto") == english.resolve_language("en") == "en"
    refused, heard = english.transcribe([Utterance(HELLO, "es"), Utterance(HELLO, "auto")])
    assert refused.status == Status.UNSUPPORTED and refused.message.endswith("supported: en")
    assert heard.language == "en" and heard.status in (Status.OK, Status.NO_SPEECH)


def test_the_table_of_languages_is_the_librarys():
    from faster_whisper.tokenizer import _LANGUAGE_CODES  # noqa: PLC0415

    assert {whisper_code(code) for code in LANGUAGES | LONGER_CODES} == set(_LANGUAGE_CODES)
    assert all(len(code) == 2 for code in LANGUAGES)
    assert {code_of(code) for code in _LANGUAGE_CODES} == LANGUAGES | {"haw"}


# Cancellation and failure


def test_a_cancelled_utterance_stops_at_the_next_step_and_the_others_go_on(engine, watched):
    reached = []
    for checks in range(1, 6):
        watched.calls.clear()
        stopped, heard = engine.transcribe(
            [Utterance(HELLO, "auto", cancelled=cancelled_after(checks)), Utterance(GREEN, "es")]
        )
        assert (stopped.status, stopped.text) == (Status.CANCELLED, "")
        assert heard.text == "the water is green"
    for checks in range(7):
        watched.calls.clear()
        (stopped,) = engine.transcribe([Utterance(HELLO, "auto", cancelled=cancelled_after(checks))])
        reached.append([call for call in watched.calls if call != "is_multilingual"])
        assert stopped.status == (Status.CANCELLED if checks < 6 else Status.OK)
    assert reached[0] == reached[1] == []
    assert reached[2] == ["encode"] and "generate" not in reached[2]
    assert "align" not in reached[3] and "align" in reached[6]


def test_a_failing_pass_fails_only_the_utterance_that_makes_it_fail(engine, monkeypatch):
    alone = engine.transcribe([Utterance(HELLO, "en"), Utterance(GREEN, "es")])
    poison = engine._mel(noise(1))
    broken = Watched(engine._model.model, {"encode": lambda mel, **_: (np.array(mel) == poison).all(axis=(1, 2)).any()})
    monkeypatch.setattr(engine._model, "model", broken)
    first, failed, last = engine.transcribe([Utterance(HELLO, "en"), Utterance(noise(1), "en"), Utterance(GREEN, "es")])
    assert [first, last] == alone
    assert failed == Transcript("", "en", status=Status.ERROR, message="taught failed: encode broke in two lines")


def test_audio_that_is_not_finite_is_an_error_of_its_own(engine):
    bad = HELLO.copy()
    bad[100] = np.nan
    failed, heard = engine.transcribe([Utterance(bad, "en"), Utterance(HELLO, "en")])
    assert failed.status == Status.ERROR and "NaN" in failed.message
    assert heard.text == "hello friend"


# Loading


def test_loading_and_hearing_use_no_network(weights, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    engine = FasterWhisper({"model": "taught", "compute_type": "float32", "threads": "1"}, str(weights))
    assert engine.transcribe([Utterance(HELLO, "auto")])[0].text == "hello friend"


def test_missing_weights_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYLIP_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingError, match=r"run: polylip fetch faster-whisper-small$"):
        FasterWhisper({}, str(tmp_path))
    with pytest.raises(MissingError, match=r"run: polylip fetch faster-whisper-large-v3$"):
        FasterWhisper({"model": "faster-whisper-large-v3"}, str(tmp_path))


def damaged(weights: Path, folder: Path, file: str, content: bytes | None) -> Path:
    shutil.copytree(weights / "taught", folder / "taught")
    if content is None:
        (folder / "taught" / file).unlink()
    else:
        (folder / "taught" / file).write_bytes(content)
    return folder


def test_incomplete_weights_name_what_lacks(weights, tmp_path):
    with pytest.raises(MissingError, match=r"lacks vocabulary\.txt or vocabulary\.json; run: polylip fetch taught"):
        FasterWhisper({"model": "taught"}, str(damaged(weights, tmp_path, "vocabulary.json", None)))


@pytest.mark.parametrize("file", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_damaged_weights_give_one_line(weights, tmp_path, file, share):
    whole = (weights / "taught" / file).read_bytes()
    folder = damaged(weights, tmp_path, file, whole[: int(len(whole) * share)])
    with pytest.raises(EngineError, match=r"taught cannot be loaded: .+; run again: polylip fetch taught$") as caught:
        FasterWhisper({"model": "taught"}, str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", "tpu", "cpu or cuda"),
        ("beam_size", "0", "whole number from 1"),
        ("threads", "two", "whole number from 0"),
        ("window_s", "31", "5 to 30"),
        ("compute_type", "int3", "int3"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(weights, name, value, message):
    with pytest.raises(ValueError, match=message):
        FasterWhisper({"model": "taught", name: value}, str(weights))


def test_a_gpu_that_is_not_there_is_named(weights):
    import ctranslate2  # noqa: PLC0415

    if ctranslate2.get_cuda_device_count():
        pytest.skip("there is one")
    with pytest.raises(MissingError, match="no CUDA device"):
        FasterWhisper({"model": "taught", "device": "cuda"}, str(weights))


@pytest.mark.parametrize("package", ["faster_whisper", "ctranslate2"])
def test_a_missing_package_gives_one_line_and_the_languages_stay_known(package):
    script = f"""
import sys
sys.modules["{package}"] = None
from polylip.serving.whisper_languages import LANGUAGES
from polylip.serving.engines import load_engine
assert "en" in LANGUAGES
try:
    load_engine("transcribe", {{"engine": "faster-whisper"}}, "nowhere")
except Exception as error:
    print(type(error).__name__, error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == f"MissingError {package} is not installed; run: pip install 'polylip[speech]'\n"


# The generator


def test_a_seed_gives_one_checkpoint_and_another_gives_another(weights, tmp_path):
    first = (weights / "random.en" / "model.bin").read_bytes()
    assert (make_whisper(tmp_path / "same", english_only=True) / "model.bin").read_bytes() == first
    assert (make_whisper(tmp_path / "other", english_only=True, seed=1) / "model.bin").read_bytes() != first
