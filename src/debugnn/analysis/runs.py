"""Finished runs as tables, wherever they come from.

`directories` reads runs from the directories in which they were trained, `archive` from the compact
files of many runs. Needs neither torch, Hydra nor W&B. A NaN in a loss column means that the loss
was NaN. A test loss of an epoch without an evaluation is NaN too; the column `evaluated` tells the
two apart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from debugnn.errors import ConfigError
from debugnn.records import BOOKKEEPING

QUANTITIES = ("gradients", "parameters", "activations")
# Settings that may differ between two runs of one arm.
_MAY_DIFFER = ("seed", "experiment", *BOOKKEEPING)


class Tables(Protocol):
    """Where a run's rows come from. A file that cannot be read raises ConfigError."""

    def metrics(self, kind: str) -> pd.DataFrame:
        """Return the rows of a kind of record other than `layers`; empty if there are none."""

    def layers(self, quantity: str) -> pd.DataFrame:
        """Return one row for each recorded step and tensor; empty if there are none."""

    def findings(self) -> dict[str, Any] | None:
        """Return the content of findings.json; None without a diagnosis."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    The methods that return a table raise ConfigError if the run has no such rows. Each of the run's
    files is read at its first use and then kept in memory.
    """

    place: str  # where its files are, for messages
    experiment: str
    arm: dict[str, str]  # the overrides that distinguish the run from others of its experiment
    seed: int
    data: str  # name of the data set
    article_run: str | None  # name of the article's run that this one repeats
    config: dict[str, Any]  # content of config.yaml
    facts: dict[str, Any]  # content of run.json
    tables: Tables

    @property
    def arm_name(self) -> str:
        """The arm's overrides as text: key=value,key=value, or `default`."""
        return ",".join(f"{key}={value}" for key, value in self.arm.items()) or "default"

    @property
    def settings(self) -> dict[str, str]:
        """What the run computes, as dotted key → value; without its seed and where it is kept."""
        flat = pd.json_normalize(self.config).iloc[0].to_dict()

        def counts(key: str) -> bool:
            return not any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)

        return {key: str(value) for key, value in flat.items() if counts(key)}

    def steps(self) -> pd.DataFrame:
        """Return one row per step, with the columns of `records.Step`."""
        return self._rows("step")

    def epochs(self) -> pd.DataFrame:
        """Return one row per epoch, with the columns of `records.Epoch` and `evaluated`."""
        return self._rows("epoch")

    def lr_points(self) -> pd.DataFrame:
        """Return one row per iteration of a range test, with the columns of `records.LrPoint`."""
        return self._rows("lr_point")

    def lr_suggestions(self) -> pd.DataFrame:
        """Return one row per suggested rate, with the columns of `records.LrSuggestion`."""
        return self._rows("lr_suggestion")

    def layers(self, quantity: str) -> pd.DataFrame:
        """Return one row for each recorded step and tensor.

        The columns are epoch, step, layer and those of `records.TensorStats`.

        Args:
            quantity: gradients, parameters or activations.
        """
        if quantity not in QUANTITIES:
            raise ValueError(f"{quantity}: allowed are {', '.join(QUANTITIES)}")
        rows = self.tables.layers(quantity)
        if rows.empty:
            raise ConfigError(f"{self.place}: no {quantity} were recorded")
        return rows.copy()

    @property
    def findings(self) -> dict[str, Any] | None:
        """The doctor's report, as findings.json holds it; None if no doctor watched the run."""
        return self.tables.findings()

    @property
    def report(self) -> dict[str, Any]:
        """The `report` section of the experiment's configuration.

        Raises:
            ConfigError: the run belongs to no experiment, and so has no such section.
        """
        report = self.config.get("report")
        if report is None:
            raise ConfigError(f"{self.place}: its configuration has no report section")
        return report

    def _rows(self, kind: str) -> pd.DataFrame:
        rows = self.tables.metrics(kind)
        if rows.empty:
            raise ConfigError(f"{self.place}: no rows of kind {kind}")
        return rows.copy()


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Return the runs sorted by experiment, arm and seed."""
    return sorted(runs, key=lambda run: (run.experiment, run.arm_name, run.seed))


def numeric_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert columns that mix numbers and None to float, in place, and return the table."""
    for column in frame.columns.difference(["rule", "layer", "histogram"]):
        if frame[column].dtype == object:
            frame[column] = frame[column].astype(float)
    return frame


