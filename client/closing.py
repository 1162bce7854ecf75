"""When a segment closes: the policies, and what is known of its pauses from speculative recognition.

Times are milliseconds on the stream's clock; pauses are counted in hops of 20 ms. See docs/segmentation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from polylip.client.boundary import BoundaryScorer
from polylip.client.vad import HOP_MS

Float32 = npt.NDArray[np.float32]

SILENCE_MS = 500  # closes a segment (the paper's value)
MIN_SEGMENT_MS = 1500  # a shorter one waits for more speech (the paper's value) ...
SHORT_SILENCE_MS = 1200  # ... until this much silence: "Yes." must not wait for ever
MAX_SEGMENT_MS = 10_000  # forces a split (the paper's value)
SPLIT_PAUSE_MS = 100  # a pause worth cutting at when a split is forced
SPLIT_SEARCH_MS = 2000  # without one: the quietest hop of the last two seconds

ASK_SILENCE_MS = 200  # the recogniser is asked here, so that its answer is there when it is needed
FIRST_PROGRESS_MS = 1000  # of sound: a recogniser takes the level and the colour of a voice from its first piece
PROGRESS_MS = 500  # between two pieces, while speech goes on: what is left for the question is decoded in 0.2 s
LAST_PROGRESS_MS = 200  # and where it may have ended just now
# Least probability of a sentence's end -> silence that closes. These and those of the second look were chosen on the
# turns of part `dev` in perf/texts, with voice rms; the evaluation uses neither.
GRADED_WAITS_MS = ((0.9, 300), (0.5, 400))
UNLIKELY_WAIT_MS = 800  # below all of these
SURE = 0.9  # at this a segment need not be MIN_SEGMENT_MS long
PAPER_PROBABILITY = 0.85  # below it the paper's policy does not cut at a pause
SECOND_LOOK_PROBABILITY = 0.75  # knowing two more words, an earlier pause is cut at
SECOND_LOOK_SPEECH_MS = 1000  # of speech behind a pause hold two whole words
WORTH_A_LOOK = 0.1  # a pause less likely than this is hardly ever made an end by the next two words
FOLLOWING_WORDS = 2  # more of them say nothing more
PAUSE_WEIGHT_PER_S = 0.3  # of a pause, up to a second, beside the probability, where a split is forced
UNKNOWN_PROBABILITY = 0.3  # there, of a pause that was never asked about: it was short, so hardly an end


class Policy(StrEnum):
    """What closes a segment."""

    SEMANTIC = "semantic"  # the surer its words are a sentence, the shorter the silence
    PAPER = "paper"  # 0.5 s of silence and a probability of 0.85, else cut hard at the longest length
    SILENCE = "silence"  # 0.5 s of silence; the recogniser is never asked


class Closing(StrEnum):
    """Why a segment ended where it did."""

    SILENCE = "silence"
    SENTENCE = "sentence"  # its words make a sentence
    SECOND_LOOK = "second_look"  # so they did once the next two words were known
    FORCED = "forced"  # it was too long
    END = "end"  # of the sound


class Asked(StrEnum):
    """What a question is for."""

    PAUSE = "pause"  # the segment so far: is it a sentence?
    SECOND_LOOK = "second_look"  # the words behind a pause
    SPLIT = "split"  # words between which a segment that is too long can be cut
    PROGRESS = "progress"  # nothing: the segment goes on, and the recogniser may begin with what there is


@dataclass(frozen=True)
class Word:
    """A recognised word."""

    text: str
    start_ms: int
    end_ms: int

    @property
    def middle_ms(self) -> float:
        return (self.start_ms + self.end_ms) / 2


@dataclass(frozen=True)
class Question:
    """Sound to be recognised: float32 (samples,) at 16 kHz."""

    id: int
    asked: Asked
    audio: Float32 = field(repr=False)
    audio_start_ms: int
    pause_start_ms: int  # the pause that it is about; for a split and progress the end of the sound so far


@dataclass(frozen=True)
class Answer:
    """What the recogniser heard in a question's sound."""

    words: tuple[Word, ...]
    text: str
    language: str  # ISO 639-1


