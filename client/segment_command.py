"""`polylip segment`: one segment of a clip as plain files, which the clients of `dub` in other languages take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polylip.client.errors import InputError
from polylip.client.exits import fail
from polylip.client.segment_folder import cut_segment
from polylip.client.segmentation import SPEECH_RATE_HZ
from polylip.serving.languages import normalise


def segment(
    input: Annotated[Path, typer.Argument(help="A clip of a person talking: mp4, mov, mkv, webm, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A new folder for segment.json, audio.wav, frames/")],
    number: Annotated[int, typer.Option(min=1, help="Which segment, counted from 1")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Keep every n-th frame")] = 1,
    source: Annotated[str, typer.Option("--from", help="Language of the clip, ISO 639-1, or auto")] = "auto",
) -> None:
    """Cut one speech segment out of INPUT, with the frames under it, as files that any language can read.

    Example: polylip segment talk.mp4 -o segment --from en
    """
    try:
        language = source if source == "auto" else normalise(source)
        cut = cut_segment(input, output, number, every, language)
    except (InputError, ValueError) as error:
        fail(str(error), InputError.exit_code)
    print(f"{output}: {len(cut.audio) / SPEECH_RATE_HZ:.1f} s of sound, {len(cut.frames)} frames")
