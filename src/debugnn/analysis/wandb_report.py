"""The story of the HTML page as a report in W&B, beside the runs that were logged there.

`build` needs neither network nor account; `publish` needs both. The library wandb-workspaces makes
the report, so this module is imported only where a report is asked for.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.reports.v2.internal import ReportViewspec

from debugnn.analysis.claims.claim import EMBEDDED
from debugnn.analysis.directories import Unusable
from debugnn.analysis.page.content import ArmRow, Judged, Section, sections
from debugnn.analysis.runs import Run, by_arm
from debugnn.analysis.tables import markdown, provenance
from debugnn.errors import ConfigError, one_line

TITLE = "Debugging neural networks: what the runs say"

# The curves over epochs: title, as the page's chart of it has it, and W&B's key.
_CURVES = (
    ("Training loss", "train/loss"),
    ("Test loss", "test/loss"),
    ("Training accuracy (%)", "train/accuracy"),
    ("Test accuracy (%)", "test/accuracy"),
)
_MOST_LINES = 100  # most lines of a panel; W&B's default of 10 is less than one arm's seeds
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 6  # of panels; W&B's grid is 24 units wide

# Seconds. A server that does not answer ends the command after this time.
_LOGIN_TIMEOUT = 60.0  # W&B asks for a missing key, if the command runs at a terminal
_INIT_TIMEOUT = 15.0  # unless WANDB_INIT_TIMEOUT says otherwise
_UPLOAD_TIMEOUT = 300


def target(name: str) -> tuple[str, str]:
    """Return entity and project of `ENTITY/PROJECT`.

    Raises:
        ConfigError: the name is not of this form, or has a character that W&B forbids.
    """
    found = re.fullmatch(r"([^\s/\\#?%:]{1,128})/([^\s/\\#?%:]{1,128})", name)
    if found is None:
        raise ConfigError(
            f"--wandb={name}: wanted is ENTITY/PROJECT, a user or team and a project of W&B, "
            r"without spaces and / \ # ? % :"
        )
    return found[1], found[2]


def build(
    runs: Sequence[Run], entity: str, project: str, unusable: Sequence[Unusable] = ()
) -> wr.Report:
    """Return the report of the runs, without asking the network for anything.

    The run sets name no project yet, since W&B's number of it is not known offline; `publish` adds
    it.

    Args:
        runs: finished runs. Those that belong to no experiment are not shown.
        entity: W&B's user or team.
        project: W&B's project, to which the runs were logged.
        unusable: runs that cannot be shown, which are listed with the reason.
    """
    blocks: list = [
        wr.P(
            text=[
                "The article ",
                wr.Link(
                    text="Debugging Neural Networks with PyTorch and W&B",
                    url="https://wandb.ai/ayush-thakur/debug-neural-nets/reports/"
                    "Debugging-Neural-Networks-with-PyTorch-and-W&B--Vmlldzo2OTUzNA",
                ),
                ", retold by runs of its experiments. Each section says what to look for, whether "
                "the article's claims hold, what the doctor makes of each arm, and shows the runs.",
            ]
        ),
        wr.P(text=provenance(runs)),
        wr.TableOfContents(),
    ]
    for section in sections(runs):
        own = [run for run in runs if _belongs(run, section)]
        blocks += _section(section, own)
    if unusable:
        blocks.append(wr.H2(text="Runs that are not shown"))
        blocks.append(_items([f"{found.path}: {found.reason}" for found in unusable]))
    return wr.Report(entity=entity, project=project, title=TITLE, blocks=blocks, width="fluid")


def spec(report: wr.Report) -> str:
    """Return the report as JSON, as W&B stores it, after reading it back as W&B's library does.

    Raises:
        pydantic.ValidationError: the JSON is no report.
    """
    text = report._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
    wr.Report._from_model(ReportViewspec.model_validate_json(text))
    return text


def publish(report: wr.Report, page: Path, figures: Sequence[Path]) -> str:
    """Save the report in W&B, and the page and the figures as artifacts of a run there.

    The run has the job type `report`, and makes the project if there is none.

    Args:
        report: the result of `build`.
        page: the HTML page.
        figures: image files.

    Returns:
        The report's address.

    Raises:
        ConnectionError: there is no account, the server cannot be reached, or it refuses.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _publish(report, page, figures, Path(folder))
    except Exception as error:  # W&B's libraries raise Exception itself, too
        told = one_line(error) or type(error).__name__
        where = f"{report.entity}/{report.project}"
        raise ConnectionError(f"W&B: {where} was not published: {told}") from error


