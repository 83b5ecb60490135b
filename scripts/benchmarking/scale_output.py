"""The costs against size as a Markdown page, with one figure each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarking.output import duration, table
from debugnn.analysis.figures.canvas import DPI, FAINT, PALETTE, STYLE, WIDTH, save


@dataclass(frozen=True)
class Quantity:
    """What grows, what is timed, and what is expected on paper.

    Attributes:
        title: of the figure.
        size: what grows.
        expected: the expectation in words.
        power: the expected power of the size, at large sizes or, where the cost falls, at small
            ones.
    """

    title: str
    size: str
    expected: str
    power: int


# Power of the size → what a figure's legend calls it.
LAWS = {-1: "inversely proportional", 0: "constant", 1: "proportional", 2: "its square"}

QUANTITIES = {
    "batch": Quantity(
        "A step of the 20-layer MLP", "samples in a batch",
        "A fixed cost a step, then proportional to the batch.", 1,
    ),
    "width": Quantity(
        "A step of an MLP with four hidden layers", "units of a hidden layer",
        "A fixed cost a step, then proportional to the square of the width.", 2,
    ),
    "data": Quantity(
        "A step of the 20-layer MLP on images", "times as many images as MNIST has",
        "Constant: a step reads its batch from a memory-mapped file.", 0,
    ),
    "stack_regression": Quantity(
        "A step of one regression net in a stack", "stacked seeds",
        "Inversely proportional to the number of seeds while a step's fixed cost dominates, then "
        "constant.", -1,
    ),
    "stack_mlp": Quantity(
        "A step of one 20-layer MLP in a stack", "stacked seeds",
        "As for the regression net; constant earlier, because its products are larger.", -1,
    ),
    "side_by_side": Quantity(
        "A step of one 20-layer MLP among simultaneous runs", "processes of one thread each",
        "Inversely proportional to the number of processes up to that of cores, then constant.", -1,
    ),
    "sweep": Quantity(
        "A tiny run of a sweep", "runs of the sweep",
        "Constant: a run does not depend on those before it.", 0,
    ),
}  # fmt: skip


def markdown(results: Mapping[str, Any]) -> str:
    """Return all quantities: expectation beside measurement, then the machine and command."""
    blocks = [results["busy"]] if results["busy"] else []
    for name, sizes in results["seconds"].items():
        quantity = QUANTITIES[name]
        rows = [[quantity.size, "median", "quartiles", "n"]]
        rows += [
            [size, duration(each["median"]),
             f"{duration(each['low'])} – {duration(each['high'])}", str(each["n"])]
            for size, each in sizes.items()
        ]  # fmt: skip
        blocks += [f"## {quantity.title}", f"![{quantity.title}](scale_{name}.png)",
                   f"On paper: {quantity.expected}", table(rows)]  # fmt: skip
    before, after = results["load"]
    blocks.append(
        f"{results['machine']}. Load average {before:.1f} before, {after:.1f} after. Medians and "
        f"quartiles of n alternating rounds (of a sweep: of its n runs): `{results['command']}`."
    )
    return "\n\n".join(blocks) + "\n"


def summary(results: Mapping[str, Any]) -> str:
    """Return the table of the results page: the cost at the smallest and at the largest size."""
    rows = [["cost", "size", "at the smallest", "at the largest", "on paper"]]
    for name, sizes in results["seconds"].items():
        quantity, ends = QUANTITIES[name], [*sizes.items()]
        rows.append([
            quantity.title, quantity.size,
            *(f"{size}: {duration(each['median'])}" for size, each in (ends[0], ends[-1])),
            LAWS[quantity.power],
        ])  # fmt: skip
    return "\n\n".join([table(rows), f"{results['machine']}: `{results['command']}`."])


def draw(results: Mapping[str, Any], directory: Path) -> None:
    """Draw the page's figures, scale_<name>.png."""
    for name, sizes in results["seconds"].items():
        figure(QUANTITIES[name], sizes, directory / f"scale_{name}.png")


def figure(quantity: Quantity, sizes: Mapping[str, Any], path: Path) -> None:
    """Draw medians with quartiles over the size, and the expected power as a thin line."""
    x = [int(size) for size in sizes]
    median, low, high = (
        [1000 * each[key] for each in sizes.values()] for key in ("median", "low", "high")
    )
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 3.2), dpi=DPI, layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.subplots()
        axes.set_title(quantity.title, loc="left", fontweight="bold")
        axes.plot(x, median, marker="o", color=PALETTE[0], label="median")
        axes.fill_between(x, low, high, color=PALETTE[0], alpha=0.25, label="quartiles")
        # Through the point where the expected power holds: the largest size if costs grow.
        at = -1 if quantity.power > 0 else 0
        line = [median[at] * (size / x[at]) ** quantity.power for size in x]
        axes.plot(x, line, color=FAINT, linewidth=1, label=f"on paper: {LAWS[quantity.power]}")
        axes.set_xscale("log", base=2 if x[-1] < 1000 or x[0] > 10 else 10)
        axes.set_yscale("log")
        axes.set_xticks(x, sizes)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(min(low) / 1.5, max(high) * 1.5)
        axes.set_xlabel(quantity.size)
        axes.set_ylabel("milliseconds")
        axes.legend()
        save(drawn, path)
