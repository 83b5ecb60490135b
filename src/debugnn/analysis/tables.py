"""Markdown tables of finished runs and of the configuration's options."""

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from debugnn.analysis import statistics
from debugnn.analysis.claims import CLAIMS, words
from debugnn.analysis.claims.claim import Outcome
from debugnn.analysis.figures.canvas import DATA
from debugnn.analysis.runs import Run, by_arm, in_order
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.causes.cause import Cause, no_trials
from debugnn.errors import ConfigError

# Heading → (column of `article.compare`, format).
QUANTITIES = {
    "test accuracy, last epoch (%)": ("final_test_accuracy", "{:.1f}"),
    "test loss, lowest": ("min_test_loss", "{:.3g}"),
    "test loss, last epoch": ("final_test_loss", "{:.3g}"),
    "train accuracy, epoch 0 (%)": ("first_train_accuracy", "{:.1f}"),
    "last batch's loss, last epoch": ("final_last_batch_loss", "{:.3g}"),
}


def comparison(table: pd.DataFrame) -> str:
    """Return the comparison with the article, one row per arm; cells are ours / the article's.

    Ours are means ± standard deviations over the seeds. A loss that was NaN for a seed is NaN.

    Args:
        table: the result of `article.compare`.

    Raises:
        ConfigError: none of the runs repeats one of the article's.
    """
    if table.empty:
        raise ConfigError("no finished run repeats one of the article's")
    rows = []
    keys = ["experiment", "arm", "article_run", "epochs"]
    for (experiment, arm, name, epochs), group in table.groupby(keys):
        place = "<br>".join([experiment, *_parts(arm)])
        cells = [f"`{name}`", place, str(epochs), str(len(group))]
        for column, form in QUANTITIES.values():
            theirs = _number(group.head(1), column, "_article", form)
            cells.append(f"{_number(group, column, '', form)} / {theirs}")
        rows.append(cells)
    return markdown(["article's run", "experiment and arm", "epochs", "seeds", *QUANTITIES], rows)


def verdicts(runs: Sequence[Run]) -> str:
    """Return the article's claims with their verdicts, one row a claim.

    A row's evidence says what was measured and has a line for each part: what was found with its
    95 % interval, and in brackets the article's own number for the same quantity.
    """
    rows = []
    for claim in CLAIMS:
        verdict = claim.judge(runs)
        measured = words.quantity(verdict.results)
        lines = [f"*{measured}*"] if measured else []
        for result in verdict.results:
            found = words.estimate(result) or "no runs"
            theirs = f" [article: {words.article(result)}]" if result.article is not None else ""
            told = len(verdict.results) > 1 or result.outcome is Outcome.DEPENDS
            mark = f" – {words.outcome(result)}" if told else ""
            label = words.label(result, verdict.results)
            lines.append(f"{label}: {found}{theirs}{mark}")
        remark = f"<br>*{claim.remark}*" if claim.remark else ""
        said = f"{claim.statement}{remark}"
        known = any(result.estimate is not None for result in verdict.results)
        evidence = "<br>".join(lines) if known else "no runs"
        rows.append([claim.name, said, f"**{verdict.outcome.value}**", evidence])
    return markdown(["", "the article says", "verdict", "evidence"], rows)


# The part of a claim that the front page quotes beside its picture.
_QUOTED = ("5a", "ReLU net / sigmoid net")
_TOLD = {
    Outcome.HOLDS: "{} hold",
    Outcome.FAILS: "{} do not hold",
    Outcome.DEPENDS: "{} depend on what the article leaves open",
    Outcome.UNDECIDED: "{} need more runs",
}


