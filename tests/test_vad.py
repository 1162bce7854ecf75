"""What is speech: silero's network on real voices, noise, tones and claps, and its edges against those of energy."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from material import RATE_HZ, read_aloud

from polylip.client import vad
from polylip.client.errors import InputError
from polylip.client.segmentation import Policy, Segment, Segmenter
from polylip.client.vad import HOP, HOP_MS, EnergyVad, SileroVad, Vad, VadChoice, make_vad
from polylip.perf.demo_clip import SENTENCES

NOISE = 10 ** (-60 / 20)
PAUSE_S = 0.8
SHORT = ("Yes.", "Stop.", "Six small fish swim south.")


def noise(seconds: float, level: float = NOISE, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ)) * level).astype(np.float32)


def talk(texts: tuple[str, ...], pause_s: float = PAUSE_S) -> np.ndarray:
    """The texts with pauses between, over a microphone's noise."""
    pause = np.zeros(round(pause_s * RATE_HZ), np.float32)
    sound = np.concatenate([part for text in texts for part in (pause, read_aloud(text))] + [pause])
    return sound + noise(len(sound) / RATE_HZ)[: len(sound)]


def speech(judge: Vad, sound: np.ndarray) -> np.ndarray:
    """bool (hops,), with what was noticed late."""
    found = np.zeros(len(sound) // HOP, bool)
    for i in range(len(found)):
        count = int(judge.hop(sound[i * HOP : (i + 1) * HOP]))
        assert count <= 1 + judge.late_hops
        found[max(0, i + 1 - count) : i + 1] |= count > 0
    return found


def segments(judge: Vad, sound: np.ndarray) -> list[Segment]:
    segmenter = Segmenter(judge, Policy.SILENCE)
    return [s for s in [*segmenter.push(sound), *segmenter.flush()] if isinstance(s, Segment)]


def test_both_cut_clean_speech_at_the_same_places():
    sound = talk(SENTENCES)
    by_energy, by_silero = segments(EnergyVad(), sound), segments(SileroVad(), sound)
    assert len(by_energy) == len(by_silero) == len(SENTENCES)
    starts = np.array([b.start_ms - a.start_ms for a, b in zip(by_energy, by_silero, strict=True)])
    ends = np.array([b.end_ms - a.end_ms for a, b in zip(by_energy, by_silero, strict=True)])
    assert (np.abs(starts) <= HOP_MS).all()
    assert (ends >= -HOP_MS).all() and np.percentile(ends, 80) <= 60, "a soft last consonant is kept a little longer"


def test_short_words_and_soft_first_consonants_are_heard_in_time():
    by_energy, by_silero = (segments(judge, talk(SHORT, 1.5)) for judge in (EnergyVad(), SileroVad()))
    assert len(by_energy) == len(by_silero) == len(SHORT)
    assert all(abs(a.start_ms - b.start_ms) <= 60 for a, b in zip(by_energy, by_silero, strict=True))


def test_noise_tones_and_silence_are_no_speech_to_silero():
    time_s = np.arange(4 * RATE_HZ) / RATE_HZ
    bursts = noise(4, 0.1) * (np.sin(2 * np.pi * 0.7 * time_s) > 0)
    chord = sum(0.1 * np.sin(2 * np.pi * f * time_s) for f in (262.0, 330.0, 392.0)) * (time_s % 1 < 0.6)
    for sound in (bursts, chord, np.zeros(len(time_s))):
        assert not segments(SileroVad(), sound.astype(np.float32))
    assert segments(EnergyVad(), bursts.astype(np.float32)), "energy cannot tell"


def test_a_clap_does_not_deafen_silero():
    soft = talk(SENTENCES[:2]) * np.float32(0.05)
    sound = np.concatenate([noise(0.5), noise(0.1, 0.7), noise(0.5), soft])
    deaf, hearing = speech(EnergyVad(), sound), speech(SileroVad(), sound)
    start = round((1.1 + PAUSE_S) * 1000 / HOP_MS)
    assert hearing[start:].sum() > 1.5 * deaf[start:].sum()
    assert hearing[start:].sum() * HOP_MS > 4000


def test_every_stream_has_a_state_of_its_own():
    one, other = talk(SENTENCES[:1]), talk(SENTENCES[1:2])
    alone = speech(SileroVad(), one)
    mine, yours = SileroVad(), SileroVad()
    for i in range(len(alone)):
        count = mine.hop(one[i * HOP : (i + 1) * HOP])
        yours.hop(other[i * HOP : (i + 1) * HOP])
        assert (count > 0) <= alone[i]


def test_silero_is_taken_where_it_is_installed(monkeypatch):
    assert isinstance(make_vad(), SileroVad)
    assert isinstance(make_vad(VadChoice.ENERGY), EnergyVad)
    monkeypatch.setattr(vad, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    assert isinstance(make_vad(), EnergyVad)


def test_a_missing_silero_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(vad, "find_spec", lambda name: None)
    assert isinstance(make_vad(), EnergyVad)
    with pytest.raises(InputError, match="pip install onnxruntime faster-whisper"):
        make_vad(VadChoice.SILERO)


def test_silero_runs_without_torch_and_without_the_packages_that_carry_it():
    script = (
        "import sys; from polylip.client.vad import SileroVad, HOP; import numpy as np;"
        "SileroVad().hop(np.zeros(HOP, np.float32));"
        "print(sorted({'torch', 'faster_whisper', 'silero_vad', 'ctranslate2'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
