"""The parts that all figures share: title, panels, caption with data and seeds, and colours."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from PIL import Image

from debugnn.analysis.runs import Run, select, varying
from debugnn.errors import ConfigError

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart. Its yellow is left
# out: it is hardly visible on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
Dash = Literal["-"] | tuple[float, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
FAINT = "#767676"

WIDTH = 9.0  # inches; at 150 dots per inch the text is readable at a README's 900 pixels
DPI = 150

DATA = {
    "digits": "digits (embedded stand-in, not the article's MNIST)",
    "shapes": "shapes (embedded stand-in, not the article's CIFAR-10)",
    "regression": "make_regression (the article's own)",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}


def chosen(runs: Sequence[Run], figure: Mapping[str, Any]) -> list[Run]:
    """Return the runs that the figure's `arms` select.

    Raises:
        ConfigError: one of the arms has no finished run, so that the comparison is incomplete.
    """
    for pattern in figure.get("arms") or ():
        if not select(runs, [pattern]):
            raise ConfigError(f"figure {figure['name']}: no finished run of {pattern}")
    return select(runs, figure.get("arms"))


def canvas(
    figure: Mapping[str, Any], runs: Sequence[Run], height: float, note: str = ""
) -> tuple[Figure, SubFigure]:
    """Make an empty figure with its title and caption.

    Args:
        figure: the figure's entry in the report section, for its title.
        runs: the runs that are shown, for the caption.
        height: height of the part with the panels and the title, in inches.
        note: text of the caption before the data and the seeds.

    Returns:
        The figure, and the part of it that takes the panels.
    """
    lines = textwrap.wrap(f"{note} {provenance(runs)}".strip(), width=165)
    foot_height = 0.13 * len(lines) + 0.07
    whole = Figure(figsize=(WIDTH, height + foot_height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(whole)
    parts = whole.subfigures(2, 1, squeeze=False, height_ratios=[height, foot_height])
    body, foot = parts[:, 0]
    title = figure["title"]
    body.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    foot.text(0.01, 0.98, "\n".join(lines), va="top", fontsize=7.5, color="#555555")
    return whole, body


def provenance(runs: Sequence[Run]) -> str:
    """Return the caption: data sets, settings that all runs share, seeds, and runs per arm."""
    names = sorted({run.data for run in runs})
    text = f"Data: {', '.join(DATA.get(name, name) for name in names)}."
    shared = {k: v for k, v in runs[0].arm.items() if k not in varying(runs) and k != "data"}
    if shared:
        text += f" All: {', '.join(f'{k}={v}' for k, v in shared.items())}."
    seeds = sorted({run.seed for run in runs})
    listed = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    if len(seeds) > 3 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        listed = f"seeds {seeds[0]}–{seeds[-1]}"
    counts: dict[tuple, int] = {}
    for run in runs:
        counts[tuple(run.arm.items())] = counts.get(tuple(run.arm.items()), 0) + 1
    low, high = min(counts.values()), max(counts.values())
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    return f"{text} {listed.capitalize()}, {n} an arm."


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG of at most 256 colours: it is a third as large, and looks the same.

    Args:
        figure: what is drawn.
        path: of the file; its folder is made.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    chosen = (
        Image.open(drawn)
        .convert("RGB")
        .quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen.save(path, format="png", optimize=True)


def short(key: str) -> str:
    """Return a setting's name without its groups: optim.lr → lr."""
    return key.rpartition(".")[2]


def arm_label(run: Run, keys: Sequence[str]) -> str:
    """Return the run's values of these keys, as `key=value` where it has some of them alone.

    "ours" stands for a run that no key distinguishes, "default" for one that has none of them.
    """
    if not keys:
        return "ours"
    given = {key: run.arm[key] for key in keys if key in run.arm}
    if len(given) == len(keys):
        return ", ".join(given.values())
    return ", ".join(f"{short(key)}={value}" for key, value in given.items()) or "default"


def arm_styles(runs: Sequence[Run]) -> dict[str, tuple[str, Dash]]:
    """Return arm label → (colour, dash), the same in all figures of an experiment.

    If there are more arms than colours and two keys vary, colours encode the key with more values
    and dashes the other one.
    """
    keys = varying(runs)
    labels = list(dict.fromkeys(arm_label(run, keys) for run in runs))
    if len(labels) > len(PALETTE) and len(keys) == 2:
        values = {k: list(dict.fromkeys(r.arm.get(k, "default") for r in runs)) for k in keys}
        colour_key, dash_key = sorted(keys, key=lambda k: len(values[k]), reverse=True)
        return {
            arm_label(run, keys): (
                PALETTE[
                    values[colour_key].index(run.arm.get(colour_key, "default")) % len(PALETTE)
                ],
                DASHES[values[dash_key].index(run.arm.get(dash_key, "default")) % len(DASHES)],
            )
            for run in runs
        }
    return {
        label: (PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)])
        for i, label in enumerate(labels)
    }


def legend_below(body: SubFigure, handles: Sequence[Line2D], title: str | None = None) -> None:
    """Add a legend below the panels, where it cannot hide a curve."""
    widest = max(len(str(handle.get_label())) for handle in handles)
    rows = -(-len(handles) // (4 if widest > 18 else 6))
    columns = -(-len(handles) // rows)
    body.legend(handles=handles, title=title, loc="outside lower center", ncols=columns)


def panel_grid(body: SubFigure, count: int, columns: int, **share: Any) -> list[Axes]:
    """Make `count` panels in rows of at most `columns`; the rest of the last row stays empty."""
    columns = min(count, columns)
    grid = np.atleast_2d(body.subplots(-(-count // columns), columns, squeeze=False, **share))
    for spare in grid.flat[count:]:
        spare.remove()
    return list(grid.flat[:count])


def cell_text(axes: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], dark: float) -> None:
    """Write a text on each cell of a heatmap, in white where the cell's value is below `dark`."""
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            fontsize=8,
            color="white" if np.isfinite(value) and value < dark else "black",
        )
