"""The results of many runs in a few small files, which stay when the runs are gone.

`outputs/reference/results/<experiment>/` holds gzipped tables: a row for each run (runs), epoch
(epochs), some of the steps (steps), each row of a range test (lr_points, lr_suggestions), and
statistics of layers at some of the recorded steps (layers). The column `run` numbers the rows of
`runs`.

What is left out: steps beyond `STEPS` a run and recorded steps beyond `RECORDS` (of an arm's first
seed) or `FEW_RECORDS` (of the others), where the first and the last are kept; histograms, except of
the first seed's gradients; statistics of parameters, except of the first seed's; digits after the
sixth.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from debugnn import records
from debugnn.analysis.directories import Unusable
from debugnn.analysis.runs import QUANTITIES, Run, in_order, numeric_columns
from debugnn.errors import ConfigError, one_line
from debugnn.files import replacing

STEPS, FIRST_STEPS = 200, 20  # of a run; the first ones are kept without a gap
RECORDS, FEW_RECORDS = 60, 20
_DIGITS = "%.6g"
_METRICS = {"step": "steps", "epoch": "epochs", "lr_point": "lr_points",
            "lr_suggestion": "lr_suggestions"}  # fmt: skip
_TEXTS = ("layer", "quantity", "histogram", "rule")  # columns that hold no numbers
_NESTED = ("arm", "config", "facts", "findings")  # columns of `runs` that hold JSON


class InMemory:
    """The thinned tables of one run; implements `runs.Tables`.

    Args:
        metrics: kind of record → its rows.
        layers: quantity → its rows.
        findings: content of findings.json.
    """

    def __init__(
        self,
        metrics: dict[str, pd.DataFrame],
        layers: dict[str, pd.DataFrame],
        findings: dict[str, Any] | None,
    ) -> None:
        self._metrics, self._layers, self._findings = metrics, layers, findings

    def metrics(self, kind: str) -> pd.DataFrame:
        """Return the kept rows of a kind of record."""
        return self._metrics.get(kind, pd.DataFrame())

    def layers(self, quantity: str) -> pd.DataFrame:
        """Return the kept statistics of tensors."""
        return self._layers.get(quantity, pd.DataFrame())

    def findings(self) -> dict[str, Any] | None:
        """Return the content of findings.json."""
        return self._findings


def compact(run: Run, *, first: bool) -> Run:
    """Return the run with thinned tables, which are in memory.

    Args:
        run: its tables may be those of a directory.
        first: True for the first seed of an arm, of which more is kept.

    Raises:
        ConfigError: one of its files cannot be read.
    """
    metrics = {kind: run.tables.metrics(kind) for kind in _METRICS}
    metrics["step"] = _thinned(metrics["step"], STEPS, FIRST_STEPS)
    layers = {}
    for quantity in QUANTITIES if first else ("gradients", "activations"):
        rows = _thinned(run.tables.layers(quantity), RECORDS)
        # The few steps are among those of the first seed, so that seeds can be compared.
        layers[quantity] = rows if first else _thinned(rows, FEW_RECORDS)
        if not (first and quantity == "gradients"):
            layers[quantity] = layers[quantity].drop(columns="histogram", errors="ignore")
    tables = InMemory(metrics, layers, run.findings)
    return Run(run.place, run.experiment, run.arm, run.seed, run.data, run.article_run, run.config,
               run.facts, tables)  # fmt: skip


def _thinned(frame: pd.DataFrame, most: int, first: int = 1) -> pd.DataFrame:
    """Keep at most `most` steps: the first ones, and of all of them some that are evenly spaced."""
    if frame.empty:
        return frame
    steps = frame["step"].unique()
    if len(steps) <= most:
        return frame
    spaced = steps[np.linspace(0, len(steps) - 1, most - first + 1).round().astype(int)]
    return frame[frame["step"].isin({*steps[:first], *spaced})].reset_index(drop=True)


# --- merging -------------------------------------------------------------------------------------


def gather(
    found: Iterable[Run | Unusable], kept: Iterable[Run] = ()
) -> tuple[list[Run], list[Unusable]]:
    """Thin the runs, one after the other, and collect what cannot be used.

    Args:
        found: runs of directories, and what could not be used.
        kept: runs that are there already: they decide which seed is an arm's first.
    """
    first: dict[tuple[str, str], int] = {}
    for run in kept:
        first[_arm(run)] = min(first.get(_arm(run), run.seed), run.seed)
    runs: list[Run] = []
    unusable: list[Unusable] = []
    for item in found:
        if isinstance(item, Unusable):
            unusable.append(item)
            continue
        first[_arm(item)] = min(first.get(_arm(item), item.seed), item.seed)
        try:
            runs.append(compact(item, first=item.seed == first[_arm(item)]))
        except ConfigError as error:
            unusable.append(Unusable(Path(item.place), str(error)))
    return in_order(runs), unusable


def merge(
    kept: Iterable[Run], found: Iterable[Run | Unusable], *, replace: bool = False
) -> tuple[list[Run], list[Unusable]]:
    """Add runs to those that are kept; a run that is there already is replaced.

    Args:
        kept: runs of the archive.
        found: new runs, and what could not be used.
        replace: drop kept runs of an experiment that were made by another version of the training
            code, or with other settings, than the new ones.

    Returns:
        All runs, compact, and what could not be used.

    Raises:
        ConfigError: the runs of an experiment were made by different versions of the training
            code, or those of an arm with different settings; not if it is only the kept ones that
            differ and `replace` is given.
    """
    merged = {_key(run): run for run in kept}
    runs, unusable = gather(found, merged.values())
    new = {_key(run): run for run in runs}
    if replace:
        merged = {key: run for key, run in merged.items() if not _outdated(run, new)}
    merged |= new
    _check_same(merged.values())
    return in_order(merged.values()), unusable


def _arm(run: Run) -> tuple[str, str]:
    return run.experiment, run.arm_name


def _key(run: Run) -> tuple[str, str, int]:
    return (*_arm(run), run.seed)


def _outdated(run: Run, new: dict[tuple, Run]) -> bool:
    """True if there are new runs of its experiment, made by another version of the code."""
    return any(
        other.experiment == run.experiment
        and (
            version(other) != version(run)
            or (other.arm == run.arm and other.settings != run.settings)
        )
        for other in new.values()
    )


def version(run: Run) -> str:
    """Return the version of the training code that made the run, as run.json holds it."""
    return run.facts.get("training_code") or "unknown"


def _check_same(runs: Iterable[Run]) -> None:
    """Raise ConfigError if runs that are to be compared were not made in the same way."""
    versions: dict[str, Run] = {}
    settings: dict[tuple, tuple[Run, dict[str, Any]]] = {}
    for run in runs:
        before = versions.setdefault(run.experiment, run)
        if version(run) != version(before):
            raise ConfigError(
                f"{run.experiment}: {before.place} was made by version {version(before)} of the "
                f"training code, and {run.place} by version {version(run)}; runs of different "
                "versions are not comparable. --replace drops those that were there before"
            )
        own = run.settings
        other, theirs = settings.setdefault(_arm(run), (run, own))
        for name in sorted(own.keys() | theirs.keys()):
            if own.get(name) != theirs.get(name):
                raise ConfigError(
                    f"{run.place} has {name}={own.get(name)}, and {other.place}, of the same arm, "
                    f"has {name}={theirs.get(name)}. --replace drops those that were there before"
                )


# --- files ---------------------------------------------------------------------------------------


def write(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write compact runs, and return the files. The same runs give the same bytes."""
    written = []
    for experiment in sorted({run.experiment for run in runs}):
        own = [run for run in runs if run.experiment == experiment]
        frames: dict[str, list[pd.DataFrame]] = {}
        for number, run in enumerate(own):
            for kind, name in _METRICS.items():
                frames.setdefault(name, []).append(run.tables.metrics(kind).assign(run=number))
            for quantity in QUANTITIES:
                rows = run.tables.layers(quantity)
                rows = rows.assign(run=number, quantity=quantity)
                frames.setdefault("layers", []).append(rows)
        place = folder / experiment
        place.mkdir(parents=True, exist_ok=True)
        written.append(_write_frame(pd.DataFrame(map(_described, own)), place / "runs.csv.gz"))
        for name, parts in frames.items():
            filled = [part for part in parts if not part.empty]
            if filled:
                path = place / f"{name}.csv.gz"
                written.append(_write_frame(pd.concat(filled, ignore_index=True), path))
    return written


