"""Runs read from the directories in which they were trained."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from debugnn import json_lines, records, settings
from debugnn.analysis.runs import Run, in_order, numeric_columns
from debugnn.errors import ConfigError, one_line


@dataclass(frozen=True)
class Unusable:
    """A run that a table cannot be made of.

    Attributes:
        path: its directory or the file that is at fault.
        reason: what is the matter, in one line.
    """

    path: Path
    reason: str


def load_runs(root: Path | str, experiment: str | None = None) -> list[Run]:
    """Return the finished runs under `root`, sorted by experiment, arm and seed.

    Unfinished and failed runs are left out.

    Args:
        root: the directory that holds `<experiment>/<arm>/seed=<n>/`.
        experiment: load only the runs of this experiment.

    Raises:
        ConfigError: the directory does not exist, or a run's files cannot be read.
    """
    paths = _run_files(Path(root))
    if experiment is not None:
        paths = [path for path in paths if path.resolve().parts[-4] == experiment]
    loaded = [_load(path) for path in paths]
    return in_order(run for run in loaded if isinstance(run, Run))


def scan_runs(place: Path | str) -> Iterator[Run | Unusable]:
    """Yield every run in a directory: those that finished, and why another is of no use.

    The files of a run are read when its tables are used, which may raise ConfigError then.

    Args:
        place: the directory of one run (`<experiment>/<arm>/seed=<n>`), or one above it: of an arm,
            of an experiment, or of all experiments.

    Raises:
        ConfigError: the directory does not exist.
    """
    for path in _run_files(Path(place)):
        try:
            yield _load(path)
        except ConfigError as error:
            yield Unusable(path.parent, str(error))


def said(unusable: Iterable[Unusable]) -> str:
    """Return a line for each run that cannot be used."""
    return "".join(f"\n  {found.path}: {found.reason}" for found in unusable)


def _run_files(place: Path) -> list[Path]:
    """Return the run.json of each run in a directory: of a run, or up to three levels above one."""
    if not place.is_dir():
        raise ConfigError(f"{place}: no such directory of runs")
    found = (path for depth in range(4) for path in place.glob("*/" * depth + "run.json"))
    return sorted(path for path in found if path.resolve().parent.name.startswith("seed="))


def _load(path: Path) -> Run | Unusable:
    try:
        facts = records.load(path.read_text(encoding="utf-8"))
        if facts["status"] != "finished":
            return Unusable(path.parent, _how_it_ended(facts))
        named = {name: facts[name] for name in ("experiment", "arm", "seed", "data", "article_run")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a run's record ({type(error).__name__}: {error})") from None
    place = path.with_name("config.yaml")
    try:
        config = settings.read(place)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: not a run's configuration ({one_line(error)})") from None
    directory = path.parent
    return Run(str(directory), **named, config=config, facts=facts, tables=Directory(directory))


def _how_it_ended(facts: dict[str, Any]) -> str:
    if facts["status"] == "running":
        return "was cut off, or is running"
    if facts["status"] == "interrupted":
        return "was interrupted"
    if facts["status"] == "pruned":
        return f"was pruned after {facts['pruned']['step']} steps: {facts['pruned']['reason']}"
    return f"{facts['status']}: {facts.get('error', 'no error was recorded')}"


class Directory:
    """The tables of a run's directory. Each file is read at its first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def metrics(self, kind: str) -> pd.DataFrame:
        """Return the rows of a kind of record; see `runs.Tables`."""
        return self._metrics.get(kind, pd.DataFrame())

    def layers(self, quantity: str) -> pd.DataFrame:
        """Return one row for each recorded step and tensor; see `runs.Tables`."""
        rows = [
            {"epoch": row["epoch"], "step": row["step"], "layer": layer, **stats}
            for row in self._layers
            for layer, stats in row[quantity].items()
        ]
        return numeric_columns(pd.DataFrame(rows))

    def findings(self) -> dict[str, Any] | None:
        """Return the content of findings.json; see `runs.Tables`."""
        return self._findings

    @cached_property
    def _metrics(self) -> dict[str, pd.DataFrame]:
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in _rows(self.path / "metrics.jsonl"):
            rows.setdefault(row.pop("kind"), []).append(row)
        for row in rows.get("epoch", ()):
            row["evaluated"] = row["test_loss"] is not None
        return {kind: numeric_columns(pd.DataFrame(found)) for kind, found in rows.items()}

    @cached_property
    def _layers(self) -> list[dict[str, Any]]:
        return [row for row in _rows(self.path / "layers.jsonl") if row["kind"] == "layers"]

    @cached_property
    def _findings(self) -> dict[str, Any] | None:
        path = self.path / "findings.json"
        if not path.exists():
            return None
        try:
            return records.load(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: not strict JSON ({error})") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for row in json_lines.read(path):
            if "kind" not in row:
                raise ValueError("a row without a kind")
            yield row
        # The run has finished, so that nothing is being written.
        *whole, last = path.read_bytes().split(b"\n")
        if last:
            raise ValueError(f"line {len(whole) + 1}: cut off")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the run is incomplete") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not strict JSON lines ({error})") from None
