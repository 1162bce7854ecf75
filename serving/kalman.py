"""Noisy boxes of one face at key frames in, one steady curve through them out: Kalman filters and their smoother.

A box is centre x, centre y, width and height. Each of the four is followed by several constant-velocity filters side by
side, from stiff to supple; how well each one has foretold the detections around an instant is its say there. Later
detections correct earlier boxes (Rauch-Tung-Striebel), so where there are some, the curve does not lag.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.serving.boxes import MIN_SIDE_PX, Float64, side

# The filters, by the fastest sway that each follows, Hz: at this frequency and 5 key frames/s, half of a movement is
# taken for noise.
FOLLOWED_HZ = np.array([0.1, 0.4, 1.2, 3.5])
KEY_FRAME_S = 0.2
SUPPLEST = -1  # a head that moves in a way that even this filter does not expect needs denser key frames

START_NOISE = 0.02  # box sides, standard deviation of a detector whose noise is not known yet
LEAST_NOISE, MOST_NOISE = 0.003, 0.06  # box sides: what detectors are known to do
START_VELOCITY = 1.0  # sides/s: a face may be moving when it is first seen
DAMPING_S = 0.4  # without a detection the velocity fades with this time constant: heads stop and turn back

MEMORY = 8.0  # key frames that a filter's say rests on, before and after the instant alike
OUTLIER = 9.0  # squared innovation, over what the filter has come to expect, from which a detection counts less
SURPRISE_S = 0.4  # time constant of the running mean

MAX_KNOTS = 512  # where a caller sends key frames and asks for no frames: 100 s at 5 key frames/s

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

# White acceleration over measurement variance, 1/s^3, at which a smoother's gain is 1/2 at FOLLOWED_HZ.
_DRIFT = ((2.0 * np.pi * FOLLOWED_HZ) ** 4 * KEY_FRAME_S)[:, None, None, None]


@dataclass
class _Knot:
    """What the filters know at one detection: states are position and velocity per s, covariances in units of the
    detector's variance, so that they do not depend on it."""

    time_ms: int
    state: Float64  # (filters, 4, 2)
    covariance: Float64  # (filters, 4, 2, 2)
    predicted: Float64  # (filters, 4, 2) state before the detection
    gain: Float64  # (filters, 4, 2, 2) of the smoother, from here back to the knot before
    misfit: Float64  # (filters, 4, 2): innovation^2 in sides^2 over the expected one, and the latter's logarithm
    fit: Float64  # (filters, 4, 2) running mean of the misfit up to here
    say: Float64  # (filters, 4) weights after that
    doubted: Bool  # (filters, 4) whether the detection was taken for an outlier


@dataclass
class BoxFilter:
    """One face, from its first box on."""

    first_box: Float64  # (4,) centre and size, px
    start_ms: int
    surprise: float = 0.0  # running mean of the centre's innovation^2 over what the supplest filter expects
    _knots: list[_Knot] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (len(FOLLOWED_HZ), 4)
        state = np.zeros((*shape, 2))
        state[..., 0] = self.first_box
        covariance = np.broadcast_to(np.diag([1.0, (START_VELOCITY / START_NOISE) ** 2]), (*shape, 2, 2))
        calm = np.zeros(shape, np.bool_)
        fit = np.zeros((*shape, 2))
        fit[..., 0] = START_NOISE**2
        self._knots.append(
            _Knot(self.start_ms, state, covariance, state, np.zeros((*shape, 2, 2)), fit, fit, _say(fit), calm)
        )

    def __len__(self) -> int:
        return len(self._knots)

    @property
    def first_ms(self) -> int:
        """Of the oldest knot."""
        return self._knots[0].time_ms

    def expected(self, time_ms: int) -> Float64:
        """The box (4,) at a time after the last detection, not knowing more."""
        knot = self._knots[-1]
        position, velocity = (knot.state * knot.say[..., None]).sum(axis=0).T
        box = position + velocity * _run_out((time_ms - knot.time_ms) / 1000.0)
        box[2:] = np.maximum(box[2:], MIN_SIDE_PX)
        return np.asarray(box)

    def correct(self, time_ms: int, box: Float64) -> None:
        """There is a detection (4,) at a time after the last one."""
        knot = self._predict(time_ms)
        innovation = box - knot.state[..., 0]
        expected = knot.covariance[..., 0, 0] + 1.0
        own_noise = _noise(knot.fit)
        noise = np.maximum(own_noise, (own_noise * knot.say).sum(axis=0))
        misfit = (innovation / side(box)) ** 2 / expected
        self._be_surprised(misfit[SUPPLEST, :2] / START_NOISE**2, (time_ms - self._knots[-1].time_ms) / 1000.0)
        excess = misfit / (OUTLIER * noise)
        knot.doubted = (excess > 1.0) & ~self._knots[-1].doubted
        doubt = np.where(knot.doubted, excess, 1.0)
        gain = knot.covariance[..., 0] / (knot.covariance[..., 0, 0] + doubt)[..., None]
        knot.state = knot.state + gain * innovation[..., None]
        knot.covariance = knot.covariance - gain[..., None] * knot.covariance[..., :1, :]
        knot.misfit = np.stack([misfit / doubt, np.log(expected)], axis=2)
        knot.fit = knot.fit + (knot.misfit - knot.fit) / MEMORY
        knot.say = _say(knot.fit)
        self._knots.append(knot)

    def _predict(self, time_ms: int) -> _Knot:
        """A knot behind the last one, before its detection is taken in."""
        last = self._knots[-1]
        seconds = (time_ms - last.time_ms) / 1000.0
        motion = np.array([[1.0, seconds], [0.0, 1.0]])
        state = last.state @ motion.T
        state[:, 2:, 0] = np.maximum(state[:, 2:, 0], MIN_SIDE_PX)
        moved = motion @ last.covariance
        covariance = moved @ motion.T + _DRIFT * _spread(seconds)
        gain = np.swapaxes(moved, 2, 3) @ _inverse(covariance)
        return _Knot(time_ms, state, covariance, state, gain, last.fit, last.fit, last.say, last.doubted)

    def _be_surprised(self, squared: Float64, seconds: float) -> None:
        share = 1.0 - np.exp(-seconds / SURPRISE_S)
        self.surprise += share * (min(float(squared.max()), 2.0 * OUTLIER) - self.surprise)

    def boxes_at(self, times_ms: Int64) -> Float64:
        """Boxes (times, 4), given everything detected so far."""
        return _curve(*self._smoothed(), times_ms)

    def forget_before(self, time_ms: int | None) -> None:
        """Keep what the curve after `time_ms` rests on; None keeps all that fits."""
        first = 0 if time_ms is None else max(0, sum(knot.time_ms <= time_ms for knot in self._knots) - 1)
        self._knots = self._knots[max(first, len(self._knots) - MAX_KNOTS) :]

    def _smoothed(self) -> tuple[Int64, Float64]:
        """Knot times (k,) and states (k, 4, 2), blended from all filters."""
        after = self._knots[-1]
        states, fits = [after.state], [after.fit]
        fit = after.fit
        for knot in self._knots[-2::-1]:
            states.append(knot.state + (after.gain @ (states[-1] - after.predicted)[..., None])[..., 0])
            fit = fit + (knot.misfit - fit) / MEMORY
            fits.append((knot.fit + fit) / 2.0)  # of the key frames before and after alike
            after = knot
        say = _say(np.array(fits))[..., None]
        return np.array([knot.time_ms for knot in self._knots]), (np.array(states) * say).sum(axis=1)[::-1]