def headline(runs: Sequence[Run]) -> str:
    """Return how many claims come out how, and the result that the front page's picture shows.

    Raises:
        ConfigError: there are no runs for that result.
    """
    verdicts = {claim.name: claim.judge(runs) for claim in CLAIMS}
    counts = Counter(verdict.outcome for verdict in verdicts.values())
    told = ", ".join(_TOLD[outcome].format(counts[outcome]) for outcome in Outcome
                     if counts[outcome])  # fmt: skip
    name, label = _QUOTED
    (part,) = [result for result in verdicts[name].results if result.label == label]
    if part.estimate is None:
        raise ConfigError(f"claim {name}: no runs for {label}")
    factor, low, high = (
        10**x for x in (part.estimate.value, part.estimate.low, part.estimate.high)
    )
    return (
        f"**Of the article's claims, in {len(CLAIMS)} parts: {told}.** For the picture: the first "
        "layer's gradient norm, as a share of the last layer's at the first step, is "
        f"{factor:.3g} times as large in the ReLU net as in the sigmoid net (95 % interval "
        f"{low:.3g} to {high:.3g}, n = {part.estimate.n} seeds, paired)."
    )


def diagnoses(runs: Sequence[Run]) -> str:
    """Return what the doctor said of the runs: one row an arm, counts over its seeds."""
    rows = []
    for group in _arms_of(runs):
        said = Counter(_diagnosis(run) for run in group)
        counts = ", ".join(f"{name} {count}" for name, count in said.most_common())
        chosen = {run.arm.get("data") for run in runs if run.experiment == group[0].experiment}
        own = group[0].arm.get("data", group[0].data)
        parts = [*_parts(group[0].arm_name), *([f"data={own}"] if len(chosen) > 1 else [])]
        arm = " ".join(f"`{part}`" for part in parts) or "–"
        rows.append([f"`{group[0].experiment}`", arm, str(len(group)), counts])
    return markdown(["experiment", "arm", "seeds", "main cause"], rows)


