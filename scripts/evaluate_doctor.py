"""Diagnose the suite's sound and faulty programs, and count what the doctor gets right.

python scripts/evaluate_doctor.py                       all programs, 5 seeds
python scripts/evaluate_doctor.py --seeds 1 --only lr_  some programs, one seed
python scripts/evaluate_doctor.py --write               outputs/reference/doctor too
"""

import argparse
import dataclasses
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from debugnn import records
from debugnn.doctor.findings import main_cause

ROOT = Path(__file__).resolve().parent.parent


def diagnose(job: tuple[str, int]) -> dict:
    """Train one program under the doctor's eyes; what was injected, what was found."""
    import torch

    from debugnn import Doctor
    from programs import FAULTY, SOUND, train

    torch.set_num_threads(1)
    name, seed = job
    program = next(p for p in (*SOUND, *FAULTY) if p.name == name)
    started = time.perf_counter()
    with train(program.build(seed), seed, Doctor) as doctor:
        trained = time.perf_counter()
        report = doctor.report()
        evidence = dataclasses.asdict(doctor.evidence)
    return {
        "program": name,
        "seed": seed,
        "half": program.half,
        "cause": program.cause or "healthy",
        "accepted": list(program.accepted),
        "found": main_cause(report.findings),
        "findings": [f"{f.severity}: {f.cause}" for f in report.findings],
        "fork_steps": report.fork_steps,
        "troubles": report.troubles,
        "seconds": round(trained - started, 3),
        "report_seconds": round(time.perf_counter() - trained, 3),
        "evidence": evidence,
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


def summary(rows: list[dict]) -> str:
    lines = []
    for half in ("tuning", "held_out"):
        part = [r for r in rows if r["half"] == half]
        sound = sum(r["cause"] == "healthy" for r in part)
        numbers = ", ".join(f"{name} {value:.1f} %" for name, value in rates(part).items())
        lines.append(f"{half:9s} {sound} sound, {len(part) - sound} faulty runs: {numbers}")
    return "\n".join(lines)


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
    options = parser.parse_args()
    from programs import FAULTY, SOUND

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
            if not right(row):
                half = "T" if row["half"] == "tuning" else "H"
                print(f"{half} {row['program']} seed {row['seed']}: {row['cause']} -> "
                      f"{', '.join(row['findings']) or 'healthy'}", flush=True)  # fmt: skip
    rows.sort(key=lambda r: (r["program"], r["seed"]))
    print(summary(rows))
    if options.json:
        options.json.write_text(records.dump(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
