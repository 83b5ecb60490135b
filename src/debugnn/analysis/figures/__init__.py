"""The article's figures, drawn from run directories and the article's recorded numbers.

The `report` section of each experiment lists its figures; `KINDS` maps each kind of figure to the
function that draws it.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from debugnn.analysis import archive
from debugnn.analysis.directories import load_runs
from debugnn.analysis.figures.arms import final_accuracy, first_loss
from debugnn.analysis.figures.canvas import STYLE, save
from debugnn.analysis.figures.curves import curves, lr_curve, nan_loss
from debugnn.analysis.figures.layers import (
    dead_units,
    gradient_heatmap,
    gradient_norms,
    layer_profile,
)
from debugnn.analysis.runs import Run, select
from debugnn.errors import ConfigError

log = logging.getLogger(__name__)

# Each function takes all runs of an experiment on one data set and the figure's entry in the report
# section, and draws the runs that the entry's `arms` select. It needs all runs to give an arm the
# same colour in every figure.
KINDS: dict[str, Callable[[Sequence[Run], Mapping[str, Any]], Figure]] = {
    "curves": curves,
    "lr_curve": lr_curve,
    "gradient_heatmap": gradient_heatmap,
    "gradient_norms": gradient_norms,
    "nan_loss": nan_loss,
    "dead_units": dead_units,
    "final_accuracy": final_accuracy,
    "layer_profile": layer_profile,
    "first_loss": first_loss,
}


def draw(
    root: Path | str,
    output_dir: Path | str,
    experiments: Sequence[str] | None = None,
    data: Collection[str] | None = None,
) -> list[Path]:
    """Draw the figures of every experiment that has finished runs, as `<name>_<data>.png`.

    An experiment on two data sets gets each figure twice. An experiment without finished runs, and
    a figure one of whose arms has no run, are skipped with a warning; runs without a report
    section, which belong to no experiment, are skipped with one where they are asked for by name.

    Args:
        root: the directory of the runs, or a folder of kept results.
        output_dir: where the figures are written.
        experiments: draw only the figures of these experiments; None draws all.
        data: draw only the runs on these data sets; None draws all.

    Returns:
        The paths of the written figures.

    Raises:
        ConfigError: the directory does not exist, a run cannot be read, or a figure is of an
            unknown kind.
    """
    root = Path(root)
    runs = archive.read(root) if archive.holds_results(root) else load_runs(root)
    started = {run.experiment for run in runs}
    started |= {path.parents[2].name for path in root.glob("*/*/seed=*/run.json")}
    wanted = sorted(started) if experiments is None else experiments
    for experiment in wanted:
        of_experiment = [run for run in runs if run.experiment == experiment]
        if not of_experiment:
            log.warning("%s: skipped, no finished run", experiment)
        elif of_experiment[0].config.get("report") is None and experiments is not None:
            log.warning("%s: skipped, no report section", experiment)
    chosen = [run for name in wanted for run in runs if run.experiment == name]
    return draw_runs([run for run in chosen if data is None or run.data in data], output_dir)


def draw_runs(runs: Sequence[Run], output_dir: Path | str) -> list[Path]:
    """Draw the figures of each experiment of these runs on each of its data sets; see `draw`."""
    written = []
    reported = [run for run in runs if run.config.get("report") is not None]
    for experiment, data in dict.fromkeys((run.experiment, run.data) for run in reported):
        own = [run for run in reported if (run.experiment, run.data) == (experiment, data)]
        written += _draw(own, Path(output_dir))
    return written


def _draw(runs: Sequence[Run], output_dir: Path) -> list[Path]:
    # Read from the latest run: a figure may have been added after the first run started.
    report = max(runs, key=lambda run: run.facts["started"]).report
    written = []
    for figure in report["figures"]:
        name = f"{figure['name']}_{runs[0].data}"
        if figure["kind"] not in KINDS:
            allowed = ", ".join(KINDS)
            raise ConfigError(f"figure {name}: kind={figure['kind']}: allowed are {allowed}")
        missing = [arm for arm in figure["arms"] or () if not select(runs, [arm])]
        if missing:
            log.warning("%s: skipped, no finished run of %s", name, " and ".join(missing))
            continue
        with mpl.rc_context(STYLE):
            drawn = KINDS[figure["kind"]](runs, figure)
            path = output_dir / (re.sub(r"[^\w.-]", "_", name) + ".png")
            save(drawn, path)
        written.append(path)
    return written
