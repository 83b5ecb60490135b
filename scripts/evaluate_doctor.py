"""Diagnose the suite's sound and faulty programs, and count what the doctor gets right.

python scripts/evaluate_doctor.py                       all programs, 5 seeds
python scripts/evaluate_doctor.py --seeds 1 --only lr_  some programs, one seed
python scripts/evaluate_doctor.py --write               outputs/reference/doctor and its page too
"""

import argparse
import dataclasses
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from debugnn import Doctor, records
from debugnn.analysis import tables
from debugnn.analysis.figures.confusion import draw_confusion
from debugnn.doctor import causes, evidence
from debugnn.doctor.report import CAUSES, main_cause
from programs import FAULTY, SOUND, train

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "outputs" / "reference" / "doctor"
DOCTOR_PAGE = ROOT / "src" / "debugnn" / "doctor" / "README.md"


def diagnose(job: tuple[str, int]) -> dict:
    """Train one program under the doctor's eyes; what was injected, what was found."""
    import torch

    from programs import FAULTY, SOUND

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
        "accepted": list(program.accepted),
        "found": main_cause(diagnosis.findings),
        "findings": [f"{f.severity}: {f.cause}" for f in diagnosis.findings],
        "fork_steps": diagnosis.fork_steps,
        "troubles": diagnosis.troubles,
        "seconds": round(trained - started, 3),
        "report_seconds": round(time.perf_counter() - trained, 3),
        "evidence": seen,
    }


def right(row: dict) -> bool:
    return row["found"] in (row["cause"], *row["accepted"])


def rates(rows: list[dict]) -> dict[str, float]:
    """Shares in %: sound called unhealthy, faulty called unhealthy, faulty with the right cause."""
    sound = [r for r in rows if r["cause"] == "healthy"]
    faulty = [r for r in rows if r["cause"] != "healthy"]

    def share(part: Iterable[bool], of: list) -> float:
        return 100 * sum(part) / len(of) if of else float("nan")

    return {
        "false alarms": share((r["found"] != "healthy" for r in sound), sound),
        "faults found": share((r["found"] != "healthy" for r in faulty), faulty),
        "right cause": share((right(r) for r in faulty), faulty),
    }


def confusion(rows: list[dict]) -> pd.DataFrame:
    """Number of runs by injected cause (rows) and first finding (columns), `healthy` first."""
    causes = ["healthy", *CAUSES]
    # Where two names say the same, the accepted one counts as the injected one.
    pairs = [(r["cause"], r["cause"] if right(r) else r["found"]) for r in rows]
    table = pd.crosstab(
        pd.Series([p[0] for p in pairs], name="injected"),
        pd.Series([p[1] for p in pairs], name="found"),
    )
    return table.reindex(index=causes, columns=causes, fill_value=0)


def table(rows: list[dict]) -> str:
    """The rates of both halves as Markdown."""
    lines = []
    for half, name in (("held_out", "held out"), ("tuning", "used for the thresholds")):
        part = [r for r in rows if r["half"] == half]
        numbers = rates(part)
        sound = [r for r in part if r["cause"] == "healthy"]
        programs = len({r["program"] for r in part} - {r["program"] for r in sound})
        lines.append([
            name,
            f"{len({r['program'] for r in sound})} sound, {programs} faulty",
            f"{len(sound)}, {len(part) - len(sound)}",
            *(f"{numbers[key]:.1f} %" for key in ("false alarms", "faults found", "right cause")),
        ])  # fmt: skip
    head = ["half", "programs", "runs", "sound called unhealthy", "faulty called unhealthy",
            "first finding is the cause"]  # fmt: skip
    return tables.markdown(head, lines)


