"""What differs between two runs, or between two arms over seeds: settings and outcome, as text."""

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from debugnn.analysis import statistics
from debugnn.analysis.directories import Unusable, said, scan_runs
from debugnn.analysis.runs import Run
from debugnn.errors import ConfigError

_WIDTH = 80
# The outcome of a run: name → column of its epochs, and which of its values.
_OUTCOMES: dict[str, tuple[str, Callable]] = {
    "last test accuracy %": ("test_accuracy", lambda column: column.iloc[-1]),
    "first test accuracy %": ("test_accuracy", lambda column: column.iloc[0]),
    "last test loss": ("test_loss", lambda column: column.iloc[-1]),
    "lowest test loss": ("test_loss", lambda column: column.min()),
    "last train accuracy %": ("train_accuracy", lambda column: column.iloc[-1]),
    "last train loss": ("train_loss", lambda column: column.iloc[-1]),
}


def arm_in(place: Path) -> list[Run]:
    """Return the finished runs of the one arm in a directory, sorted by seed.

    Raises:
        ConfigError: there is no finished run, or there are runs of several arms.
    """
    found = list(scan_runs(place))
    runs = [run for run in found if isinstance(run, Run)]
    if not runs:
        reasons = said(item for item in found if isinstance(item, Unusable))
        raise ConfigError(f"{place}: no finished run{reasons}")
    arms = sorted({str(Path(run.place).parent) for run in runs})
    if len(arms) > 1:
        listed = "".join(f"\n  {arm}" for arm in arms)
        raise ConfigError(f"{place} holds {len(arms)} arms; name one of them:{listed}")
    return sorted(runs, key=lambda run: run.seed)


def describe(first: Sequence[Run], second: Sequence[Run]) -> str:
    """Return what differs between the runs of two arms, for a terminal of 80 columns.

    Args:
        first: runs of one arm, with different seeds.
        second: those of the other.

    Raises:
        ConfigError: a run's files cannot be read.
    """
    paired = sorted({run.seed for run in first} & {run.seed for run in second})
    parts = [
        "\n".join(_title(letter, runs) for letter, runs in zip("AB", (first, second), strict=True)),
        _settings(first[0], second[0]),
        _outcomes(first, second, paired),
        textwrap.fill(_how(first, second, paired), _WIDTH),
    ]
    return "\n\n".join(parts)


def _title(letter: str, runs: Sequence[Run]) -> str:
    seeds = ", ".join(str(run.seed) for run in runs)
    name = f"{runs[0].experiment} {runs[0].arm_name}"
    return textwrap.fill(f"{letter}  {name}  (seed{'s'[: len(runs) > 1]} {seeds})", _WIDTH,
                         subsequent_indent="   ")  # fmt: skip


def _settings(first: Run, second: Run) -> str:
    """Return a block for each setting, and each fact about the code, that differs."""
    sides = [{**run.settings, **_made_by(run)} for run in (first, second)]
    names = [name for name in dict.fromkeys([*sides[0], *sides[1]])
             if sides[0].get(name) != sides[1].get(name)]  # fmt: skip
    if not names:
        return "the settings are the same"
    wide = max(map(len, names))
    lines = ["what differs"]
    for name in names:
        values = [side.get(name, "–") for side in sides]
        line = f"  {name:{wide}}  {values[0]}  →  {values[1]}"
        if len(line) > _WIDTH:
            line = f"  {name}\n    A  {values[0]}\n    B  {values[1]}"
        lines.append(line)
    return "\n".join(lines)


def _made_by(run: Run) -> dict[str, str]:
    facts = run.facts
    return {
        "training code": facts.get("training_code") or "unknown",
        "torch": facts["versions"]["torch"],
        "device": facts["device"],
    }


def _outcomes(first: Sequence[Run], second: Sequence[Run], paired: Sequence[int]) -> str:
    rows = [["outcome by epochs", "A", "B", "B − A"]]
    for name, (column, choose) in _OUTCOMES.items():
        one, other = (_values(runs, column, choose) for runs in (first, second))
        if one or other:  # neither: range tests, or a regression's accuracy
            rows.append([name, _spread(one), _spread(other), _difference(one, other, paired)])
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = []
    for name, *cells in rows:
        shown = [f"{cell:>{wide}}" for cell, wide in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:{widths[0]}}", *shown]).rstrip())
    causes = [
        f"  {side}  {_causes(runs)}" for side, runs in zip("AB", (first, second), strict=True)
    ]
    return "\n".join([*lines, "", "what the doctor says", *causes])


def _values(runs: Sequence[Run], column: str, choose: Callable) -> dict[int, float]:
    """Return seed → value; nothing if one of the runs did not measure it."""
    values: dict[int, float] = {}
    for run in runs:
        table = run.tables.metrics("epoch")
        if table.empty or ("accuracy" in column and table[column].isna().all()):
            return {}
        values[run.seed] = float(choose(table[column]))
    return values


def _spread(values: dict[int, float]) -> str:
    """Return mean ± standard deviation, or in how many seeds the value is NaN or infinite."""
    if not values:
        return "–"
    lost = [
        f"{word} in {count} of {len(values)}"
        for word, is_lost in (("NaN", math.isnan), ("inf", math.isinf))
        if (count := sum(map(is_lost, values.values())))
    ]
    if lost:
        return ", ".join(lost)
    column = pd.Series(values)
    deviation = f" ±{column.std():.2g}" if len(column) > 1 else ""
    return f"{column.mean():.4g}{deviation}"


def _difference(first: dict[int, float], second: dict[int, float], paired: Sequence[int]) -> str:
    known = [*first.values(), *second.values()]
    if not first or not second or not all(map(math.isfinite, known)):
        return "–"
    if paired:
        found = statistics.mean([second[seed] - first[seed] for seed in paired])
    else:
        found = statistics.difference([*first.values()], [*second.values()])
    interval = f" ({found.low:+.2g} to {found.high:+.2g})" if found.n > 1 else ""
    return f"{found.value:+.2g}{interval}"


def _causes(runs: Sequence[Run]) -> str:
    said = Counter(run.findings["main_cause"] for run in runs if run.findings is not None)
    if len(runs) == 1:
        return next(iter(said), "–")
    return ", ".join(f"{cause} {count}" for cause, count in said.most_common()) or "–"


def _how(first: Sequence[Run], second: Sequence[Run], paired: Sequence[int]) -> str:
    """Return in words how the differences were made, and what they do not say."""
    if min(len(first), len(second)) == 1 or len(paired) == 1:
        return (
            "One pair of runs: there is no interval. Two runs of one program that differ in the "
            "seed alone can differ as much; compare several seeds (-m seed=0,1,2,3,4)."
        )
    interval = "with 95 % intervals that are not adjusted for the number of rows"
    if not paired:
        return f"No seed is on both sides: differences of means (Welch's t), {interval}."
    alone = len({run.seed for run in [*first, *second]}) - len(paired)
    seeds, are = ("seed", "is") if alone == 1 else ("seeds", "are")
    left = f"; {alone} {seeds} that only one side has {are} left out of them" if alone else ""
    return f"Differences are paired by seed (n = {len(paired)}), {interval}{left}."
