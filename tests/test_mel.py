"""The mel front end gives what the lip-sync checkpoint was trained on, in time with the frames, or a clear refusal."""

from pathlib import Path

import numpy as np
import pytest

from polylip.serving.mel import (
    HOP,
    MEL_BANDS,
    MEL_COLUMNS,
    MEL_FRAMES_PER_SECOND,
    SAMPLE_RATE_HZ,
    column_of,
    log_mel,
    mel_windows,
)

# Made once with librosa 0.11.0 from the signal below, `y` being it after pre-emphasis:
#   magnitude = abs(librosa.stft(y, n_fft=800, hop_length=200, win_length=800, pad_mode="reflect"))
#   mel = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ magnitude
#   clip(8 * (20 * log10(maximum(1e-5, mel)) - 20 + 100) / 100 - 4, -4, 4)
# The file holds the first and the last columns, where centring shows, and some between: `columns` and `values`.
GOLDEN = Path(__file__).parent / "golden" / "mel_librosa.npz"


def speechlike() -> np.ndarray:
    """2.005 s with a glide, a gated buzz, a hiss that starts late, noise, and 0.2 s of digital silence."""
    t = np.arange(2 * SAMPLE_RATE_HZ + 77) / SAMPLE_RATE_HZ
    glide = np.sin(2 * np.pi * (90.0 * t + 60.0 * t * t)) * 0.3
    buzz = np.sign(np.sin(2 * np.pi * 140.0 * t)) * 0.1 * (np.sin(2 * np.pi * 3.0 * t) > 0)
    hiss = 0.05 * np.sin(2 * np.pi * 6200.0 * t) * (t > 1.2)
    scrambled = (np.arange(t.size, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    noise = (scrambled / 2**32 - 0.5) * 0.02
    return ((glide + buzz + hiss + noise) * ((t < 1.6) | (t > 1.8))).astype(np.float32)


def offsets(*ms: int) -> np.ndarray:
    return np.array(ms, dtype=np.int64)


def test_values_are_those_of_the_library_the_checkpoint_was_trained_with():
    golden = np.load(GOLDEN)
    mel = log_mel(speechlike())
    assert mel.shape == (MEL_BANDS, 161)
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel[:, golden["columns"]], golden["values"], atol=1e-4)


def test_digital_silence_is_exactly_minus_four():
    assert (log_mel(np.zeros(5000, np.float32)) == -4.0).all()


def test_values_stay_in_range_for_clipped_and_overdriven_audio():
    mel = log_mel(100 * np.sign(speechlike()))
    assert mel.max() == 4.0
    assert mel.min() >= -4.0


@pytest.mark.parametrize("samples", [1, 199, 200, 399, 400, 401, 799, 3000, 16_000, 32_077])
def test_column_count_is_one_per_hop_and_one_more(samples):
    assert log_mel(np.full(samples, 0.1, np.float32)).shape == (MEL_BANDS, 1 + samples // HOP)


@pytest.mark.parametrize(
    ("fps", "first"),
    [
        (25, [0, 3, 6, 9, 12, 16, 19, 22]),
        (30, [0, 2, 5, 8, 10, 13, 16]),
    ],
)
def test_windows_start_where_the_reference_implementation_starts_them(fps, first):
    instants = np.array([1000 * i // fps for i in range(len(first))], dtype=np.int64)
    assert column_of(instants).tolist() == first


def test_column_of_does_not_drift_over_hours():
    ms = np.int64(10 * 3_600_000 + 40)
    assert column_of(np.array([ms]))[0] == 10 * 3600 * MEL_FRAMES_PER_SECOND + 3


def test_a_complete_window_is_a_cut_of_the_spectrogram():
    audio = speechlike()
    mel = log_mel(audio)
    instants = offsets(0, 40, 33, 1000, 1600, 1812)
    windows = mel_windows(audio, instants)
    assert windows.shape == (6, MEL_BANDS, MEL_COLUMNS)
    assert windows.dtype == np.float32
    for window, first in zip(windows, column_of(instants), strict=True):
        np.testing.assert_allclose(window, mel[:, first : first + MEL_COLUMNS], atol=1e-6)


def test_a_window_over_the_end_continues_into_silence():
    audio = np.full(16_000, 0.2, np.float32)
    window = mel_windows(audio, offsets(1000))[0]
    assert (window[:, 3:] == -4.0).all()
    padded = np.concatenate([audio, np.zeros(8000, np.float32)])
    np.testing.assert_allclose(window, log_mel(padded)[:, 80:96], atol=1e-6)


def test_a_window_does_not_depend_on_what_else_is_asked():
    audio = speechlike()
    instants = offsets(2005, 0, 1900, 40, 1800, 1840, 40)
    together = mel_windows(audio, instants)
    for i, instant in enumerate(instants):
        np.testing.assert_allclose(together[i], mel_windows(audio, offsets(instant))[0], atol=1e-6)


@pytest.mark.parametrize("skipped_ms", [0, 25, 475, 975])
def test_a_slice_that_starts_three_columns_earlier_gives_the_windows_of_the_whole(skipped_ms):
    audio = speechlike()
    samples = skipped_ms * SAMPLE_RATE_HZ // 1000
    assert samples % HOP == 0
    lead_ms = 38  # the first whole millisecond of the third column
    in_slice = offsets(lead_ms, lead_ms + 40, 400, 900)
    np.testing.assert_allclose(
        mel_windows(audio[samples:], in_slice),
        mel_windows(audio, in_slice + skipped_ms),
        atol=1e-6,
    )


def test_very_short_audio_still_makes_a_window():
    assert mel_windows(np.array([0.5], np.float32), offsets(0)).shape == (1, MEL_BANDS, MEL_COLUMNS)


def test_no_frames_make_no_windows():
    assert mel_windows(speechlike(), offsets()).shape == (0, MEL_BANDS, MEL_COLUMNS)


@pytest.mark.parametrize(
    ("audio", "instants", "message"),
    [
        (np.zeros(0, np.float32), offsets(0), "audio is empty"),
        (np.zeros((2, 800), np.float32), offsets(0), r"shape \[2, 800\].*one row"),
        (np.zeros(800, np.int16), offsets(0), "int16.*float32"),
        (np.array([0.0, np.nan], np.float32), offsets(0), "NaN or infinite"),
        (np.array([0.0, np.inf], np.float32), offsets(0), "NaN or infinite"),
        (np.zeros(16_000, np.float32), offsets(0, -1), "-1 ms is before the audio"),
        (np.zeros(16_000, np.float32), offsets(0, 1001), "1001 ms is beyond the 1000 ms"),
        (np.zeros(16_000, np.float32), offsets(2**62), "beyond the 1000 ms"),
        (np.zeros(16_000, np.float32), offsets(0)[None], r"shape \[1, 1\]"),
        (np.zeros(16_000, np.float32), np.array([0.5]), "float64.*int64"),
    ],
)
def test_wrong_input_is_refused_with_cause_and_remedy(audio, instants, message):
    with pytest.raises(ValueError, match=message) as refusal:
        mel_windows(audio, instants)
    assert "\n" not in str(refusal.value)
