"""Applies a sync correction to sound as it comes in: a little faster or slower, or silence in or out at a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polylip.client.drift import NS_PER_S, SyncCorrector

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

BLOCK_S = 0.01  # within which a correction changes evenly
STEP_SHARE = 0.1  # of a block: what changes by more is a step


class SoundMover:
    """One form of a source's sound. Several forms with one corrector move alike, whatever their sample rates."""

    def __init__(self, corrector: SyncCorrector, sample_rate_hz: int, channels: int) -> None:
        self._corrector = corrector
        self._rate = sample_rate_hz
        self._block = round(sample_rate_hz * BLOCK_S)
        self._held = np.zeros((channels, 0), np.float32)
        self._first = 0  # index of the first held sample in the source
        self._next = 0  # index of the next block in the moved sound
        self._played = -1.0  # place in the source of the last sample that was given

    def push(self, pcm: Float32) -> Float32:
        """More of the sound, float32 (channels, n); gives as much of the moved sound as is settled by it."""
        self._held = np.concatenate([self._held, pcm], axis=1)
        blocks = [self._held[:, :0]]
        while (places := self._places())[-1] + 2 < self._first + self._held.shape[1]:
            blocks.append(self._play(places))
        self._forget()
        return np.concatenate(blocks, axis=1)

    def flush(self) -> Float32:
        """The end of the sound: what is left of it, to a whole block."""
        end = self._first + self._held.shape[1]
        self._held = np.pad(self._held, ((0, 0), (0, 3 * self._block)))
        blocks = [self._held[:, :0]]
        while (places := self._places())[0] < end:
            blocks.append(self._play(places))
        return np.concatenate(blocks, axis=1)

    def _places(self) -> Float64:
        """Where in the source the next block's samples lie, float64 (block,)."""
        start, stop = (self._corrector.correction_ns(self._time_ns(self._next + step)) for step in (0, self._block))
        samples = self._next + np.arange(self._block)
        if start == stop:  # whole samples: nothing is filtered while nothing moves
            return np.asarray(samples - round(stop * self._rate / NS_PER_S), np.float64)
        if abs(stop - start) > STEP_SHARE * BLOCK_S * NS_PER_S:
            start = stop
        moved_ns = start + (stop - start) * np.arange(self._block) / self._block
        return np.asarray(samples - moved_ns * (self._rate / NS_PER_S))

    def _time_ns(self, index: int) -> int:
        return index * NS_PER_S // self._rate

    def _play(self, places: Float64) -> Float32:
        """The block at those places of the source; silence where they are played already, or before its start."""
        fresh = (places > self._played) & (places >= 0)
        self._next += self._block
        self._played = max(self._played, float(places[-1]))
        return np.where(fresh, self._at(places - self._first), np.float32(0))

    def _at(self, places: Float64) -> Float32:
        """Cubic interpolation (Catmull-Rom) among the held samples."""
        whole = np.floor(places).astype(np.int64)
        part = (places - whole).astype(np.float32)
        a, b, c, d = (self._held[:, np.clip(whole + step, 0, self._held.shape[1] - 1)] for step in (-1, 0, 1, 2))
        if not part.any():
            return np.asarray(b)
        curve = (3 * (b - c) + d - a) * part + (2 * a - 5 * b + 4 * c - d)
        return np.asarray(b + 0.5 * part * (c - a + part * curve), np.float32)

    def _forget(self) -> None:
        """Drop what was played, but for the neighbour that interpolation needs."""
        drop = max(0, min(int(self._played) - 2 - self._first, self._held.shape[1]))
        self._held = self._held[:, drop:]
        self._first += drop