# --- arms ---------------------------------------------------------------------------------------


def select(runs: Iterable[Run], arms: Sequence[str] | None) -> list[Run]:
    """Return the runs whose arm contains every key=value of one of the patterns.

    Args:
        arms: patterns of the form "key=value" or "key=value,key=value"; None selects all runs.

    Returns:
        The runs in the order of the patterns, each run once.
    """
    runs = list(runs)
    if arms is None:
        return runs
    chosen: list[Run] = []
    for pattern in arms:
        wanted = dict(item.split("=", 1) for item in pattern.split(","))
        chosen += [r for r in runs if wanted.items() <= r.arm.items() and r not in chosen]
    return chosen


def varying(runs: Sequence[Run]) -> list[str]:
    """Return the arm's keys whose values differ between the runs, sorted.

    A key that only some of the runs have differs.
    """
    keys = sorted({key for run in runs for key in run.arm})
    return [key for key in keys if len({run.arm.get(key) for run in runs}) > 1]


def by_arm(runs: Iterable[Run]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    """Group the runs by arm, so that the runs of one group differ in their seeds alone."""
    arms: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        arms.setdefault(tuple(sorted(run.arm.items())), []).append(run)
    return arms


def over_seeds(frames: Mapping[int, pd.DataFrame], column: str, index: str) -> pd.DataFrame:
    """Return the mean, median, lowest and highest value of a column over the seeds.

    A row in which one seed's value is missing or not finite is NaN: a seed is never left out of
    a mean silently.

    Args:
        frames: seed → table.
        column: the column to aggregate.
        index: the column by which rows are matched, `epoch` or `step`.

    Returns:
        A table with the columns mean, median, low and high, indexed by `index`.
    """
    wide = pd.DataFrame({seed: frame.set_index(index)[column] for seed, frame in frames.items()})
    wide = wide.where(wide.abs() != math.inf)
    return pd.DataFrame(
        {
            "mean": wide.mean(axis=1, skipna=False),
            "median": wide.median(axis=1, skipna=False),
            "low": wide.min(axis=1, skipna=False),
            "high": wide.max(axis=1, skipna=False),
        }
    )


# --- tables -------------------------------------------------------------------------------------


def paired(runs: Iterable[Run], setting: str, values: tuple[str, str]) -> pd.DataFrame:
    """Pair the runs that differ in one setting alone, seed by seed.

    Args:
        setting: the key that the two runs of a pair differ in, for example `trainer.precision`.
        values: the setting's values in the first and the second run.

    Returns:
        One row per pair: data, arm (without the setting), seed, epochs, and, for each of the two
        values, the last epoch's test accuracy in % (column named after the value) and training
        loss (`train_loss_<value>`), which depends less on the last few steps.

    Raises:
        ConfigError: there is no such pair.
    """
    sides: dict[tuple, dict[str, float]] = {}
    for run in runs:
        others = (f"{k}={v}" for k, v in run.arm.items() if k not in (setting, "data"))
        arm = ",".join(others) or "default"
        value = run.arm.get(setting)
        if value in values and run.config["task"]["name"] == "train":
            epochs = run.epochs()
            pair = sides.setdefault((run.data, arm, run.seed, len(epochs)), {})
            pair[value] = epochs["test_accuracy"].iloc[-1]
            pair[f"train_loss_{value}"] = epochs["train_loss"].iloc[-1]
    rows = [
        {"data": data, "arm": arm, "seed": seed, "epochs": epochs, **pair}
        for (data, arm, seed, epochs), pair in sides.items()
        if set(values) <= set(pair)
    ]
    if not rows:
        raise ConfigError(f"no two finished runs that differ in {setting}={' and '.join(values)}")
    return pd.DataFrame(rows)


def first_nonfinite(values: pd.Series) -> int | None:
    """Return the position of the first NaN or infinity, or None if all values are finite."""
    return next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
