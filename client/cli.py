"""The `polylip` command. Exit codes: 0 done, 2 unusable input or machine, 3 the server failed, 130 interrupted.

`verify` has three more: 4 not marked, 5 changed since it was marked, 6 only its tags say so. `serve` has two: 4 a model
died, 5 streams were cut off; `drain` the latter.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from polylip.client import job
from polylip.client.cli_options import (
    Consent,
    FaceWish,
    FitWish,
    From,
    Glossary,
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
from polylip.client.errors import PolylipError
from polylip.client.exits import EXIT_INTERRUPTED, EXIT_SERVER, EXIT_UNUSABLE, err, fail, interruptible, say
from polylip.client.languages_command import languages
from polylip.client.live.call_command import call
from polylip.client.live.command import live
from polylip.client.report import print_summary
from polylip.client.segment_command import segment
from polylip.client.serve_command import Models, drain, names, probe, serve
from polylip.client.vad import VadChoice
from polylip.client.verify import verify
from polylip.export.commands import app as export_app
from polylip.export.fetch_command import fetch
from polylip.serving.errors import EngineError, MissingError, UnknownProfileError
from polylip.serving.isochrony import Fit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Dub a video or a live stream into another language, with moving lips, through a Triton Inference Server.",
    epilog="Exit codes: 0 done; 2 the input or this machine cannot be used; 3 the server failed; 130 interrupted; "
    "`verify`: 4 not marked, 5 changed since, 6 tags only; `serve`: 4 a model died, 5 streams were cut off; "
    "`drain`: 5 not empty in time; `probe`: 1 not so.",
)
app.add_typer(export_app, name="export")
app.command("fetch")(fetch)
app.command("languages")(languages)
app.command("live")(live)
app.command("segment")(segment)
app.command("call")(call)
app.command("verify")(verify)
app.command("serve")(serve)
app.command("probe")(probe)
app.command("drain")(drain)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"polylip {metadata.version('polylip')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None: ...


@app.command()
def dub(
    input: Annotated[Path, typer.Argument(help="A clip of a person talking: mp4, mov, mkv, webm, ...")],
    to: To,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Output: .mp4, .m4v, .mov, .mkv; overwritten if there")
    ],
    source: From = "auto",
    url: Url = None,
    profile: Profile = "lite",
    face: FaceWish = None,
    fit: FitWish = Fit.TIGHT,
    voice_consent: Consent = False,
    glossary: Glossary = None,
    segmentation: Segmentation = Policy.SEMANTIC,
    vad: VadWish = VadChoice.AUTO,
    mark: Mark = True,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run of this job was killed or interrupted")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json to standard output at the end")] = False,
) -> None:
    """Dub INPUT into another language.

    Beside the output: report.json, report.html, gantt.png, contact_sheet.png, and subtitles of both languages
    (.vtt, .srt).

    Example: polylip dub talk.mp4 --to es -o talk.es.mp4
    """
    wished = wishes(to, source, fit, voice_consent, glossary)
    options = job.DubOptions(
        input,
        output,
        wished.target_language,
        wished.source_language,
        url,
        profile,
        face,
        fit=wished.fit,
        voice_consent=wished.voice_consent,
        glossary=wished.glossary,
        mark=mark,
        segmentation=segmentation,
        vad=vad,
        tls=tls(tls_ca, tls_cert, tls_key),
        resume=resume,
    )
    with interruptible(lambda: _interrupted(output), EXIT_INTERRUPTED):
        result = asyncio.run(_dub_with_progress(options))
    if as_json:
        print(result.files[0].read_text(encoding="utf-8"), end="")
    else:
        print_summary(result.report, Console())
    if result.complete:
        err.print(f"{result.video}", highlight=False, soft_wrap=True)
        return
    missing = ", ".join(map(str, job.missing_segments(result.report)))
    later = "; with --resume it is tried again from there" if job.is_resumable(output) else ""
    fail(f"the server failed: no dub for segment {missing}; what there is: {result.video}{later}", EXIT_SERVER)


def _interrupted(output: Path) -> str:
    return f"interrupted; {'go on with --resume' if job.is_resumable(output) else 'nothing was written'}"


@app.command()
def doctor(
    profile: Profile = "lite",
    models: Models = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON")] = False,
) -> None:
    """Check what a profile needs on this machine, without starting anything.

    Example: polylip doctor
    """
    from polylip.serving.doctor import run_checks  # noqa: PLC0415  needs nothing but is not needed by a thin client

    checks = run_checks(profile, models=names(models))
    if as_json:
        print(json.dumps([vars(check) for check in checks]))
    else:
        for check in checks:
            print(f"{'ok     ' if check.ok else 'MISSING'} {check.name}: {check.detail}")
    if not all(check.ok for check in checks):
        raise typer.Exit(EXIT_UNUSABLE)


async def _dub_with_progress(options: job.DubOptions) -> job.DubResult:
    """The job with a progress bar on a terminal; SIGTERM ends it like Ctrl-C."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        shown = bar.add_task("checking", total=None)

        def show(progress: job.Progress) -> None:
            bar.update(
                shown, description=progress.stage, completed=progress.frames, total=progress.frames_total or None
            )

        return await job.dub(options, show)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: errors that we raise on purpose become one line and an exit code."""
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        app()
    except PolylipError as error:
        say(str(error))
        sys.exit(error.exit_code)
    except (MissingError, UnknownProfileError) as error:
        say(str(error))
        sys.exit(EXIT_UNUSABLE)
    except ModuleNotFoundError as error:
        say(f"{error.name} is not installed; run: pip install 'polylip[serve,export]'")
        sys.exit(EXIT_UNUSABLE)
    except EngineError as error:
        say(str(error))
        sys.exit(EXIT_SERVER)


if __name__ == "__main__":
    main()
