"""What the page shows of each experiment, as plain values.

Series hold numbers of five digits and None where a value is missing or not finite.
"""

import base64
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from debugnn.analysis.archive import version
from debugnn.analysis.claims import CLAIMS, words
from debugnn.analysis.claims.claim import EMBEDDED, Claim, Outcome
from debugnn.analysis.figures.canvas import DATA, arm_label, short
from debugnn.analysis.figures.layers import visible_shares
from debugnn.analysis.runs import Run, by_arm, over_seeds, varying
from debugnn.errors import ConfigError

# Nobody can tell more lines apart. Of an experiment with more arms, the lines of half as many of
# the best and of the worst arms are shown at first, and only their layers are kept.
_MOST_LINES = 8
# A claim with more parts shows them in its table of evidence alone.
_MOST_PARTS = 5
# A series that reaches this many times as far as the median one would press the others flat. It is
# there, and switched off at first.
_DWARFS = 50
_DECADES_APART = 1e4  # positive values that differ by more are shown on a logarithmic axis at first


@dataclass(frozen=True)
class Part:
    """One part of a claim, in words: its criterion and what was found."""

    label: str
    criterion: str
    outcome: str
    found: str
    article: str


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict, in words.

    Attributes:
        name: its number, with a letter where a claim of the article has parts.
        statement: what the article says.
        outcome: the verdict.
        quantity: what all parts measure; "" if they measure several quantities.
        summary: how many parts come out how, of a claim with many; "" of one with few.
        parts: each with its criterion and what was found.
        article: what the article shows for it; "" where it shows nothing.
        remark: what the verdict depends on, or where the article is wrong; "" where nothing is to
            be said.
    """

    name: str
    statement: str
    outcome: str
    quantity: str
    summary: str
    parts: tuple[Part, ...]
    article: str
    remark: str


@dataclass(frozen=True)
class ArmRow:
    """One row of an experiment's table of arms.

    Attributes:
        label: the arm's settings.
        seeds: number of runs.
        accuracy: last test accuracy in %, mean over the seeds; None without one.
        low: the lowest of the seeds.
        high: the highest.
        causes: the doctor's main causes with their counts, the commonest first.
        said: what the doctor says of the first seed, line by line.
    """

    label: str
    seeds: int
    accuracy: float | None
    low: float | None
    high: float | None
    causes: tuple[tuple[str, int], ...]
    said: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """An experiment on one kind of data.

    Attributes:
        name: identifies the section.
        experiment: its name.
        title: of the experiment.
        look_for: sentences that say what to look for.
        data_sets: names of its data, in words.
        embedded: True if the data is a stand-in for the article's.
        versions: number of versions of the training code that made its runs.
        command: what makes these runs again; a line for each arm of runs without an experiment.
        claims: those that the experiment decides.
        keys: settings whose values name the arms; none if the arms' names hold them.
        arms: one row an arm.
        featured: number of arms that are drawn at first.
        data: what the scripts of the page draw: charts, heatmaps, networks.
    """

    name: str
    experiment: str
    title: str
    look_for: tuple[str, ...]
    data_sets: str
    embedded: bool
    versions: int
    command: str
    claims: tuple[Judged, ...]
    keys: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    featured: int
    data: dict[str, Any]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each experiment and kind of data, in the order of the article's claims.

    Then come experiments that decide no claim, and last the runs without an experiment.
    """
    groups: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.experiment, run.data in EMBEDDED), []).append(run)
    order = {claim.experiment: place for place, claim in reversed(list(enumerate(CLAIMS)))}

    def place(key: tuple[str, bool]) -> tuple:
        alone = groups[key][0].config.get("report") is None
        return alone, order.get(key[0], len(CLAIMS)), key

    keys = sorted(groups, key=place)
    return [_section(*key, groups[key]) for key in keys]


