"""Translator of the cpu, onnx and gpu profiles: Opus-MT (Marian) on CTranslate2, converted by `polylip export opus-mt`.

Pairs are found beside model.py or among the weights at every call, loaded when first needed, never downloaded.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from polylip.serving.engines import Parameters, Passage, Status, Translation, never
from polylip.serving.errors import EngineError, MissingError
from polylip.serving.glossary import Glossary, Match, aligned_spans, enforce, keep, parse_glossary
from polylip.serving.opus_pairs import RECORD, Pair, PairCache, missing_pair, pair_folders, route
from polylip.serving.sentences import Span, cut, join_sentences, split_sentences, tidy

log = logging.getLogger(__name__)

PACKAGES = ("ctranslate2", "sentencepiece", "sentencex")
END = "</s>"  # Marian's end of a source sentence
MAX_SOURCE_PIECES = 250  # Marian has 512 positions on each side, and a translation may be twice as long
MAX_TARGET_PIECES = 510
# A translation is longer than its source by a third at most between alphabets, and by three times from Chinese, whose
# pieces are few. What reaches this bound does not end by itself.
TARGET_PER_SOURCE, TARGET_MORE = 3, 16
LOOP_PIECES, LOOP_TIMES = 8, 4  # the same 1 to 8 pieces four times on end are a loop, unless the source repeats too
# For sentences that ran into a loop only: forbidden everywhere, repetitions would spoil names, numbers and songs.
UNLOOPED = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2}
MAX_BATCH_SENTENCES = 64  # of one call: bounds memory, and how long a call can take where it cannot be called off
POLL_S = 0.02  # between two questions whether a passage is still wanted

DEFAULT_COMPUTE_TYPE = {"cpu": "int8", "cuda": "float16"}
DEFAULT_MEMORY_LIMIT_MIB = 2048  # 13 pairs of the public size
# Greedy: the only search that CTranslate2 can break off between two words, each sentence for itself, and twice to four
# times as fast as beams of 4 in batches.
DEFAULT_BEAM_SIZE = 1


@dataclass(frozen=True)
class Options:
    """The model's parameters, checked."""

    device: str
    compute_type: str
    threads: int
    memory_limit_mib: int
    beam_size: int
    glossary: Glossary


@dataclass(frozen=True, eq=False)
class _Model:
    """A loaded pair."""

    translator: Any
    source: Any  # SentencePieceProcessor
    target: Any
    prefix: tuple[str, ...]  # the target token of a model that translates into several languages


@dataclass
class _Job:
    """A passage on its way."""

    place: int
    passage: Passage
    route: list[Pair]
    sentences: list[str]
    glossary: Glossary  # of the next step
    dropped: bool = False
    _asked_at: float = -POLL_S

    def is_dropped(self) -> bool:
        """Whether nobody waits for it any more; once true, true for good."""
        self.dropped = self.dropped or self.passage.cancelled()
        return self.dropped

    def poll(self) -> bool:
        """The same, asking only now and then: it is called for every piece."""
        now = time.monotonic()
        if now - self._asked_at < POLL_S:
            return self.dropped
        self._asked_at = now
        return self.is_dropped()


@dataclass
class _Unit:
    """What the network translates at once: a sentence, or a part of one."""

    job: _Job
    text: str
    pieces: list[str]
    ends: list[int]  # of the pieces, as places in the text
    matches: list[Match]

    @property
    def bound(self) -> int:
        return min(MAX_TARGET_PIECES, TARGET_PER_SOURCE * len(self.pieces) + TARGET_MORE)


