"""What exported graphs are checked on: drawn faces and a synthetic voice, the same on every machine.

They have the structure of the real thing (smooth skin, edges, texture, formants), so that a broken layer shows; noise
would average it away.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from polylip.serving.mel import SAMPLE_RATE_HZ, mel_windows

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

SEED = 7
FPS = 25
SIDE = 96  # rows and columns of a face crop
SUPERSAMPLING = 4  # crops are drawn larger and shrunk, for soft edges
TEXTURE_SD = 3.0  # grey levels of noise, as a camera has
GLOTTAL_HZ = (90.0, 240.0)  # the voice glides between a man's and a child's pitch
FORMANTS_HZ = ((700.0, 1200.0), (300.0, 2300.0), (350.0, 800.0))  # a, i, u
SYLLABLE_S = 0.18


def gate_mel(frames: int) -> Float32:
    """Mel windows of a synthetic voice that says vowels and pauses: float32 (frames, 80, 16)."""
    samples = np.arange(int((frames / FPS + 0.5) * SAMPLE_RATE_HZ))
    time_s = samples / SAMPLE_RATE_HZ
    low, high = GLOTTAL_HZ
    pitch_hz = low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * time_s / 0.9))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    vowel = (time_s / SYLLABLE_S).astype(int) % (len(FORMANTS_HZ) + 1)  # the last one is a pause
    voice = np.zeros(samples.size)
    for harmonic in range(1, 30):
        for index, formants in enumerate(FORMANTS_HZ):
            gain = sum(np.exp(-(((harmonic * pitch_hz - formant) / 150.0) ** 2)) for formant in formants)
            voice += np.where(vowel == index, gain, 0.0) * np.sin(harmonic * phase)
    voice = 0.2 * voice + 0.001 * np.random.default_rng(SEED).standard_normal(samples.size)
    return mel_windows(voice.astype(np.float32), np.arange(frames, dtype=np.int64) * 1000 // FPS)


def gate_faces(frames: int) -> UInt8:
    """Face crops as `lips` gets them: uint8 (frames, 96, 96, 3) BGR."""
    side = SIDE * SUPERSAMPLING
    crops = np.empty((frames, SIDE, SIDE, 3), np.uint8)
    for i in range(frames):
        canvas = _background(side, side, i)
        _draw_face(canvas, (side * 0.5, side * 0.48), side * 1.1, i)
        crops[i] = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return _with_texture(crops)


def gate_frames(frames: int, height: int, width: int) -> UInt8:
    """Pictures with a large, a middle and a small face: uint8 (frames, height, width, 3) BGR."""
    pictures = np.stack([_background(height, width, i) for i in range(frames)])
    for i, picture in enumerate(pictures):
        for face, (x, y, size) in enumerate(((0.3, 0.5, 0.55), (0.68, 0.4, 0.3), (0.88, 0.65, 0.14))):
            _draw_face(picture, ((x + 0.02 * i) * width, y * height), size * height, i + face)
    return _with_texture(pictures)


def _background(height: int, width: int, variant: int) -> UInt8:
    """A gradient with a window, a shelf and a lamp."""
    x = np.linspace(0.0, 1.0, width)[None, :, None]
    y = np.linspace(0.0, 1.0, height)[:, None, None]
    tint = np.array([[70, 90, 120], [120, 100, 80], [90, 110, 90]], np.float64)[variant % 3]
    canvas: UInt8 = np.clip(tint + 60 * x + 40 * y * (1 - x), 0, 255).astype(np.uint8)
    _fill(canvas, [(0.05, 0.05), (0.22, 0.05), (0.22, 0.4), (0.05, 0.4)], (210, 200, 190))
    _fill(canvas, [(0.45, 0.1), (0.95, 0.1), (0.95, 0.16), (0.45, 0.16)], (40, 60, 90))
    cv2.circle(canvas, (int(0.9 * width), int(0.3 * height)), max(2, height // 12), (150, 220, 240), -1, cv2.LINE_AA)
    return canvas


def _fill(canvas: UInt8, corners: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
    height, width = canvas.shape[:2]
    cv2.fillConvexPoly(canvas, np.array([(x * width, y * height) for x, y in corners], np.int32), colour, cv2.LINE_AA)


def _draw_face(canvas: UInt8, centre: tuple[float, float], height: float, variant: int) -> None:
    """Hair, neck, skin with a shaded side, eyes with brows, nose and a mouth that opens with `variant`."""
    skin = [(140, 170, 220), (90, 120, 170), (165, 190, 235), (60, 85, 130)][variant % 4]
    dark = tuple(int(c * 0.72) for c in skin)
    half = height / 2

    def ellipse(dx: float, dy: float, rx: float, ry: float, colour: tuple[int, ...], start: float = 0.0) -> None:
        middle = (round(centre[0] + dx * half), round(centre[1] + dy * half))
        axes = (max(1, round(rx * half)), max(1, round(ry * half)))
        cv2.ellipse(canvas, middle, axes, 0.0, start, 360.0, colour, -1, cv2.LINE_AA)

    ellipse(0.0, -0.2, 0.86, 1.0, (25, 35, 45))  # hair
    ellipse(0.0, 1.0, 0.36, 0.5, dark)  # neck
    ellipse(0.0, 0.05, 0.74, 0.98, dark)  # the shaded side
    ellipse(-0.05, 0.03, 0.68, 0.94, skin)
    for side in (-1.0, 1.0):
        ellipse(side * 0.3, -0.16, 0.16, 0.09, (235, 235, 240))
        ellipse(side * 0.3, -0.16, 0.075, 0.085, (60, 40, 30))
        ellipse(side * 0.3, -0.34, 0.2, 0.045, (30, 40, 55))
        ellipse(side * 0.07, 0.24, 0.045, 0.03, tuple(c // 2 for c in skin))
    ellipse(0.03, 0.1, 0.06, 0.18, dark)
    ellipse(0.0, 0.52, 0.27, 0.07 + 0.04 * (variant % 4), (70, 70, 170))
    ellipse(0.0, 0.52, 0.2, 0.01 + 0.035 * (variant % 4), (30, 25, 60))


def _with_texture(pictures: UInt8) -> UInt8:
    noise = np.random.default_rng(SEED).normal(0.0, TEXTURE_SD, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)
