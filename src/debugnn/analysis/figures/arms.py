"""Figures with one number per arm: final accuracies and first losses."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from debugnn.analysis.figures.canvas import (
    FAINT,
    PALETTE,
    arm_label,
    canvas,
    cell_text,
    chosen,
    panel_grid,
    short,
)
from debugnn.analysis.runs import Run, by_arm, varying
from debugnn.errors import ConfigError


def final_accuracy(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the test accuracy after the last epoch.

    If the arms differ in two or three keys, the figure is a heatmap over them (of three keys, the
    one with the fewest values becomes the panels), otherwise a bar chart.
    """
    shown = chosen(runs, figure)
    keys = varying(shown)
    rows = []
    for group in by_arm(shown).values():
        finals = [_final(run) for run in group]
        arm = {key: group[0].arm.get(key, "default") for key in keys}
        rows.append(
            {
                **arm,
                "label": arm_label(group[0], keys),
                "mean": np.mean(finals),
                "low": min(finals),
                "high": max(finals),
            }
        )
    table = pd.DataFrame(rows)
    note = "Mean over the seeds."
    if len(keys) not in (2, 3):
        whole, body = canvas(figure, shown, 1.1 + 0.3 * len(table), note + " Whisker: range.")
        axes = body.subplots()
        spread = np.abs(table[["low", "high"]].to_numpy().T - table["mean"].to_numpy())
        _bars(axes, table["label"], table["mean"], ", ".join(map(short, keys)), xerr=spread)
        for row, value in enumerate(table["mean"]):
            axes.text(1, row, f" {value:.1f}", va="center", color="white", fontsize=8.5)
        axes.set(xlabel="test accuracy (%)", xlim=(0, 100))
        return whole
    keys.sort(key=lambda key: -table[key].nunique())
    row_key, column_key, *panel_key = keys
    panels = list(table.groupby(panel_key[0], sort=False)) if panel_key else [("", table)]
    height = 1.4 + 0.45 * table[row_key].nunique()
    whole, body = canvas(figure, shown, height, note)
    _heatmaps(body, panels, row_key, column_key, panel_key)
    return whole


def _final(run: Run) -> float:
    last = run.epochs().iloc[-1]
    if math.isnan(last["test_accuracy"]):
        raise ConfigError(f"{run.place}: its last epoch has no test accuracy")
    return last["test_accuracy"]


def _heatmaps(
    body: SubFigure,
    panels: Sequence[tuple[str, pd.DataFrame]],
    row_key: str,
    column_key: str,
    panel_key: Sequence[str],
) -> None:
    all_axes = panel_grid(body, len(panels), 3, sharey=True)
    for number, (axes, (value, of_panel)) in enumerate(zip(all_axes, panels, strict=True)):
        grid = of_panel.pivot(index=row_key, columns=column_key, values="mean")
        grid = grid.loc[_ordered(grid.index), _ordered(grid.columns)]
        image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        texts = [[f"{v:.1f}" if np.isfinite(v) else "–" for v in row] for row in grid.to_numpy()]
        cell_text(axes, grid.to_numpy(), texts, dark=55)
        axes.set_xticks(range(grid.shape[1]), grid.columns)
        axes.set_yticks(range(len(grid)), grid.index)
        axes.set_xlabel(short(column_key))
        axes.set_ylabel(short(row_key) if number % 3 == 0 else "")
        axes.set_title(f"{short(panel_key[0])} {value}" if panel_key else "")
        axes.grid(False)
    body.colorbar(image, ax=all_axes, pad=0.01, label="test accuracy (%)")


def _ordered(values: Sequence[str]) -> list[str]:
    """Sort the values if all of them are numbers; otherwise keep their order."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return list(values)


def first_loss(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the loss of the first batch, before any update, against ln C of a uniform guess."""
    shown = chosen(runs, figure)
    keys = varying(shown)
    groups = list(by_arm(shown).values())
    keys.sort(key=lambda key: len({run.arm.get(key) for run in shown}))
    groups.sort(key=lambda group: [group[0].arm.get(key, "") for key in keys])
    labels = [arm_label(group[0], keys) for group in groups]
    losses = [np.mean([run.steps()["loss"].iloc[0] for run in group]) for group in groups]
    families = [group[0].arm.get(keys[0], "") if keys else "" for group in groups]
    colours = [PALETTE[list(dict.fromkeys(families)).index(f) % len(PALETTE)] for f in families]
    chance = {_classes(run) for run in shown}
    # Bars far above the guess are cut: beside a loss of 1e23 all others would look alike.
    lowest = 0.5 * min(filter(math.isfinite, [*losses, *map(math.log, chance)]))
    highest = 15 * math.log(max(chance))
    inside = [loss < highest / 1.4 for loss in losses]  # False for NaN
    bars = [loss if fits else 2 * highest for loss, fits in zip(losses, inside, strict=True)]
    note = "Mean over the seeds. Loss of the first batch, before any update. ▸: beyond the axis."
    whole, body = canvas(figure, shown, 1.1 + 0.24 * len(groups), note)
    axes = body.subplots()
    _bars(axes, labels, bars, ", ".join(map(short, keys)), color=colours)
    axes.set(xscale="log", xlim=(lowest, highest), xlabel="cross-entropy (nats)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", length=3, pad=3)
    for count in sorted(chance):
        axes.axvline(
            math.log(count),
            color="black",
            linestyle="--",
            linewidth=1,
            label=f"ln {count} = {math.log(count):.3f}",
        )
    for row, (loss, fits) in enumerate(zip(losses, inside, strict=True)):
        if fits:
            axes.text(loss, row, f" {loss:.3f}", va="center", fontsize=8)
        else:
            text = f"{loss:.2e} ▸ " if math.isfinite(loss) else f"{loss} ▸ "
            axes.text(highest, row, text, va="center", ha="right", fontsize=8, color="white")
    axes.legend(loc="lower right")
    return whole


def _bars(
    axes: Axes, labels: Sequence[str], values: Sequence[float], name: str, **style: Any
) -> None:
    style = {"color": PALETTE[0], "ecolor": FAINT, **style}
    axes.barh(range(len(labels)), values, height=0.7, **style)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylabel(name)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _classes(run: Run) -> int:
    """Return the number of outputs, from the size of the last layer's output at step 0."""
    activations = run.layers("activations")
    size = activations[activations["step"] == activations["step"].min()]["size"].iloc[-1]
    data = run.config["data"]
    batch = min(data["batch_size"], data["train_size"] or data["batch_size"])
    if size % batch:
        raise ConfigError(f"{run.place}: an output of {size} values is no batch of {batch}")
    return int(size // batch)