class OpusMt:
    """Sentences of all passages that need the same pair are one batch."""

    def __init__(self, parameters: Parameters, version_dir: str) -> None:
        self._ctranslate2, self._sentencepiece, _ = (_require(name) for name in PACKAGES)
        self._options = _options(parameters, version_dir, self._ctranslate2)
        self._version_dir = version_dir
        self._pairs: PairCache[_Model] = PairCache(self._load, self._options.memory_limit_mib << 20)

    def translate(self, passages: Sequence[Passage]) -> list[Translation]:
        """One translation per passage, in order. Where there is no direct pair, two pairs through English are used."""
        folders = pair_folders(self._version_dir)
        results: dict[int, Translation] = {}
        jobs = []
        for place, passage in enumerate(passages):
            ready = self._begin(place, passage, folders)
            if isinstance(ready, _Job):
                jobs.append(ready)
            else:
                results[place] = ready
        for steps_left in (2, 1):  # first halves first, so that their second halves join the direct ones
            due = [job for job in jobs if job.place not in results and len(job.route) == steps_left]
            by_pair: dict[Pair, list[_Job]] = {}
            for job in due:
                by_pair.setdefault(job.route[0], []).append(job)
            for pair, together in by_pair.items():
                results |= self._step(folders[pair], together)
        for job in jobs:
            if job.place not in results:
                results[job.place] = Translation(join_sentences(job.sentences, job.passage.target))
        return [results[place] for place in range(len(passages))]

    def _begin(self, place: int, passage: Passage, folders: dict[Pair, Path]) -> _Job | Translation:
        """The passage split and routed, or its translation where nothing is to be done."""
        text = tidy(passage.text)
        if not text:
            return Translation("")
        if passage.source == passage.target:
            return Translation(passage.text)
        steps = route(folders, passage.source, passage.target)
        if not steps:
            return Translation("", Status.UNSUPPORTED, missing_pair(folders, passage.source, passage.target))
        try:
            glossary = self._options.glossary.with_more(parse_glossary(passage.glossary))
        except ValueError as error:
            return Translation("", Status.ERROR, str(error))
        protected = [(match.start, match.end) for match in glossary.find(text)]
        return _Job(place, passage, steps, split_sentences(text, passage.source, protected), glossary)

    def _step(self, folder: Path, jobs: list[_Job]) -> dict[int, Translation]:
        """Take each job one pair further; the results of those that end here."""
        ended = {job.place: Translation("", Status.CANCELLED) for job in jobs if job.is_dropped()}
        alive = [job for job in jobs if job.place not in ended]
        if not alive:
            return ended
        try:
            model = self._pairs.get(folder)
            advance = _translated(model, alive, self._options.beam_size)
        except Exception as error:  # whatever the engine throws, in the batch of several streams
            if len(alive) > 1:
                for job in alive:  # only those at fault are to fail
                    ended |= self._step(folder, [job])
                return ended
            log.warning("%s: %s: %s", folder.name, type(error).__name__, error)
            return ended | {alive[0].place: Translation("", Status.ERROR, _reason(error, folder, alive[0].route[0]))}
        for job in alive:
            if job.is_dropped():
                ended[job.place] = Translation("", Status.CANCELLED)
            job.sentences, job.glossary = advance[job.place]
            job.route = job.route[1:]
        return ended

    def _load(self, folder: Path) -> _Model:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        token = record.get("target_token")
        source, target = (
            self._sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
            for name in ("source.spm", "target.spm")
        )
        started = time.monotonic()
        translator = self._ctranslate2.Translator(
            str(folder),
            device=self._options.device,
            compute_type=self._options.compute_type,
            intra_threads=self._options.threads,
        )
        log.info("loaded %s, %s, in %.1f s", folder.name, translator.compute_type, time.monotonic() - started)
        return _Model(translator, source, target, (token,) if token else ())


def _translated(model: _Model, jobs: list[_Job], beam_size: int) -> dict[int, tuple[list[str], Glossary]]:
    """The sentences of each job in the next language, and the glossary that keeps their forced terms from then on."""
    rows: list[tuple[_Job, list[_Unit]]] = []  # one per sentence
    for job in jobs:
        rows.extend((job, _units(model, job, sentence)) for sentence in job.sentences)
    units = [unit for _, parts in rows for unit in parts]
    texts = dict(zip(map(id, units), _decode(model, units, beam_size), strict=True))
    advanced: dict[int, tuple[list[str], Glossary]] = {job.place: ([], Glossary({})) for job in jobs}
    for job, parts in rows:
        target = job.route[0][1]
        advanced[job.place][0].append(join_sentences([texts[id(unit)] for unit in parts], target))
    for job in jobs:
        forced = [match.forced for row, parts in rows if row is job for unit in parts for match in unit.matches]
        advanced[job.place] = (advanced[job.place][0], keep(forced))
    return advanced


def _units(model: _Model, job: _Job, sentence: str) -> list[_Unit]:
    text = tidy(sentence)

    def protected(part: str) -> list[Span]:
        return [(match.start, match.end) for match in job.glossary.find(part)]

    parts = cut(text, lambda part: _encode(model, part)[1], MAX_SOURCE_PIECES, protected)
    return [_Unit(job, part, *_encode(model, part), job.glossary.find(part)) for part in parts]


def _encode(model: _Model, text: str) -> tuple[list[str], list[int]]:
    """Pieces, and where each ends in the text; SentencePiece counts bytes."""
    encoded = model.source.encode(text, return_type="proto").pieces
    places = _places(text)
    return [piece.piece for piece in encoded], [places[piece.end] for piece in encoded]


def _places(text: str) -> dict[int, int]:
    """Place in the UTF-8 bytes of a text -> place in the text."""
    places, length = {0: 0}, 0
    for index, character in enumerate(text, 1):
        length += len(character.encode())
        places[length] = index
    return places


def _decode(model: _Model, units: Sequence[_Unit], beam_size: int) -> list[str]:
    """The translation of each unit, in order, with its forced terms in it."""
    texts: dict[int, str] = {}
    by_length = sorted(range(len(units)), key=lambda index: len(units[index].pieces))
    for first in range(0, len(units), MAX_BATCH_SENTENCES):
        batch = [index for index in by_length[first : first + MAX_BATCH_SENTENCES] if not units[index].job.is_dropped()]
        found = dict(zip(batch, _search(model, [units[i] for i in batch], beam_size, {}), strict=True))
        looping = [i for i in batch if _degenerate(found[i][0], units[i]) and not units[i].job.is_dropped()]
        again = _search(model, [units[i] for i in looping], 1, UNLOOPED)  # greedy: each within its own bound
        found |= dict(zip(looping, again, strict=True))
        texts |= {index: _text(model, units[index], *found[index]) for index in batch}
    return [texts.get(index, "") for index in range(len(units))]