def _arms_of(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs that a doctor watched, by experiment and arm."""
    watched = [run for run in runs if run.findings is not None]
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in in_order(watched):
        groups.setdefault((run.experiment, run.arm_name), []).append(run)
    return list(groups.values())


def _diagnosis(run: Run) -> str:
    return run.findings["main_cause"] if run.findings else ""


def pairs(table: pd.DataFrame, values: tuple[str, str]) -> str:
    """Return the pairs of runs that differ in one setting, one row per data set and arm.

    Accuracies are means ± standard deviations over the seeds; differences are means with 95 %
    intervals (Student's t, paired by seed).

    Args:
        table: the result of `runs.paired`.
        values: the setting's values in the first and the second run of a pair.
    """
    first, second = values
    rows = []
    for (data, arm, epochs), group in table.groupby(["data", "arm", "epochs"], sort=True):
        sides = [f"{group[side].mean():.2f} ± {group[side].std():.2f}" for side in values]
        differences = [
            _difference((group[f"{prefix}{second}"] - group[f"{prefix}{first}"]).tolist(), form)
            for prefix, form in (("", "{:+.2f}"), ("train_loss_", "{:+.4f}"))
        ]
        # The next column shows the number of epochs.
        shown = [part for part in arm.split(",") if "=" in part and not part.startswith("trainer.")]
        name = " ".join([data, *(f"`{part}`" for part in shown)])
        rows.append([name, str(epochs), str(len(group)), *sides, *differences])
    change = f"{second} − {first}"
    head = ["data", "epochs", "seeds", *(f"test accuracy, {side} (%)" for side in values)]
    return markdown([*head, change, f"training loss, {change}"], rows)


def _difference(differences: Sequence[float], form: str) -> str:
    """Return the mean of the differences and its 95 % interval as text."""
    found = statistics.mean(differences)
    return f"{form.format(found.value)} ({form.format(found.low)} to {form.format(found.high)})"


def provenance(runs: Sequence[Run]) -> str:
    """Return a sentence with the runs' seeds, precision, versions, hardware and commits."""
    devices = sorted({run.facts["device"] for run in runs})
    precisions = sorted({run.config["trainer"]["precision"] for run in runs})
    threads = sorted({str(run.facts["threads"]) for run in runs})
    torch = sorted({run.facts["versions"]["torch"] for run in runs})
    commits = sorted({(run.facts["git"]["commit"] or "unknown")[:10] for run in runs})
    dirty = " (with uncommitted changes)" if any(run.facts["git"]["dirty"] for run in runs) else ""
    seeds = sorted({run.seed for run in runs})
    return (
        f"{len(runs)} run{'s'[: len(runs) > 1]}, seed{'s'[: len(seeds) > 1]} "
        f"{', '.join(map(str, seeds))}, "
        f"{' and '.join(precisions)}, torch {', '.join(torch)}, {', '.join(devices)}, "
        f"{' or '.join(threads)} thread{'s' if threads != ['1'] else ''}, "
        f"commit {', '.join(commits)}{dirty}."
    )


def origins(runs: Sequence[Run]) -> str:
    """Return where the runs of each experiment come from, one row an experiment."""
    rows = []
    for experiment in dict.fromkeys(run.experiment for run in runs):
        own = [run for run in runs if run.experiment == experiment]
        arms = by_arm(own)
        counts = sorted({len(group) for group in arms.values()})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        devices = sorted({run.facts["device"] for run in own})
        versions = sorted({run.facts["versions"]["torch"] for run in own})
        rows.append([f"`{experiment}`", str(len(arms)), seeds, str(len(own)),
                     ", ".join(devices), ", ".join(versions)])  # fmt: skip
    return markdown(["experiment", "arms", "seeds an arm", "runs", "device", "torch"], rows)


def groups(conf: Path) -> str:
    """Return the configuration groups and their options, with the default first and in bold."""
    rows = []
    for group, default in _default_options(conf).items():
        others = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        others.remove(default)
        rows.append([f"`{group}`", ", ".join([f"**{default}**", *others])])
    return markdown(["group", "options"], rows)


def keys(conf: Path) -> str:
    """Return every key with its default and its meaning, as the configuration's files give them.

    A key's meaning is the comment behind it, or the lines of comment above it. The keys of a group
    are those of its default option.
    """
    rows = [[f"`{key}`", *cells] for key, *cells in _commented_keys(conf / "config.yaml")]
    for group, default in _default_options(conf).items():
        for key, *cells in _commented_keys(conf / group / f"{default}.yaml"):
            rows.append([f"`{group}.{key}`", *cells])
    return markdown(["key", "default", "meaning"], rows)


def _default_options(conf: Path) -> dict[str, str]:
    """Return group → default option, as conf/config.yaml lists them."""
    listed = yaml.safe_load((conf / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    options = {
        group: name for item in listed if isinstance(item, dict) for group, name in item.items()
    }
    return {
        group: name
        for group, name in options.items()
        if group != "experiment" and not group.startswith("override ")
    }


_KEY = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: (?P<value>[^#]*?))?(?: *# (?P<comment>.*))?")


def _commented_keys(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, default value and comment of each key in a file of the configuration.

    The sections `defaults` and `hydra` are Hydra's own and left out. A key that holds other keys
    is yielded, with an empty value, if it has a comment.
    """
    above: list[str] = []  # lines of comment since the last key or empty line
    parents: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = _KEY.fullmatch(line)
        if found is None:
            # Comments before the first key describe the option, not the key.
            is_comment = bool(parents) and line.lstrip().startswith("# ")
            above = [*above, line.strip(" #")] if is_comment else []
            continue
        del parents[len(found["indent"]) // 2 :]
        parents.append(found["key"])
        comment, above = found["comment"] or " ".join(above), []
        if parents[0] not in ("defaults", "hydra") and (found["value"] or comment):
            value = f"`{found['value']}`" if found["value"] else ""
            yield ".".join(parents), value, comment


def experiments(conf: Path) -> str:
    """Return the experiments with their titles and the parameters that they sweep."""
    rows = []
    for path in sorted((conf / "experiment").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        swept = settings.get("hydra", {}).get("sweeper", {}).get("params", {})
        sweep = "<br>".join(f"`{key}={_short(str(value))}`" for key, value in swept.items())
        about = settings["report"]["title"]
        rows.append([f"`{path.stem}`", about, sweep or "one run"])
    return markdown(["experiment", "about", "sweeps over"], rows)


def pictures(conf: Path, folder: Path) -> str:
    """Return the experiments' figures, with their captions, as far as `folder` has them.

    Args:
        conf: the folder of the configuration.
        folder: the figures' folder, `figures` beside the page that shows them.
    """
    shown = []
    for path in sorted((conf / "experiment").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        for figure in settings["report"]["figures"]:
            for drawn in sorted(folder.glob(f"{figure['name']}_*.png")):
                if drawn.stem.removeprefix(f"{figure['name']}_") in DATA:
                    title = f"**{figure['title']}** (`experiment={path.stem}`)."
                    picture = f"![{figure['title']}]({folder.name}/{drawn.name})"
                    shown.append(f"{title} {figure['caption']}\n\n{picture}")
    return "\n\n".join(shown)


def causes() -> str:
    """Return the doctor's causes in their order, with kind, meaning, trials and source."""
    rows = [
        [f"`{cause.name}`", cause.kind.value, cause.meaning, _wish(cause), cause.source]
        for cause in CAUSES.values()
    ]
    return markdown(["cause", "kind", "meaning", "trials", "source"], rows)


def _wish(cause: Cause) -> str:
    """Return when the cause asks for which trials, as the first line of its function says it."""
    said = inspect.getdoc(cause.trials)
    if cause.trials is no_trials or said is None:
        return "–"
    return said.splitlines()[0]


def _short(values: str) -> str:
    return ", ".join(value.rpartition(".")[2] if "torch." in value else value
                     for value in values.replace("'", "").split(","))  # fmt: skip


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def survival(folder: Path) -> dict[str, str]:
    """Return what scripts/soak.py and scripts/load.py have measured, as tables by their names.

    Args:
        folder: holds kills.json, faults.json and a load_*.json of each launcher.
    """
    faults = json.loads((folder / "faults.json").read_text(encoding="utf-8"))
    kills = json.loads((folder / "kills.json").read_text(encoding="utf-8"))
    loads = {
        path.stem.removeprefix("load_"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("load_*.json"))
    }
    return {"kills": _kills(kills), "faults": _faults(faults), "load": _load(loads)}


def _kills(kills: Mapping[str, Any]) -> str:
    """Return what became of killed commands, a row for each kind."""
    rows = [
        "| kind of run | kills | commands | as if never killed |",
        "| --- | ---: | ---: | ---: |",
    ]
    total = Counter[str]()
    for kind, counts in kills["kinds"].items():
        rows.append(f"| {kind} | {counts['kills']} | {counts['tried']} | {counts['survived']} |")
        total.update({name: counts[name] for name in ("kills", "tried", "survived")})
    rows.append(f"| all | {total['kills']} | {total['tried']} | {total['survived']} |")
    return "\n".join(rows)


def _faults(faults: Mapping[str, Any]) -> str:
    """Return what became of the faults that tests inject, a row for each kind."""
    rows = ["| fault | injected | as wanted | left out |", "| --- | ---: | ---: | ---: |"]
    total = sum((Counter(counts) for counts in faults["kinds"].values()), Counter[str]())
    for kind, counts in (*faults["kinds"].items(), ("all", total)):
        rows.append(
            f"| {kind} | {counts['injected']} | {counts['as_wanted']} | {counts['left_out']} |"
        )
    return "\n".join(rows)


def _load(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return whether sweeps go on as they began, a row for each figure and a column a launcher."""
    names = next(iter(figures.values()))
    rows = [f"| | {' | '.join(figures)} |", f"| --- |{' ---: |' * len(figures)}"]
    for name in names:
        rows.append(f"| {name} | {' | '.join(f'{own[name]:.3g}' for own in figures.values())} |")
    return "\n".join(rows)


def fill(path: Path, name: str, text: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->` in a Markdown file.

    Raises:
        ConfigError: the file lacks the two marks.
    """
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not start or not end:
        raise ConfigError(f"{path}: the marks <!-- {name} --> and <!-- /{name} --> are missing")
    path.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")


def _parts(arm: str) -> list[str]:
    """Split an arm into its settings, without the data set, which a caption names."""
    return [part for part in arm.split(",") if "=" in part and not part.startswith("data=")]


def _number(rows: pd.DataFrame, column: str, side: str, form: str) -> str:
    """Format a cell: `–` if the value was not measured, NaN if it is a loss that was NaN."""
    values = rows[f"{column}{side}"]
    if values.isna().any():
        lost = "loss" in column and rows[f"nonfinite_from{side}"].notna().any()
        return "NaN" if lost else "–"
    spread = f" ± {form.format(values.std())}" if len(values) > 1 else ""
    return f"{form.format(values.mean())}{spread}"
