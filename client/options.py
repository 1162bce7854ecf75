"""What to dub and how, and what can be seen to be wrong with it before anything is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polylip.client.closing import Policy
from polylip.client.errors import InputError, ServerError
from polylip.client.languages_command import source_tag, target_tag
from polylip.client.lines import RECONNECT_S
from polylip.client.server import ServerChoice
from polylip.client.speaker import parse_wish
from polylip.client.tls import Tls
from polylip.client.triton import TritonClient
from polylip.client.vad import VadChoice
from polylip.client.wire import Tensor, row, rows
from polylip.client.wishes import SpeechWishes
from polylip.serving import engines
from polylip.serving.isochrony import Fit

CHECK_TIMEOUT_S = 60.0  # the first request after a cold start may still load an engine
AUTO = "auto"


@dataclass(frozen=True)
class DubOptions:
    """What to dub and how."""

    input: Path
    output: Path
    target_language: str  # ISO 639-1
    source_language: str = "auto"
    url: str | None = None  # host:port of a running server; None starts one for the job
    profile: str = "lite"  # of the server to start; with a url only a name in the report
    face: str | None = None  # the face to re-lip: its id in report.json, or a place: "0.7,0.4"; None: who speaks
    fit: Fit = Fit.TIGHT
    voice_consent: bool = False  # the speaker agreed to have their voice cloned; without it a stock voice speaks
    glossary: str = ""  # lines "term" (kept) or "term = translation" (forced)
    mark: bool = True  # as AI-dubbed, for machines
    segmentation: Policy = Policy.SEMANTIC  # what closes a segment
    vad: VadChoice = VadChoice.AUTO  # what hears speech
    tls: Tls | None = None  # to a running server
    reconnect_s: float = RECONNECT_S  # for which a server that is lost is waited for
    resume: bool = False  # go on where an earlier run of this job was ended, if there was one

    @property
    def server(self) -> ServerChoice:
        return ServerChoice(self.url, self.profile, self.tls, self.reconnect_s)

    @property
    def wishes(self) -> SpeechWishes:
        return SpeechWishes(self.source_language, self.target_language, self.fit, self.voice_consent, self.glossary)


def check_wishes(wishes: SpeechWishes, face: str | None, url: str | None) -> None:
    """What can be seen without opening anything, of a file and of a live source. Raises InputError."""
    target_tag(wishes.target_language)
    source_tag(wishes.source_language)
    if url is not None and not re.fullmatch(r"[^/\s]+:\d{1,5}", url):
        raise InputError(f"{url!r} is not host:port, for example: 127.0.0.1:8001")
    parse_wish(face)


def check_not_input(output: Path, source: Path) -> None:
    """Raises InputError where writing would overwrite what is read, by a link too."""
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{output}: output and input are the same file; choose another output")


def check_options(options: DubOptions) -> None:
    """What can be seen without opening anything. Raises InputError."""
    check_wishes(options.wishes, options.face, options.url)
    check_not_input(options.output, options.input)


async def check_languages(client: TritonClient, wishes: SpeechWishes) -> None:
    """One tiny request through the whole speech branch: an unsupported pair is refused before any work.

    Where the recogniser finds the language out itself, only the voice can be asked: with a text that needs no
    translation.
    """
    refusal = await _refusal(client, wishes, wishes.source_language)
    if refusal and wishes.source_language == AUTO and not await _refusal(client, wishes, wishes.target_language):
        return
    if refusal:
        raise InputError(refusal)


async def _refusal(client: TritonClient, wishes: SpeechWishes, source_language: str) -> str:
    """Why a segment in this language would not be dubbed; empty where it would. Raises InputError."""
    inputs: dict[str, Tensor | str] = {
        "AUDIO": np.zeros(1, np.float32),
        "SOURCE_LANGUAGE": source_language,
        "TARGET_LANGUAGE": wishes.target_language,
        "KNOWN_TEXT": "yes",
    }
    if wishes.glossary:
        inputs["GLOSSARY"] = wishes.glossary
    refusal = ""
    async with client.stream() as stream:
        try:
            async for answer in await stream.submit("speech", rows(inputs), CHECK_TIMEOUT_S):
                if (chunk := row(answer))["STATUS"][0] in (engines.Status.UNSUPPORTED, engines.Status.ERROR):
                    refusal = str(chunk["STATUS_MESSAGE"][0])
        except ServerError as error:
            raise InputError(str(error)) from None
    return refusal
