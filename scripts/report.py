"""Write the evidence: tables and figures of finished runs beside the article's numbers.

python scripts/report.py --runs outputs    from runs of scripts/reproduce.py --data article
python scripts/report.py --conf-only       the documents' tables of options, experiments and causes
python scripts/report.py --precision DIR   bf16 beside fp32, from runs of experiment=precision
"""

import argparse
import logging
import sys
from pathlib import Path

import pandas as pd

from debugnn.analysis import tables
from debugnn.analysis.article import compare
from debugnn.analysis.directories import load_runs
from debugnn.analysis.figures import draw
from debugnn.analysis.runs import Run, paired, tidy_epochs
from debugnn.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
RESULTS = ROOT / "outputs" / "reference"
DOCTOR_PAGE = ROOT / "src" / "debugnn" / "doctor" / "README.md"


def write(runs: list[Run], source: Path, output: Path) -> None:
    """The tables, the figures and the page that shows them."""
    output.mkdir(parents=True, exist_ok=True)
    compared = compare(runs)
    compared.to_csv(output / "comparison.csv", index=False, na_rep="NaN")
    tidy_epochs(runs).to_csv(output / "epochs.csv", index=False, na_rep="NaN")
    suggestions = [
        run.lr_suggestions().assign(arm=run.arm["task"], seed=run.seed, data=run.data)
        for run in runs
        if run.config["task"]["name"] == "lr_find"
    ]
    if suggestions:
        pd.concat(suggestions).to_csv(output / "lr_suggestions.csv", index=False)
    names = sorted({run.experiment for run in runs})
    draw(source, output / "figures", names, data={run.data for run in runs})
    table = f"{tables.comparison(compared)}\n\n{tables.provenance(runs)}"
    tables.fill(output / "README.md", "results", table)
    tables.fill(output / "README.md", "figures", tables.pictures(CONF, output / "figures"))


def write_precision(runs: list[Run], output: Path) -> None:
    """Write every pair of runs, and a table of them into the page in the same folder."""
    sides = ("fp32", "bf16")
    table = paired(runs, "trainer.precision", sides)
    output.mkdir(parents=True, exist_ok=True)
    table.to_csv(output / "precision.csv", index=False)
    text = f"{tables.pairs(table, sides)}\n\n{tables.provenance(runs)}"
    tables.fill(output / "README.md", "precision", text)


def write_options() -> None:
    """Write what needs no run: groups, keys, experiments, causes, the list of figures."""
    tables.fill(CONF / "README.md", "groups", tables.groups(CONF))
    tables.fill(CONF / "README.md", "keys", tables.keys(CONF))
    tables.fill(CONF / "README.md", "experiments", tables.experiments(CONF))
    tables.fill(DOCTOR_PAGE, "causes", tables.causes())
    tables.fill(RESULTS / "README.md", "figures", tables.pictures(CONF, RESULTS / "figures"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the evidence of finished runs.")
    parser.add_argument("--runs", type=Path, default=Path("outputs"), help="where the runs are")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument(
        "--data",
        default="mnist,cifar10,regression,regression_notebook",
        help="only runs on these data sets (default: the article's)",
    )
    parser.add_argument("--conf-only", action="store_true", help="only the tables that need no run")
    parser.add_argument("--precision", type=Path, metavar="DIR", help="where those runs are")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_options()
        if options.precision:
            write_precision(load_runs(options.precision, "precision"), options.output)
        if options.conf_only or options.precision:
            return 0
        runs = [r for r in load_runs(options.runs) if r.data in options.data.split(",")]
        if not runs:
            raise ConfigError(f"{options.runs}: no finished run on {options.data}")
        write(runs, options.runs, options.output)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(runs)} runs in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
