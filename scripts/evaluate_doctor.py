"""Diagnose sound and faulty programs, and count how often the doctor is right.

python scripts/evaluate_doctor.py                 all programs, 5 seeds
    --seeds 1 --only lr_                          some programs, one seed
    --write                                       fill the doctor's page
    --save DIR                                    keep each run's evidence
python scripts/evaluate_doctor.py --rejudge DIR   judge kept evidence again
    --set vanishing_gradient.VANISHED=0.05        under another threshold
    --sensitivity                                 under each threshold moved

--rejudge needs no torch. DIR holds what --save has written, or runs of
train.py: each evidence.json below it is diagnosed again.

Of the held-out half, only the rates are printed. Who reads which of its
programs are missed, and changes a rule for them, has no held-out half any
more: --reveal is for when that is decided.
"""

import argparse
import dataclasses
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from debugnn import records
from debugnn.analysis import statistics, tables
from debugnn.analysis.figures.confusion import draw_confusion
from debugnn.doctor import causes, evidence
from debugnn.doctor.causes.thresholds import Threshold, moved, thresholds
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import CONFIDENCES, Report

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "outputs" / "reference" / "doctor"
DOCTOR_PAGE = ROOT / "src" / "debugnn" / "doctor" / "README.md"

Row = dict[str, Any]  # one run: what was put in, what the doctor found, and its evidence


def diagnose(job: tuple[str, int]) -> Row:
    """Train the program of a name with a seed while the doctor watches, and return its row."""
    import torch

    from debugnn import Doctor
    from debugnn.faults import FAULTY, SOUND, train

    torch.set_num_threads(1)
    name, seed = job
    program = next(p for p in (*SOUND, *FAULTY) if p.name == name)
    started = time.perf_counter()
    with train(program.build(seed), seed, Doctor) as doctor:
        trained = time.perf_counter()
        diagnosis = doctor.report()
        seen = dataclasses.asdict(doctor.evidence)
    return {
        "program": name,
        "seed": seed,
        "half": program.half,
        "cause": program.cause or "healthy",
        "family": program.family,
        "accepted": list(program.accepted),
        **judgement(diagnosis),
        "trial_steps": diagnosis.trial_steps,
        "trial_budget": diagnosis.trial_budget,
        "troubles": diagnosis.troubles,
        "seconds": round(trained - started, 3),
        "report_seconds": round(time.perf_counter() - trained, 3),
        "torch": torch.__version__,
        "evidence": seen,
    }


def judgement(report: Report) -> Row:
    """Return the part of a row that depends on the doctor's rules."""
    named = report.main_cause in causes.ORDER
    return {
        "healthy": report.healthy,
        "found": report.main_cause,
        "confidence": report.findings[0].confidence if named else None,
        "findings": [f"{f.severity} ({f.confidence}): {f.cause}" for f in report.findings],
    }


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Train and diagnose the programs that the command line selects."""
    from debugnn.faults import FAULTY, SOUND

    jobs = [
        (program.name, seed)
        for program in (*SOUND, *FAULTY)
        if _selected(options, program.name, program.half)
        for seed in range(options.seeds)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        yield from pool.imap_unordered(diagnose, jobs, chunksize=4)


def save(row: Row, directory: Path) -> None:
    """Write a run into its own file."""
    slug = re.sub(r"[^\w.=]+", "-", row["program"]).strip("-")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{slug}-seed={row['seed']}.json").write_text(records.dump(row), encoding="utf-8")


def rejudge(options: argparse.Namespace) -> Iterator[Row]:
    """Diagnose the runs that `--save` has written from their evidence, by today's rules.

    Raises:
        SystemExit: the directory holds no run.
    """
    paths = sorted(options.rejudge.glob("*.json"))
    if not paths:
        raise SystemExit(f"{options.rejudge} holds no run that --save has written")
    for path in paths:
        row = records.load(path.read_text(encoding="utf-8"))
        if _selected(options, row["program"], row["half"]):
            diagnosis = causes.diagnose(evidence.load(row["evidence"]), row["trial_budget"])
            yield row | judgement(diagnosis)


def rejudge_runs(paths: Sequence[Path]) -> None:
    """Print each run of train.py with its diagnosis as it was kept, and by today's rules."""
    for path in paths:
        seen = evidence.load(records.load(path.read_text(encoding="utf-8")))
        kept = records.load(path.with_name("findings.json").read_text(encoding="utf-8"))
        now = causes.diagnose(seen, kept["trial_budget"])
        print(f"{path.parent}: {kept['main_cause']} -> {now.main_cause}")