def _publish(report: wr.Report, page: Path, figures: Sequence[Path], folder: Path) -> str:
    settings = wandb.Settings(
        show_info=False,
        show_warnings=False,
        show_errors=False,
        silent=True,
        console="off",
        login_timeout=_LOGIN_TIMEOUT,
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", _INIT_TIMEOUT)),
        finish_timeout=_UPLOAD_TIMEOUT,
        finish_timeout_raises=True,
        x_save_requirements=False,
    )
    wandb.setup(settings)
    run = wandb.init(
        mode="online",
        entity=report.entity,
        project=report.project,
        job_type="report",
        name="report",
        dir=folder,
        settings=settings,
    )
    # Not `with`: W&B would print the traceback of an error.
    try:
        for block in report.blocks:
            for runset in block.runsets if isinstance(block, wr.PanelGrid) else ():
                runset.entity, runset.project = report.entity, report.project
        report.save()
        files = {"report": [page], "figures": figures}
        for kind, paths in files.items():
            if not paths:
                continue
            artifact = wandb.Artifact(kind, type=kind)
            for path in paths:
                artifact.add_file(str(path))
            run.log_artifact(artifact).wait(timeout=_UPLOAD_TIMEOUT)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return report.url


# --- blocks ---------------------------------------------------------------------------------------


def _belongs(run: Run, section: Section) -> bool:
    return (
        run.config.get("report") is not None
        and run.experiment == section.experiment
        and (run.data in EMBEDDED) == section.embedded
    )


def _section(section: Section, runs: Sequence[Run]) -> list:
    blocks: list = [wr.H2(text=section.title), wr.P(text=f"Data: {section.data_sets}.")]
    if section.embedded:
        blocks.append(
            wr.CalloutBlock(
                text="This data is a stand-in for the article's. It shows the mechanism and is no "
                "evidence about the article's data."
            )
        )
    if section.versions > 1:
        blocks.append(
            wr.CalloutBlock(
                text=f"These runs were made by {section.versions} versions of the training code: "
                "what differs between arms may be the code."
            )
        )
    if section.look_for:
        blocks += [wr.H3(text="What to look for"), _items(section.look_for)]
    if section.claims:
        blocks += [wr.H3(text="The article's claims"), *_claims(section.claims)]
    blocks += [wr.H3(text="Arms, and what the doctor says of them"), _arms(section.arms)]
    blocks += [wr.H3(text="The runs"), _grid(section, runs)]
    blocks.append(wr.P(text=["These runs again: ", wr.InlineCode(text=section.command)]))
    return blocks


def _items(lines: Sequence[str]) -> wr.UnorderedList:
    return wr.UnorderedList(items=list(lines))


def _claims(claims: Sequence[Judged]) -> list[wr.MarkdownBlock]:
    """Return two tables: a row a claim with its verdict, and a row a part with its evidence."""
    verdicts, evidence = [], []
    for claim in claims:
        theirs = f"The article: {claim.article}." if claim.article else ""
        remark = f"{theirs} {claim.remark}".strip()
        verdicts.append([claim.name, claim.statement, claim.outcome, remark or "–"])
        for part in claim.parts:
            cells = [part.criterion, part.found or "–", part.article or "–", part.outcome]
            evidence.append([claim.name, *cells])
    head = ["claim", "criterion, fixed before the runs", "found, with 95 % interval",
            "article's run", "outcome"]  # fmt: skip
    return [
        _table(["claim", "the article says", "verdict", "remark"], verdicts),
        _table(head, evidence),
    ]


