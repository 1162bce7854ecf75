"""Speech in, mel windows out: the audio front end that the public lip-sync checkpoints were trained with.

Every number here belongs to the checkpoint: other values give a network input it has never seen. They are those of
the Wav2Lip release (its `hparams.py`, with librosa 0.7.0 defaults). Only numpy is needed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

SAMPLE_RATE_HZ = 16_000
N_FFT = 800  # 50 ms, both the transform and the window
HOP = 200  # samples from one mel column to the next, 12.5 ms
MEL_FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP  # 80
MEL_BANDS = 80
MEL_COLUMNS = 16  # one window, 200 ms: what the network sees for one video frame
LOWEST_HZ = 55.0
HIGHEST_HZ = 7600.0
PRE_EMPHASIS = 0.97

# log10 magnitude to the network's scale. 20 dB per decade, 20 dB reference, 100 dB range onto [-4, 4]:
# 8 * (20 * log10(m) - 20 + 100) / 100 - 4 = 1.6 * log10(m) + 2.4.
FLOOR_MAGNITUDE = 1e-5
LOG_GAIN = 1.6
LOG_OFFSET = 2.4
LIMIT = 4.0  # values lie in [-4, 4]; digital silence is exactly -4

# Slaney's auditory scale: linear up to 1 kHz (15 steps), then 27 steps for each factor of 6.4.
SLANEY_HZ_PER_STEP = 200.0 / 3.0
SLANEY_KNEE_HZ = 1000.0
SLANEY_KNEE_STEP = SLANEY_KNEE_HZ / SLANEY_HZ_PER_STEP
SLANEY_LOG_STEP = np.log(6.4) / 27.0

HALF = N_FFT // 2  # centring: column t is centred on sample HOP * t
SAMPLES_PER_MS = SAMPLE_RATE_HZ // 1000

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def log_mel(audio: Float32) -> Float32:
    """The whole spectrogram: float32 (samples,) at 16 kHz in [-1, 1] -> float32 (80, 1 + samples // 200).

    Row 0 is the lowest band. Column t is centred on sample 200 t; both ends are mirrored. Values lie in [-4, 4].
    Raises ValueError for audio that is empty, not a row of floats, or not finite.
    """
    samples = _checked_audio(audio)
    return _columns(samples, 0, column_count(samples.size)).T


def mel_windows(audio: Float32, frame_offsets_ms: Int64) -> Float32:
    """One window per video frame: float32 (samples,), int64 (frames,) -> float32 (frames, 80, 16).

    A frame's offset is its instant in milliseconds after the first sample; its window begins with the column of that
    instant, see `column_of`. A window that reaches beyond the last column of the audio is taken from the audio followed
    by zeros. So a window depends on the audio and its own offset alone, not on what else the call asks for; and in a
    slice of a longer recording that begins 3 columns (600 samples) or more before the instant, at a multiple of 200
    samples, it is the same as in the whole. Raises ValueError for audio as in `log_mel`, and for an offset that is
    negative or beyond the end of the audio.
    """
    samples = _checked_audio(audio)
    first = column_of(_checked_offsets(frame_offsets_ms, samples.size))
    windows = np.empty((first.size, MEL_BANDS, MEL_COLUMNS), dtype=np.float32)
    complete = first + MEL_COLUMNS <= column_count(samples.size)
    if complete.any():
        windows[complete] = _cut(samples, first[complete])
    if not complete.all():
        followed_by_zeros = np.zeros(samples.size + MEL_COLUMNS * HOP, dtype=np.float32)
        followed_by_zeros[: samples.size] = samples
        windows[~complete] = _cut(followed_by_zeros, first[~complete])
    return windows


def column_of(offsets_ms: Int64) -> Int64:
    """First column of the window for each instant: floor(80 * ms / 1000), in integers so that it never drifts."""
    return offsets_ms * MEL_FRAMES_PER_SECOND // 1000


def column_count(samples: int) -> int:
    """Mel columns of so many samples."""
    return 1 + samples // HOP


def _cut(samples: Float32, first: Int64) -> Float32:
    """Windows float32 (frames, 80, 16) that begin at columns int64 (frames,); only the span they cover is computed."""
    low, high = int(first.min()), int(first.max()) + MEL_COLUMNS
    columns = _columns(samples, low, high)
    return columns[(first - low)[:, None] + np.arange(MEL_COLUMNS)].transpose(0, 2, 1)


def _columns(samples: Float32, low: int, high: int) -> Float32:
    """Mel columns low..high-1 of the samples, one per row: float32 (high - low, 80)."""
    emphasised = samples.copy()
    emphasised[1:] -= np.float32(PRE_EMPHASIS) * samples[:-1]
    centred = np.pad(emphasised, HALF, mode="reflect")
    frames = sliding_window_view(centred, N_FFT)[low * HOP : (high - 1) * HOP + 1 : HOP]
    magnitudes = np.abs(np.fft.rfft(frames * _hann(), axis=1))
    logs = np.log10(np.maximum(magnitudes @ _mel_filters(), FLOOR_MAGNITUDE))
    mel: Float32 = np.clip(LOG_GAIN * logs + LOG_OFFSET, -LIMIT, LIMIT).astype(np.float32)
    return mel


@cache
def _hann() -> Float64:
    """Periodic Hann window, float64 (800,)."""
    window: Float64 = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(N_FFT) / N_FFT)
    return window


@cache
def _mel_filters() -> Float64:
    """Triangles of equal area on the Slaney scale, float64 (401 bins, 80 bands): magnitudes @ filters is the mel."""
    ends = _hz_to_steps(np.array([LOWEST_HZ, HIGHEST_HZ]))
    edges_hz = _steps_to_hz(np.linspace(ends[0], ends[1], MEL_BANDS + 2))
    bins_hz = np.arange(HALF + 1)[:, None] * (SAMPLE_RATE_HZ / N_FFT)
    left, centre, right = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (bins_hz - left) / (centre - left)
    falling = (right - bins_hz) / (right - centre)
    filters: Float64 = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (right - left))
    return filters


def _hz_to_steps(hz: Float64) -> Float64:
    above = SLANEY_KNEE_STEP + np.log(np.maximum(hz, SLANEY_KNEE_HZ) / SLANEY_KNEE_HZ) / SLANEY_LOG_STEP
    return np.where(hz < SLANEY_KNEE_HZ, hz / SLANEY_HZ_PER_STEP, above)


def _steps_to_hz(steps: Float64) -> Float64:
    above = SLANEY_KNEE_HZ * np.exp(SLANEY_LOG_STEP * (steps - SLANEY_KNEE_STEP))
    return np.where(steps < SLANEY_KNEE_STEP, steps * SLANEY_HZ_PER_STEP, above)


def _checked_audio(audio: npt.NDArray[Any]) -> Float32:
    """The audio as float32 (samples,), or a ValueError that says what is wrong with it."""
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        raise ValueError(
            f"audio has shape {list(audio.shape)} and type {audio.dtype}; send one row of float32 samples at 16 kHz"
        )
    if audio.size == 0:
        raise ValueError("audio is empty; send at least one sample")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples; send samples between -1 and 1")
    return audio.astype(np.float32, copy=False)


def _checked_offsets(offsets_ms: npt.NDArray[Any], samples: int) -> Int64:
    """The offsets as int64 (frames,), or a ValueError that says what is wrong with them."""
    if offsets_ms.ndim != 1 or not np.issubdtype(offsets_ms.dtype, np.integer):
        raise ValueError(
            f"frame offsets have shape {list(offsets_ms.shape)} and type {offsets_ms.dtype}; "
            "send one row of int64 milliseconds"
        )
    end_ms = -(-samples // SAMPLES_PER_MS)  # rounded up, so that the instant of the last sample is always inside
    if offsets_ms.size and offsets_ms.min() < 0:
        raise ValueError(
            f"frame offset {offsets_ms.min()} ms is before the audio; count offsets from the first sample sent"
        )
    if offsets_ms.size and offsets_ms.max() > end_ms:
        raise ValueError(
            f"frame offset {offsets_ms.max()} ms is beyond the {end_ms} ms of audio; send longer audio or fewer frames"
        )
    return offsets_ms.astype(np.int64, copy=False)