def set_threshold(text: str) -> tuple[Threshold, float]:
    """Parse `file.NAME=value`; the file is a cause's, or one of `causes/signals`.

    Raises:
        argparse.ArgumentTypeError: no such threshold, or no number.
    """
    name, _, value = text.partition("=")
    known = {str(threshold): threshold for threshold in thresholds()}
    if name not in known:
        near = [each for each in known if each.partition(".")[2] == name.rpartition(".")[2]]
        hint = f"; there is {', '.join(near)}" if near else ""
        raise argparse.ArgumentTypeError(f"{name}: no such threshold{hint}")
    try:
        return known[name], float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: a number is needed") from None


FACTORS = (0.5, 0.8, 1.25, 2.0)  # by which each threshold is moved
COUNTS = [f"× {factor:g}" for factor in FACTORS]  # columns of the runs that change
SHOWN = 12  # thresholds of the page's table


def sensitivity(rows: Sequence[Row]) -> pd.DataFrame:
    """Count the runs whose first finding changes as each threshold is moved.

    Args:
        rows: runs of the tuning half, with their evidence.

    Returns:
        A row for each threshold: its name, its value, and a count for each of `FACTORS`.
    """
    seen: list[tuple[Evidence, str]] = []
    for row in rows:
        found = evidence.load(row["evidence"])
        seen.append((found, causes.diagnose(found, row["trial_budget"]).main_cause))
    counts = []
    for threshold in thresholds():
        changed = {}
        for factor in FACTORS:
            with moved(threshold, threshold.value * factor):
                now = [causes.diagnose(found, 0).main_cause for found, _ in seen]
            changed[f"× {factor:g}"] = sum(
                cause != before for cause, (_, before) in zip(now, seen, strict=True)
            )
        counts.append({"threshold": str(threshold), "value": threshold.value, **changed})
    return pd.DataFrame(counts)


def most_sensitive(table: pd.DataFrame) -> str:
    """Return the thresholds that most diagnoses hang on, as Markdown."""
    some = _changing(table)
    # What a fifth or a quarter changes says more than what a factor of two does.
    near, far = some[COUNTS[1:3]].max(axis=1), some[[COUNTS[0], COUNTS[3]]].max(axis=1)
    most = some.assign(near=near, far=far).sort_values(
        ["near", "far"], ascending=False, kind="stable"
    )
    rows = [
        [f"`{row['threshold']}`", f"{row['value']:g}", *(str(row[c]) for c in COUNTS)]
        for _, row in most[:SHOWN].iterrows()
    ]
    return tables.markdown(["threshold", "value", *COUNTS], rows)


def _changing(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table[COUNTS] > 0).any(axis=1)]


def _selected(options: argparse.Namespace, program: str, half: str) -> bool:
    return options.only in program and options.half in (None, half)


# -------------------------------------------------------------------------------------- numbers


def right(row: Row) -> bool:
    """Return whether the first finding is the fault, or another name that is accepted for it."""
    return row["found"] in (row["cause"], *row["accepted"])


def unhealthy(row: Row) -> bool:
    """Return whether the doctor says that something is wrong."""
    return row["healthy"] is False


