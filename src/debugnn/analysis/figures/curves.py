"""Loss and accuracy over training, and the learning-rate range test."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from debugnn.analysis.article import article_epochs, article_names
from debugnn.analysis.figures.canvas import (
    DASHES,
    DATA,
    FAINT,
    PALETTE,
    Dash,
    arm_label,
    arm_styles,
    canvas,
    chosen,
    legend_below,
    short,
)
from debugnn.analysis.runs import Run, by_arm, first_nonfinite, over_seeds, varying

_TRAIN_DASH: Dash = (0, (3, 1.5))

# The columns that each panel draws: the training's first, the one with the article's points last.
_TRAIN = ("last_batch_loss",), ("train_accuracy",)
_BOTH = ("train_loss", "test_loss"), ("train_accuracy", "test_accuracy")
_LOSSES = ("last_batch_loss",), ("test_loss",)


def curves(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw loss and accuracy by epoch, one colour per arm, and the article's points in it.

    Options:
        split: `train` shows only the training batches, with the loss of the epoch's last batch,
            which is what the article recorded.
    """
    shown = chosen(runs, figure)
    train_only = figure.get("options", {}).get("split") == "train"
    note = "Training loss: the epoch's last batch." if train_only else ""
    note += _band_note(shown) + _other_data_note(shown)
    whole, body = canvas(figure, shown, 4.1, note)
    panels = body.subplots(1, 2)
    handles = _draw_panels(panels, runs, shown, _TRAIN if train_only else _BOTH)
    if not train_only:
        handles += [
            Line2D([], [], color=FAINT, linewidth=1.8, label="test set"),
            Line2D([], [], color=FAINT, linewidth=1, linestyle=_TRAIN_DASH, label="training, mean"),
        ]
    _loss_axis(panels[0], shown)
    panels[1].set(ylabel="accuracy (%)", ylim=(0, 102))
    _epoch_axes(panels, shown)
    legend_below(body, handles + _article_handles(shown), _legend_title(runs, shown))
    return whole


