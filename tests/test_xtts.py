"""The engine on XTTS-v2's real networks with small generated weights: what it says, and for whom."""

# ruff: noqa: RUF001  letters and signs of other scripts
from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch

from polylip.export.generated_xtts import STOCK_VOICES, make_xtts
from polylip.serving.engines import Speaker, load_engine, never
from polylip.serving.engines.xtts import LICENCE, Xtts
from polylip.serving.errors import EngineError, UnsupportedError
from polylip.serving.xtts_gpt import Decoding, Sampling
from polylip.serving.xtts_languages import (
    CHARACTER_LIMITS,
    CHARACTERS_PER_SECOND,
    LANGUAGES,
    PACKAGES,
)
from polylip.serving.xtts_vocoder import Waveform
from polylip.serving.xtts_weights import MODEL, SPEAKERS

GREEDY = Sampling(temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=5.0)
PIECE = "it is."
TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine two threads that wait for each other are far slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(xtts_weights: Path) -> Path:
    return xtts_weights


@pytest.fixture(scope="module")
def voice(weights) -> Iterator[Xtts]:
    def no_network(*_):
        raise AssertionError("the engine asked the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "getaddrinfo", no_network)
        yield load_engine("synthesize", {"engine": "xtts-v2", "threads": "1"}, str(weights.parent))


@pytest.fixture(scope="module")
def coqui(weights):
    """The same weights in coqui's own classes."""
    from TTS.tts.configs.xtts_config import XttsConfig  # noqa: PLC0415
    from TTS.tts.models.xtts import Xtts as Coqui  # noqa: PLC0415

    config = XttsConfig()
    config.load_json(str(weights / "config.json"))
    model = Coqui(config)
    model.load_checkpoint(config, checkpoint_dir=str(weights), eval=True)
    return model


@pytest.fixture(scope="module")
def alone(voice) -> dict[str, list[np.ndarray]]:
    """What two streams hear of the same text in different voices, one after the other."""
    return {name: list(voice.say(PIECE, "en", cloned(voice, name), 1.0, never)) for name in ("low", "high")}


def reference(name: str, seconds: float = 1.5) -> np.ndarray:
    time_s = np.arange(round(seconds * 16000)) / 16000
    hz = {"low": 110, "high": 230}[name]
    return sum(0.2 / n * np.sin(2 * np.pi * hz * n * time_s) for n in range(1, 9)).astype(np.float32)


def cloned(voice: Xtts, name: str) -> Speaker:
    return voice.speaker(reference(name), f"stream {name}")


def greedy(voice: Xtts, latents, text: str = PIECE, seed: int = 0) -> Decoding:
    prefix = voice._gpt.prefix(latents, voice._text.tokens(text, "en"))
    return Decoding(voice._gpt, prefix, GREEDY, TOKENS, seed)


def run(decoding: Decoding) -> list:
    return list(iter(decoding.step, None))


def test_a_voice_is_cloned_exactly_as_coqui_clones_it(voice, coqui):
    sound = torch.from_numpy(reference("low", 5.0))[None]
    state = voice.speaker(sound[0].numpy(), "parity").state
    expected = coqui.get_gpt_cond_latents(sound.clone(), 16000, length=30, chunk_length=4)
    assert torch.allclose(state.latents, expected, atol=1e-4)
    assert torch.allclose(state.embedding, coqui.get_speaker_embedding(sound.clone(), 16000), atol=1e-5)


def test_tokens_and_latents_are_those_of_coquis_own_stream(voice, coqui):
    latents = voice._stock.latents
    text = torch.tensor([coqui.tokenizer.encode(PIECE, lang="en")])
    with torch.inference_mode():
        stream = coqui.gpt.get_generator(
            fake_inputs=coqui.gpt.compute_embeddings(latents, text),
            top_k=1,
            top_p=1.0,
            temperature=1.0,
            do_sample=True,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=5.0,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        expected = [next(stream) for _ in range(TOKENS)]
    decoding = greedy(voice, latents)
    for token, latent in expected:
        assert torch.allclose(decoding.step(), latent[0], atol=1e-3)
        assert decoding._token == int(token)
    assert decoding.step() is None


@pytest.mark.parametrize("speed", [1.0, 0.8, 1.25])
def test_sound_in_windows_is_the_sound_of_the_whole(voice, coqui, speed):
    latents = torch.randn(15, 64, generator=torch.Generator().manual_seed(3))
    waveform = Waveform(voice._vocoder, voice._stock.embedding, speed)
    parts = []
    for index, latent in enumerate(latents):
        waveform.push(latent)
        if index % 5 == 4:
            parts.append(waveform.sound(final=False))
    parts.append(waveform.sound(final=True))
    with torch.inference_mode():
        stretched = latents[None]
        if speed != 1.0:
            stretched = torch.nn.functional.interpolate(stretched.mT, scale_factor=1 / speed, mode="linear").mT
        whole = coqui.hifigan_decoder(stretched, g=voice._stock.embedding).flatten().numpy()
    streamed = np.concatenate(parts)
    assert sum(len(part) > 0 for part in parts) >= 3
    assert streamed.shape == whole.shape
    assert np.abs(streamed - whole).max() < 1e-3 * whole.std(), "beyond the order of sums"
    assert whole.std() > 0.02


def test_voices_advanced_in_turns_say_what_each_says_alone(voice, alone):
    turns = zip_longest(*(voice.say(PIECE, "en", cloned(voice, name), 1.0, never) for name in alone))
    heard = {
        name: [part[index] for part in turns_list] for turns_list in [list(turns)] for index, name in enumerate(alone)
    }
    for name, chunks in heard.items():
        assert np.array_equal(np.concatenate([c for c in chunks if c is not None]), np.concatenate(alone[name]))
    assert not np.array_equal(np.concatenate(alone["low"]), np.concatenate(alone["high"]))


def test_decodings_in_any_order_give_what_each_gives_alone(voice):
    other = torch.randn(voice._stock.latents.shape, generator=torch.Generator().manual_seed(1))
    makers = [
        lambda: greedy(voice, voice._stock.latents),
        lambda: greedy(voice, other),
        lambda: greedy(voice, other, "say something else entirely"),
    ]
    expected = [run(make()) for make in makers]
    running = [make() for make in makers]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(3), TOKENS))
    got: list[list] = [[], [], []]
    for index in order:
        got[index].append(running[index].step())
    for own, alone_ in zip(got, expected, strict=True):
        assert len(own) == TOKENS
        assert all(torch.equal(a, b) for a, b in zip(own, alone_, strict=True))