def _say(fit: Float64) -> Float64:
    """Weights (..., filters, 4) that sum to 1 over the filters: how likely each of them makes the detections."""
    noise = _noise(fit)
    likelihood = -MEMORY / 2.0 * (fit[..., 0] / noise + np.log(noise) + fit[..., 1])
    weights = np.exp(likelihood - likelihood.max(axis=-2, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-2, keepdims=True))


def _noise(fit: Float64) -> Float64:
    """Variance of the detector (..., filters, 4) in sides^2 that explains a filter's misfit best."""
    return np.asarray(np.minimum(np.maximum(fit[..., 0], LEAST_NOISE**2), MOST_NOISE**2))


def _inverse(matrices: Float64) -> Float64:
    """Of symmetric 2 x 2 matrices (..., 2, 2); numpy's takes a hundred times longer for so few."""
    a, b, c = matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]
    turned = np.stack([c, -b, -b, a], axis=-1).reshape(matrices.shape)
    return np.asarray(turned / (a * c - b * b)[..., None, None])


def _spread(seconds: float) -> Float64:
    """Covariance (2, 2) that white acceleration of density 1 adds over a time."""
    return np.array([[seconds**3 / 3.0, seconds**2 / 2.0], [seconds**2 / 2.0, seconds]])


def _run_out(seconds: Any) -> Any:
    """How far a velocity of 1 per s leads in a time without detections, in which it fades."""
    return DAMPING_S * (1.0 - np.exp(-seconds / DAMPING_S))


def _curve(knot_ms: Int64, states: Float64, times_ms: Int64) -> Float64:
    """Boxes (times, 4) on the cubic through the knots (which is what the motion model expects between them).

    Before the first knot the box stands still, after the last it runs out with a fading velocity.
    """
    before = np.clip(np.searchsorted(knot_ms, times_ms, side="right") - 1, 0, len(knot_ms) - 1)
    after = np.minimum(before + 1, len(knot_ms) - 1)
    elapsed = np.maximum(times_ms - knot_ms[before], 0)[:, None] / 1000.0
    span = np.maximum(knot_ms[after] - knot_ms[before], 1)[:, None] / 1000.0
    u = np.minimum(elapsed / span, 1.0)
    (p0, v0), (p1, v1) = (np.moveaxis(states[index], 2, 0) for index in (before, after))
    between = p0 + u * u * (3.0 - 2.0 * u) * (p1 - p0) + span * u * (1.0 - u) * ((1.0 - u) * v0 - u * v1)
    beyond = p0 + v0 * _run_out(elapsed)
    boxes: Float64 = np.where((after == before)[:, None], beyond, between)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], MIN_SIDE_PX)
    return boxes
