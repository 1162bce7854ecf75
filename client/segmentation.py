"""Cuts speech into segments as it comes: a state machine on the sound's own time, without clock or network.

What closes a segment is in `closing`, what speech is in `vad`; both in docs/segmentation.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from polylip.client.boundary import BoundaryScorer, boundary_scorer
from polylip.client.closing import (
    ASK_SILENCE_MS,
    FIRST_PROGRESS_MS,
    GRADED_WAITS_MS,
    LAST_PROGRESS_MS,
    MAX_SEGMENT_MS,
    MIN_SEGMENT_MS,
    PROGRESS_MS,
    SHORT_SILENCE_MS,
    SILENCE_MS,
    SPLIT_SEARCH_MS,
    Answer,
    Asked,
    Closing,
    OpenSegment,
    Policy,
    Question,
    Scorers,
    Word,
    wait_ms,
    word_gaps,
)
from polylip.client.vad import HOP, HOP_MS, SPEECH_RATE_HZ, EnergyVad, LastingVad, Vad

__all__ = [
    "HOP",
    "HOP_MS",
    "MAX_SEGMENT_MS",
    "MIN_SEGMENT_MS",
    "POST_ROLL_MS",
    "PRE_ROLL_MS",
    "SHORT_SILENCE_MS",
    "SILENCE_MS",
    "SPEECH_RATE_HZ",
    "Answer",
    "Asked",
    "Closing",
    "Policy",
    "Question",
    "Segment",
    "Segmenter",
    "Word",
]

Float32 = npt.NDArray[np.float32]

ONSET_MS = 60  # speech shorter than this does not open a segment: clicks
MIN_VOICED_MS = 160  # a segment with less speech than this is a cough or a click
PRE_ROLL_MS = 300  # sound before the onset that the recogniser gets: soft first consonants
POST_ROLL_MS = 200  # and after the last speech; no more than ASK_SILENCE_MS, so that a question is the whole segment
NEAR_GAP_MS = 60  # recognisers place words this roughly: a cut between two goes to the quietest hop around


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, on the video's timeline. `audio` holds float32 (samples,) at 16 kHz with its rolls."""

    index: int
    start_ms: int  # first speech
    end_ms: int  # last speech
    audio: Float32 = field(repr=False)
    pre_roll_ms: int = 0  # of `audio` before `start_ms`
    closed_by: Closing = Closing.SILENCE
    decided_ms: int = 0  # how far the sound was heard when it closed
    confidence: float | None = None  # that a sentence ends with it; None: unknown
    known_text: str = ""  # what the recogniser heard in exactly `audio`; empty: unknown
    known_language: str = ""  # ISO 639-1, with `known_text`
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def audio_start_ms(self) -> int:
        """Where `audio` begins on the video's timeline."""
        return self.start_ms - self.pre_roll_ms

    @property
    def forced(self) -> bool:
        """Whether it was cut by length."""
        return self.closed_by is Closing.FORCED


@dataclass(frozen=True)
class SegmenterState:
    """All that the next segments depend on, between two pieces of sound."""

    vad: dict[str, Any]
    rest: Float32
    buffer: Float32
    base: int
    hops: int
    run: int
    open: OpenSegment | None
    count: int  # of segments so far
    ended: int
    audio_end: int
    questions: int

    @property
    def samples(self) -> int:
        """Of sound at 16 kHz that was taken in."""
        return self.hops * HOP + len(self.rest)


Items = Iterator[Segment | Question]


