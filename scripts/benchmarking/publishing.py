"""The end of every benchmark: its results are printed, written and put on the results page."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarking.worker import ROOT
from debugnn.analysis import tables

REFERENCE = ROOT / "outputs" / "reference" / "benchmark"  # what the results page shows
RESULTS_PAGE = REFERENCE.parent / "README.md"


def publish(
    name: str,
    results: Mapping[str, Any],
    page: str,
    summary: Callable[[Mapping[str, Any]], str],
    *,
    output: Path | None,
    draw: Callable[[Path], None] | None = None,
    numbers: Path | None = None,
    mark: str | None = None,
) -> None:
    """Print a benchmark's page, and write what is asked for.

    Args:
        name: of the files, <name>.json and <name>.md.
        results: as plain values.
        page: the results in Markdown.
        summary: returns what the results page shows of them.
        output: the folder of the files; for `REFERENCE`, the results page is filled too.
        draw: draws the page's figures into a folder.
        numbers: another file for the results, as JSON.
        mark: the place on the results page, `name` without one.
    """
    print(page)
    text = json.dumps(results, indent=2) + "\n"
    if numbers is not None:
        numbers.parent.mkdir(parents=True, exist_ok=True)
        numbers.write_text(text, encoding="utf-8")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.json").write_text(text, encoding="utf-8")
        (output / f"{name}.md").write_text(page, encoding="utf-8")
        if draw is not None:
            draw(output)
        if output.resolve() == REFERENCE:
            tables.fill(RESULTS_PAGE, mark or name, summary(results))
