"""`polylip live`: dub a stream while it runs."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
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
    LiveFaceWish,
    Mark,
    Profile,
    Segmentation,
    TlsCa,
    TlsCert,
    TlsKey,
    To,
    Url,
    VadWish,
    tls,
    wishes,
)
from polylip.client.closing import Policy
from polylip.client.exits import EXIT_INTERRUPTED, err, interruptible
from polylip.client.live.formats import PIPES
from polylip.client.live.job import live as run_live
from polylip.client.live.leave import check_report_path, report_files
from polylip.client.live.options import DELAY_S, LiveOptions
from polylip.client.live.report import LiveReport
from polylip.client.live.status import StatusDisplay
from polylip.client.server import ServerChoice
from polylip.client.vad import VadChoice
from polylip.serving.isochrony import Fit


def live(
    source: Annotated[str, typer.Argument(help="rtsp, rtmp, srt, udp, tcp, http(s) URL, /dev/video0, file, or -")],
    to: To,
    output: Annotated[
        str, typer.Option("-o", "--output", help="rtmp, srt, udp, tcp URL, .mp4 (fragments), .m3u8 (HLS), .ts, or -")
    ],
    source_language: From = "auto",
    delay: Annotated[float, typer.Option(help="Seconds from source to output; it never changes")] = DELAY_S,
    listen: Annotated[bool, typer.Option("--listen", help="Wait for the sender at the source's address")] = False,
    output_listen: Annotated[bool, typer.Option("--output-listen", help="Wait for a player at the output's")] = False,
    output_format: Annotated[str | None, typer.Option(help="Container, where the output's name does not say")] = None,
    microphone: Annotated[str | None, typer.Option(help="Of a camera, for example alsa:default")] = None,
    duration: Annotated[float | None, typer.Option(help="Stop after so many seconds")] = None,
    url: Url = None,
    profile: Profile = "lite",
    face: LiveFaceWish = None,
    fit: FitWish = Fit.TIGHT,
    voice_consent: Consent = False,
    glossary: Glossary = None,
    segmentation: Segmentation = Policy.SEMANTIC,
    vad: VadWish = VadChoice.AUTO,
    mark: Mark = True,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    report: Annotated[
        Path | None, typer.Option(help="JSON of what happened; beside it a page (.html), a chart (.png)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as a line of JSON twice a second")] = False,
) -> None:
    """Dub SOURCE while it runs, and show it a fixed delay later. Ctrl-C ends it; what has come is still shown.

    A second Ctrl-C ends it at once. What the server is too slow for is left out, never waited for.

    Example: polylip live rtmp://127.0.0.1:1935/cam --listen --to es -o dubbed.m3u8
    """
    if report is not None:
        check_report_path(report, source, output)
    options = LiveOptions(
        source,
        output,
        wishes(to, source_language, fit, voice_consent, glossary),
        ServerChoice(url, profile, tls(tls_ca, tls_cert, tls_key), math.inf),
        delay_s=delay,
        face=face,
        segmentation=segmentation,
        vad=vad,
        listen=listen,
        sound_device=microphone,
        sink_format=output_format,
        sink_listen=output_listen,
        duration_s=duration,
        report=report,
        mark=mark,
    )
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=err, show_path=False)])
    with interruptible("ended at once", EXIT_INTERRUPTED), StatusDisplay(err, sys.stdout if as_json else None) as shown:
        result = asyncio.run(_until_interrupted(options, shown))
    if not as_json:
        print_summary(result, Console(stderr=output in PIPES), report)


async def _until_interrupted(options: LiveOptions, shown: StatusDisplay) -> LiveReport:
    """The first Ctrl-C or SIGTERM ends the source, the second one the job."""
    return await run_live(options, shown.show, stop_on_interrupt())


def stop_on_interrupt() -> asyncio.Event:
    """Set by the first Ctrl-C or SIGTERM; the second one cancels the task that asks for it here."""
    stop, loop, task = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def interrupted() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    return stop


def print_summary(report: LiveReport, console: Console, path: Path | None = None) -> None:
    """A few lines for people, the last ones on what was written; `path`: of the report on it."""
    ends = ", ".join(f"{count} {status}" for status, count in report.statuses.items()) or "no segments"
    lag, first = report.lag, report.first_frame_ms
    console.print(f"{report.duration_s:.0f} s, {ends}; ended: {report.ended}", highlight=False)
    kept = f"delay {report.delay_s:g} s, lag p99 {lag['p99_ms']:.0f} ms ({lag['slope_ms_per_min']:+.1f} ms per minute)"
    soon = "" if math.isnan(first["p50"]) else f"; new lips {first['p50']:.0f} ms after the last word (median)"
    console.print(kept + soon, highlight=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
    for what, files in (("output", [report.sink]), ("report", report_files(path) if path is not None else [])):
        if files:
            console.print(f"{what}: {', '.join(map(str, files))}", markup=False, highlight=False, soft_wrap=True)
