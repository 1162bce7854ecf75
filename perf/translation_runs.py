"""Talks through a real server: cut by the client's own segmenter, recognised and translated segment by segment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polylip.client.closing import Policy, Question
from polylip.client.errors import PolylipError
from polylip.client.lines import Line
from polylip.client.listening import READ_S
from polylip.client.segmentation import Segment, Segmenter
from polylip.client.speculation import HEARD, TIMEOUT_S, Speculation
from polylip.client.triton import TritonClient
from polylip.client.vad import VadChoice, make_vad
from polylip.client.wire import Inputs, Tensor, row, rows
from polylip.perf.segmentation_metrics import boundary
from polylip.perf.segmentation_streams import Stream
from polylip.perf.translation_texts import SOURCE, TARGET
from polylip.serving.mel import SAMPLE_RATE_HZ

MARKS = ",;:.?!"


@dataclass(frozen=True)
class Passage:
    """A segment as it was cut, heard and translated."""

    start_ms: int
    end_ms: int
    closed_by: str
    source_text: str  # as heard
    target_text: str
    true_text: str  # as said, written as the recogniser does: without marks
    true_target: str
    within: int | None  # the sentence that it is cut off in, None where it ends with a sentence


@dataclass(frozen=True)
class Heard:
    """A talk under one policy."""

    passages: tuple[Passage, ...]
    questions: int
    unanswered: int

    @property
    def source_text(self) -> str:
        return _joined([passage.source_text for passage in self.passages])

    @property
    def target_text(self) -> str:
        return _joined([passage.target_text for passage in self.passages])

    @property
    def true_target(self) -> str:
        """What the cuts alone have spoilt: the words are those that were said."""
        return _joined([passage.true_target for passage in self.passages])

    @property
    def cuts_within(self) -> list[int]:
        """Of every cut within a sentence, the sentence."""
        return [passage.within for passage in self.passages if passage.within is not None]


async def hear(client: TritonClient, stream: Stream, policy: Policy) -> Heard:
    """The stream cut as a file is, by the client's segmenter with its questions to the server, and translated."""
    async with client.line() as line:
        speculation = Speculation(line, SOURCE)
        cut = await _cut(Segmenter(make_vad(VadChoice.AUTO), policy), stream, speculation, policy)
        passages: list[Passage] = []
        first = 0
        for segment in cut:
            word = boundary(stream, segment.end_ms)[0]
            passages.append(await _passage(line, stream, segment, first, word))
            first = max(first, word + 1)
    return Heard(tuple(passages), speculation.counts.asked, speculation.counts.failed + speculation.counts.skipped)


async def translated(client: TritonClient, sentences: Sequence[str]) -> str:
    """Sentences translated one by one."""
    async with client.line() as line:
        return _joined([await _translate(line, sentence, SOURCE) for sentence in sentences])


def without_marks(tokens: Sequence[str]) -> str:
    """Written as a recogniser does that hears no marks: "We paid"."""
    text = " ".join(token.strip(MARKS) for token in tokens)
    return text[:1].upper() + text[1:]


async def _cut(segmenter: Segmenter, stream: Stream, speculation: Speculation, policy: Policy) -> list[Segment]:
    segments: list[Segment] = []

    async def take(items: Iterator[Segment | Question]) -> None:
        for item in items:
            if isinstance(item, Segment):
                segments.append(item)
            elif policy is not Policy.SILENCE:
                segmenter.answer(item, await speculation.ask(item))

    piece = round(READ_S * SAMPLE_RATE_HZ)
    for start in range(0, len(stream.audio), piece):
        await take(segmenter.push(stream.audio[start : start + piece]))
    await take(segmenter.flush())
    return segments


async def _passage(line: Line, stream: Stream, segment: Segment, first: int, last: int) -> Passage:
    """Of a segment that holds the words from `first` to `last`."""
    text, language = segment.known_text, segment.known_language
    if not text:
        heard = await _call(line, "transcribe", {"AUDIO": segment.audio, "SOURCE_LANGUAGE": SOURCE})
        text, language = str(heard["SOURCE_TEXT"][0]), str(heard["DETECTED_LANGUAGE"][0])
    target = await _translate(line, text, language) if text.strip() else ""
    true_text = without_marks([word.written for word in stream.words[first : last + 1]])
    true_target = await _translate(line, true_text, SOURCE) if true_text else ""
    within = None if stream.words[last].ends_sentence else sum(word.ends_sentence for word in stream.words[:last])
    return Passage(segment.start_ms, segment.end_ms, segment.closed_by, text, target, true_text, true_target, within)


async def _translate(line: Line, text: str, language: str) -> str:
    inputs: Inputs = {"SOURCE_TEXT": text, "DETECTED_LANGUAGE": language, "TARGET_LANGUAGE": TARGET}
    return str((await _call(line, "translate", inputs))["TARGET_TEXT"][0])


async def _call(line: Line, model: str, inputs: Inputs) -> dict[str, Tensor]:
    """Raises PolylipError where a segment fails: a missing one would count as a bad translation."""
    answer = row(await line.call(model, rows(inputs), TIMEOUT_S))
    if answer["STATUS"][0] not in HEARD:
        raise PolylipError(f"{model} failed ({answer['STATUS_MESSAGE'][0]}); see the server's log, then run this again")
    return answer


def _joined(texts: Sequence[str]) -> str:
    return " ".join(" ".join(texts).split())