def _section(experiment: str, embedded: bool, runs: Sequence[Run]) -> Section:
    report = max(runs, key=lambda run: run.facts["started"]).config.get("report")
    keys, groups = _labelled([*by_arm(runs).values()])
    featured = _featured(groups)
    return Section(
        name=f"{experiment}{'-embedded' if embedded else ''}",
        experiment=experiment,
        title=report["title"] if report else "Runs without an experiment",
        look_for=tuple(f["caption"] for f in report["figures"] if f["caption"]) if report else (),
        data_sets=", ".join(DATA.get(d, d) for d in sorted({run.data for run in runs})),
        embedded=embedded,
        versions=len({version(run) for run in runs}),
        command=_command(experiment, report, embedded, [*groups.values()]),
        claims=tuple(_judged(claim, runs, embedded) for claim in CLAIMS
                     if claim.experiment == experiment),
        keys=keys,
        arms=tuple(_arm_row(label, group) for label, group in groups.items()),
        featured=len(featured),
        data={
            "charts": _charts(groups, featured),
            "heatmaps": _heatmaps(featured),
            "networks": _networks(featured),
        },
    )  # fmt: skip


def _labelled(
    groups: Sequence[Sequence[Run]],
) -> tuple[tuple[str, ...], dict[str, Sequence[Run]]]:
    """Return label → runs of an arm: what distinguishes it from the others, or all its settings.

    Before them comes which settings the labels hold the values of, if they do not name them.
    """
    if len(groups) == 1:
        return (), {groups[0][0].arm_name.replace(",", ", "): groups[0]}
    keys = varying([group[0] for group in groups])
    # The number of epochs mostly follows from the task. It is named where nothing else differs.
    without = [key for key in keys if key != "trainer.epochs"]
    for chosen in (without, keys):
        labelled = {arm_label(group[0], chosen): group for group in groups}
        if len(labelled) == len(groups):
            alike = all(set(chosen) <= group[0].arm.keys() for group in groups)
            return tuple(map(short, chosen)) if alike else (), labelled
    return (), {group[0].arm_name: group for group in groups}


