"""The numbers that the article's notebooks recorded, and the comparison of our runs with them.

`article_runs.csv`, beside this file, holds them: one row for each epoch of each W&B run of the
article, with the columns run, epoch, train_loss (the loss of the epoch's last batch),
train_accuracy, test_loss and test_accuracy (in %). An empty cell was not measured.
"""

import csv
from collections.abc import Iterable
from importlib.resources import files

import pandas as pd

from debugnn.analysis.runs import Run, first_nonfinite, numeric_columns
from debugnn.errors import ConfigError

# Article runs that were made by the same program: one arm of ours repeats both. Except for its
# seed, the shorter run is the first 10 epochs of the longer one.
SAME_PROGRAM = {"VG_Converge": ("Vanishing_Grad_1",)}


_TABLE = files("debugnn.analysis") / "article_runs.csv"


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader(_TABLE.read_text(encoding="utf-8").splitlines()))


# Names of all runs that the article recorded.
ARTICLE_RUNS = tuple(dict.fromkeys(row["run"] for row in _rows()))


def article_epochs(name: str) -> pd.DataFrame:
    """Return the epochs that the article recorded of one run.

    Args:
        name: the run's name in the article, for example `VG_Converge`.

    Returns:
        One row per epoch, with the column names of `records.Epoch` and `evaluated`, which is False
        where no test loss was measured. The article's `train_loss` is the loss of the epoch's last
        batch; it is called `last_batch_loss` here.

    Raises:
        ConfigError: the article has no run of this name.
    """
    rows = [row for row in _rows() if row["run"] == name]
    if not rows:
        raise ConfigError(f"report.article: the article has no run {name}")
    return numeric_columns(
        pd.DataFrame(
            {
                "epoch": int(row["epoch"]),
                "last_batch_loss": float(row["train_loss"]),
                "train_accuracy": _measured(row["train_accuracy"]),
                "test_loss": _measured(row["test_loss"]),
                "test_accuracy": _measured(row["test_accuracy"]),
                "evaluated": row["test_loss"] != "",
            }
            for row in rows
        )
    )


def _measured(text: str) -> float | None:
    return float(text) if text else None


def article_names(run: Run) -> tuple[str, ...]:
    """Return the names of the article's runs that this run repeats.

    None, one, or one and the shorter runs of the same program.
    """
    if run.article_run is None:
        return ()
    return (run.article_run, *SAME_PROGRAM.get(run.article_run, ()))


def compare(runs: Iterable[Run]) -> pd.DataFrame:
    """Return our numbers beside the article's.

    Both sides are cut to the epochs that both have (column `epochs`), so that "final" is the same
    epoch on both.

    Returns:
        One row for each run and article run: column `x` is ours and `x_article` the article's.
        Accuracies are in %. `nonfinite_from` is the first epoch whose last batch's loss is NaN or
        infinite, empty where there is none. Every other empty cell was not measured.
    """
    rows = []
    for run in runs:
        for name in article_names(run):
            ours, theirs = run.epochs(), article_epochs(name)
            epochs = min(len(ours), len(theirs))
            row = {
                "experiment": run.experiment,
                "arm": run.arm_name,
                "seed": run.seed,
                "data": run.data,
                "article_run": name,
                "epochs": epochs,
            }
            recorded = _summary(theirs.head(epochs))
            for quantity, value in _summary(ours.head(epochs)).items():
                row |= {quantity: value, f"{quantity}_article": recorded[quantity]}
            rows.append(row)
    table = pd.DataFrame(rows)
    for column in table.columns[table.columns.str.startswith("nonfinite_from")]:
        table[column] = table[column].astype("Int64")
    return table


def _summary(epochs: pd.DataFrame) -> dict[str, float | None]:
    first, last = epochs.iloc[0], epochs.iloc[-1]
    nonfinite = first_nonfinite(epochs["last_batch_loss"])
    return {
        "first_train_accuracy": first["train_accuracy"],
        "first_last_batch_loss": first["last_batch_loss"],
        "final_last_batch_loss": last["last_batch_loss"],
        "first_test_loss": first["test_loss"],
        "min_test_loss": epochs["test_loss"].min(),
        "final_test_loss": last["test_loss"],
        "best_test_accuracy": epochs["test_accuracy"].max(),
        "final_test_accuracy": last["test_accuracy"],
        "nonfinite_from": None if nonfinite is None else epochs["epoch"].iloc[nonfinite],
    }
