"""Figures of README and docs, made from the committed results: `python -m polylip.perf.pages` puts them there.

A block `<!-- figures: FILE MODULE.FUNCTION -->` to `<!-- end -->` holds what that function of this package makes of a
file of `perf/results/`, and the caption of an experiment's result. So no such figure can be older than its file; a test
compares the two.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

from polylip.client.files import write_atomic
from polylip.perf.experiment import caption

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
BLOCK = re.compile(r"<!-- figures: (\S+) (\w+)\.(\w+) -->\n.*?<!-- end -->", re.DOTALL)
SENTENCE = "sentence"  # the name of functions whose words stand for themselves


def pages() -> list[Path]:
    """That may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, results: Path = RESULTS) -> str:
    """A page with its figures as the files have them. Raises FileNotFoundError, AttributeError for a wrong block."""
    return BLOCK.sub(lambda found: _block(found[1], found[2], found[3], results), text)


def _block(file: str, module: str, function: str, results: Path) -> str:
    result = json.loads((results / file).read_text(encoding="utf-8"))
    shown = getattr(importlib.import_module(f"polylip.perf.{module}"), function)(result)
    told = f"\n\n{caption(result)}" if "experiment" in result and function != SENTENCE else ""
    return f"<!-- figures: {file} {module}.{function} -->\n\n{shown}{told}\n\n<!-- end -->"


def main() -> None:
    """Rewrite the pages whose figures are old."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            print(write_atomic(page, new.encode()))


if __name__ == "__main__":
    main()
