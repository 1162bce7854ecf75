"""`polylip call`: dub several people who speak in turn."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from polylip.client.cli_options import (
    Consent,
    FitWish,
    From,
    Glossary,
    Mark,
    Profile,
    Segmentation,
    TlsCa,
    TlsCert,
    TlsKey,
    Url,
    VadWish,
    tls,
    wishes,
)
from polylip.client.closing import Policy
from polylip.client.errors import InputError
from polylip.client.exits import EXIT_INTERRUPTED, EXIT_UNUSABLE, err, fail, interruptible
from polylip.client.live.call import CallReport
from polylip.client.live.call import call as run_call
from polylip.client.live.command import print_summary, stop_on_interrupt
from polylip.client.live.formats import PIPES
from polylip.client.live.leave import check_report_path, leave_call_report, participant_page
from polylip.client.live.options import DELAY_S, LiveOptions
from polylip.client.live.status import StatusDisplay
from polylip.client.server import ServerChoice
from polylip.client.vad import VadChoice
from polylip.serving.isochrony import Fit

_NAMED = re.compile(r"([\w.-]+)=(.+)")


def call(
    sources: Annotated[
        list[str], typer.Option("--in", help="A participant's source, `name=source` or only that; once for each")
    ],
    sinks: Annotated[list[str], typer.Option("--out", help="Where that participant's output goes, in the same order")],
    to: Annotated[
        list[str], typer.Option("--to", help="Target language: one for all, or one for each --in in the same order")
    ],
    source_language: From = "auto",
    delay: Annotated[float, typer.Option(help="Seconds from source to output, the same for all")] = DELAY_S,
    listen: Annotated[bool, typer.Option("--listen", help="Wait for the senders at the sources' addresses")] = False,
    output_listen: Annotated[bool, typer.Option("--output-listen", help="Wait for players at the outputs'")] = False,
    duration: Annotated[float | None, typer.Option(help="Stop each after so many seconds")] = None,
    url: Url = None,
    profile: Profile = "lite",
    fit: FitWish = Fit.TIGHT,
    voice_consent: Consent = False,
    glossary: Glossary = None,
    segmentation: Segmentation = Policy.SEMANTIC,
    vad: VadWish = VadChoice.AUTO,
    mark: Mark = True,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    report: Annotated[Path | None, typer.Option(help="JSON of what happened; beside it a page each")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as a line of JSON twice a second")] = False,
) -> None:
    """Dub people who speak in turn: each has a source and an output, and whoever has the floor is dubbed there.

    The others pass as they come, the same delay later, and cost no work of the server. Sources and outputs are those of
    `polylip live`. Ctrl-C ends the call; what has come is still shown.

    Example: polylip call --to es --in ann=rtmp://127.0.0.1/ann --out ann.mp4 --in bob=talk.mp4 --out bob.mp4
    """
    parts = paired(sources, sinks, to)
    if report is not None:
        check_report_path(report, *(place for _, *places, _ in parts for place in places))
    server = ServerChoice(url, profile, tls(tls_ca, tls_cert, tls_key), math.inf)
    participants = {
        name: LiveOptions(
            source,
            sink,
            wishes(language, source_language, fit, voice_consent, glossary),
            server,
            delay_s=delay,
            segmentation=segmentation,
            vad=vad,
            listen=listen,
            sink_listen=output_listen,
            duration_s=duration,
            report=None if report is None else participant_page(report, name),
            mark=mark,
        )
        for name, source, sink, language in parts
    }
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=err, show_path=False)])
    with interruptible("ended at once", EXIT_INTERRUPTED), StatusDisplay(err, sys.stdout if as_json else None) as shown:
        result = asyncio.run(_until_interrupted(participants, shown))
    if report is not None:
        leave_call_report(result, report)
    if not as_json:
        _print_summary(result, Console(stderr=any(sink in PIPES for sink in sinks)), report)
    if result.errors:
        fail("; ".join(f"{name} left early: {why}" for name, why in result.errors.items()), EXIT_UNUSABLE)


def paired(sources: list[str], sinks: list[str], languages: list[str]) -> list[tuple[str, str, str, str]]:
    """(name, source, sink, language) of each participant. Raises InputError."""
    if len(sources) != len(sinks):
        raise InputError(f"{len(sources)} times --in and {len(sinks)} times --out; give one --out for each --in")
    if len(languages) not in (1, len(sources)):
        raise InputError(f"{len(languages)} times --to for {len(sources)} participants; give one for all, or one each")
    if len(languages) == 1:
        languages = languages * len(sources)
    names, places = zip(*(_named(source, number) for number, source in enumerate(sources, 1)), strict=True)
    if len(set(names)) < len(names):
        raise InputError(f"two participants have the same name; they are {', '.join(names)}")
    return list(zip(names, places, sinks, languages, strict=True))


def _named(source: str, number: int) -> tuple[str, str]:
    """A participant without a name has a number."""
    match = _NAMED.fullmatch(source)
    return (match[1], match[2]) if match else (str(number), source)


async def _until_interrupted(participants: dict[str, LiveOptions], shown: StatusDisplay) -> CallReport:
    """The first Ctrl-C or SIGTERM ends the sources, the second one the call."""
    return await run_call(participants, shown.show, stop_on_interrupt())


def _print_summary(report: CallReport, console: Console, path: Path | None) -> None:
    """A few lines for people."""
    for name, part in report.participants.items():
        turns = [turn for turn in report.turns if turn["participant"] == name]
        held_s = sum(turn["end_s"] - turn["start_s"] for turn in turns)
        count = f"{len(turns)} turn{'s' if len(turns) != 1 else ''}"
        console.print(f"{name}: {count}, {held_s:.0f} s on the floor", highlight=False)
        print_summary(part, console, None if path is None else participant_page(path, name))
    if path is not None:
        console.print(f"report of the call: {path}", markup=False, highlight=False, soft_wrap=True)