def _arms(arms: Sequence[ArmRow]) -> wr.MarkdownBlock:
    rows = []
    for arm in arms:
        accuracy = "–"
        if arm.accuracy is not None:
            accuracy = f"{arm.accuracy:.1f}"
            if arm.seeds > 1:
                accuracy += f" ({arm.low:.1f} to {arm.high:.1f})"
        causes = ", ".join(f"{name} {count}" for name, count in arm.causes)
        rows.append([arm.label, str(arm.seeds), accuracy, causes or "–"])
    return _table(["arm", "seeds", "last test accuracy (%)", "main cause, by seeds"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> wr.MarkdownBlock:
    return wr.MarkdownBlock(text=markdown(head, [[as_text(cell) for cell in row] for row in rows]))


def as_text(value: str) -> str:
    """Return Markdown of one line that shows the value as it is."""
    return re.sub(r"([\\`*_\[\]<>|~$&#!])", r"\\\1", " ".join(value.split()))


# --- panels ---------------------------------------------------------------------------------------


def _grid(section: Section, runs: Sequence[Run]) -> wr.PanelGrid:
    """Return the panels of an experiment's runs, which W&B finds by their group and data."""
    names = ", ".join(_quoted(name) for name in sorted({run.data for run in runs}))
    group = f"Metric('Group') == {_quoted(section.experiment)}"
    runset = wr.Runset(
        name=section.name, filters=f"{group} and Config('data.value.name') in [{names}]"
    )
    panels = _panels(section, runs)
    for place, panel in enumerate(panels):
        row, column = divmod(place, _COLUMNS)
        panel.layout = wr.Layout(x=column * _WIDTH, y=row * _HEIGHT, w=_WIDTH, h=_HEIGHT)
        panel.max_runs_to_show = min(len(runs), _MOST_LINES)
    return wr.PanelGrid(runsets=[runset], panels=list(panels))


def _panels(section: Section, runs: Sequence[Run]) -> list[wr.LinePlot]:
    # One run of each arm tells what the arm's runs hold.
    examples = [group[0] for group in by_arm(runs).values()]
    log = {chart["title"]: chart["log"] for chart in section.data["charts"]}
    panels = []
    points = [run.tables.metrics("lr_point") for run in examples]
    for test in sorted({int(n) for table in points if not table.empty for n in table["test"]}):
        panels.append(
            wr.LinePlot(
                title=f"Loss against the learning rate, smoothed (test {test})",
                x=f"lr_finder/{test}/lr",
                y=[f"lr_finder/{test}/smoothed_loss"],
                log_x=True,
                log_y=True,
            )
        )
    epochs = [run.tables.metrics("epoch") for run in examples]
    for title, key in _CURVES:
        column = key.replace("/", "_")
        if any(not table.empty and table[column].notna().any() for table in epochs):
            panels.append(wr.LinePlot(title=title, x="epoch", y=[key], log_y=log.get(title)))
    if any(not run.tables.metrics("step").empty for run in examples):
        panels.append(wr.LinePlot(title="Loss of each step", x="step", y=["step/loss"]))
    # W&B draws a histogram over the steps as a heatmap, one key a panel.
    panels += [
        wr.LinePlot(title=f"Gradients of {name}", x="step", y=[f"gradients/{name}"])
        for name in _weights(examples)
    ]
    return panels


def _weights(runs: Sequence[Run]) -> list[str]:
    """Return the names of the weights whose gradients were recorded, in the order of the layers."""
    tables = [run.tables.layers("gradients") for run in runs]
    names = [str(name) for table in tables if not table.empty for name in table["layer"].unique()]
    return [name for name in dict.fromkeys(names) if name.endswith(".weight")]


def _quoted(text: str) -> str:
    """Return the text as a literal of W&B's filter expressions.

    They are Python's, but signs such as `=` and `<` are rewritten in them, within literals too.
    """
    safe = (c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text)
    return f"'{''.join(safe)}'"
