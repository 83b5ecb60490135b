"""Finished runs and the article's recorded numbers, as tables.

Reads run directories (see `run`) and `outputs/reference/article_runs.csv`, and nothing else: no
torch, no Hydra, no W&B. Losses stay what they were: NaN in a loss is a loss that was NaN. What was
not measured (a test loss in an epoch without evaluation) is told apart by the column `evaluated`.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from debugnn import records
from debugnn.errors import ConfigError, one_line

# The article's per-epoch numbers, read off its W&B runs.
ARTICLE = Path(__file__).resolve().parents[2] / "outputs" / "reference" / "article_runs.csv"

# Article runs that are the same program as another one: one arm of ours repeats both. The shorter
# sigmoid run is, but for its seed, the first 10 epochs of the longer.
SAME_PROGRAM = {"VG_Converge": ("Vanishing_Grad_1",)}

_QUANTITIES = ("gradients", "parameters", "activations")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. Its tables are read when they are first asked for, and then kept.

    Each table raises ConfigError where the run has no such rows.
    """

    directory: Path
    experiment: str
    arm: dict[str, str]  # the overrides that make the run what it is
    seed: int
    data: str  # name of the data set
    article_run: str | None  # the article's run that this one repeats
    config: dict[str, Any]  # config.yaml
    facts: dict[str, Any]  # run.json

    def steps(self) -> pd.DataFrame:
        """A row a step, columns as in `records.Step`."""
        return self._table("step")

    def epochs(self) -> pd.DataFrame:
        """A row an epoch, columns as in `records.Epoch`, and `evaluated`."""
        return self._table("epoch")

    def lr_points(self) -> pd.DataFrame:
        """A row an iteration of a range test, columns as in `records.LrPoint`."""
        return self._table("lr_point")

    def lr_suggestions(self) -> pd.DataFrame:
        """A row a suggestion, columns as in `records.LrSuggestion`."""
        return self._table("lr_suggestion")

    def layers(self, quantity: str) -> pd.DataFrame:
        """A row a watched step and tensor: epoch, step, layer, then as in `records.TensorStats`.

        Args:
            quantity: gradients, parameters or activations.
        """
        if quantity not in _QUANTITIES:
            raise ValueError(f"{quantity}: allowed are {', '.join(_QUANTITIES)}")
        rows = [
            {"epoch": row["epoch"], "step": row["step"], "layer": layer, **stats}
            for row in self._layer_rows
            for layer, stats in row[quantity].items()
        ]
        if not rows:
            raise ConfigError(f"{self.directory / 'layers.jsonl'}: no {quantity}")
        return _numbers(pd.DataFrame(rows))

    @property
    def report(self) -> dict[str, Any]:
        """The experiment's report block.

        Raises:
            ConfigError: a run of no experiment, which has none.
        """
        report = self.config.get("report")
        if report is None:
            raise ConfigError(f"{self.directory / 'config.yaml'}: no report block")
        return report

    def _table(self, kind: str) -> pd.DataFrame:
        if kind not in self._metrics:
            raise ConfigError(f"{self.directory / 'metrics.jsonl'}: no rows of kind {kind}")
        return self._metrics[kind].copy()

    @cached_property
    def _metrics(self) -> dict[str, pd.DataFrame]:
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in _read(self.directory / "metrics.jsonl"):
            rows.setdefault(row.pop("kind"), []).append(row)
        for row in rows.get("epoch", ()):
            row["evaluated"] = row["test_loss"] is not None
        return {kind: _numbers(pd.DataFrame(found)) for kind, found in rows.items()}

    @cached_property
    def _layer_rows(self) -> list[dict[str, Any]]:
        return [row for row in _read(self.directory / "layers.jsonl") if row["kind"] == "layers"]


def load_runs(root: Path | str, experiment: str | None = None) -> list[Run]:
    """The finished runs under `root`, in the order of their paths, seeds as numbers.

    Unfinished and failed runs are left out.

    Args:
        root: holds `<experiment>/<arm>/seed=<n>/`.
        experiment: only the runs of this one.

    Raises:
        ConfigError: no such directory, or a run's record that cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such directory of runs")
    found = [_load(path) for path in sorted(root.glob(f"{experiment or '*'}/*/seed=*/run.json"))]
    runs = [run for run in found if run is not None]
    return sorted(runs, key=lambda run: (run.experiment, run.directory.parent.name, run.seed))


def _load(path: Path) -> Run | None:
    try:
        facts = records.load(path.read_text(encoding="utf-8"))
        if facts["status"] != "finished":
            return None
        named = {name: facts[name] for name in ("experiment", "arm", "seed", "data", "article_run")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a run's record ({type(error).__name__}: {error})") from None
    settings = path.with_name("config.yaml")
    try:
        config = OmegaConf.to_container(OmegaConf.load(settings))
    except Exception as error:  # YAML's and OmegaConf's errors have no common base
        reason = one_line(error)
        raise ConfigError(f"{settings}: not a run's configuration ({reason})") from None
    return Run(path.parent, **named, config=config, facts=facts)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return list(records.read_jsonl(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the run is incomplete") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not strict JSON lines ({error})") from None


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers that are partly None as float, so that they can be computed with."""
    for column in frame.columns.difference(["rule", "layer", "histogram"]):
        if frame[column].dtype == object:
            frame[column] = frame[column].astype(float)
    return frame