def _described(run: Run) -> dict[str, Any]:
    return {
        "experiment": run.experiment,
        "seed": run.seed,
        "data": run.data,
        "article_run": run.article_run,
        "place": run.place,
        "arm": json.dumps(run.arm),
        "config": records.dump(run.config),
        "facts": records.dump(run.facts),
        "findings": records.dump(run.findings),
    }


def _write_frame(frame: pd.DataFrame, path: Path) -> Path:
    if "histogram" in frame:
        lists = frame["histogram"]
        frame = frame.assign(
            histogram=[" ".join(map(str, row)) if isinstance(row, list) else "" for row in lists]
        )
    text = frame.to_csv(index=False, na_rep="", float_format=_DIGITS)
    with replacing(path) as draft:
        # Without a time: the same table is the same file.
        draft.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


def holds_results(folder: Path) -> bool:
    """Return whether a folder holds kept results, which `read` reads."""
    return any(folder.glob("*/runs.csv.gz"))


def read(folder: Path) -> list[Run]:
    """Return the runs of an archive, sorted by experiment, arm and seed; none without a folder.

    The tables of an experiment are read at their first use.

    Raises:
        ConfigError: a file cannot be read.
    """
    files = map(_Files, _folders(folder))
    return in_order(run for experiment in files for run in experiment.runs())


