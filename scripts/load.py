"""Measure a sweep of many tiny runs: start, time and memory a run, skipping them, reading them.

python scripts/load.py                                       500 runs in one process
python scripts/load.py --launcher joblib                     in several processes
python scripts/load.py --launcher joblib --sweeps 5          the medians of several sweeps
python scripts/load.py --output outputs/reference/survival   keep the figures
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
TINY = ("model=deep_mlp", "data.train_size=64", "trainer.epochs=1", "trainer.steps_per_epoch=2",
        "trainer.device=cpu", "wandb=disabled", "doctor=off")  # fmt: skip
PART = 10  # of the runs: the first and the last tenth are compared
GROWTH = "time a run, last tenth over first"


@dataclass
class Course:
    """What was measured as each run of a sweep ended, in order.

    Attributes:
        seconds: since the sweep's start.
        rss: MiB of the command and its workers, without what they share.
        files: that they have open.
    """

    seconds: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)


def follow(command: list[str], ended: str) -> Course:
    """Run a command, and measure its processes at each line that holds `ended`.

    Raises:
        RuntimeError: it fails.
    """
    course, started = Course(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        last = line
        if ended in line:
            own = list(_family(process.pid))
            course.seconds.append(time.perf_counter() - started)
            course.rss.append(sum(map(_rss, own)))
            course.files.append(sum(map(_open_files, own)))
    if process.wait():
        raise RuntimeError(f"ended with {process.returncode}: {last}")
    return course


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that it has started."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        if int(thread) != pid:
            try:
                children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
            except OSError:
                continue
    for child in children:
        yield from _family(int(child))


def _rss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def measure(runs: int, launcher: str, output: Path) -> dict[str, float]:
    """Return the figures of one sweep, of the same command again, and of reading its runs."""
    from debugnn.analysis.directories import load_runs

    seeds = "seed=" + ",".join(map(str, range(runs)))
    command = [sys.executable, str(TRAIN), "-m", f"hydra/launcher={launcher}", *TINY, seeds,
               f"output_dir={output}"]  # fmt: skip
    trained = follow(command, " s, in ")
    skipped = follow(command, "finished before, skipped")
    started = time.perf_counter()
    read = load_runs(output)
    accuracy = [run.tables.metrics("epoch")["test_accuracy"].iloc[-1] for run in read]
    reading = time.perf_counter() - started
    part = max(runs // PART, 1)
    ended = trained.seconds  # several workers end several runs at about the same time
    first, last = (ended[part] - ended[0]) / part, (ended[-1] - ended[-part - 1]) / part
    return {
        "runs": runs,
        "finished": len(accuracy),
        "seconds until the first run had ended": trained.seconds[0],
        "seconds a run, first tenth": first,
        "seconds a run, last tenth": last,
        GROWTH: last / first,
        "MiB, after the first tenth": trained.rss[part],
        "MiB, at the end": trained.rss[-1],
        "open files, after the first tenth": trained.files[part],
        "open files, at the end": trained.files[-1],
        "seconds a skipped run": (skipped.seconds[-1] - skipped.seconds[0]) / max(runs - 1, 1),
        "seconds to read all results": reading,
    }


def summary(sweeps: list[dict[str, float]]) -> dict[str, float]:
    """Return the medians of all figures over sweeps, and how far the growth of time scatters."""
    figures = {name: statistics.median(each[name] for each in sweeps) for name in sweeps[0]}
    growths = [each[GROWTH] for each in sweeps]
    least = {f"{GROWTH}, least of the sweeps": min(growths)}
    return {"sweeps": len(sweeps), **figures, **least,
            f"{GROWTH}, most of the sweeps": max(growths)}  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500, help="of the sweep (default: 500)")
    parser.add_argument("--sweeps", type=int, default=1, help="whose medians are kept (default: 1)")
    parser.add_argument("--launcher", default="basic", help="hydra/launcher (default: basic)")
    parser.add_argument("--output", type=Path, help="folder for the figures, in load_*.json")
    options = parser.parse_args(arguments)
    measured = []
    for _ in range(options.sweeps):
        with tempfile.TemporaryDirectory(prefix="load-") as folder:
            measured.append(measure(options.runs, options.launcher, Path(folder)))
    figures = summary(measured)
    for name, value in figures.items():
        print(f"{name:60s} {value:10.4g}")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / f"load_{options.launcher}.json"
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if all(each["finished"] == options.runs for each in measured) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