# --- arms ---------------------------------------------------------------------------------------


def select(runs: Iterable[Run], arms: Sequence[str] | None) -> list[Run]:
    """The runs whose arm has every key=value of one of the patterns, in the patterns' order.

    Args:
        arms: patterns as "key=value" or "key=value,key=value"; None takes all runs.
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
    """The arm's keys that differ between the runs, sorted; a key that a run lacks differs."""
    keys = sorted({key for run in runs for key in run.arm})
    return [key for key in keys if len({run.arm.get(key) for run in runs}) > 1]


def by_arm(runs: Iterable[Run]) -> dict[tuple[tuple[str, str], ...], list[Run]]:
    """The runs of each arm, which differ in their seeds alone, in the order that they come in."""
    arms: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        arms.setdefault(tuple(sorted(run.arm.items())), []).append(run)
    return arms


def over_seeds(frames: Mapping[int, pd.DataFrame], column: str, index: str) -> pd.DataFrame:
    """Mean, lowest and highest value of a column over the seeds: index → mean, low, high.

    A value that is not finite, or that a seed lacks, makes the row's NaN: no seed drops out in
    silence.

    Args:
        frames: seed → table.
        index: column that says which rows belong together, epoch or step.
    """
    wide = pd.DataFrame({seed: frame.set_index(index)[column] for seed, frame in frames.items()})
    wide = wide.where(wide.abs() != math.inf)
    return pd.DataFrame(
        {
            "mean": wide.mean(axis=1, skipna=False),
            "low": wide.min(axis=1, skipna=False),
            "high": wide.max(axis=1, skipna=False),
        }
    )


# --- tables -------------------------------------------------------------------------------------


def tidy_epochs(runs: Iterable[Run]) -> pd.DataFrame:
    """The epochs of many runs below each other, each row with its run's names.

    Written by `to_csv(na_rep="NaN")`, a row with evaluated=True and a NaN test loss is a loss that
    was NaN. Runs whose task is no training have no epochs, and no row.
    """
    frames = []
    for run in runs:
        if run.config["task"]["name"] != "train":
            continue
        frame = run.epochs()
        names = {
            "experiment": run.experiment,
            "arm": ",".join(f"{k}={v}" for k, v in run.arm.items()) or "default",
            "seed": run.seed,
            "data": run.data,
            "article_run": run.article_run,
        }
        for place, (name, value) in enumerate(names.items()):
            frame.insert(place, name, value)
        frames.append(frame)
    if not frames:
        raise ConfigError("no finished training to make a table of")
    return pd.concat(frames, ignore_index=True)


def article_epochs(path: Path, run_name: str) -> pd.DataFrame:
    """The epochs that the article recorded of one run, under the names of `records.Epoch`.

    Its `train_loss` is the loss of the epoch's last batch, and is called `last_batch_loss` here.

    Raises:
        ConfigError: no such file, or no such run in it.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row["run"] == run_name]
    except OSError as error:
        raise ConfigError(f"{path}: the article's numbers cannot be read ({error})") from None
    if not rows:
        raise ConfigError(f"{path}: no run {run_name}")
    frame = pd.DataFrame(
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
    return _numbers(frame)


def _measured(text: str) -> float | None:
    return float(text) if text else None


def article_names(run: Run) -> tuple[str, ...]:
    """The article's runs that this run repeats: none, one, or one and its shorter twins."""
    if run.article_run is None:
        return ()
    return (run.article_run, *SAME_PROGRAM.get(run.article_run, ()))


def compare(runs: Iterable[Run], article: Path = ARTICLE) -> pd.DataFrame:
    """Ours beside the article's: a row a run and article run, `x` ours and `x_article` its number.

    Both sides are cut to the epochs that both have (column `epochs`), so that "final" is the same
    epoch. Accuracies in %. `nonfinite_from` is the first epoch whose last batch's loss is NaN or
    infinite, empty where there is none; any other empty cell was not measured.
    """
    rows = []
    for run in runs:
        for name in article_names(run):
            ours, theirs = run.epochs(), article_epochs(article, name)
            epochs = min(len(ours), len(theirs))
            row = {
                "experiment": run.experiment,
                "arm": ",".join(f"{k}={v}" for k, v in run.arm.items()) or "default",
                "seed": run.seed,
                "data": run.data,
                "article_run": name,
                "epochs": epochs,
            }
            theirs = _summary(theirs.head(epochs))
            for quantity, value in _summary(ours.head(epochs)).items():
                row |= {quantity: value, f"{quantity}_article": theirs[quantity]}
            rows.append(row)
    table = pd.DataFrame(rows)
    for column in table.columns[table.columns.str.startswith("nonfinite_from")]:
        table[column] = table[column].astype("Int64")
    return table


def paired(runs: Iterable[Run], setting: str, values: tuple[str, str]) -> pd.DataFrame:
    """Runs that differ in one setting alone, seed by seed: what it does to accuracy and loss.

    A row a pair of runs: data, arm (without the setting), seed, epochs, and of the last epoch the
    test accuracy in % under each of the two values, and the training loss (`train_loss_…`), which
    hangs less on the very last steps.

    Raises:
        ConfigError: no such pair.
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


def first_nonfinite(values: pd.Series) -> int | None:
    """Position of the first NaN or infinity; None where all values are finite."""
    return next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