def test_the_same_text_in_the_same_voice_sounds_the_same_on_any_stream(voice):
    def tokens(stream: str, name: str) -> list[int]:
        decoding = voice._decoding(PIECE, "en", voice.speaker(reference(name), stream).state, 0.2)
        return [decoding._token for _ in iter(decoding.step, None)]

    assert tokens("x", "low") == tokens("y", "low")
    assert tokens("x", "low") != tokens("x", "high")


def test_speech_is_audible_and_comes_in_chunks(voice, alone):
    chunks = alone["low"]
    sound = np.concatenate(chunks)
    assert sound.dtype == np.float32
    assert len(chunks) >= 2
    assert len(chunks[0]) / voice.sample_rate_hz < 0.5, "the first chunk must be early"
    assert 0.5 < len(sound) / voice.sample_rate_hz < 4
    assert 0.02 < np.sqrt(np.square(sound).mean()) < 0.5
    assert np.abs(sound).max() <= 1


def test_a_voice_that_never_stops_is_stopped_by_the_length_of_its_text(voice, alone):
    estimate_s = voice.estimate_ms(PIECE, "en") / 1000
    assert len(np.concatenate(alone["low"])) / voice.sample_rate_hz < 1.8 * estimate_s + 1.1


def test_cancelled_speech_ends_between_two_tokens(voice):
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    assert list(voice.say(PIECE, "en", voice.speaker(None, "a"), 1.0, cancelled)) == []
    assert asked == 4


