"""The HTML page: the article's claims with the runs' evidence, in one file that needs no network.

The templates are files in `templates`. uPlot draws the charts (MIT licence, inlined whole);
everything else is ours.
"""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2

from debugnn.analysis.claims.claim import Outcome
from debugnn.analysis.directories import Unusable
from debugnn.analysis.page.content import Section, sections
from debugnn.analysis.runs import Run
from debugnn.analysis.tables import provenance
from debugnn.files import replace_text

_TEMPLATES = files("debugnn.analysis.page") / "templates"


def write(runs: Sequence[Run], unusable: Sequence[Unusable], output: Path) -> None:
    """Write the page.

    Args:
        runs: finished runs. Those that belong to no experiment are listed only.
        unusable: runs that cannot be shown, which are listed with the reason.
        output: path of the file; its folder is made.
    """
    shown = sections(runs)
    # "</script>" within a string would end the element that holds the data.
    data = json.dumps({s.name: s.data for s in shown}, allow_nan=False, separators=(",", ":"))
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            sections=shown,
            counts=_counts(shown),
            data=data.replace("</", "<\\/"),
            provenance=provenance(runs),
            unusable=unusable,
        )
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(output, page)


def _counts(shown: Sequence[Section]) -> dict[str, int]:
    """Return how many claims come out how, in the order of the outcomes."""
    seen = Counter(claim.outcome for section in shown for claim in section.claims)
    return {outcome.value: seen[outcome.value] for outcome in Outcome if seen[outcome.value]}


def _environment() -> jinja2.Environment:
    def load(name: str) -> str | None:
        file = _TEMPLATES / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["verbatim"] = lambda name: jinja2.utils.markupsafe.Markup(load(name) or "")
    return environment
