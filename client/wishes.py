"""What is asked of the speech line for a whole stream."""

from __future__ import annotations

from dataclasses import dataclass

from polylip.serving.isochrony import Fit


@dataclass(frozen=True)
class SpeechWishes:
    """What is asked of the speech line for a whole stream."""

    source_language: str  # ISO 639-1 or "auto"
    target_language: str  # ISO 639-1
    fit: Fit = Fit.TIGHT
    voice_consent: bool = False  # the speaker agreed to have their voice cloned; without it a stock voice speaks
    glossary: str = ""  # lines "term" or "term = translation"
