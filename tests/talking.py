"""Talk made of noise, with words that a recogniser and a scorer have been told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from polylip.client.segmentation import SPEECH_RATE_HZ, Answer, Policy, Question, Segment, Segmenter, Word

SPEECH, SILENCE, ROOM = 0.1, 0.0, 0.0015  # ROOM: -56 dBFS, within 35 dB of the speech


def sound(*parts: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Noise of (seconds, level) pieces, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    pieces = [rng.standard_normal(round(seconds * SPEECH_RATE_HZ)) * level for seconds, level in parts]
    return np.concatenate(pieces).astype(np.float32)


def spans(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(s.start_ms, s.end_ms) for s in segments]


WORD_MS, STEP_MS = 280, 300  # of speech, and from word to word


class Talk:
    """Words of noise with given pauses, and a recogniser that knows them: it cuts a word that has not ended."""

    def __init__(self, *parts: str | float, fluent: bool = False) -> None:
        """`parts` are words and pauses in seconds; fluent words touch and only become softer between each other."""
        rng, pieces, self.words = np.random.default_rng(0), [np.zeros(SPEECH_RATE_HZ)], []
        at_ms = 1000
        for part in parts:
            if isinstance(part, float):
                pieces.append(np.zeros(round(part * SPEECH_RATE_HZ)))
                at_ms += round(part * 1000)
                continue
            for text in part.split():
                noise = rng.standard_normal(STEP_MS * 16) * SPEECH
                noise[WORD_MS * 16 :] *= 0.3
                if not fluent:
                    noise[WORD_MS * 16 :] = rng.standard_normal((STEP_MS - WORD_MS) * 16) * SPEECH
                self.words.append(Word(text, at_ms, at_ms + WORD_MS))
                pieces.append(noise)
                at_ms += STEP_MS
        self.audio = np.concatenate([*pieces, np.zeros(SPEECH_RATE_HZ * 2)]).astype(np.float32)

    def recognise(self, question: Question) -> Answer:
        end_ms = question.audio_start_ms + len(question.audio) // 16
        heard = [w for w in self.words if w.start_ms >= question.audio_start_ms and w.start_ms + 100 < end_ms]
        words = tuple(w if w.end_ms <= end_ms else Word(w.text[:2], w.start_ms, end_ms) for w in heard)
        return Answer(words, " ".join(w.text for w in words).capitalize(), "en")


class Sentences:
    """A scorer that has been told: sentences and their probabilities, which may say what follows: `a b | c d`."""

    def __init__(self, **probabilities: float | None) -> None:
        self.known = {text.replace("_", " "): p for text, p in probabilities.items()}
        self.asked: list[str] = []

    def probability(self, words: Sequence[str], following: Sequence[str] = ()) -> float | None:
        assert words and len(following) <= 2
        text = " ".join(words) + ("" if not following else " | " + " ".join(following))
        self.asked.append(text)
        return self.known.get(text, 0.05)


def hold(
    talk: Talk,
    known: dict[str, float | None],
    policy: Policy = Policy.SEMANTIC,
    recognise: Callable[[Question], Answer | None] | None = None,
) -> tuple[list[Segment], list[Question]]:
    """Segments and questions of a talk whose sentences are known."""
    scorer = Sentences()
    scorer.known = known
    segmenter = Segmenter(policy=policy, scorer=lambda language: scorer)
    segments: list[Segment] = []
    questions: list[Question] = []

    def take(items):
        for item in items:
            if isinstance(item, Segment):
                segments.append(item)
            else:
                questions.append(item)
                segmenter.answer(item, (recognise or talk.recognise)(item))

    for i in range(0, len(talk.audio), 1600):
        take(segmenter.push(talk.audio[i : i + 1600]))
    take(segmenter.flush())
    return segments, questions


LONG = "the old bridge is very famous"  # 1.8 s