def nan_loss(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw training and test loss by epoch on a logarithmic axis, with marks where they are NaN."""
    shown = chosen(runs, figure)
    note = (
        "Along the upper edge: losses that are NaN and have no place on the axis, × ours, ○ the "
        "article's. Training loss: the epoch's last batch."
    )
    whole, body = canvas(figure, shown, 4.1, note + _band_note(shown))
    panels = body.subplots(1, 2, sharey=True)
    handles = _draw_panels(panels, runs, shown, _LOSSES, dashed=True)
    for axes, title in zip(panels, ("training loss", "test loss"), strict=True):
        axes.set(yscale="log", title=title)
        axes.margins(y=0.15)  # room for the marks of NaN
    _epoch_axes(panels, shown)
    panels[0].set_ylabel("mean squared error (target's unit²)")
    legend_below(body, handles + _article_handles(shown), _legend_title(runs, shown))
    return whole


def _draw_panels(
    panels: Sequence[Axes],
    runs: Sequence[Run],
    shown: Sequence[Run],
    columns: Sequence[Sequence[str]],
    dashed: bool = False,
) -> list[Line2D]:
    """Draw each panel's columns for every arm, with the article's points.

    Args:
        columns: the columns of each panel. Of two, the first is the training's and is drawn thin.
        dashed: give every arm its own dash, for curves that are expected to coincide.

    Returns:
        Legend handles, one per arm.
    """
    styles = arm_styles(runs)
    keys = _label_keys(runs, shown)
    handles = []
    for number, group in enumerate(by_arm(shown).values()):
        colour, dash = styles[arm_label(group[0], varying(runs))]
        dash = DASHES[number % len(DASHES)] if dashed else dash
        label = arm_label(group[0], keys)
        frames = {run.seed: run.epochs() for run in group}
        for axes, drawn in zip(panels, columns, strict=True):
            for column in drawn:
                thin = column.startswith("train") and len(drawn) > 1
                curve = over_seeds(_measured(frames, column), column, "epoch")
                _draw_curve(axes, curve, colour, _TRAIN_DASH if thin else dash, thin, len(group))
            _mark_lost(axes, _lost_epochs(frames, drawn), colour, "x")
            _article_points(axes, group[0], drawn[-1], colour)
        label += _lost_label(frames)
        handles.append(Line2D([], [], color=colour, linestyle=dash, label=label))
    return handles


def _draw_curve(
    axes: Axes, curve: pd.DataFrame, colour: str, dash: Dash, thin: bool, seeds: int
) -> None:
    axes.plot(
        curve.index,
        curve["mean"],
        color=colour,
        linestyle=dash,
        linewidth=1 if thin else 1.8,
        alpha=0.8 if thin else 1,
        marker="." if len(curve) == 1 else None,
    )
    if seeds > 1:
        shade = 0.1 if thin else 0.2
        axes.fill_between(
            curve.index, curve["low"], curve["high"], color=colour, alpha=shade, linewidth=0
        )


def _measured(frames: Mapping[int, pd.DataFrame], column: str) -> dict[int, pd.DataFrame]:
    """Return the epochs in which the column was measured."""
    if column == "test_loss":
        return {seed: frame[frame["evaluated"]] for seed, frame in frames.items()}
    if column.endswith("accuracy"):
        return {seed: frame[frame[column].notna()] for seed, frame in frames.items()}
    return dict(frames)


def _lost_epochs(frames: Mapping[int, pd.DataFrame], columns: Sequence[str]) -> list[int]:
    """Return the epochs in which a measured loss of any seed is NaN or infinite."""
    lost: set[int] = set()
    for column in columns:
        for frame in _measured(frames, column).values():
            lost |= set(frame["epoch"][~np.isfinite(frame[column])])
    return sorted(lost)


def _lost_label(frames: Mapping[int, pd.DataFrame]) -> str:
    """Return the legend's note on an arm whose training loss becomes NaN or infinite, else ""."""
    starts = {
        int(frame["epoch"].iloc[place]): frame["last_batch_loss"].iloc[place]
        for frame in frames.values()
        if (place := first_nonfinite(frame["last_batch_loss"])) is not None
    }
    if not starts:
        return ""
    epoch = min(starts)
    word = "NaN" if np.isnan(starts[epoch]) else "infinite"
    affected = sum(first_nonfinite(f["last_batch_loss"]) is not None for f in frames.values())
    of_seeds = f", {affected} of {len(frames)} seeds" if len(frames) > 1 else ""
    return f" ({word} from epoch {epoch}{of_seeds})"


def _mark_lost(axes: Axes, epochs: Sequence[int], colour: str, marker: str) -> None:
    """Draw a row of marks along the upper edge, below the rows that are already there."""
    if not len(epochs):
        return
    row = sum(line.get_gid() == "lost" for line in axes.lines)
    thinned = epochs[:: max(1, len(epochs) // 25)]
    axes.plot(
        thinned,
        [0.975 - 0.05 * row] * len(thinned),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker=marker,
        markersize=5 if marker == "x" else 4,
        markerfacecolor="white",
        color=colour,
        gid="lost",
    )


def _article_points(axes: Axes, run: Run, column: str, colour: str) -> None:
    for name, marker in zip(_articles_runs(run), "o^", strict=False):
        recorded = _measured({0: article_epochs(name)}, column)
        _mark_lost(axes, _lost_epochs(recorded, [column]), colour, marker)
        # Below the curves: a hundred points would hide a curve that they agree with.
        axes.plot(
            recorded[0]["epoch"],
            recorded[0][column],
            linestyle="none",
            marker=marker,
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=colour,
            zorder=1.5,
            label=f"article: {name}",
        )


def _articles_runs(run: Run) -> tuple[str, ...]:
    """Return the article's runs that this run repeats on the article's data.

    Points of another data set beside a run's curves would invite a comparison that means nothing.
    """
    return article_names(run) if run.data == _articles_data(run) else ()


def _articles_data(run: Run) -> str:
    """Return the data set on which the article made the run's experiment."""
    settings = dict(s.split("=", 1) for s in run.report["data"].get("article", []))
    return settings.get("data", run.data)


def _other_data_note(shown: Sequence[Run]) -> str:
    if any(article_names(run) and not _articles_runs(run) for run in shown):
        data = _articles_data(shown[0])
        return f" The article's points, made on {DATA.get(data, data)}, are drawn there alone."
    return ""


def _article_handles(shown: Sequence[Run]) -> list[Line2D]:
    names = [_articles_runs(run) for run in shown]
    twins = [twin for repeated in names for twin in repeated[1:]]
    texts = {"o": "article"} if any(names) else {}
    if twins:
        texts["^"] = f"article, {twins[0]}"
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=marker,
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=FAINT,
            label=text,
        )
        for marker, text in texts.items()
    ]


def _loss_axis(axes: Axes, shown: Sequence[Run]) -> None:
    losses = {run.config["loss"]["_target_"].rpartition(".")[2] for run in shown}
    unit = "nats" if losses == {"cross_entropy"} else "each loss in its own unit"
    axes.set_ylabel(f"loss ({unit})")
    curves = (line.get_ydata() for line in axes.lines if line.get_gid() != "lost")
    drawn = np.concatenate([np.asarray(curve, float) for curve in curves])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return
    # On a linear axis, curves that span decades would look flat.
    if drawn.min() > 0 and drawn.max() / drawn.min() > 50:
        axes.set_yscale("log")
    elif drawn.min() <= 0 and np.ptp(drawn) > 100:  # a loss that is unbounded below
        axes.set_yscale("symlog", linthresh=1)


def _epoch_axes(panels: Sequence[Axes], shown: Sequence[Run]) -> None:
    sizes = {
        (run.config["trainer"]["steps_per_epoch"], run.config["data"]["batch_size"])
        for run in shown
    }
    steps, size = sizes.pop()
    label = "epoch" if sizes or steps is None else f"epoch ({steps} batches of {size})"
    for axes in panels:
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _band_note(shown: Sequence[Run]) -> str:
    if all(len(group) == 1 for group in by_arm(shown).values()):
        return ""
    return " Line: mean over the seeds, band: lowest to highest."


def _label_keys(runs: Sequence[Run], shown: Sequence[Run]) -> list[str]:
    """Return the keys that differ between the shown arms or, of a single arm, between all arms."""
    return varying(shown) or varying(runs)


def _legend_title(runs: Sequence[Run], shown: Sequence[Run]) -> str | None:
    return ", ".join(short(key) for key in _label_keys(runs, shown)) or None


# --- the range test -----------------------------------------------------------------------------

_FULL_CURVES = 8  # range tests that are drawn as strong as can be


def lr_curve(runs: Sequence[Run], figure: Mapping[str, Any]) -> Figure:
    """Draw the loss against the step's rate in all range tests, and the suggested rates."""
    shown = chosen(runs, figure)
    note = (
        "Faint: each batch's loss; strong: smoothed as in the article. Verticals: median of tests."
    )
    whole, body = canvas(figure, shown, 4.6, note)
    axes = body.subplots()
    tests = [points for run in shown for _, points in run.lr_points().groupby("test")]
    # The curves of many tests lie over each other: fainter ones show where most of them are.
    fainter = min(1.0, (_FULL_CURVES / len(tests)) ** 0.5)
    for number, points in enumerate(tests):
        axes.plot(
            points["lr"],
            points["loss"],
            color=PALETTE[0],
            alpha=0.15 * fainter,
            linewidth=0.7,
            label="loss of the batch" if number == 0 else None,
        )
        axes.plot(
            points["lr"],
            points["smoothed_loss"],
            color=PALETTE[0],
            alpha=0.85 * fainter,
            linewidth=1.4 * fainter,
            label=f"smoothed, {len(tests)} tests" if number == 0 else None,
        )
    logged = tests[0]
    axes.plot(
        logged["lr_as_logged"],
        logged["smoothed_loss"],
        color=FAINT,
        linestyle="--",
        linewidth=1,
        label="as the notebook paired it (rate of the next step), one test",
    )
    suggested = pd.concat([run.lr_suggestions() for run in shown])
    for number, (rule, rates) in enumerate(suggested.groupby("rule", sort=False)["lr"]):
        median = rates.median()
        dash = ("--", "-.", ":")[number % 3]
        axes.axvline(
            median,
            color=PALETTE[(1, 2, 3)[number % 3]],
            linestyle=dash,
            label=f"{rule}: {median:.1e} ({rates.min():.1e} to {rates.max():.1e} "
            f"in {len(rates)} of {len(tests)} tests)",
        )
    start = np.median([points["loss"].iloc[0] for points in tests])
    lowest = min(points["smoothed_loss"].min() for points in tests)
    # The axis covers the descent and half as much above it; the divergence leaves the panel.
    axes.set_ylim(max(0.0, lowest - 0.15 * (start - lowest)), start + 0.5 * (start - lowest))
    axes.set(xscale="log", xlabel="learning rate of the step", ylabel="loss (nats)")
    axes.legend(loc="lower left")
    return whole
