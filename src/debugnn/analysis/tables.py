"""Tables in Markdown, from finished runs and from the configuration's own files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats

from debugnn.analysis.runs import Run, compare
from debugnn.doctor.causes import CAUSES
from debugnn.errors import ConfigError

# Heading → (column of `results.compare`, format).
QUANTITIES = {
    "test accuracy, last epoch (%)": ("final_test_accuracy", "{:.1f}"),
    "test loss, lowest": ("min_test_loss", "{:.3g}"),
    "test loss, last epoch": ("final_test_loss", "{:.3g}"),
    "train accuracy, epoch 0 (%)": ("first_train_accuracy", "{:.1f}"),
    "last batch's loss, last epoch": ("final_last_batch_loss", "{:.3g}"),
}


def comparison(runs: Sequence[Run]) -> str:
    """Ours beside the article's as a Markdown table, a row a run: ours / the article's."""
    table = compare(runs)
    if table.empty:
        raise ConfigError("no finished run repeats one of the article's")
    rows = []
    for _, row in table.iterrows():
        cells = [f"`{row.article_run}`", row.experiment, _arm(row.arm), str(row.epochs)]
        for column, form in QUANTITIES.values():
            sides = [_number(row, column, side, form) for side in ("", "_article")]
            cells.append(" / ".join(sides))
        rows.append((row.experiment, row.seed, cells))
    head = ["article's run", "experiment", "arm", "epochs", *QUANTITIES]
    return markdown(head, [cells for _, _, cells in sorted(rows, key=lambda r: r[:2])])


def pairs(table: pd.DataFrame, values: tuple[str, str]) -> str:
    """What `results.paired` returns as a Markdown table: accuracies, and what differs.

    Means with standard deviations over the seeds; of the differences the 95 % interval of their
    mean (Student's t, paired by seed).
    """
    first, second = values
    rows = []
    for (data, arm, epochs), group in table.groupby(["data", "arm", "epochs"], sort=True):
        sides = [f"{group[side].mean():.2f} ± {group[side].std():.2f}" for side in values]
        differences = [
            _difference(group[f"{prefix}{second}"] - group[f"{prefix}{first}"], form)
            for prefix, form in (("", "{:+.2f}"), ("train_loss_", "{:+.4f}"))
        ]
        # How long a run takes is said in the next column.
        shown = [part for part in arm.split(",") if "=" in part and not part.startswith("trainer.")]
        name = " ".join([data, *(f"`{part}`" for part in shown)])
        rows.append([name, str(epochs), str(len(group)), *sides, *differences])
    change = f"{second} − {first}"
    head = ["data", "epochs", "seeds", *(f"test accuracy, {side} (%)" for side in values)]
    return markdown([*head, change, f"training loss, {change}"], rows)


def _difference(differences: pd.Series, form: str) -> str:
    """Mean and interval."""
    low, high = (form.format(end) for end in interval(differences))
    return f"{form.format(differences.mean())} ({low} to {high})"


def interval(differences: pd.Series) -> tuple[float, float]:
    """The 95 % interval of the mean of at least two paired differences, by Student's t."""
    low, high = stats.t.interval(
        0.95, len(differences) - 1, loc=differences.mean(), scale=differences.sem()
    )
    return float(low), float(high)


def provenance(runs: Sequence[Run]) -> str:
    """On what the runs were made, in a sentence."""
    devices = sorted({run.facts["device"] for run in runs})
    precisions = sorted({run.config["trainer"]["precision"] for run in runs})
    threads = sorted({str(run.facts["threads"]) for run in runs})
    torch = sorted({run.facts["versions"]["torch"] for run in runs})
    commits = sorted({(run.facts["git"]["commit"] or "unknown")[:10] for run in runs})
    dirty = " (with uncommitted changes)" if any(run.facts["git"]["dirty"] for run in runs) else ""
    seeds = sorted({run.seed for run in runs})
    return (
        f"{len(runs)} runs, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, "
        f"{' and '.join(precisions)}, torch {', '.join(torch)}, {', '.join(devices)}, "
        f"{' or '.join(threads)} thread{'s' if threads != ['1'] else ''}, "
        f"commit {', '.join(commits)}{dirty}."
    )


def groups(conf: Path) -> str:
    """The configuration groups with their options, the default one first and in bold."""
    defaults = {}
    for item in yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))["defaults"]:
        defaults |= item if isinstance(item, dict) else {}
    rows = []
    for group, default in defaults.items():
        if group != "experiment" and not group.startswith("override "):
            others = sorted(path.stem for path in (conf / group).glob("*.yaml"))
            others.remove(default)
            rows.append([f"`{group}`", ", ".join([f"**{default}**", *others])])
    return markdown(["group", "options"], rows)


def experiments(conf: Path) -> str:
    """The experiments: what each is about, and what its sweep goes over."""
    rows = []
    for path in sorted((conf / "experiment").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        swept = settings.get("hydra", {}).get("sweeper", {}).get("params", {})
        sweep = "<br>".join(f"`{key}={_short(str(value))}`" for key, value in swept.items())
        about = settings["report"]["title"]
        rows.append([f"`{path.stem}`", about, sweep or "one run"])
    return markdown(["experiment", "about", "sweeps over"], rows)


def causes() -> str:
    """The doctor's vocabulary, each cause with what it means."""
    return markdown(
        ["cause", "is"], [[f"`{name}`", cause.meaning] for name, cause in CAUSES.items()]
    )


def _short(values: str) -> str:
    return ", ".join(value.rpartition(".")[2] if "torch." in value else value
                     for value in values.replace("'", "").split(","))  # fmt: skip


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` in a Markdown file.

    Raises:
        ConfigError: a file without the two marks.
    """
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not start or not end:
        raise ConfigError(f"{path}: the marks <!-- {name} --> and <!-- /{name} --> are missing")
    path.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")


def _arm(arm: str) -> str:
    return "<br>".join(part for part in arm.split(",") if not part.startswith("data="))


def _number(row: pd.Series, column: str, side: str, form: str) -> str:
    """A cell: `–` for what was not measured, NaN for a loss that was."""
    value = row[f"{column}{side}"]
    if not pd.isna(value):
        return form.format(value)
    return "NaN" if "loss" in column and not pd.isna(row[f"nonfinite_from{side}"]) else "–"
