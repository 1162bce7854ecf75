"""LSE-D and LSE-C of a video, the published way: SyncNet v2 on face crops and MFCC, its weights given by a file.

A lip window and a sound window that belong together are near each other: LSE-D is the mean distance at the best shift,
LSE-C how much nearer that is than at the middle one of all shifts. See docs/quality.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
import torch

from polylip.client.errors import InputError
from polylip.export.networks import SyncNet
from polylip.serving.mel import SAMPLE_RATE_HZ

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]

FPS = 25
SIDE = 224  # rows and columns of the network's pictures
FRAMES, COLUMNS = 5, 20  # of a window: 0.2 s
MFCC_PER_FRAME = 4
SHIFTS = 15  # windows to either side
DISTANCE_EPSILON = 1e-6  # added to each difference, as torch.nn.functional.pairwise_distance does
BATCH = 16

# MFCC as python_speech_features 0.6 makes them by default.
PCM_PEAK = 32768.0
EMPHASIS = 0.97
WINDOW, HOP, BINS = 400, 160, 512
FILTERS, CEPSTRA, LIFTER = 26, 13, 22
EPSILON = float(np.finfo(np.float64).eps)

# The face crop of SyncNet's own pipeline: a square around the face, wider by CROP to the sides and twice that below.
CROP = 0.4
MEDIAN_FRAMES = 13
GREY = 110


@dataclass(frozen=True)
class Lse:
    """How well lips and sound fit."""

    distance: float  # LSE-D: lower is better
    confidence: float  # LSE-C: higher is better
    offset_frames: int  # by which the sound must be moved back to fit best
    windows: int


def measure(network: SyncNet, crops: UInt8, audio: Float32) -> Lse:
    """Face crops uint8 (frames, 224, 224, 3) BGR at 25 fps, sound float32 (samples,) at 16 kHz. Raises InputError."""
    count = min(len(crops), len(audio) * FPS // SAMPLE_RATE_HZ) - FRAMES
    if count < 1:
        raise InputError(f"{len(crops)} frames of a face are too few for SyncNet; more than {FRAMES} are needed")
    return judge(_embed_lips(network, crops, count), _embed_sound(network, mfcc(audio), count))


def judge(lips: Float32, sound: Float32) -> Lse:
    """Both embeddings (windows, 1024); beyond its ends the sound is zero, as published."""
    windows = len(lips)
    padded = np.pad(sound.astype(np.float64), ((SHIFTS, SHIFTS), (0, 0)))
    means = np.array(
        [
            np.linalg.norm(lips - padded[shift : shift + windows] + DISTANCE_EPSILON, axis=1).mean()
            for shift in range(2 * SHIFTS + 1)
        ]
    )
    best = int(means.argmin())
    return Lse(float(means[best]), float(np.median(means) - means[best]), SHIFTS - best, windows)


@torch.inference_mode()
def _embed_lips(network: SyncNet, crops: UInt8, count: int) -> Float32:
    found = []
    for first in range(0, count, BATCH):
        windows = [crops[i : i + FRAMES] for i in range(first, min(count, first + BATCH))]
        pixels = torch.from_numpy(np.stack(windows)).permute(0, 4, 1, 2, 3).float()
        found.append(network.embed_lips(pixels).numpy())
    return np.concatenate(found)


@torch.inference_mode()
def _embed_sound(network: SyncNet, cepstra: Float64, count: int) -> Float32:
    """Windows that reach behind the sound's end are of no use and never asked for."""
    firsts = range(0, count * MFCC_PER_FRAME, MFCC_PER_FRAME)
    windows = np.stack([cepstra[:, first : first + COLUMNS] for first in firsts])[:, None]
    embeddings: Float32 = network.embed_audio(torch.from_numpy(windows.astype(np.float32))).numpy()
    return embeddings


def mfcc(audio: Float32) -> Float64:
    """Float32 (samples,) at 16 kHz -> float64 (13, columns), 100 columns a second, the first one the log energy."""
    pcm = np.rint(audio.astype(np.float64) * PCM_PEAK)
    emphasised = np.append(pcm[:1], pcm[1:] - EMPHASIS * pcm[:-1])
    columns = 1 + max(0, -(-(len(pcm) - WINDOW) // HOP))
    padded = np.pad(emphasised, (0, max(0, (columns - 1) * HOP + WINDOW - len(pcm))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:columns]
    power = np.abs(np.fft.rfft(frames, BINS)) ** 2 / BINS
    energy = power.sum(axis=1)
    bands = power @ _filters().T
    cepstra = np.log(np.where(bands == 0, EPSILON, bands)) @ _cosines().T
    cepstra *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER)
    cepstra[:, 0] = np.log(np.where(energy == 0, EPSILON, energy))
    return np.asarray(cepstra.T)


@cache
def _filters() -> Float64:
    """Triangles evenly spaced in mel, float64 (26, 257)."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, highest, FILTERS + 2) / 2595) - 1)
    edges = np.floor((BINS + 1) * hertz / SAMPLE_RATE_HZ).astype(int)
    found = np.zeros((FILTERS, BINS // 2 + 1))
    for row, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        found[row, low:middle] = (np.arange(low, middle) - low) / (middle - low)
        found[row, middle:high] = (high - np.arange(middle, high)) / (high - middle)
    return found


@cache
def _cosines() -> Float64:
    """The first rows of the orthonormal DCT-II, float64 (13, 26)."""
    angles = np.pi * np.arange(CEPSTRA)[:, None] * (2 * np.arange(FILTERS) + 1) / (2 * FILTERS)
    scale = np.full((CEPSTRA, 1), np.sqrt(2 / FILTERS))
    scale[0] = np.sqrt(1 / FILTERS)
    return np.asarray(scale * np.cos(angles))


def crop_windows(corners: Float64) -> Float64:
    """Face boxes (frames, 4) x1 y1 x2 y2 -> half side and centre (frames, 3), each the median of MEDIAN_FRAMES."""
    sizes = corners[:, 2:] - corners[:, :2]
    raw = np.column_stack([sizes.max(axis=1) / 2, corners[:, :2] + sizes / 2])
    edge = MEDIAN_FRAMES // 2
    around = np.lib.stride_tricks.sliding_window_view(np.pad(raw, ((edge, edge), (0, 0)), "edge"), MEDIAN_FRAMES, 0)
    return np.asarray(np.median(around, axis=-1))


def crop_face(picture: UInt8, window: Float64) -> UInt8:
    """What SyncNet sees of a picture uint8 (rows, columns, 3): uint8 (224, 224, 3)."""
    half, x, y = window
    edge = int(half * (1 + 2 * CROP))
    padded = np.pad(picture, ((edge, edge), (edge, edge), (0, 0)), constant_values=GREY)
    top, bottom = int(y - half) + edge, int(y + half * (1 + 2 * CROP)) + edge
    left, right = int(x - half * (1 + CROP)) + edge, int(x + half * (1 + CROP)) + edge
    return np.asarray(cv2.resize(padded[top:bottom, left:right], (SIDE, SIDE)), np.uint8)
