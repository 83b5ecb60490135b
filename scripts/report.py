"""Write the evidence: what finished runs say about the article's claims.

scripts/report.py                   outputs/report.html, of the runs in outputs
scripts/report.py RUN ...           the page of these runs, or folders of runs
scripts/report.py compare A B       what differs between two runs, or two arms
scripts/report.py --keep DIR        add runs to outputs/reference; its tables
scripts/report.py --tables          tables of options, experiments and causes
scripts/report.py --precision DIR   bf16 beside fp32 (experiment=precision)
scripts/report.py --wandb ENTITY/PROJECT   the page as a report in W&B
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from debugnn.analysis import archive, differences, page, tables
from debugnn.analysis.article import ARTICLE_RUNS, article_names, compare
from debugnn.analysis.directories import Unusable, load_runs, said, scan_runs
from debugnn.analysis.figures import draw_runs
from debugnn.analysis.runs import Run, in_order, paired
from debugnn.errors import ConfigError
from debugnn.files import replace_text

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
REFERENCE = ROOT / "outputs" / "reference"
DOCTOR_PAGE = ROOT / "src" / "debugnn" / "doctor" / "README.md"


def write_page(sources: Sequence[Path], output: Path) -> None:
    """Write the HTML page of runs; see `read`."""
    runs, unusable = read(sources)
    page.write(runs, unusable, output)
    print(f"{len(runs)} run{'s'[: len(runs) > 1]} in {output}")


def publish(sources: Sequence[Path], output: Path, name: str, *, dry_run: bool) -> None:
    """Publish the story of the page in W&B, or write what would be published beside the page."""
    try:
        from debugnn.analysis import wandb_report
    except ImportError as error:
        raise ConfigError(f"--wandb needs `pip install '.[report]'` ({error})") from None
    entity, project = wandb_report.target(name)
    runs, unusable = read(sources)
    report = wandb_report.build(runs, entity, project, unusable)
    if dry_run:
        path = output.with_name("wandb_report.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, wandb_report.spec(report))
        print(path)
        return
    page.write(runs, unusable, output)
    figures = draw_runs(runs, output.parent / "figures")
    print(wandb_report.publish(report, output, figures))


def read(sources: Sequence[Path]) -> tuple[list[Run], list[Unusable]]:
    """Return the runs in some places, and what cannot be used.

    Args:
        sources: directories of runs (see `scan_runs`), or folders of kept results.

    Raises:
        ConfigError: there is no run that can be used, or a place does not exist.
    """
    kept: dict[str, Run] = {}
    found: dict[str, Run | Unusable] = {}
    for source in sources:
        stored = archive.holds_results(source)
        for item in archive.scan(source) if stored else scan_runs(source):
            if isinstance(item, Unusable):
                found[str(item.path)] = item
            elif stored:
                kept[item.place] = item
            else:
                found[str(item.place)] = item
    runs, unusable = archive.gather(found.values(), kept.values())
    if not kept and not runs:
        places = ", ".join(map(str, sources))
        raise ConfigError(f"{places}: no finished run{said(unusable)}")
    return in_order([*kept.values(), *runs]), unusable


def common_folder(places: Sequence[Path]) -> Path:
    """Return the innermost folder that holds all of the places; of a single one, itself."""
    if len(places) == 1:
        return places[0]
    return Path(os.path.commonpath([place.absolute() for place in places]))


def keep(source: Path, output: Path, *, replace: bool) -> None:
    """Add the runs in a directory to the kept results, and write the tables of their page."""
    kept = archive.read(output / "results")
    runs, unusable = archive.merge(kept, scan_runs(source), replace=replace)
    if unusable:
        print(f"not used:{said(unusable)}", file=sys.stderr)
    size = sum(path.stat().st_size for path in archive.write(runs, output / "results"))
    write_results(runs, output)
    print(f"{len(runs)} runs in {output / 'results'}, {size / 1e6:.1f} MB")


def write_results(runs: Sequence[Run], output: Path) -> None:
    """Write the figures and the tables of the page that shows the kept results."""
    tables.fill(ROOT / "README.md", "claims", tables.headline(runs))
    text = f"{tables.verdicts(runs)}\n\n{tables.provenance(runs)}"
    tables.fill(output / "README.md", "claims", text)
    tables.fill(output / "README.md", "diagnoses", tables.diagnoses(runs))
    tables.fill(output / "README.md", "origins", tables.origins(runs))
    draw_runs(runs, output / "figures")
    tables.fill(output / "README.md", "figures", tables.pictures(CONF, output / "figures"))
    repeated = {name for run in runs for name in article_names(run)}
    if missing := set(ARTICLE_RUNS) - repeated:
        print(f"no comparison is written: no run repeats {', '.join(sorted(missing))}")
        return
    compared = compare(runs)
    compared.to_csv(output / "comparison.csv", index=False, na_rep="NaN")
    table = f"{tables.comparison(compared)}\n\n{tables.provenance(runs)}"
    tables.fill(output / "README.md", "results", table)


def write_precision(runs: list[Run], output: Path) -> None:
    """Write every pair of runs, and a table of them into the page in the same folder."""
    sides = ("fp32", "bf16")
    table = paired(runs, "trainer.precision", sides)
    output.mkdir(parents=True, exist_ok=True)
    table.to_csv(output / "precision.csv", index=False)
    text = f"{tables.pairs(table, sides)}\n\n{tables.provenance(runs)}"
    tables.fill(output / "README.md", "precision", text)


def write_options() -> None:
    """Write what needs no run: groups, keys, experiments, causes, figures, kills and load."""
    tables.fill(CONF / "README.md", "groups", tables.groups(CONF))
    tables.fill(CONF / "README.md", "keys", tables.keys(CONF))
    tables.fill(CONF / "README.md", "experiments", tables.experiments(CONF))
    tables.fill(DOCTOR_PAGE, "causes", tables.causes())
    tables.fill(REFERENCE / "README.md", "figures", tables.pictures(CONF, REFERENCE / "figures"))
    for name, text in tables.survival(REFERENCE / "survival").items():
        tables.fill(REFERENCE / "README.md", name, text)


def compare_arms(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="report.py compare",
        description="Print the settings and the outcomes that differ between two arms: paired by "
        "seed, with 95 % intervals, where there are several seeds.",
    )
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="a run's directory, or "
                            "the folder of one arm's seeds")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        first, second = differences.arm_in(options.a), differences.arm_in(options.b)
        print(differences.describe(first, second))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    if sys.argv[1:2] == ["compare"]:
        return compare_arms(sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="*",
        default=[Path("outputs")],
        metavar="RUN",
        help="runs, or folders of runs, for the page (default: outputs)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html in the folder that holds all its runs)",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="add these runs to those kept in "
        "outputs/reference/results, and write the tables of outputs/reference",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="with --keep: drop kept runs of "
        "another version of the training code or with other settings",
    )
    parser.add_argument("--tables", action="store_true", help="only the tables that need no run")
    parser.add_argument("--precision", type=Path, metavar="DIR", help="where those runs are")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="publish a report there")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="with --wandb: write the report as wandb_report.json beside the page, offline",
    )
    options = parser.parse_args()
    if options.dry_run and not options.wandb:
        parser.error("--dry-run belongs to --wandb")
    output = options.output or common_folder(options.runs) / "report.html"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_options()
        if options.precision:
            write_precision(load_runs(options.precision, "precision"), REFERENCE)
        elif options.keep:
            keep(options.keep, REFERENCE, replace=options.replace)
        elif options.wandb:
            publish(options.runs, output, options.wandb, dry_run=options.dry_run)
        elif not options.tables:
            write_page(options.runs, output)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
