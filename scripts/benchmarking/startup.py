"""Start-up times and peak memory of processes that are started as a user starts them."""

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarking.worker import ROOT, BenchmarkError, environment

TRAIN = [sys.executable, str(ROOT / "train.py")]

PEAK_MEMORY = str(Path(__file__).with_name("peak_memory.py"))


def wall(command: Sequence[str], log: Path) -> tuple[float, float]:
    """Run a command, and return its seconds and the peak resident set of its process in MB.

    Raises:
        BenchmarkError: the command failed.
    """
    peak = log.with_name("peak.txt")
    started = time.perf_counter()
    with log.open("ab") as output:
        code = subprocess.run(
            [sys.executable, "-S", "-E", PEAK_MEMORY, str(peak), *command],
            stdout=output, stderr=output, env=environment(), cwd=ROOT, check=False,
        ).returncode  # fmt: skip
    seconds = time.perf_counter() - started
    if code:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise BenchmarkError(f"{' '.join(command)}: ended with {code}\n{tail}")
    return seconds, int(peak.read_text()) / 1024  # Linux counts in KiB


def first_step(side: str, arguments: Sequence[str], log: Path) -> float:
    """Return the seconds from the start of a process to the end of its first training step."""
    command = [sys.executable, "-m", "benchmarking.startup", side, *arguments]
    mark = log.with_name("first_step.txt")
    mark.unlink(missing_ok=True)
    started = time.time()
    wall([*command, str(mark)], log)
    return float(mark.read_text()) - started


def extra_jobs(overrides: Sequence[str], jobs: int, output: Path, log: Path) -> list[float]:
    """Return what each job of a sweep after the first takes in addition to its epochs.

    This is the time from one job's last write to the next job's, minus the seconds of its epochs.
    """
    seeds = ",".join(str(seed) for seed in range(jobs))
    wall([*TRAIN, "-m", f"seed={seeds}", f"output_dir={output}", *overrides], log)
    ends, trained = [], []
    for seed in range(jobs):
        (run,) = output.glob(f"*/*/seed={seed}/run.json")
        ends.append(run.stat().st_mtime)
        rows = [json.loads(line) for line in (run.parent / "metrics.jsonl").open()]
        trained.append(sum(row["seconds"] for row in rows if "seconds" in row))
    return [ends[job] - ends[job - 1] - trained[job] for job in range(1, jobs)]


def _project(mark: Path, arguments: list[str]) -> None:
    """Run train.py until the end of its first update."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: _done(mark))
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def _notebook(mark: Path, arguments: list[str]) -> None:
    """Run the notebooks' loop until the end of its first step."""
    from benchmarking.notebook import Notebook

    net, root, directory = arguments
    notebook = Notebook(Path(root) if root else None, Path(directory))
    next(notebook._train(net, ""))
    _done(mark)


def _done(mark: Path) -> None:
    mark.write_text(str(time.time()))
    os._exit(0)


if __name__ == "__main__":
    side, *given, place = sys.argv[1:]
    {"project": _project, "notebook": _notebook}[side](Path(place), given)
