"""Time fitting with any voice: the plan, its revision as speech turns out longer or shorter, the stretching."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polylip.serving.engines import Cancelled, Float32, Speaker
from polylip.serving.engines.espeak import Espeak
from polylip.serving.isochrony import ANY_LENGTH, RANGES, Fit, Slot, fit_rate, parse_fit, share
from polylip.serving.speaking import PAUSE_MS, Line, Speaking, SpeechChunk
from polylip.serving.stretch import stretched

RATE_HZ = 16_000
LONG_SPANISH = "La casa es grande. El niño está aquí mañana. La puerta es roja y el perro duerme en el jardín."


class Buzzer:
    """A voice that buzzes 100 ms per letter, `true_pace` times as long as it estimates."""

    sample_rate_hz = RATE_HZ

    def __init__(self, speeds: tuple[float, float] = (0.85, 1.3), true_pace: float = 1.0) -> None:
        self.speeds, self.true_pace = speeds, true_pace
        self.said: list[tuple[str, float]] = []

    def pieces(self, text: str, language: str) -> list[str]:
        return text.split()

    def estimate_ms(self, piece: str, language: str) -> float:
        return 100.0 * len(piece)

    def speaker(self, reference: Float32 | None, stream: str) -> Speaker:
        return Speaker(cloned=reference is not None)

    def say(self, piece: str, language: str, speaker: Speaker, speed: float, cancelled: Cancelled) -> Iterator[Float32]:
        self.said.append((piece, speed))
        for _ in piece:
            samples = round(self.true_pace * 0.1 * RATE_HZ / speed)
            yield np.sin(np.arange(samples) * 2 * np.pi * 200 / RATE_HZ).astype(np.float32) * 0.5


def spoken(voice: Buzzer | Espeak, text: str, slot: Slot = ANY_LENGTH, **more) -> list[SpeechChunk]:
    return list(Speaking(voice).speak(Line(text, "es", slot=slot, **more)))


def seconds(chunks: list[SpeechChunk]) -> float:
    return sum(chunk.seconds for chunk in chunks)


@pytest.mark.parametrize("fit", Fit)
@given(
    natural_ms=st.floats(1, 60_000), fill=st.none() | st.integers(1, 60_000), limit=st.none() | st.integers(1, 60_000)
)
def test_a_rate_never_leaves_its_preset_and_hurries_only_to_respect_the_limit(fit, natural_ms, fill, limit):
    rate, allowed = fit_rate(natural_ms, Slot(fill, limit, fit)), RANGES[fit]
    assert min(allowed.slowest, 1.0) <= rate <= max(allowed.hard_max, 1.0)
    if limit is None or natural_ms / allowed.fastest <= limit:
        assert rate <= allowed.fastest


@given(rate=st.floats(0.85, 1.3), slow=st.floats(0.5, 1), fast=st.floats(1, 2))
def test_engine_speed_and_stretch_make_the_rate_and_an_able_engine_does_it_all(rate, slow, fast):
    speed, tempo = share(rate, (slow, fast))
    assert speed * tempo == pytest.approx(rate)
    assert slow <= speed <= fast
    assert tempo == 1 or speed in (slow, fast)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    assert parse_fit("") is Fit.TIGHT and parse_fit("strict") is Fit.STRICT
    with pytest.raises(ValueError, match="natural, tight, strict"):
        parse_fit("loose")


@pytest.mark.parametrize(("fit", "fastest"), [(Fit.NATURAL, 1.1), (Fit.TIGHT, 1.2), (Fit.STRICT, 1.3)])
def test_a_preset_decides_how_much_a_voice_hurries(fit, fastest):
    chunks = spoken(Buzzer(), "aaaaaaaaaa bbbbbbbbbb", Slot(1000, fit=fit))
    assert {round(chunk.rate, 3) for chunk in chunks} == {fastest}
    assert seconds(chunks) == pytest.approx((2 + PAUSE_MS / 1000) / fastest, rel=0.01)


@pytest.mark.parametrize("wanted_ms", [1900, 2200, 2500])
def test_a_slot_that_can_be_filled_is_filled_by_the_engine_alone(wanted_ms):
    voice = Buzzer()
    chunks = spoken(voice, "aaaaaaaaaa bbbbbbbbbb", Slot(wanted_ms))
    assert seconds(chunks) * 1000 == pytest.approx(wanted_ms, abs=10)
    assert all(chunk.engine_rate == pytest.approx(chunk.rate) for chunk in chunks)
    assert all(chunk.estimate_ms == pytest.approx(2200) for chunk in chunks)


@pytest.mark.parametrize("wanted_ms", [1900, 2500])
def test_what_the_engine_cannot_do_is_stretched(wanted_ms):
    voice = Buzzer(speeds=(1.0, 1.0))
    chunks = spoken(voice, "aaaaaaaaaa bbbbbbbbbb", Slot(wanted_ms))
    assert seconds(chunks) * 1000 == pytest.approx(wanted_ms, abs=80), "WSOLA keeps or drops a window of 20 ms a piece"
    assert {speed for _, speed in voice.said} == {1.0}


@pytest.mark.parametrize("true_pace", [0.9, 1.12])
def test_a_voice_that_was_misjudged_is_made_up_for_in_the_pieces_behind(true_pace):
    text, wanted_ms = " ".join(["aaaaaaaaaa"] * 6), 7000
    natural_ms = 6000 * true_pace + 5 * PAUSE_MS
    without_plan = abs(natural_ms * wanted_ms / (6000 + 5 * PAUSE_MS) - wanted_ms)
    over_ms = abs(seconds(spoken(Buzzer(true_pace=true_pace), text, Slot(wanted_ms))) * 1000 - wanted_ms)
    assert over_ms < without_plan / 3


def test_the_pace_of_a_voice_is_remembered_for_its_stream_alone():
    speaking = Speaking(Buzzer(true_pace=1.2))

    def estimate(stream: str) -> float:
        return next(iter(list(speaking.speak(Line("aaaaaaaaaa " * 4, "es", stream=stream))))).estimate_ms

    first = estimate("a")
    assert estimate("a") > 1.1 * first
    assert estimate("b") == first


def test_nothing_is_cut_however_short_the_slot():
    chunks = spoken(Buzzer(), "aaaaaaaaaa bbbbbbbbbb cccccccccc", Slot(300, 300))
    assert seconds(chunks) == pytest.approx(3.4 / 1.3, rel=0.02)


def test_a_cancelled_line_ends_between_its_pieces():
    voice, heard = Buzzer(), []
    for chunk in Speaking(voice).speak(Line("aa bb cc", "es", cancelled=lambda: len(heard) >= 2)):
        heard.append(chunk)
    assert [piece for piece, _ in voice.said] == ["aa"]


def test_espeak_fills_a_slot_and_starts_before_it_has_said_everything():
    natural = seconds(spoken(Espeak({}, ""), LONG_SPANISH))
    for wanted_ms in (round(natural * 900), round(natural * 1100)):
        chunks = spoken(Espeak({}, ""), LONG_SPANISH, Slot(wanted_ms))
        assert seconds(chunks) * 1000 == pytest.approx(wanted_ms, rel=0.03)
    first = next(Speaking(Espeak({}, "")).speak(Line(LONG_SPANISH, "es")))
    assert 0 < first.seconds < natural / 5


@pytest.mark.parametrize("tempo", [0.85, 0.995, 1.15, 1.3])
@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_stretching_changes_length_not_pitch_whatever_the_chunks(tempo, rate_hz):
    time_s = np.arange(2 * rate_hz) / rate_hz
    tone = (0.5 * np.sin(2 * np.pi * 220 * time_s)).astype(np.float32)
    done = np.concatenate(list(stretched(iter(np.array_split(tone, 37)), rate_hz, tempo)))
    wanted = len(tone) / (tempo if abs(tempo - 1) >= 0.01 else 1)
    assert len(done) == pytest.approx(wanted, abs=0.03 * rate_hz)
    spectrum = np.abs(np.fft.rfft(done * np.hanning(len(done))))
    assert np.argmax(spectrum) * rate_hz / len(done) == pytest.approx(220, abs=2)
    assert np.abs(done).max() == pytest.approx(0.5, abs=0.05)


def test_stretching_nothing_gives_nothing():
    assert sum(len(chunk) for chunk in stretched(iter(()), RATE_HZ, 1.2)) == 0