class Segmenter:
    """Takes 16 kHz mono sound as it comes, gives segments as they close, and questions to the recogniser before.

    A question's answer is given with `answer` before the next item is taken; one that is not answered is unknown.
    """

    def __init__(
        self,
        vad: Vad | None = None,
        policy: Policy = Policy.SEMANTIC,
        max_segment_ms: int = MAX_SEGMENT_MS,
        scorer: Scorers = boundary_scorer,
    ) -> None:
        self._vad = vad or EnergyVad()
        self._policy = policy
        self._max_segment_ms = max_segment_ms
        self._make_scorer = scorer
        self._scorers: dict[str, BoundaryScorer] = {}
        self._rest = np.zeros(0, np.float32)  # less than a hop
        self._buffer = np.zeros(0, np.float32)  # sound from hop `_base` on
        self._base = 0
        self._hops = 0  # hops judged so far
        self._run = 0  # current run of speech hops, before a segment is open
        self._open: OpenSegment | None = None
        self._count = 0
        self._ended = 0  # hop behind the last closed segment
        self._audio_end = 0  # and behind its audio
        self._questions = 0
        self._shown = 0  # hop behind what `progress` gave last
        self._answer: Answer | None = None

    @property
    def horizon_ms(self) -> int:
        """No segment that is still to come starts before this time."""
        return (self._open.first if self._open else self._next_first()) * HOP_MS

    @property
    def heard_ms(self) -> int:
        """How much sound was judged."""
        return self._hops * HOP_MS

    def state(self) -> SegmenterState:
        """To be taken between two calls; what is heard later does not change it."""
        opened = self._open
        if opened is not None:
            opened = replace(opened, speech=list(opened.speech), known=dict(opened.known))
        return SegmenterState(
            self._lasting_vad.state(),
            self._rest,
            self._buffer,
            self._base,
            self._hops,
            self._run,
            opened,
            self._count,
            self._ended,
            self._audio_end,
            self._questions,
        )

    def restore(self, state: SegmenterState) -> None:
        """Go on where another one was, with a VAD of the same kind."""
        self._lasting_vad.restore(state.vad)
        self._rest, self._buffer, self._base = state.rest, state.buffer, state.base
        self._hops, self._run, self._open, self._count = state.hops, state.run, state.open, state.count
        self._ended, self._audio_end, self._questions = state.ended, state.audio_end, state.questions

    @property
    def _lasting_vad(self) -> LastingVad:
        if not isinstance(self._vad, LastingVad):
            raise TypeError(f"{type(self._vad).__name__} has no state to go on from")
        return self._vad

    def push(self, audio: Float32) -> Items:
        """Add float32 (samples,); yields the segments that this closes, and questions."""
        audio = np.concatenate([self._rest, audio])
        whole = len(audio) // HOP * HOP
        self._rest = audio[whole:]
        self._buffer = np.concatenate([self._buffer, audio[:whole]])
        for start in range(0, whole, HOP):
            yield from self._judge(audio[start : start + HOP])
        self._forget()

    def answer(self, question: Question, answer: Answer | None) -> None:
        """What the recogniser says to the question that was yielded last; None: it cannot say."""
        if question.id == self._questions:
            self._answer = answer

    def progress(self) -> Question | None:
        """The open segment so far, where speech has gone on since the last time; not to be answered.

        It is what the next question about a pause begins with.
        """
        opened = self._open
        if opened is None or (self._hops - self._audio_start()) * HOP_MS < FIRST_PROGRESS_MS:
            return None
        silence_ms = (self._hops - 1 - opened.last) * HOP_MS
        least_ms = LAST_PROGRESS_MS if silence_ms else PROGRESS_MS
        if silence_ms >= ASK_SILENCE_MS or (self._hops - max(self._shown, self._audio_start())) * HOP_MS < least_ms:
            return None
        self._shown, start = self._hops, self._audio_start()
        return Question(0, Asked.PROGRESS, self._sound(start, self._hops), start * HOP_MS, self.heard_ms)

    def flush(self) -> Items:
        """The end of the sound: close what is open."""
        opened = self._open
        if self._policy is Policy.SEMANTIC and opened is not None and opened.look_at not in (None, opened.last + 1):
            yield from self._ask_about_pause()
        if self._open is not None:
            yield from self._close(self._open.last + 1, Closing.END)
        self._run = 0

    def _judge(self, samples: Float32) -> Items:
        self._hops += 1
        count = self._vad.hop(samples)
        if self._open is None:
            self._listen_for_onset(count)
            return
        self._open.add(count)
        if self._policy is not Policy.SILENCE:
            yield from self._ask(count)
        opened = self._open
        if opened is None:
            return
        chance = opened.probability
        if (self._hops - 1 - opened.last) * HOP_MS >= wait_ms(self._policy, opened.length_ms, chance):
            likely = chance is not None and chance >= GRADED_WAITS_MS[-1][0]
            yield from self._close(opened.last + 1, Closing.SENTENCE if likely else Closing.SILENCE)
        elif (self._hops - opened.first) * HOP_MS >= self._max_segment_ms:
            yield from self._split()

    def _listen_for_onset(self, count: int) -> None:
        self._run = min(max(self._run + 1, count), self._hops - self._ended) if count else 0
        if self._run * HOP_MS >= ONSET_MS:
            self._open = OpenSegment(self._hops - self._run, [True] * self._run)
            self._run = 0

    def _ask(self, count: int) -> Items:
        """Whatever is worth a question at this hop."""
        opened = self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        silence_ms = (self._hops - 1 - opened.last) * HOP_MS
        if silence_ms == ASK_SILENCE_MS and opened.voiced_ms(opened.last + 1) >= MIN_VOICED_MS:
            yield from self._ask_about_pause()
        elif count and opened.looks_back and self._policy is Policy.SEMANTIC:
            yield from self._look_back()

    def _ask_about_pause(self) -> Items:
        """Have the segment so far recognised; that may show that an earlier pause was a sentence's end."""
        opened = self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        answer = yield from self._answered(Asked.PAUSE, self._audio_start(), opened.last + 1)
        if answer is not None:
            opened.heard(answer, self._scorer)
            yield from self._cut_behind_sentences()

    def _look_back(self) -> Items:
        """Have what was said since a pause recognised: was it a sentence's end?"""
        opened = self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        pause = next((p for p in opened.inner_pauses() if p.start == opened.look_at), None)
        if pause is None:  # a VAD that notices late has filled it
            opened.look_at = None
            return
        start = max(pause.start, pause.end - PRE_ROLL_MS // HOP_MS)
        answer = yield from self._answered(Asked.SECOND_LOOK, start, pause.start)
        opened.heard_behind(pause.start, answer, self._scorer)
        yield from self._cut_behind_sentences()

    def _cut_behind_sentences(self) -> Items:
        if self._policy is Policy.SEMANTIC:
            while self._open is not None and (pause := self._open.sentence_end()) is not None:
                yield from self._close(pause.start, Closing.SECOND_LOOK, pause.end)

    def _split(self) -> Items:
        """Cut a segment that is too long, and carry the rest on."""
        opened = self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        if self._policy is Policy.PAPER:
            end = min(opened.last + 1, self._hops)
            yield from self._close(end, Closing.FORCED, self._hops)
            return
        pause = opened.best_pause() if self._policy is Policy.SEMANTIC else opened.longest_pause()
        if pause is not None:
            yield from self._close(pause.start, Closing.FORCED, pause.end)
            return
        cut = self._quietest(max(opened.first + 1, self._hops - SPLIT_SEARCH_MS // HOP_MS), self._hops)
        if self._policy is Policy.SEMANTIC:
            answer = yield from self._answered(Asked.SPLIT, self._audio_start(), self._hops)
            cut = self._best_gap(answer) or cut
        yield from self._close(cut, Closing.FORCED, cut)

    def _best_gap(self, answer: Answer | None) -> int | None:
        """The hop between two words at which a sentence most likely ends."""
        opened = self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        earliest_ms = opened.first * HOP_MS + MIN_SEGMENT_MS
        gaps = word_gaps(answer.words, answer.language, self._scorer) if answer else ()
        late = [(chance, time_ms) for time_ms, chance in gaps if time_ms >= earliest_ms]
        if not late:
            return None
        _, best_ms = max(late)
        near = NEAR_GAP_MS // HOP_MS
        middle = round(best_ms / HOP_MS)
        return self._quietest(max(middle - near, opened.first + 1), min(middle + near, self._hops))

    def _quietest(self, first: int, end: int) -> int:
        """The quietest hop of [first, end)."""
        hops = self._sound(first, end).reshape(-1, HOP).astype(np.float64)
        return first + int(np.argmin((hops**2).mean(axis=1)))

    def _close(self, end: int, closed_by: Closing, resume: int | None = None) -> Iterator[Segment]:
        """End the open segment before hop `end`; speech from hop `resume` on is carried into the next."""
        opened, self._open = self._open, None
        assert opened is not None  # noqa: S101  only called with an open segment
        from_hop, self._ended = self._audio_start(opened), end
        if resume is not None:
            self._open = opened.rest(resume, self._scorer)
        if opened.voiced_ms(end) < MIN_VOICED_MS:
            return
        to_hop = min(end + POST_ROLL_MS // HOP_MS, self._hops if resume is None else resume)
        if closed_by is Closing.FORCED and self._policy is Policy.SILENCE:
            to_hop = end
        # A cut pause is for both: its second half is the next segment's pre-roll, be it in this one's audio or not.
        self._audio_end = to_hop if resume is None else min(to_hop, end + (resume - end) // 2)
        known = opened.known.get(end)
        yield Segment(
            self._count,
            opened.first * HOP_MS,
            end * HOP_MS,
            self._sound(from_hop, to_hop),
            pre_roll_ms=(opened.first - from_hop) * HOP_MS,
            closed_by=closed_by,
            decided_ms=self.heard_ms,
            confidence=known.probability if known else None,
            known_text=known.text if known else "",
            known_language=known.language if known and known.text else "",
        )
        self._count += 1

    def _answered(self, asked: Asked, from_hop: int, pause: int) -> Generator[Question, None, Answer | None]:
        """Yield a question about the sound from `from_hop` to now; returns its answer."""
        self._questions += 1
        self._answer = None
        sound = self._sound(from_hop, self._hops)
        yield Question(self._questions, asked, sound, from_hop * HOP_MS, pause * HOP_MS)
        answer, self._answer = self._answer, None
        return answer

    def _audio_start(self, opened: OpenSegment | None = None) -> int:
        """The hop with which the open segment's audio begins."""
        opened = opened or self._open
        assert opened is not None  # noqa: S101  only called with an open segment
        return max(opened.first - PRE_ROLL_MS // HOP_MS, self._audio_end, self._base)

    def _sound(self, from_hop: int, to_hop: int) -> Float32:
        return self._buffer[(from_hop - self._base) * HOP : (to_hop - self._base) * HOP].copy()

    def _next_first(self) -> int:
        """The earliest hop at which a segment that is not open yet can start."""
        return max(self._hops - self._run - self._vad.late_hops, self._ended)

    def _forget(self) -> None:
        """Drop sound that no segment can want any more."""
        keep = self._open.first if self._open else self._next_first()
        drop = max(0, keep - PRE_ROLL_MS // HOP_MS - self._base)
        self._buffer = self._buffer[drop * HOP :]
        self._base += drop

    def _scorer(self, language: str) -> BoundaryScorer:
        if language not in self._scorers:
            self._scorers[language] = self._make_scorer(language)
        return self._scorers[language]
