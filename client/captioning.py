"""Captions in place of a dub: what was said, recognised and translated, without a voice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from polylip.client.errors import DeadlineError, ServerError
from polylip.client.pending import Outputs
from polylip.client.results import Status
from polylip.client.segmentation import Segment
from polylip.client.triton import Stream
from polylip.client.wire import Tensor, row, rows
from polylip.client.wishes import SpeechWishes
from polylip.serving import engines

# How a model's status ends the segment; anything else that is not OK is an error.
ENDS = {engines.Status.NO_SPEECH: Status.NO_SPEECH, engines.Status.UNSUPPORTED: Status.UNSUPPORTED}


@dataclass(frozen=True)
class Caption:
    """A segment's end without a dub. `text` is empty where there is nothing to be shown."""

    status: Status
    source_text: str = ""
    text: str = ""
    message: str = ""
    late: bool = False  # the server was too slow


class Captioner:
    """Asks `transcribe` and `translate` one after the other."""

    def __init__(self, stream: Stream, wishes: SpeechWishes) -> None:
        """`stream` must not be that of a model that answers in parts."""
        self._stream = stream
        self._wishes = wishes

    async def caption(self, segment: Segment, timeout_s: float) -> Caption:
        """Never raises ServerError: a segment ends, one way or the other."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                return await self._caption(segment, deadline)
        except (DeadlineError, TimeoutError):
            return Caption(Status.TOO_LATE, message="no caption came before its picture had to leave", late=True)
        except ServerError as error:
            return Caption(Status.ERROR, message=str(error))

    async def _caption(self, segment: Segment, deadline: float) -> Caption:
        wishes = self._wishes
        heard: dict[str, Tensor | str] = {
            "SOURCE_TEXT": segment.known_text,
            "DETECTED_LANGUAGE": segment.known_language,
        }
        if not segment.known_text:
            audio: dict[str, Tensor | str] = {"AUDIO": segment.audio, "SOURCE_LANGUAGE": wishes.source_language}
            outputs = await self._call("transcribe", audio, deadline)
            if (refused := _refusal(outputs)) is not None:
                return refused
            heard = {name: str(outputs[name][0]) for name in heard}
        inputs = {**heard, "TARGET_LANGUAGE": wishes.target_language}
        if wishes.glossary:
            inputs["GLOSSARY"] = wishes.glossary
        outputs = await self._call("translate", inputs, deadline)
        if (refused := _refusal(outputs)) is not None:
            return refused
        return Caption(Status.CAPTIONED, str(heard["SOURCE_TEXT"]), str(outputs["TARGET_TEXT"][0]))

    async def _call(self, model: str, inputs: dict[str, Tensor | str], deadline: float) -> Outputs:
        left_s = deadline - asyncio.get_running_loop().time()
        return row(await self._stream.call(model, rows(inputs), left_s))


def _refusal(outputs: Outputs) -> Caption | None:
    """Why there is nothing to be shown; None where there is."""
    status = engines.Status(str(outputs["STATUS"][0]))
    if status is engines.Status.OK:
        return None
    return Caption(ENDS.get(status, Status.ERROR), message=str(outputs["STATUS_MESSAGE"][0]))
