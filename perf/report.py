"""The results of a folder as one HTML page and its plots: `python -m polylip.perf.report [--out DIR] [--profile lite]`.

Every table says with which hardware, versions and weights it was made. The page needs nothing but itself: plots are
data URIs, and lie beside it as PNG files too.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from polylip.client import html_parts
from polylip.client.errors import InputError
from polylip.client.files import write_atomic
from polylip.client.gantt_svg import plain
from polylip.client.html_parts import Card
from polylip.perf import report_plots
from polylip.perf.catalogue import CATALOGUE, Entry
from polylip.perf.experiment import OUT, PROFILES, Result, caption

PAGES = {"lite": "index.html", "cpu": "index_cpu.html"}
RENDER = MarkdownIt("commonmark", {"html": False}).enable("table")


def write_report(out: Path, profile: str) -> Path:
    """The page of a profile's results in `out`; experiments without a result are named as missing.

    Raises InputError where there is none.
    """
    told = _read(out / f"bench_{profile}.json") or {"experiments": []}
    errors = {row["name"]: row["error"] for row in told["experiments"] if row["error"]}
    sections, missing, results = [], [], []
    for entry in CATALOGUE:
        result = None if entry.name in errors else _result(out, entry, profile)
        if result is not None:
            results.append(result)
            sections.append(_section(entry, result, out))
        elif entry.name not in errors:
            missing.append(entry.title)
    if not results and not errors:
        raise InputError(f"{out}: no results of profile {profile}; python -m polylip.perf.bench makes them")
    warnings = [f"{name} failed: {error}" for name, error in errors.items()]
    warnings += sorted({f"weights: {result['weights']}" for result in results})
    warnings += ["a quick run: few cases and repetitions, not for publishing"] * any(r["quick"] for r in results)
    body = [
        html_parts.heading("polylip, measured", [f"profile {html_parts.isolated(profile)}", *_machine(results)]),
        html_parts.warning_list(warnings),
        html_parts.cards(_cards(results)),
        *sections,
        f"<p>Not in this run: {plain(', '.join(missing))}.</p>" if missing else "",
    ]
    return write_atomic(out / PAGES[profile], html_parts.document("polylip, measured", body).encode())


def _result(out: Path, entry: Entry, profile: str) -> Result | None:
    own = _read(out / f"{entry.name}_{profile}.json")
    if own is None and not entry.uses_profile:
        own = next(filter(None, (_read(out / f"{entry.name}_{other}.json") for other in PROFILES)), None)
    return own


def _read(path: Path) -> dict[str, Any] | None:
    content: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content


def _section(entry: Entry, result: Result, out: Path) -> str:
    tables = RENDER.render(entry.markdown(result)).replace("<table>", "<div class='wide'><table>")
    plots = [_plot(path, title) for path, title in report_plots.draw(result, out)]
    return "\n".join(
        [
            f"<section><h2>{plain(entry.title)}</h2>",
            f"<p>{plain(entry.about)}</p>",
            *plots,
            tables.replace("</table>", "</table></div>"),
            f"<p>{plain(caption(result))} {plain(_versions(result))}</p></section>",
        ]
    )


def _plot(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<figure><img alt='{plain(title)}' src='data:image/png;base64,{data}'></figure>"


def _versions(result: Result) -> str:
    return ", ".join(f"{name} {number}" for name, number in result["versions"].items())


def _machine(results: Iterable[Result]) -> list[str]:
    """Of all results: they may come from several machines."""
    return sorted({f"{r['machine']['cores']} cores, {plain(r['machine']['cpu'])}" for r in results})


def _cards(results: Iterable[Result]) -> list[Card]:
    """The figures that people look for first."""
    by_name = {result["experiment"]: result for result in results}
    made = []
    for name, card in report_plots.CARDS.items():
        if name in by_name:
            made.append(Card(*card(by_name[name]["data"])))
    return made


def main() -> None:
    """Draw the page anew from result files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the result files, default {OUT}")
    parser.add_argument("--profile", choices=PROFILES, default="lite")
    arguments = parser.parse_args()
    try:
        print(write_report(arguments.out, arguments.profile))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