Scorers = Callable[[str], BoundaryScorer]  # by language, ISO 639-1


def wait_ms(policy: Policy, length_ms: int, probability: float | None) -> float:
    """The silence that closes a segment of this length, given how likely its words are a sentence."""
    long_enough = length_ms >= MIN_SEGMENT_MS
    if policy is Policy.SILENCE or probability is None:
        return SILENCE_MS if long_enough else SHORT_SILENCE_MS
    if policy is Policy.PAPER:
        likely = SILENCE_MS if probability >= PAPER_PROBABILITY else float("inf")
        return likely if long_enough else SHORT_SILENCE_MS
    waits = (wait for least, wait in GRADED_WAITS_MS if probability >= least and (long_enough or least >= SURE))
    return next(waits, UNLIKELY_WAIT_MS if long_enough else SHORT_SILENCE_MS)


@dataclass(frozen=True)
class Pause:
    """Hops [start, end) without speech."""

    start: int
    end: int

    @property
    def length_ms(self) -> int:
        return (self.end - self.start) * HOP_MS

    @property
    def middle_ms(self) -> float:
        return (self.start + self.end) / 2 * HOP_MS


@dataclass(frozen=True)
class Known:
    """What is known of a pause."""

    words: tuple[Word, ...]  # of its segment, before it
    language: str
    probability: float | None  # that a sentence ends here
    following: tuple[Word, ...] = ()  # the words behind it, once they are known
    text: str = ""  # of a transcript of exactly the segment up to here; empty where there is none


