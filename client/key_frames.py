"""Which frames the detector sees: every fifth as a rule, all of them behind a cut and where the tracker cannot follow.

Detection is the dearest part of the picture branch, so the extra ones are paid from an allowance: over any longer time
there are at most as many extra key frames as regular ones.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

KEY_FRAME_STEP = 5  # frames at 25 and 30 fps, 5 to 6 a second; at other rates the step that comes nearest in time
STEP_FRAME_RATE = Fraction(55, 2)  # the middle of 25 and 30 fps
SHOT_KEY_FRAMES = 5  # dense ones at the start of a shot: faces are confirmed and their motion known at once
DENSE_SURPRISE = 4.0  # running mean of the squared error over what the tracker expected, 1 where its model fits
DENSE_SHARE = 1.0  # extra key frames earned by each regular one
MAX_ALLOWANCE = 25.0  # a second of dense key frames


class KeyFrames:
    """Decides frame by frame."""

    def __init__(self, frame_rate: Fraction) -> None:
        self.step = max(1, round(KEY_FRAME_STEP * frame_rate / STEP_FRAME_RATE))
        self.dense_step = max(1, round(frame_rate / STEP_FRAME_RATE))
        self.total = 0
        self.dense = 0  # of them the extra ones
        self._allowance = MAX_ALLOWANCE
        self._index = 0  # of the next frame in its shot
        self._surprised = False

    def cut(self) -> None:
        """The next frame is the first of a shot."""
        self._index = 0

    def follow(self, surprise: npt.NDArray[np.float32] | None) -> None:
        """What the tracker says of its faces, float32 (tracks,); None where the server does not say it."""
        self._surprised = surprise is not None and surprise.size > 0 and float(surprise.max()) > DENSE_SURPRISE

    def next_is_key(self) -> bool:
        """Whether the next frame is one: the first of a shot, the last of each step, or an extra one."""
        index = self._index
        self._index += 1
        if index == 0 or index % self.step == self.step - 1:
            self._allowance = min(MAX_ALLOWANCE, self._allowance + DENSE_SHARE)
            self.total += 1
            return True
        wanted = self._surprised or index < SHOT_KEY_FRAMES * self.dense_step
        if not wanted or index % self.dense_step or self._allowance < 1:
            return False
        self._allowance -= 1
        self.total += 1
        self.dense += 1
        return True

    def count_last(self) -> None:
        """The last frame of a shot is one too, whatever its place."""
        self.total += 1
