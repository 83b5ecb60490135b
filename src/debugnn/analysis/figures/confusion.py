"""The doctor's confusion matrix: injected faults against its findings."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from debugnn.analysis.figures.canvas import DPI, save


def draw_confusion(counts: pd.DataFrame, path: Path, title: str, caption: str) -> None:
    """Draw the number of programs by injected cause (rows) and first finding (columns).

    Args:
        counts: the numbers; index and columns are causes, `healthy` first.
        path: the .png file to write.
        title: text above the matrix.
        caption: text below the matrix.
    """
    share = counts.div(counts.sum(axis=1), axis=0)
    figure = Figure(figsize=(10.5, 10.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(np.where(counts > 0, share, np.nan), cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    for row, cause in enumerate(counts.index):
        for column, found in enumerate(counts.columns):
            number = counts.loc[cause, found]
            if number:
                dark = share.loc[cause, found] > 0.6
                colour = "white" if dark else "#D55E00" if cause != found else "black"
                axes.text(
                    column, row, str(number), ha="center", va="center", fontsize=7.5, color=colour
                )
    axes.set_xticks(range(len(counts.columns)), counts.columns, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(counts.index)), counts.index, fontsize=8)
    axes.set_xlabel("first finding")
    axes.set_ylabel("injected fault")
    axes.set_xticks(np.arange(-0.5, len(counts.columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(counts.index)), minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_title(title, loc="left", fontsize=11)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="#555555")
    save(figure, path)