Hypothesis = tuple[list[str], list[list[float]] | None]


def _search(model: _Model, units: Sequence[_Unit], beam_size: int, settings: dict[str, float]) -> list[Hypothesis]:
    """Pieces of each translation, and the attention where a unit has terms. A unit nobody waits for any more ends."""
    if not units:
        return []
    stoppable = beam_size == 1 and any(unit.job.passage.cancelled is not never for unit in units)
    results = model.translator.translate_batch(
        [[*model.prefix, *unit.pieces, END] for unit in units],
        beam_size=beam_size,
        max_decoding_length=max(unit.bound for unit in units),
        max_input_length=0,  # `cut` has seen to it; CTranslate2 would drop the rest in silence
        disable_unk=True,  # as Marian itself decodes: <unk> says nothing and cannot be spoken
        return_attention=any(unit.matches for unit in units),
        callback=(lambda step: units[step.batch_id].job.poll()) if stoppable else None,
        **settings,
    )
    hypotheses = []
    for unit, result in zip(units, results, strict=True):
        pieces = result.hypotheses[0][: unit.bound]  # the batch's bound is that of its longest source
        hypotheses.append((pieces, result.attention[0][: len(pieces)] if unit.matches else None))
    return hypotheses


def _degenerate(pieces: Sequence[str], unit: _Unit) -> bool:
    """Without an end, or in a loop that the source does not have."""
    return len(pieces) >= unit.bound or (_loops(pieces) and not _loops(unit.pieces))


def _loops(pieces: Sequence[str]) -> bool:
    for size in range(1, LOOP_PIECES + 1):
        same = 0  # pieces on end that equal the one `size` before
        for index in range(size, len(pieces)):
            same = same + 1 if pieces[index] == pieces[index - size] else 0
            if same >= size * (LOOP_TIMES - 1):
                return True
    return False


def _text(model: _Model, unit: _Unit, pieces: list[str], attention: list[list[float]] | None) -> str:
    if attention is None:
        return " ".join(model.target.decode(pieces).split())
    decoded = model.target.decode(pieces, return_type="proto")
    text, places = decoded.text, _places(decoded.text)
    targets = [(places[piece.begin], places[piece.end]) for piece in decoded.pieces]
    starts = [0, *unit.ends[:-1]]
    wanted = []
    for match in unit.matches:
        columns = [
            len(model.prefix) + index
            for index, (start, end) in enumerate(zip(starts, unit.ends, strict=True))
            if start < match.end and match.start < end
        ]
        wanted.append((match.forced, aligned_spans(attention, targets, columns, text)))
    return " ".join(enforce(text, wanted).split())


def _options(parameters: Parameters, version_dir: str, ctranslate2: ModuleType) -> Options:
    """Raises ValueError for a wrong parameter, MissingError without the GPU that is asked for."""
    device = parameters.get("device", "cpu")
    if device not in DEFAULT_COMPUTE_TYPE:
        raise ValueError(f"parameter device is {device!r}; it can be {' or '.join(DEFAULT_COMPUTE_TYPE)}")
    if device == "cuda" and not ctranslate2.get_cuda_device_count():
        raise MissingError("CTranslate2 finds no NVIDIA GPU; use profile cpu, or start the server where there is one")
    compute_type = parameters.get("compute_type", DEFAULT_COMPUTE_TYPE[device])
    possible = ctranslate2.get_supported_compute_types(device)
    if compute_type not in possible:
        raise ValueError(f"parameter compute_type is {compute_type!r}; {device} here has {', '.join(sorted(possible))}")
    return Options(
        device,
        compute_type,
        _whole_number(parameters, "threads", 0, 0) or len(os.sched_getaffinity(0)),
        _whole_number(parameters, "memory_limit_mib", DEFAULT_MEMORY_LIMIT_MIB, 1),
        _whole_number(parameters, "beam_size", DEFAULT_BEAM_SIZE, 1),
        _default_glossary(parameters.get("glossary", ""), version_dir),
    )


def _default_glossary(name: str, version_dir: str) -> Glossary:
    if not name:
        return Glossary({})
    path = Path(version_dir, name)  # an absolute one stays what it is
    try:
        return parse_glossary(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ValueError(f"parameter glossary: cannot read {path}: {error.strerror}") from None


def _whole_number(parameters: Parameters, name: str, default: int, least: int) -> int:
    text = parameters.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"parameter {name} is {text!r}; it must be a whole number from {least} up")
    return int(text)


def _require(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise MissingError(f"{package} is not installed; run: pip install 'polylip[speech]'") from None


def _reason(error: Exception, folder: Path, pair: Pair) -> str:
    cause = " ".join(str(error).split())[:200]
    remedy = f"if it happens again, run: polylip export opus-mt {'-'.join(pair)}"
    return str(EngineError(f"Opus-MT {'->'.join(pair)} in {folder} failed: {cause}; {remedy}"))