def rates(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """Count false alarms, faults found and right causes, each as (number, of how many runs)."""
    sound = [r for r in rows if r["cause"] == "healthy"]
    faulty = [r for r in rows if r["cause"] != "healthy"]
    return {
        "false alarms": (sum(map(unhealthy, sound)), len(sound)),
        "faults found": (sum(map(unhealthy, faulty)), len(faulty)),
        "right cause": (sum(map(right, faulty)), len(faulty)),
    }


def percent(number: int, total: int) -> str:
    """Return a share with its interval in %.

    It takes the runs for independent, which the seeds of one program are not quite.
    """
    if not total:
        return "–"
    found = statistics.proportion(number, total)
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def summary(rows: list[Row]) -> str:
    """Return the rates of each half, a line each."""
    lines = []
    for half in ("tuning", "held_out"):
        part = [r for r in rows if r["half"] == half]
        counted = rates(part)
        sound, faulty = counted["false alarms"][1], counted["right cause"][1]
        numbers = ", ".join(f"{name} {percent(*counts)}" for name, counts in counted.items())
        lines.append(f"{half:9s} {sound} sound, {faulty} faulty runs: {numbers}")
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """Return the rates of both halves as a Markdown table."""
    lines = []
    for half, name in (("held_out", "held out"), ("tuning", "used for the thresholds")):
        part = [r for r in rows if r["half"] == half]
        counted = rates(part)
        sound = {r["program"] for r in part if r["cause"] == "healthy"}
        faulty = {r["program"] for r in part} - sound
        lines.append([
            name,
            f"{len(sound)} sound, {len(faulty)} faulty",
            f"{counted['false alarms'][1]}, {counted['right cause'][1]}",
            *(percent(*counted[key]) for key in ("false alarms", "faults found", "right cause")),
        ])  # fmt: skip
    head = ["half", "programs", "runs", "sound called unhealthy", "faulty called unhealthy",
            "first finding is the cause"]  # fmt: skip
    return tables.markdown(head, lines)


def by_cause(rows: list[Row]) -> str:
    """Return how many runs of each cause are found and named rightly, as a Markdown table."""
    lines = []
    for cause in causes.ORDER:
        part = [r for r in rows if r["cause"] == cause]
        wrong = Counter(r["found"] for r in part if not right(r))
        lines.append([
            f"`{cause}`",
            str(len(part)),
            str(sum(map(unhealthy, part))),
            percent(sum(map(right, part)), len(part)),
            ", ".join(f"{found} {n}" for found, n in wrong.most_common()) or "–",
        ])  # fmt: skip
    return tables.markdown(["cause", "runs", "found", "right", "instead"], lines)


def by_confidence(rows: list[Row]) -> str:
    """Return how often a first finding of each confidence is right, as a Markdown table.

    A cause that is named for a sound program is wrong.
    """
    lines = []
    for confidence in CONFIDENCES:
        part = [r for r in rows if r["confidence"] == confidence]
        lines.append([confidence, str(len(part)), percent(sum(map(right, part)), len(part))])
    unnamed = [r for r in rows if r["found"] == "does not learn"]
    faulty = sum(r["cause"] != "healthy" for r in unnamed)
    lines.append(["no cause: does not learn", str(len(unnamed)), percent(faulty, len(unnamed))])
    return tables.markdown(["confidence", "runs", "right"], lines)


def by_family(rows: list[Row]) -> str:
    """Return how many runs of each fault function are named rightly, as a Markdown table."""
    lines = []
    faulty = [r for r in rows if r["cause"] != "healthy"]
    for cause, family in sorted({(r["cause"], r["family"]) for r in faulty}):
        part = [r for r in faulty if (r["cause"], r["family"]) == (cause, family)]
        shares = percent(sum(map(right, part)), len(part))
        lines.append([f"`{cause}`", f"`{family}`", str(len(part)), shares])
    return tables.markdown(["cause", "fault", "runs", "right"], lines)


def confusion(rows: list[Row]) -> pd.DataFrame:
    """Count the runs by injected cause (rows) and first finding (columns), `healthy` first."""
    injected = ["healthy", *causes.ORDER]
    said = ["healthy", "cannot tell", "does not learn", *causes.ORDER]
    # An accepted name counts as the injected one.
    pairs = [(r["cause"], r["cause"] if right(r) else r["found"]) for r in rows]
    counts = pd.crosstab(
        pd.Series([p[0] for p in pairs], name="injected"),
        pd.Series([p[1] for p in pairs], name="found"),
    )
    return counts.reindex(index=injected, columns=said, fill_value=0)


# --------------------------------------------------------------------------------------- output


def write(rows: list[Row]) -> None:
    """Write tables, confusion matrix and figure of the held-out half, and the tuning runs.

    The held-out runs are not listed one by one, so that nobody tunes a rule on them by accident.
    """
    held = [r for r in rows if r["half"] == "held_out"]
    columns = ["program", "seed", "cause", "found", "trial_steps", "seconds"]
    tuning = pd.DataFrame([r for r in rows if r["half"] == "tuning"])[columns]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    tuning.to_csv(OUTPUT / "runs.csv", index=False)
    matrix = confusion(held)
    matrix.to_csv(OUTPUT / "confusion.csv")
    seeds = 1 + max(r["seed"] for r in rows)
    drawn = "seed 0" if seeds == 1 else f"seeds 0 to {seeds - 1}"
    said = (
        f"In brackets: Wilson's 95 % interval. {drawn.capitalize()}, torch "
        f"{', '.join(sorted({r['torch'] for r in rows}))}, one thread a run, commit {_commit()}; "
        f"`python scripts/evaluate_doctor.py --seeds {seeds} --write`."
    )
    draw_confusion(
        matrix, OUTPUT / "confusion.png", "What was injected, and what the doctor named first",
        f"Held-out half: {len(held)} runs, {drawn}. Orange: another name.",
    )  # fmt: skip
    tables.fill(DOCTOR_PAGE, "rates", f"{table(rows)}\n\n{said}")
    tables.fill(DOCTOR_PAGE, "by_cause", by_cause(held))
    tables.fill(DOCTOR_PAGE, "by_confidence", by_confidence(held))


def _commit() -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return shown.stdout.strip() or "unknown"


def show_if_wrong(row: Row, reveal: bool) -> None:
    """Print a line about a run that is diagnosed wrongly, unless it is held out."""
    if not right(row) and (reveal or row["half"] == "tuning"):
        found = ", ".join(row["findings"]) or "healthy"
        print(f"{row['half']} {row['program']} seed {row['seed']}: {row['cause']} -> {found}",
              flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("--half", choices=["tuning", "held_out"], help="one half of the programs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--write", action="store_true", help="write outputs/reference/doctor")
    parser.add_argument(
        "--reveal", action="store_true", help="name held-out programs, causes and faults, too"
    )
    parser.add_argument(
        "--set", type=set_threshold, action="append", default=[], metavar="NAME=VALUE",
        help="judge under another threshold, such as vanishing_gradient.VANISHED=0.05",
    )  # fmt: skip
    parser.add_argument(
        "--sensitivity", action="store_true",
        help="with --rejudge: move each threshold and count the tuning runs that change",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--save", type=Path, metavar="DIR", help="write each run's evidence here")
    source.add_argument("--rejudge", type=Path, metavar="DIR", help="diagnose such runs again")
    options = parser.parse_args()
    if options.write and (options.only or options.half):
        parser.error("--write needs all programs, without --only and --half")

    if options.sensitivity and not options.rejudge:
        parser.error("--sensitivity needs --rejudge DIR")

    with ExitStack() as others:
        for threshold, value in options.set:
            others.enter_context(moved(threshold, value))
        runs = sorted(options.rejudge.rglob("evidence.json")) if options.rejudge else []
        if runs:
            rejudge_runs(runs)
            return 0
        rows = []
        for row in rejudge(options) if options.rejudge else run(options):
            rows.append(row)
            show_if_wrong(row, options.reveal)
            if options.save:
                save(row, options.save)
        if not rows:
            parser.error(f"--only {options.only}: no program has this in its name")
        rows.sort(key=lambda r: (r["program"], r["seed"]))
        print(summary(rows))
        print(by_confidence([r for r in rows if r["half"] == "tuning"]))
        if options.sensitivity:
            tuning = [r for r in rows if r["half"] == "tuning"]
            table_of_counts = sensitivity(tuning)
            print(most_sensitive(table_of_counts))
            if options.write:
                write_sensitivity(table_of_counts, tuning)
    if options.reveal:
        print(by_cause(rows), by_family(rows), sep="\n\n")
    if options.write:
        write(rows)
    return 0


def write_sensitivity(counts: pd.DataFrame, rows: Sequence[Row]) -> None:
    """Write how many tuning runs change with each threshold, and the page's table of them."""
    counts.to_csv(OUTPUT / "thresholds.csv", index=False)
    said = (
        f"{len(counts)} thresholds, each moved alone. At {len(_changing(counts))} of them the "
        f"first finding of some of the {len(rows)} tuning runs changes within a factor of two. "
        "Shown are the "
        f"{SHOWN} at which it does most often, "
        "[thresholds.csv](../../../outputs/reference/doctor/thresholds.csv) has all. Trials are "
        "not run again."
    )
    tables.fill(DOCTOR_PAGE, "thresholds", f"{most_sensitive(counts)}\n\n{said}")


if __name__ == "__main__":
    sys.exit(main())
