"""The segments of the soak: each knows what it asks for, and judges whether the answer is its own and complete."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from polylip.client.pending import Outputs
from polylip.client.wire import Tensor
from polylip.perf.demo_clip import SENTENCES
from polylip.perf.spoken import read_aloud
from polylip.serving.engines import Status
from polylip.serving.mel import SAMPLE_RATE_HZ

MAX_STREAMS = len(SENTENCES)  # each has sentences of its own, so that words tell whose they are
LONGEST_S = 10.0  # of a segment, as the client cuts them
MOST_SENTENCES = 6  # more than fit
GAP_S = 0.25  # between two sentences of one segment: too short to be a boundary
NOISE = 0.05  # standard deviation; pocketsphinx hears no words in it
SILENCE = 0.0
VOICE_S = (3.0, 12.0)  # of a reference
SHARES = {  # how often a kind comes
    "heard": 0.62,
    "known": 0.20,  # KNOWN_TEXT
    "silence": 0.04,
    "noise": 0.04,
    "pair": 0.04,  # a target language that the translator cannot do
    "language": 0.03,  # a source language that the recogniser cannot do
    "broken": 0.03,  # NaN among the samples
}

Float32 = npt.NDArray[np.float32]
Inputs = dict[str, Tensor | str]


@dataclass
class Identity:
    """One media stream of one caller."""

    caller: int
    stream_id: str
    consent: bool  # whether it sends a VOICE to clone
    numbers: count[int] = field(default_factory=lambda: count(1))


@dataclass(frozen=True)
class Segment:
    """What is sent, and what must come back."""

    name: str  # caller, stream and number
    kind: str
    inputs: Inputs
    seconds: float  # of its sound
    status: Status
    text: str  # that must come back as SOURCE_TEXT; nothing where there is none
    digests: dict[str, str] | None = None  # of the sound of a TARGET_TEXT; None where the sound varies with its slot

    def judge(self, chunks: Sequence[Outputs], error: str) -> tuple[str, str | None]:
        """How it ended, and what is wrong with that."""
        if error:
            return "refused", None if self.kind == "broken" and "NaN" in error else error
        if not chunks:
            return "none", "ended without an answer"
        last = chunks[-1]
        status = str(last["STATUS"][0])
        checks: tuple[Callable[[Sequence[Outputs]], str | None], ...] = (self._status, self._texts, self._sound)
        return status, next((problem for check in checks if (problem := check(chunks)) is not None), None)

    def _status(self, chunks: Sequence[Outputs]) -> str | None:
        found = {str(chunk["STATUS"][0]) for chunk in chunks}
        if self.kind == "broken" or found != {str(self.status)}:
            return f"{self.kind} ended as {sorted(found)}: {chunks[-1]['STATUS_MESSAGE'][0]}"
        return None

    def _texts(self, chunks: Sequence[Outputs]) -> str | None:
        sources = {_words(str(chunk["SOURCE_TEXT"][0])) for chunk in chunks}
        if sources != {_words(self.text)}:
            return f"said {self.text!r}, answered as {sorted(sources)}"
        targets = {str(chunk["TARGET_TEXT"][0]) for chunk in chunks}
        own = next((word for word in self.text.split() if word.isdigit()), "")
        if len(targets) != 1 or not all(own in target for target in targets):
            return f"translated {self.text!r} as {sorted(targets)}"
        return None

    def _sound(self, chunks: Sequence[Outputs]) -> str | None:
        audio = np.concatenate([chunk["AUDIO_CHUNK"] for chunk in chunks])
        if self.status is not Status.OK:
            return "has sound in spite of its status" if audio.size else None
        if audio.size == 0 or not np.isfinite(audio).all() or np.abs(audio).max() > 1:
            return "has no sound, or sound beyond its range"
        if self.digests is None:
            return None
        target = str(chunks[0]["TARGET_TEXT"][0])
        digest = hashlib.sha256(audio.tobytes()).hexdigest()
        if self.digests.setdefault(target, digest) != digest:
            return f"spoke {target!r} unlike before"
        return None


class Segments:
    """Makes segments of all kinds; the same ones in the same order for each caller."""

    def __init__(self, callers: int) -> None:
        self._randoms = [np.random.default_rng(caller) for caller in range(callers)]
        self._sentences = [SENTENCES[caller::callers] for caller in range(callers)]
        for sentence in SENTENCES:
            read_aloud(sentence)  # now, not while others wait
        self._digests: dict[str, str] = {}
        self._known = count(1)
        self._streams = count(1)

    def new_stream(self, caller: int) -> Identity:
        """The next media stream of a caller; every other one has a voice to clone."""
        return Identity(caller, f"{next(self._streams)}-{uuid.uuid4().hex}", bool(self._randoms[caller].random() < 0.5))

    def make(self, identity: Identity, largest: bool = False) -> Segment:
        """The next segment of a stream; `largest`: heard, with as much sound as there can be."""
        random = self._randoms[identity.caller]
        kind = "heard" if largest else str(random.choice(list(SHARES), p=list(SHARES.values())))
        name = f"caller {identity.caller}, stream {identity.stream_id}, segment {next(identity.numbers)}"
        audio, text = self._speech(identity.caller, MOST_SENTENCES if largest else int(random.integers(1, 4)))
        inputs: Inputs = {"SOURCE_LANGUAGE": "en", "TARGET_LANGUAGE": "es", "STREAM_ID": identity.stream_id}
        status, slotted = Status.OK, bool(random.random() < 0.5)
        if kind == "known":
            text = f"The number {next(self._known)} is on page {10000 + identity.caller}."
            inputs["KNOWN_TEXT"] = text
        elif kind in ("silence", "noise"):
            status, text = Status.NO_SPEECH, ""
            audio = random.normal(0, NOISE if kind == "noise" else SILENCE, len(audio)).astype(np.float32)
        elif kind == "pair":
            status, inputs["TARGET_LANGUAGE"] = Status.UNSUPPORTED, "ja"
        elif kind == "language":
            status, text, inputs["SOURCE_LANGUAGE"] = Status.UNSUPPORTED, "", "fr"
        elif kind == "broken":
            audio = audio.copy()
            audio[len(audio) // 2] = np.nan
        seconds = len(audio) / SAMPLE_RATE_HZ
        inputs["AUDIO"] = audio
        if slotted:
            fill_ms = round(seconds * 1000)
            inputs |= {"SLOT_MS": np.array([fill_ms], np.int32), "LIMIT_MS": np.array([fill_ms + 500], np.int32)}
        if identity.consent or largest:
            inputs |= {"VOICE": self._voice(identity.caller, largest), "VOICE_CONSENT": np.array([True])}
        return Segment(name, kind, inputs, seconds, status, text, None if slotted else self._digests)

    def _speech(self, caller: int, sentences: int) -> tuple[Float32, str]:
        """So many of the caller's sentences in one piece, or as many as fit."""
        random, own = self._randoms[caller], self._sentences[caller]
        pieces: list[Float32] = []
        texts: list[str] = []
        gap = np.zeros(round(GAP_S * SAMPLE_RATE_HZ), np.float32)
        for index in random.integers(len(own), size=sentences):
            spoken = read_aloud(own[index])
            if pieces and sum(map(len, pieces)) + len(gap) + len(spoken) > LONGEST_S * SAMPLE_RATE_HZ:
                break
            pieces += [gap, spoken] if pieces else [spoken]
            texts.append(own[index])
        return np.concatenate(pieces), " ".join(texts)

    def _voice(self, caller: int, longest: bool) -> Float32:
        seconds = VOICE_S[1] if longest else self._randoms[caller].uniform(*VOICE_S)
        samples = round(seconds * SAMPLE_RATE_HZ)
        return np.resize(read_aloud(self._sentences[caller][0]), samples)


def _words(text: str) -> str:
    """A text as it can be heard: without case and punctuation."""
    return " ".join(text.lower().replace(".", " ").replace(",", " ").split())