def test_speech_without_sound_is_an_error(voice, monkeypatch):
    monkeypatch.setattr(voice._vocoder, "sound", lambda frames, speaker: torch.zeros(len(frames) * 256))
    with pytest.raises(EngineError, match="made no sound for a text of 6 characters"):
        list(voice.say(PIECE, "en", voice.speaker(None, "a"), 1.0, never))


def test_no_gradients_and_no_inference_mode_leak_to_the_caller(voice):
    saying = voice.say(PIECE, "en", voice.speaker(None, "a"), 1.0, never)
    next(saying)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert not any(p.requires_grad for p in voice._vocoder.generator.parameters())
    saying.close()


def test_a_reference_is_cloned_and_none_is_a_stock_voice(voice):
    assert cloned(voice, "low").cloned
    assert not voice.speaker(None, "a").cloned
    assert voice.speaker(None, "a").state.name == STOCK_VOICES[0]
    assert cloned(voice, "low").state is cloned(voice, "low").state
    assert cloned(voice, "low").state is not voice.speaker(reference("low"), "other stream").state


@pytest.mark.parametrize(
    ("bad", "message"),
    [(reference("low", 0.9), "at least 1 s of speech"), (np.zeros(20000, np.float32), "VOICE is silent")],
)
def test_a_reference_without_a_voice_is_refused(voice, bad, message):
    with pytest.raises(ValueError, match=message):
        voice.speaker(bad, "a")


def test_of_a_long_reference_thirty_seconds_are_used(voice, monkeypatch):
    heard = []
    monkeypatch.setattr(voice, "_encoder", lambda used: heard.append(len(used)) or (None, None))
    voice.speaker(np.tile(reference("low"), 40), "long")
    assert heard == [30 * 16000]


@pytest.mark.parametrize(
    ("language", "text", "pieces"),
    [
        ("en", "Dr. Smith paid $20.50 in 2020. Nobody knew why he did!", 2),
        ("de", "Es war 2020.", ["es war zweitausendzwanzig."]),
        ("es", "Son 50 soldados.", ["son cincuenta soldados."]),
        ("fr", "Il y avait 3,5 km.", ["il y avait trois virgule cinq km."]),
        ("zh", "有50名士兵。", ["有五十名士兵,"]),
        ("ja", "50人の兵士がいた。", ["五十人の兵士がいた。"]),
        ("ko", "50 명의 병사가 있었다.", ["오십 명의 병사가 있었다."]),
    ],
)
def test_numbers_are_read_out(voice, language, text, pieces):
    for module in PACKAGES.get(language, {}):
        pytest.importorskip(module)
    found = voice.pieces(text, language)
    assert found == pieces or len(found) == pieces
    assert not any(character.isdigit() for character in "".join(found))


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_every_language_is_cut_within_its_limits(voice, language):
    for module in PACKAGES.get(language, {}):
        pytest.importorskip(module)
    word = {"zh": "今天天气很好，", "ja": "今日はとても良い、", "ko": "안녕하세요 ", "ru": "привет "}.get(
        language, "hola, "
    )
    pieces = voice.pieces(word * 60, language)
    assert len(pieces) > 1
    assert all(len(piece) <= CHARACTER_LIMITS[language] for piece in pieces)
    assert all(len(voice._text.tokens(piece, language)) <= 402 for piece in pieces)
    letters = [c for c in word * 60 if c.isalpha()]
    assert [c for c in "".join(pieces) if c.isalpha()] == letters
    assert 1000 < voice.estimate_ms(pieces[0], language) < 30_000