@dataclass
class OpenSegment:
    """A segment in the making; hops are counted from the start of the sound."""

    first: int
    speech: list[bool]
    last: int = 0  # last speech hop
    known: dict[int, Known] = field(default_factory=dict)  # by the first hop of the pause
    look_at: int | None = None  # the pause that waits for a second look
    spoken_since: int = 0  # speech hops behind it

    def __post_init__(self) -> None:
        self.last = self.first + int(np.flatnonzero(self.speech)[-1])

    def add(self, count: int) -> None:
        """One more hop; the newest `count` hops are speech."""
        self.speech.append(False)
        if count:
            count = min(count, len(self.speech))
            self.speech[-count:] = [True] * count
            self.last = self.first + len(self.speech) - 1
            self.spoken_since += 1

    @property
    def length_ms(self) -> int:
        """Up to the last speech."""
        return (self.last + 1 - self.first) * HOP_MS

    def voiced_ms(self, end: int) -> int:
        return sum(self.speech[: end - self.first]) * HOP_MS

    def pauses(self) -> list[Pause]:
        """All so far, with the one under way; each is long enough to cut at."""
        edges = np.flatnonzero(np.diff(np.concatenate([[True], self.speech, [True]]).astype(np.int8))) + self.first
        found = (Pause(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True))
        return [pause for pause in found if pause.length_ms >= SPLIT_PAUSE_MS]

    def inner_pauses(self) -> list[Pause]:
        """Those behind which speech has gone on."""
        return [pause for pause in self.pauses() if pause.start <= self.last]

    @property
    def probability(self) -> float | None:
        """That a sentence ends with the last speech."""
        known = self.known.get(self.last + 1)
        return None if known is None else known.probability

    @property
    def looks_back(self) -> bool:
        """Whether it is time for a second look."""
        return self.look_at is not None and self.spoken_since * HOP_MS >= SECOND_LOOK_SPEECH_MS

    def heard(self, answer: Answer, scorers: Scorers) -> None:
        """The words of the whole segment, up to the pause under way."""
        scorer, words = scorers(answer.language), answer.words
        for pause in self.inner_pauses():
            before = tuple(w for w in words if w.middle_ms < pause.middle_ms)
            following = words[len(before) :]
            within_word = any(w.start_ms < pause.middle_ms < w.end_ms for w in words)
            known = self.known.get(pause.start)
            if len(following) < FOLLOWING_WORDS or (known is None and within_word):
                continue
            text = "" if known is None else known.text
            chance = _probability(scorer, before, following)
            self.known[pause.start] = Known(before, answer.language, chance, following, text)
        chance = _probability(scorer, words)
        self.known[self.last + 1] = Known(words, answer.language, chance, text=answer.text)
        worth = chance is not None and chance >= WORTH_A_LOOK
        self.look_at, self.spoken_since = (self.last + 1 if worth else None), 0

    def heard_behind(self, start: int, answer: Answer | None, scorers: Scorers) -> None:
        """The words behind an earlier pause; the last one may still be cut off."""
        self.look_at = None
        following = answer.words[:-1] if answer else ()
        if answer is None or len(following) < FOLLOWING_WORDS:
            return
        known = self.known[start]
        chance = _probability(scorers(known.language), known.words, following)
        self.known[start] = replace(known, probability=chance, following=following)

    def sentence_end(self) -> Pause | None:
        """The first earlier pause that has turned out to end a sentence."""
        for pause in self.inner_pauses():
            known = self.known.get(pause.start)
            if known is None or not known.following or known.probability is None:
                continue
            long_enough = (pause.start - self.first) * HOP_MS >= MIN_SEGMENT_MS or known.probability >= SURE
            if long_enough and known.probability >= SECOND_LOOK_PROBABILITY:
                return pause
        return None

    def best_pause(self) -> Pause | None:
        """Where to cut a segment that is too long: at a likely end and a long pause."""
        late = [p for p in self.pauses() if (p.start - self.first) * HOP_MS >= MIN_SEGMENT_MS]
        return max(late, key=self._merit, default=None)

    def longest_pause(self) -> Pause | None:
        """Where to cut without asking."""
        late = [p for p in self.pauses() if (p.start - self.first) * HOP_MS >= MIN_SEGMENT_MS]
        return max(late, key=lambda pause: pause.length_ms, default=None)

    def _merit(self, pause: Pause) -> float:
        known = self.known.get(pause.start)
        chance = UNKNOWN_PROBABILITY if known is None or known.probability is None else known.probability
        return chance + PAUSE_WEIGHT_PER_S * min(pause.length_ms / 1000, 1.0)

    def rest(self, first: int, scorers: Scorers) -> OpenSegment | None:
        """What is left from hop `first` on, with what is known of it; None where that has no speech."""
        speech = self.speech[first - self.first :]
        if not any(speech):
            return None
        rest = OpenSegment(first, speech)
        for start, known in self.known.items():
            words = tuple(w for w in known.words if w.middle_ms >= first * HOP_MS)
            if start > first and words:
                chance = _probability(scorers(known.language), words, known.following)
                rest.known[start] = Known(words, known.language, chance, known.following)
        if self.look_at in rest.known:
            rest.look_at, rest.spoken_since = self.look_at, self.spoken_since
        return rest


def word_gaps(words: Sequence[Word], language: str, scorers: Scorers) -> Iterator[tuple[float, float]]:
    """(time in ms, probability that a sentence ends there) between words, but for the last, which may be cut off."""
    scorer, whole = scorers(language), words[:-1]
    for index in range(1, len(whole)):
        before, following = whole[:index], whole[index:]
        chance = _probability(scorer, before, following) if len(following) >= FOLLOWING_WORDS else None
        middle_ms = (before[-1].end_ms + following[0].start_ms) / 2
        yield middle_ms, UNKNOWN_PROBABILITY if chance is None else chance


def _probability(scorer: BoundaryScorer, words: Sequence[Word], following: Sequence[Word] = ()) -> float | None:
    if not words:
        return None
    return scorer.probability([w.text for w in words], [w.text for w in following[:FOLLOWING_WORDS]])
