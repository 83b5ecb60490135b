"""Figures of per-layer statistics: gradients by step, activations by depth, dead units."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from debugnn.analysis.figures.canvas import (
    DASHES,
    PALETTE,
    arm_label,
    canvas,
    cell_text,
    chosen,
    legend_below,
    panel_grid,
    short,
)
from debugnn.analysis.runs import Run, by_arm, over_seeds, varying
from debugnn.errors import ConfigError

_BINS_PER_DECADE = 6
_FAINTEST = 1e-3  # smallest share of a tensor's values that a heatmap shows


def rebin(
    counts: Sequence[int] | np.ndarray, low: float, high: float, edges: np.ndarray
) -> np.ndarray:
    """Redistribute the counts of equal bins from `low` to `high` to bins with other edges.

    A bin that crosses an edge is split as if its values were spread evenly over it. The total is
    preserved.

    Args:
        counts: number of values in each of the equal bins.
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        edges: new edges (E,), ascending, from `low` or below to `high` or above.

    Returns:
        Counts (E − 1,), in general not integers.
    """
    if low == high:
        return np.histogram([low], bins=edges)[0] * float(np.sum(counts))
    reached = np.concatenate([[0], np.cumsum(counts)])
    return np.diff(np.interp(edges, np.linspace(low, high, len(counts) + 1), reached))


def magnitudes(stats: Mapping[str, Any], edges: np.ndarray) -> np.ndarray:
    """Return the share of a tensor's values in each interval of |value|.

    Args:
        stats: the fields of `records.TensorStats`.
        edges: edges (E,) of the intervals, ascending and positive. Values below the first edge
            are counted in the first interval.

    Returns:
        Shares (E,): that of exact zeros, then that of each interval. Their sum is 1 minus the
        share of values that are not finite or above the last edge.
    """
    zeros, finite = stats["zeros"], 1 - stats["nonfinite"] / stats["size"]
    if not np.isfinite(stats["low"]):
        return np.zeros(len(edges))
    if stats["low"] == stats["high"] == 0:
        return np.concatenate([[zeros], np.zeros(len(edges) - 1)])
    counts = np.asarray(stats["histogram"], float)
    counted = counts.sum()  # of large tensors a sample
    borders = np.linspace(stats["low"], stats["high"], len(counts) + 1)
    if zeros:  # they are reported separately, so they leave the bin that counts them
        home = min(int(np.searchsorted(borders, 0, side="right")) - 1, len(counts) - 1)
        counts[max(home, 0)] = max(0.0, counts[max(home, 0)] - zeros / finite * counted)
    inner = np.concatenate([[0], edges[1:]])
    both = np.concatenate([-inner[:0:-1], inner])
    signed = rebin(counts, stats["low"], stats["high"], both)
    folded = signed[len(edges) - 1 :] + signed[: len(edges) - 1][::-1]
    return np.concatenate([[zeros], finite * folded / counted])


def gradient_heatmap(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the distribution of |gradient| by step, one panel per weight tensor.

    Shows the first seed of each arm on a logarithmic axis, where a vanishing gradient sinks by
    decades and an exploding one rises.

    Options:
        layers: names of the tensors to show; all weight matrices by default.
    """
    shown = [group[0] for group in by_arm(chosen(runs, figure)).values()]
    tables = [
        (run, name, table)
        for run in shown
        for name, table in _weights(run.layers("gradients"), figure).groupby("layer", sort=False)
    ]
    edges, shares = visible_shares([table for _, _, table in tables])
    note = (
        "From 64 equal histogram bins a step; what falls into one is drawn spread evenly over it, "
        "so that the fading lower end is not resolved. Bottom row: exact zeros. First seed alone."
    )
    columns = min(len(tables) // len(shown), 4)
    whole, body = canvas(figure, shown, 1.0 + 2.5 * -(-len(tables) // columns), note)
    panels = panel_grid(body, len(tables), columns, sharex=True, sharey=True)
    keys = varying(runs)
    for number, (axes, (run, name, table)) in enumerate(zip(panels, tables, strict=True)):
        image = _heatmap(axes, table["step"].to_numpy(), shares[number], edges)
        axes.set_title(name if len(shown) == 1 else f"{arm_label(run, keys)}: {name}")
        axes.set(xlabel="step", ylabel="|gradient|" if number % columns == 0 else "")
    bar = body.colorbar(image, ax=panels, pad=0.01, aspect=30)
    bar.set_label("share of the tensor's values in the bin")
    return whole


def _weights(table: pd.DataFrame, figure: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of the layers that the figure's options name, or of all weight matrices."""
    layers = figure.get("options", {}).get("layers")
    if layers is None:
        # Without the weights of batch norm, which are named bn1.weight or fc1_bn.weight.
        is_norm = table["layer"].str.contains(r"(?:^|_)bn\d*\.")
        return table[table["layer"].str.endswith(".weight") & ~is_norm]
    missing = set(layers) - set(table["layer"])
    if missing:
        raise ConfigError(
            f"figure {figure['name']}: no layer {', '.join(sorted(missing))}; there are "
            f"{', '.join(table['layer'].unique())}"
        )
    return table[table["layer"].isin(layers)]


def _decades(table: pd.DataFrame) -> np.ndarray:
    """Return bin edges in whole decades that cover all magnitudes that the histograms resolve."""
    reach = np.maximum(table["low"].abs(), table["high"].abs())
    reach = reach[np.isfinite(reach) & (reach > 0)]
    if reach.empty:
        raise ConfigError("no gradient in these runs is finite and other than zero")
    bottom = np.floor(np.log10(reach.min())) - 5
    top = np.ceil(np.log10(reach.max()))
    return np.logspace(bottom, top, int(top - bottom) * _BINS_PER_DECADE + 1)


def visible_shares(tables: Sequence[pd.DataFrame]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return how the magnitudes of some tensors are distributed, on common logarithmic bins.

    Low decades in which no tensor has a visible share are left out.

    Args:
        tables: one for each tensor: rows of `Run.layers` with histograms.

    Returns:
        The bins' edges (E,), and for each table the shares (E, steps), exact zeros first.

    Raises:
        ConfigError: no value is finite and other than zero.
    """
    edges = _decades(pd.concat(tables))
    shares = [
        np.array([magnitudes(row, edges) for row in table.to_dict("records")]).T for table in tables
    ]
    seen = np.concatenate([share[1:].max(axis=1) >= _FAINTEST for share in shares])
    lowest = min(np.flatnonzero(seen) % (len(edges) - 1))
    start = lowest - lowest % _BINS_PER_DECADE
    return edges[start:], [np.delete(share, np.s_[1 : start + 1], axis=0) for share in shares]


def _heatmap(axes: Axes, steps: np.ndarray, shares: np.ndarray, edges: np.ndarray) -> QuadMesh:
    """Draw the shares by step (x) and |gradient| (y), with a separate row for exact zeros."""
    width = np.diff(steps).min() if len(steps) > 1 else 1
    across = np.append(steps, steps[-1] + width)
    style: dict[str, Any] = {"norm": LogNorm(_FAINTEST, 1), "cmap": "viridis", "rasterized": True}
    axes.set_facecolor("#f2f2f2")
    axes.grid(False)
    image = axes.pcolormesh(across, edges, _blank(shares[1:]), **style)
    strip = np.array([edges[0] / 10**0.9, edges[0] / 10**0.3])
    axes.pcolormesh(across, strip, _blank(shares[:1]), **style)
    axes.set(yscale="log", ylim=(strip[0], edges[-1]))
    powers = np.arange(np.log10(edges[0]), np.log10(edges[-1]) + 0.5)
    powers = powers[:: max(1, len(powers) // 7)]
    labels = ["0", *(f"$10^{{{power:.0f}}}$" for power in powers)]
    axes.set_yticks([np.sqrt(strip.prod()), *10**powers], labels)
    axes.minorticks_off()
    return image


def _blank(shares: np.ndarray) -> np.ma.MaskedArray:
    """Mask the shares that are too small for the colour scale."""
    return np.ma.masked_less(shares, _FAINTEST)


def gradient_norms(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the L2 norm of each weight tensor's gradient by step, one panel per arm."""
    shown = chosen(runs, figure)
    groups = list(by_arm(shown).values())
    names = list(
        dict.fromkeys(
            name for run in shown for name in _weights(run.layers("gradients"), figure)["layer"]
        )
    )
    columns = min(len(groups), 3)
    note = "▽ on the lower edge: a gradient that is exactly zero. × on the upper: not finite."
    if any(len(group) > 1 for group in groups):
        note += " Line: median over the seeds, band: lowest to highest."
    whole, body = canvas(figure, shown, 1.1 + 2.9 * -(-len(groups) // columns), note)
    panels = panel_grid(body, len(groups), columns, sharey=True)
    colours = dict(zip(names, PALETTE, strict=False))
    if len(names) > len(PALETTE):  # too many for the palette: a colour scale by depth
        colours = dict(
            zip(names, colormaps["viridis"](np.linspace(0, 0.9, len(names))), strict=True)
        )
    for axes, group in zip(panels, groups, strict=True):
        tables = {run.seed: run.layers("gradients") for run in group}
        # Of kept results some seeds have fewer steps.
        shared = set.intersection(*(set(table["step"]) for table in tables.values()))
        tables = {seed: table[table["step"].isin(shared)] for seed, table in tables.items()}
        for name in names:
            of_layer = {seed: table[table["layer"] == name] for seed, table in tables.items()}
            _norm_curve(axes, over_seeds(of_layer, "norm", "step"), colours[name])
        label = arm_label(group[0], varying(runs))
        axes.set(yscale="log", xlabel="step", title=label if len(groups) > 1 else "")
    panels[0].set_ylabel("L2 norm of the gradient")
    handles = [Line2D([], [], color=colours[name], label=name) for name in names]
    legend_below(body, handles)
    return whole


def _norm_curve(axes: Axes, curve: pd.DataFrame, colour: str) -> None:
    # A mean would lie near the largest value: seeds are apart by factors.
    middle = curve["median"]
    axes.plot(curve.index, middle.where(middle > 0), color=colour, linewidth=1.3)
    axes.fill_between(
        curve.index,
        curve["low"],
        curve["high"],
        where=curve["low"] > 0,
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    for marker, place, steps in (
        ("v", 0.02, curve.index[middle == 0]),
        ("x", 0.98, curve.index[~np.isfinite(middle)]),
    ):
        thinned = steps[:: max(1, len(steps) // 20)]
        axes.plot(
            thinned,
            [place] * len(thinned),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker=marker,
            markersize=4,
            markerfacecolor="none",
            color=colour,
        )


def dead_units(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the share of units that are 0 for the whole batch: arms × layers, last recorded step."""
    shown = chosen(runs, figure)
    keys = varying(shown)
    shares: dict[str, pd.Series] = {}
    for group in by_arm(shown).values():
        seeds = [_last(_after_activation(run.layers("activations")))["dead_units"] for run in group]
        shares[arm_label(group[0], keys)] = 100 * pd.concat(seeds, axis=1).mean(
            axis=1, skipna=False
        )
    table = pd.DataFrame(shares).T
    steps = {run.layers("activations")["step"].max() for run in shown}
    note = (
        f"Last watched step ({', '.join(map(str, sorted(steps)))}), mean over the seeds. "
        "A unit (a channel of a convolution) is dead where its output is 0 for the whole batch."
    )
    whole, body = canvas(figure, shown, 1.2 + 0.24 * len(table), note)
    axes = body.subplots()
    image = axes.imshow(table, cmap="cividis_r", vmin=0, vmax=100, aspect="auto")
    texts = [[f"{value:.0f}" for value in row] for row in table.to_numpy()]
    cell_text(axes, -table.to_numpy(), texts, dark=-60)
    axes.set_xticks(range(table.shape[1]), table.columns)
    axes.set_yticks(range(len(table)), table.index)
    axes.set(xlabel="activation layer, from input to output", ylabel=", ".join(map(short, keys)))
    axes.grid(False)
    body.colorbar(image, ax=axes, pad=0.01, label="dead units (%)")
    return whole


def _after_activation(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of activation layers, which are named act1 or fc1_act."""
    found = table[table["layer"].map(lambda name: bool(re.search(r"(^|_)act\d*$", name)))]
    if found.empty:
        raise ConfigError(f"no activation layer among {', '.join(table['layer'].unique())}")
    return found


def _last(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["step"] == table["step"].max()].set_index("layer")


def layer_profile(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the activations' standard deviation and the gradients' norm by depth at step 0.

    The arm's key with the most values becomes the columns of panels; the other keys become lines.
    """
    shown = chosen(runs, figure)
    keys = varying(shown)
    values = {key: list(dict.fromkeys(run.arm.get(key) for run in shown)) for key in keys}
    panel_key = max(keys, key=lambda key: len(values[key])) if len(keys) > 1 else None
    columns = values[panel_key] if panel_key else [None]
    line_keys = [key for key in keys if key != panel_key]
    labels = list(dict.fromkeys(arm_label(run, line_keys) for run in shown))
    note = "Step 0. Line: median over the seeds. A gradient of exactly zero has no point."
    whole, body = canvas(figure, shown, 5.0, note)
    panels = body.subplots(2, len(columns), sharex="row", sharey="row", squeeze=False)
    for column, value in enumerate(columns):
        of_panel = [run for run in shown if panel_key is None or run.arm.get(panel_key) == value]
        for group in by_arm(of_panel).values():
            number = labels.index(arm_label(group[0], line_keys))
            for axes, profile in zip(panels[:, column], _profiles(group), strict=True):
                depth = np.arange(1, len(profile) + 1)
                axes.plot(
                    depth,
                    profile,
                    color=PALETTE[number % len(PALETTE)],
                    linestyle=DASHES[number % len(DASHES)],
                )
        panels[0, column].set(yscale="log", title=value or "")
        panels[1, column].set(yscale="log", xlabel="layer")
    panels[0, 0].set_ylabel("std of the activations")
    panels[1, 0].set_ylabel("L2 norm of the gradient")
    handles = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], linestyle=DASHES[i % len(DASHES)], label=n)
        for i, n in enumerate(labels)
    ]
    legend_below(body, handles, ", ".join(map(short, line_keys)) or None)
    return whole


def _profiles(group: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Return the activations' std and the weight gradients' norm by layer, medians over the seeds.

    On their logarithmic axes a mean would lie near the largest value.
    """
    spreads, norms = [], []
    for run in group:
        activations, gradients = run.layers("activations"), run.layers("gradients")
        start = activations["step"].min()
        if start != 0:
            raise ConfigError(f"{run.place}: step 0 was not watched")
        spreads.append(_after_activation(activations[activations["step"] == 0])["std"].to_numpy())
        first = gradients[gradients["step"] == 0]
        norms.append(_weights(first, {})["norm"].to_numpy())
    spread, norm = np.median(spreads, axis=0), np.median(norms, axis=0)
    return np.where(spread > 0, spread, np.nan), np.where(norm > 0, norm, np.nan)