def _featured(groups: Mapping[str, Sequence[Run]]) -> dict[str, Sequence[Run]]:
    """Return the arms that are shown at first: all, or the best and the worst of many."""
    if len(groups) <= _MOST_LINES:
        return dict(groups)

    def accuracy(label: str) -> float:
        values = [_last_accuracy(run) for run in groups[label]]
        return float(np.mean([-math.inf if value is None else value for value in values]))

    ranked = sorted(groups, key=accuracy)
    chosen = {*ranked[: _MOST_LINES // 2], *ranked[-_MOST_LINES // 2 :]}
    return {label: group for label, group in groups.items() if label in chosen}


def _command(
    experiment: str,
    report: Mapping[str, Any] | None,
    embedded: bool,
    arms: Sequence[Sequence[Run]],
) -> str:
    if report is not None:
        kind = " --data article" if not embedded and report["data"].get("article") else ""
        seeds = ",".join(str(seed) for seed in sorted({run.seed for arm in arms for run in arm}))
        command = f"python scripts/reproduce.py --experiments {experiment}{kind} --seeds {seeds}"
        if len(arms) > 1:
            return command
        run = arms[0][0]
        words = [_override(run, key, value) for key, value in run.arm.items() if key != "data"]
        return " ".join([command, *words])
    lines = []
    for group in arms:
        seeds = ",".join(str(run.seed) for run in group)
        many = " -m" if len(group) > 1 else ""
        words = [_override(group[0], key, value) for key, value in group[0].arm.items()]
        lines.append(" ".join([f"python train.py{many}", *words, f"seed={seeds}"]))
    return "\n".join(lines)


def _override(run: Run, key: str, value: str) -> str:
    """Return the override of a run's arm as it is typed; an arm holds classes without a module."""
    section: Any = run.config
    for part in key.split("."):
        section = section.get(part) if isinstance(section, dict) else None
    if "." in key and isinstance(section, dict) and "_target_" in section:
        key, value = f"{key}._target_", section["_target_"]
    return shlex.quote(f"{key}={value}")


# --- claims and arms ------------------------------------------------------------------------------


def _judged(claim: Claim, runs: Sequence[Run], embedded: bool) -> Judged:
    verdict = claim.judge(runs, embedded=embedded)
    parts = []
    for part, result in zip(claim.parts, verdict.results, strict=True):
        found = words.estimate(result)
        # The number of seeds stands in the estimate already.
        missing = result.why if result.outcome is Outcome.UNDECIDED else ""
        told = f"{found} – {missing}" if found and missing else found or missing
        label = words.label(result, verdict.results)
        parts.append(
            Part(label, part.criterion(), words.outcome(result), told, words.article(result))
        )
    counts = Counter(part.outcome for part in parts)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    summary = f"Of {len(parts)} parts: {said}" if len(parts) > _MOST_PARTS else ""
    return Judged(claim.name, claim.statement, verdict.outcome.value,
                  words.quantity(verdict.results), summary, tuple(parts),
                  claim.article, claim.remark)  # fmt: skip


def _arm_row(label: str, group: Sequence[Run]) -> ArmRow:
    accuracies = [value for run in group if (value := _last_accuracy(run)) is not None]
    known = len(accuracies) == len(group)
    reports = [run.findings for run in group if run.findings is not None]
    causes = Counter(report["main_cause"] for report in reports)
    return ArmRow(
        label=label,
        seeds=len(group),
        accuracy=sum(accuracies) / len(accuracies) if known else None,
        low=min(accuracies) if known else None,
        high=max(accuracies) if known else None,
        causes=tuple(causes.most_common()),
        said=_said(reports[0]) if reports else (),
    )


def _last_accuracy(run: Run) -> float | None:
    try:
        value = float(run.epochs()["test_accuracy"].iloc[-1])
    except ConfigError:  # a range test
        return None
    return value if math.isfinite(value) else None


def _said(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the reason of a verdict, then of each finding what was seen and what to change."""
    lines = [report["reason"]]
    for finding in report["findings"][:3]:
        lines.append(f"{finding['severity']}: {finding['cause']}: {finding['summary']}")
        if finding["fix"]:
            lines.append(f"fix: {finding['fix']}")
    return tuple(line for line in lines if line)


# --- charts ---------------------------------------------------------------------------------------


def _charts(
    groups: Mapping[str, Sequence[Run]], featured: Mapping[str, Sequence[Run]]
) -> list[dict[str, Any]]:
    """Return the charts of an experiment: range tests, then losses and accuracies of the arms."""
    charts = _range_tests(groups)
    trained = {label: group for label, group in groups.items() if _has_epochs(group[0])}
    if not trained:
        return charts
    for title, column in (
        ("Training loss", "train_loss"),
        ("Test loss", "test_loss"),
        ("Test accuracy (%)", "test_accuracy"),
    ):
        series, epochs = _bands(trained, column)
        for one in series:
            one["hidden"] |= one["name"] not in featured
        values = [v for one in series for v in one["mean"] if v is not None and not one["hidden"]]
        if values:
            log = min(values) > 0 and max(values) / min(values) > _DECADES_APART
            charts.append({"title": title, "x": epochs, "xLabel": "epoch", "series": series,
                           "log": log, "xLog": False})  # fmt: skip
    return charts


def _has_epochs(run: Run) -> bool:
    return not run.tables.metrics("epoch").empty


def _bands(
    groups: Mapping[str, Sequence[Run]], column: str
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return for each arm its mean, lowest and highest value over the seeds, by epoch."""
    tables = {
        label: over_seeds({run.seed: run.epochs() for run in group}, column, "epoch")
        for label, group in groups.items()
    }
    epochs = sorted(set().union(*(table.index for table in tables.values())))
    series: list[dict[str, Any]] = []
    for label, table in tables.items():
        aligned = table.reindex(epochs)
        if aligned["mean"].notna().any():
            bands = {name: numbers(aligned[name]) for name in ("mean", "low", "high")}
            series.append({"name": label, "seeds": len(groups[label]), **bands})
    reach = [max(abs(v) for v in one["mean"] if v is not None) for one in series]
    for one, own in zip(series, reach, strict=True):
        one["hidden"] = bool(own > _DWARFS * np.median(reach))
    return series, [float(epoch) for epoch in epochs]


def _range_tests(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    for group in groups.values():
        points = group[0].tables.metrics("lr_point")
        if not points.empty and group[0].config["task"]["name"] == "lr_find":
            break
    else:
        return []
    wide = points.pivot_table(index="lr", columns="test", values="smoothed_loss")
    series = [
        {"name": f"test {test}", "seeds": 1, "mean": (mean := numbers(wide[test])),
         "low": mean, "high": mean, "hidden": False}
        for test in wide.columns
    ]  # fmt: skip
    title = f"Loss against the learning rate, smoothed (seed {group[0].seed})"
    return [{"title": title, "x": numbers(wide.index), "xLabel": "learning rate",
             "series": series, "log": True, "xLog": True}]  # fmt: skip


def numbers(values: Any) -> list[float | None]:
    """Return values rounded to five digits; None for NaN and the infinities."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


# --- layers ---------------------------------------------------------------------------------------


def _heatmaps(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return the histograms of each weight's gradient over the steps, for each arm's first seed.

    `shares` holds a byte for each cell, rows from the smallest magnitude up: 0 for nothing, and
    1 to 255 for a share of 10^-3 to 1 on a logarithmic scale.
    """
    maps = []
    for label, group in groups.items():
        table = group[0].tables.layers("gradients")
        if table.empty or "histogram" not in table:
            continue
        tensors = [(str(name), rows) for name, rows in table.groupby("layer", sort=False)
                   if str(name).endswith(".weight")]  # fmt: skip
        try:
            edges, shares = visible_shares([rows for _, rows in tensors])
        except ConfigError:  # no gradient of this arm is finite and other than zero
            continue
        cells = [np.clip(1 + 254 * (np.log10(np.maximum(share, 1e-9)) + 3) / 3, 0, 255)
                 for share in shares]  # fmt: skip
        maps.append(
            {
                "arm": label,
                "seed": group[0].seed,
                "edges": [round(float(edge), 3) for edge in np.log10(edges)],
                "tensors": [
                    {
                        "name": name,
                        "steps": rows["step"].tolist(),
                        "shares": base64.b64encode(cell.astype(np.uint8).tobytes()).decode(),
                    }
                    for (name, rows), cell in zip(tensors, cells, strict=True)
                ],
            }
        )
    return maps


def _networks(groups: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return for each arm's first seed the state of each layer at each recorded step.

    What follows a layer with weights, up to the next one, belongs to it: its dead units and its
    saturated values are those of its activation.
    """
    networks = []
    for label, group in groups.items():
        gradients = group[0].tables.layers("gradients")
        if gradients.empty:
            continue
        weights = gradients[gradients["layer"].str.endswith(".weight")]
        steps = weights["step"].unique()
        norms = _by_layer(weights, "norm", steps)
        outputs = _outputs_of(group[0].tables.layers("activations"), norms, steps)
        losses = group[0].tables.metrics("step").set_index("step")["loss"].reindex(steps)
        networks.append(
            {
                "arm": label,
                "seed": group[0].seed,
                "steps": steps.tolist(),
                "loss": numbers(losses.interpolate(limit_area="inside").ffill()),
                "layers": [
                    {
                        "name": name.removesuffix(".weight"),
                        "gradient": numbers(values),
                        **outputs.get(name.removesuffix(".weight"), {}),
                    }
                    for name, values in norms.items()
                ],
            }
        )
    return networks


def _outputs_of(
    active: pd.DataFrame, weights: Iterable[str], steps: np.ndarray
) -> dict[str, dict[str, list[float | None]]]:
    """Return layer with weights → dead units, saturated values and deviation of its output."""
    own = {name.removesuffix(".weight") for name in weights}
    last: dict[str, str] = {}  # layer with weights → the last that follows it, itself if none does
    layer = None
    for name in active["layer"].unique() if not active.empty else ():
        layer = name if name in own else layer
        if layer is not None:
            last[layer] = name
    columns = {
        column: _by_layer(active, column, steps)
        for column in ("dead_units", "saturated", "std") if column in active
    }  # fmt: skip
    return {
        layer: {column: numbers(tables[name]) for column, tables in columns.items()}
        for layer, name in last.items()
    }


def _by_layer(table: pd.DataFrame, column: str, steps: np.ndarray) -> dict[str, pd.Series]:
    """Return layer → the column's value at each of the steps, in the order of the layers."""
    return {
        str(name): rows.set_index("step")[column].astype(float).reindex(steps)
        for name, rows in table.groupby("layer", sort=False)
    }
