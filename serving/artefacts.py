"""Guards the end of synthesised speech: trailing silence and clicks go, and a voice that babbles on is cut off.

Streams audio with the part held back that may have to go. What is certain to be speech passes at once.
"""

from __future__ import annotations

import numpy as np

from polylip.serving.engines import Float32

FRAME_S = 0.01  # levels are measured over this
QUIET = 0.02  # of the loudest frame so far, -34 dB: breath and the vocoder's hiss are below, consonants above
FLOOR = 1e-3  # of full scale: quieter is silence, whatever came before
KEEP_TAIL_S = 0.08  # of the quiet behind the last sound: a hard stop clicks
PAUSE_S = 0.25  # a longer quiet separates the speech from what may be a stray noise behind it
BURST_S = (
    0.06  # a sound at the start or behind a pause must last that long to be speech: a vowel does, a click does not
)
FADE_S = 0.01  # where sound is cut off

# A sound is overdue beyond LATE of the estimate, and stopped beyond LONGEST: slow voices take 1.3 times the usual
# time, and a text that is said twice takes 2 times. The seconds are for very short texts, whose estimates are rough.
LATE, LATE_S = 1.4, 0.5
LONGEST, LONGEST_S = 1.8, 1.0


def late_s(estimate_s: float) -> float:
    """From when on speech is held back until it is known to end well."""
    return LATE * estimate_s + LATE_S


def longest_s(estimate_s: float) -> float:
    """When a voice is stopped, whatever it still has to say."""
    return LONGEST * estimate_s + LONGEST_S


class TailGuard:
    """One piece of speech, whose duration was estimated before."""

    def __init__(self, sample_rate_hz: int, estimate_s: float) -> None:
        self._frame = round(FRAME_S * sample_rate_hz)
        self._late = round(late_s(estimate_s) / FRAME_S) * self._frame
        self._held: Float32 = np.zeros(0, np.float32)
        self._released = 0  # samples
        self._loudest = 0.0

    def push(self, audio: Float32) -> Float32:
        """What of the audio so far is certain to be speech and in time, (samples,), often none."""
        self._held = np.concatenate([self._held, audio])
        return self._release(min(self._certain(), max(self._late - self._released, 0)))

    def finish(self, ended: bool) -> Float32:
        """The rest. `ended`: the voice stopped by itself; else what is overdue ends at its first pause."""
        end = self._certain()
        if not ended and end > (late := max(self._late - self._released, 0)):
            end = late + self._first_pause(self._held[late:end])
        kept = min(end + round(KEEP_TAIL_S / FRAME_S) * self._frame, len(self._held)) if self._released + end else 0
        rest = self._release(kept)
        if not ended and len(rest):
            fade = min(round(FADE_S / FRAME_S) * self._frame, len(rest))
            rest[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
        self._held = self._held[:0]
        return rest

    def _levels(self, audio: Float32) -> Float32:
        frames = audio[: len(audio) // self._frame * self._frame].reshape(-1, self._frame)
        return np.sqrt(np.square(frames).mean(axis=1)) if len(frames) else np.zeros(0, np.float32)

    def _certain(self) -> int:
        """Samples of what is held that are followed by, or are, certain speech."""
        levels = self._levels(self._held)
        self._loudest = max(self._loudest, float(levels.max(initial=0.0)))
        quiet, burst, end = 0, 0, 0  # what is held begins behind certain speech
        for index, loud in enumerate(levels > max(QUIET * self._loudest, FLOOR)):
            burst = burst + 1 if loud else 0
            near = quiet < round(PAUSE_S / FRAME_S) and self._released + end > 0
            if loud and (near or burst >= round(BURST_S / FRAME_S)):
                end, quiet = (index + 1) * self._frame, 0
            elif not loud:
                quiet += 1
        return end

    def _first_pause(self, audio: Float32) -> int:
        """Where the first pause begins; where there is none, the quietest frame."""
        levels = self._levels(audio)
        if not len(levels):
            return 0
        run = 0
        for index, quiet in enumerate(levels <= max(QUIET * self._loudest, FLOOR)):
            run = run + 1 if quiet else 0
            if run >= round(PAUSE_S / FRAME_S):
                return (index + 1 - run) * self._frame
        return int(np.argmin(levels)) * self._frame

    def _release(self, samples: int) -> Float32:
        out, self._held = self._held[:samples].copy(), self._held[samples:]
        self._released += samples
        return out