def scan(folder: Path) -> Iterator[Run | Unusable]:
    """Yield the runs of the experiments that can be read whole, and why another cannot be.

    Args:
        folder: holds kept results.
    """
    for place in _folders(folder):
        files = _Files(place)
        try:
            runs = files.runs()
            files.read()
        except ConfigError as error:
            yield Unusable(place, str(error))
        else:
            yield from runs


def _folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/runs.csv.gz"))


class _Files:
    """The tables of one experiment, each read once and divided by run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self) -> list[Run]:
        runs = []
        for number, row in self.frame("runs").iterrows():
            place = int(str(number))
            try:
                told = {name: records.load(row[name]) for name in _NESTED}
                name = None if pd.isna(row["article_run"]) else str(row["article_run"])
                runs.append(Run(row["place"], row["experiment"], told["arm"], int(row["seed"]),
                                row["data"], name, told["config"], told["facts"],
                                Archived(self, place, told["findings"])))  # fmt: skip
            except (KeyError, TypeError, ValueError) as error:
                path = self.folder / "runs.csv.gz"
                fault = f"{type(error).__name__}: {error}"
                raise ConfigError(f"{path}: line {place + 2}: not a run ({fault})") from None
        return runs

    def read(self) -> None:
        """Read all tables, which `metrics` and `layers` hold from then on."""
        _ = self.metrics, self.layers

    def frame(self, name: str) -> pd.DataFrame:
        path = self.folder / f"{name}.csv.gz"
        try:
            data = gzip.decompress(path.read_bytes())
            text = data.decode()
        except FileNotFoundError:
            return pd.DataFrame()
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ConfigError(f"{path}: not a table ({type(error).__name__}: {error})") from None
        try:
            frame = pd.read_csv(
                io.StringIO(text), keep_default_na=False, na_values=[""], low_memory=False
            )
        except ValueError as error:
            fault = "" if name == "runs" else _fault(text)
            raise ConfigError(f"{path}: not a table ({fault or one_line(error)})") from None
        if name != "runs" and not _sound(frame):
            raise ConfigError(f"{path}: not a table ({_fault(text)})")
        return frame

    def _divided(self, name: str) -> dict[int, pd.DataFrame]:
        frame = self.frame(name)
        if frame.empty:
            return {}
        parts = frame.groupby("run", sort=False)
        return {int(str(run)): part.drop(columns="run").reset_index(drop=True)
                for run, part in parts}  # fmt: skip

    @cached_property
    def metrics(self) -> dict[str, dict[int, pd.DataFrame]]:
        return {kind: self._divided(name) for kind, name in _METRICS.items()}

    @cached_property
    def layers(self) -> dict[int, pd.DataFrame]:
        return self._divided("layers")


def _sound(frame: pd.DataFrame) -> bool:
    """Return whether each row of a table belongs to a run, and its numbers are numbers."""
    numbers = frame.drop(columns=[name for name in _TEXTS if name in frame])
    kinds = map(pd.api.types.is_numeric_dtype, numbers.dtypes)
    return "run" in frame and all(kinds) and bool(frame["run"].notna().all())


def _fault(text: str) -> str:
    """Return the first line of a table of numbers that is no row of it, and why; "" without one."""
    rows = (next(csv.reader([line])) for line in text.splitlines())
    header = next(rows, [])
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            return f"line {line}: {len(row)} values for {len(header)} columns"
        for name, value in zip(header, row, strict=True):
            try:
                if name not in _TEXTS and value not in ("True", "False", ""):
                    float(value)
            except ValueError:
                return f"line {line}: {name} is no number: {value[:40]}"
    return ""


class Archived:
    """The tables of one run of an archive; implements `runs.Tables`."""

    def __init__(self, files: _Files, number: int, findings: dict[str, Any] | None) -> None:
        self._files, self._number, self._findings = files, number, findings

    def metrics(self, kind: str) -> pd.DataFrame:
        """Return the kept rows of a kind of record."""
        return self._files.metrics[kind].get(self._number, pd.DataFrame())

    def layers(self, quantity: str) -> pd.DataFrame:
        """Return the kept statistics of tensors; histograms are lists, or missing."""
        rows = self._files.layers.get(self._number, pd.DataFrame())
        if rows.empty:
            return rows
        rows = rows[rows["quantity"] == quantity].drop(columns="quantity").reset_index(drop=True)
        if "histogram" in rows:
            if rows["histogram"].isna().all():
                return rows.drop(columns="histogram")
            rows["histogram"] = [[int(count) for count in text.split()]
                                 for text in rows["histogram"]]  # fmt: skip
        return numeric_columns(rows)

    def findings(self) -> dict[str, Any] | None:
        """Return the content of findings.json."""
        return self._findings