def test_an_enormous_number_is_read_by_its_digits(voice):
    assert "one two three" in " ".join(voice.pieces("It is " + "123" * 200, "en"))


def test_a_region_takes_the_voice_of_its_language(voice):
    assert voice.pieces("Hola", "es-MX") == voice.pieces("Hola", "es")
    assert voice.estimate_ms("Hola", "es-MX") == voice.estimate_ms("Hola", "es")
    heard = next(voice.say("hola", "es-MX", voice.speaker(None, ""), 1.0, never))
    np.testing.assert_array_equal(heard, next(voice.say("hola", "es", voice.speaker(None, ""), 1.0, never)))


def test_other_languages_are_refused_with_the_ones_there_are(voice):
    with pytest.raises(UnsupportedError, match=r"'sv'.* has no voice in xtts-v2; supported: ar, cs, .*, zh$"):
        voice.pieces("Hej", "sv")


def test_a_language_without_its_packages_names_the_command(voice, monkeypatch):
    monkeypatch.setattr("polylip.serving.xtts_text.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"run: pip install pypinyin$"):
        voice.pieces("你好", "zh")
    with pytest.raises(UnsupportedError, match=r"run: pip install cutlet fugashi unidic-lite$"):
        voice.pieces("今日は", "ja")


def test_the_tables_are_coquis(coqui):
    assert {code.split("-")[0]: limit for code, limit in coqui.tokenizer.char_limits.items()} == CHARACTER_LIMITS
    assert set(LANGUAGES.values()) == set(coqui.config.languages)
    assert set(LANGUAGES) == set(CHARACTERS_PER_SECOND)


def test_config_objects_of_the_public_checkpoint_are_read_as_nothing(weights, tmp_path, coqui):
    from polylip.serving.xtts_weights import read_model  # noqa: PLC0415

    torch.save({"config": coqui.config, "model": {"x": torch.ones(2)}}, tmp_path / "model.pth")
    assert list(read_model(tmp_path / "model.pth")) == ["x"]


def test_parameters_are_honoured_and_the_licence_is_said_once(weights, caplog):
    with caplog.at_level(logging.INFO):
        voice = Xtts(
            {"precision": "bf16", "stock_voice": "Nobody", "cached_voices": "1", "threads": "1"}, str(weights.parent)
        )
    assert [record.message for record in caplog.records].count(LICENCE) == 1
    assert f"there is no stock voice 'Nobody'; '{STOCK_VOICES[0]}' speaks instead" in caplog.messages
    assert voice._gpt.head.weight.dtype == torch.bfloat16
    assert torch.isfinite(greedy(voice, voice._stock.latents).step()).all()
    for name in ("low", "high"):
        cloned(voice, name)
    assert len(voice._voices) == 1


@pytest.mark.parametrize(
    ("module", "package"), [("TTS", "coqui-tts"), ("torchaudio", "torchaudio"), ("num2words", "num2words")]
)
def test_a_missing_package_is_named_in_one_line(module, package):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from polylip.serving.engines import load_engine\n"
        "from polylip.serving.errors import MissingError\n"
        "try: load_engine('synthesize', {'engine': 'xtts-v2'}, '.')\n"
        "except MissingError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{package} is not installed; run: pip install 'polylip[speech]'"


def test_generated_weights_are_the_same_for_the_same_seed(weights, tmp_path):
    again = make_xtts(tmp_path / "again")
    assert (again / SPEAKERS).stat().st_size == (weights / SPEAKERS).stat().st_size
    first, second = (torch.load(folder / MODEL, weights_only=True)["model"] for folder in (weights, again))
    # The last layer is scaled by a measured loudness, whose last digits depend on the number of threads.
    assert all(torch.allclose(first[name], second[name], rtol=1e-4) for name in chain(first, second))
    assert (weights / MODEL).stat().st_size < 150e6
    shutil.rmtree(again)