def by_cause(rows: list[dict]) -> str:
    """How many of each cause's runs are found, and named rightly, as Markdown."""
    lines = []
    for cause in CAUSES:
        part = [r for r in rows if r["cause"] == cause]
        wrong = Counter(r["found"] for r in part if not right(r))
        lines.append([
            f"`{cause}`",
            str(len(part)),
            str(sum(r["found"] != "healthy" for r in part)),
            str(sum(map(right, part))),
            ", ".join(f"{found} {n}" for found, n in wrong.most_common()) or "–",
        ])  # fmt: skip
    return tables.markdown(["cause", "runs", "found", "right", "instead"], lines)


def write(rows: list[dict], seeds: int) -> None:
    """Tables, matrix and figure of the held-out half; the runs of both."""
    held = [r for r in rows if r["half"] == "held_out"]
    columns = ["program", "seed", "half", "cause", "found", "fork_steps", "seconds"]
    frame = pd.DataFrame(rows)[columns]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    frame.to_csv(OUTPUT / "runs.csv", index=False)
    matrix = confusion(held)
    matrix.to_csv(OUTPUT / "confusion.csv")
    said = (
        f"Seeds 0 to {seeds - 1}, torch {torch.__version__}, one thread a run, "
        f"commit {_commit()}; `python scripts/evaluate_doctor.py --seeds {seeds} --write`."
    )
    draw_confusion(
        matrix, OUTPUT / "confusion.png", "What was injected, and what the doctor named first",
        f"Held-out half: {len(held)} runs, seeds 0 to {seeds - 1}. Orange: another name.",
    )  # fmt: skip
    tables.fill(DOCTOR_PAGE, "rates", f"{table(rows)}\n\n{said}")
    tables.fill(DOCTOR_PAGE, "by_cause", by_cause(held))


def _commit() -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return shown.stdout.strip() or "unknown"


def summary(rows: list[dict]) -> str:
    lines = []
    for half in ("tuning", "held_out"):
        part = [r for r in rows if r["half"] == half]
        sound = sum(r["cause"] == "healthy" for r in part)
        numbers = ", ".join(f"{name} {value:.1f} %" for name, value in rates(part).items())
        lines.append(f"{half:9s} {sound} sound, {len(part) - sound} faulty runs: {numbers}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> list[dict]:
    """Train and diagnose the programs that are asked for, each in its turn a line if wrong."""
    jobs = [
        (program.name, seed)
        for program in (*SOUND, *FAULTY)
        if options.only in program.name or options.only in (program.cause or "healthy")
        if options.half in (None, program.half)
        for seed in range(options.seeds)
    ]
    rows = []
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for row in pool.imap_unordered(diagnose, jobs, chunksize=4):
            rows.append(row)
            _show(row)
    return rows


def again(path: Path) -> list[dict]:
    """The runs of an earlier evaluation, diagnosed from their evidence."""
    rows = records.load(path.read_text(encoding="utf-8"))
    for row in rows:
        findings = causes.diagnose(evidence.load(row["evidence"]), budget=200).findings
        row["found"] = main_cause(findings)
        row["findings"] = [f"{f.severity}: {f.cause}" for f in findings]
        _show(row)
    return rows


def _show(row: dict) -> None:
    if not right(row):
        half = "T" if row["half"] == "tuning" else "H"
        found = ", ".join(row["findings"]) or "healthy"
        print(f"{half} {row['program']} seed {row['seed']}: {row['cause']} -> {found}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--only", default="", help="programs whose name or cause holds this")
    parser.add_argument("--half", choices=["tuning", "held_out"], help="one half of the programs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--write", action="store_true", help="write outputs/reference/doctor")
    parser.add_argument("--json", type=Path, help="file for every run with its evidence")
    parser.add_argument("--again", type=Path, help="such a file: diagnose it by today's rules")
    options = parser.parse_args()
    rows = again(options.again) if options.again else run(options)
    rows.sort(key=lambda r: (r["program"], r["seed"]))
    print(summary(rows))
    if options.write:
        write(rows, options.seeds)
    if options.json:
        options.json.write_text(records.dump(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
