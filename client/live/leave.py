"""The files that a live job or a call leaves: JSON for machines, a chart and a page to look at. See docs/live.md."""

from __future__ import annotations

from pathlib import Path

from polylip.client.errors import InputError
from polylip.client.gantt import write_gantt
from polylip.client.live.formats import place
from polylip.client.live.html_report import write_live_page
from polylip.client.live.options import same_file
from polylip.client.live.report import LiveReport
from polylip.client.report import Reportable, write_report
from polylip.client.trace import Trace

JSON, PAGE, CHART = ".json", ".html", ".png"


def check_report_path(path: Path, *ends: str) -> None:
    """Before the job runs; `ends`: its sources and outputs. Raises InputError."""
    if path.suffix != JSON and not path.is_dir():
        raise InputError(f"{path}: the report is JSON, a {PAGE} and a {CHART} go beside it; end its name in .json")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it, ending in .json")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder is not there; make it, or name the report elsewhere")
    for file in report_files(path):
        if any(same_file(place(str(file)), place(end)) for end in ends):
            raise InputError(f"{file}: is the source or the output itself; name the report otherwise")


def report_files(path: Path) -> list[Path]:
    """What `leave_report` writes."""
    return [path] if path.suffix == PAGE else [path, path.with_suffix(CHART), path.with_suffix(PAGE)]


def participant_page(path: Path, name: str) -> Path:
    """Where a participant's page is, beside the JSON of the call."""
    return path.with_name(f"{path.stem}.{name}{PAGE}")


def leave_report(report: LiveReport, trace: Trace, path: Path) -> list[Path]:
    """A live job's JSON at `path`, its chart and its page beside it; its page alone where `path` is one.

    Raises InputError.
    """
    try:
        if path.suffix == PAGE:
            return [write_live_page(report, trace, path)]
        file, chart, page = report_files(path)
        return [
            write_report(report, file),
            write_gantt(trace, report.segments, chart),
            write_live_page(report, trace, page),
        ]
    except OSError as error:
        raise _not_written(path, error) from None


def leave_call_report(report: Reportable, path: Path) -> Path:
    """One JSON for all; each participant has left its page. Raises InputError."""
    try:
        return write_report(report, path)
    except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: the output is complete, but not the report on it ({error.strerror}); see to room and rights there"
    )
