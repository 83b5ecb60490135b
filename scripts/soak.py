"""Kill runs at random moments, start the same command again, and compare what they leave.

    python scripts/soak.py                        30 kills over all kinds of runs
    python scripts/soak.py --minutes 60           for an hour
    python scripts/soak.py --kinds alone,stacked  of some kinds
    python scripts/soak.py --output outputs/reference/survival   keep the counts

A run survives if, after a restart, it leaves what an undisturbed run leaves, bit for bit: weights,
optimiser, rows of steps and epochs, layers, findings and evidence.

    python scripts/soak.py --faults               count the other faults, which tests inject
"""

import argparse
import atexit
import itertools
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
# Small nets on the bundled digits: what is killed matters, not what is learnt.
# They are saved after each epoch, however short it is.
OFTEN = "trainer.checkpoint_seconds=0"
SMALL = ("model=deep_mlp", "model.hidden=[24,24]", "data.train_size=320", "trainer.epochs=4", OFTEN,
         "trainer.device=cpu", "wandb=disabled", "doctor.every=5", "doctor.budget=20")  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "alone": SMALL,
    "bn_dropout": (*SMALL, "reg=bn_dropout"),
    "momentum": (*SMALL, "optim=sgd", "optim.momentum=0.9", "clip=4.0"),
    "each_step": (*SMALL, "optim=adamw", "trainer.checkpoint_minutes=1e-9"),
    "failing": (*SMALL, "init=const100"),
    "range_test": (*SMALL, "task=lr_find", "task.finder.iterations=30", "task.finder.repeats=2"),
    "lr_train": (*SMALL, "task=lr_train", "task.finder.iterations=30"),
    "fix": (*SMALL, "init=const100", "task=fix"),
    "images": ("data=shapes", "model=cnn", "data.train_size=256", "trainer.epochs=2",
               "trainer.device=cpu", "wandb=disabled", "doctor.budget=20", OFTEN),
    "regression": ("data=regression", "model=regressor", "loss=mse", "trainer.epochs=4",
                   "trainer.device=cpu", "wandb=disabled", OFTEN),
    "sweep": ("-m", "optim.lr=1e-3,1e-2", *SMALL),
    "stacked": ("-m", "hydra/launcher=stacked", "seed=0,1,2", "clip=4.0", *SMALL),
    "joblib": ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", *SMALL),
    "wandb": (*SMALL, "wandb=offline"),
}  # fmt: skip
MARK = "injects"  # of a test, with the kind of fault as its argument
MOST_KILLS = 5  # of one command, before it is left alone


@dataclass
class Result:
    """What became of the commands of one kind.

    Attributes:
        kills: that hit a command before it had ended.
        survived: commands that left what an undisturbed one leaves.
        tried: commands that were killed at least once.
        differences: of those that did not survive, one line each.
    """

    kills: int = 0
    survived: int = 0
    tried: int = 0
    differences: list[str] = field(default_factory=list)


def begin(arguments: Sequence[str], output: Path) -> multiprocessing.Process:
    """Start a command in a process that has imported everything already."""
    command = [str(TRAIN), *arguments, f"output_dir={output}"]
    process = multiprocessing.get_context("fork").Process(target=_train, args=(command,))
    process.start()
    return process


def _train(command: list[str]) -> None:
    os.setpgrp()  # so that a kill takes the command's own processes along
    sys.argv = command
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    code = 0
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else stop.code is not None
    finally:
        atexit._run_exitfuncs()  # as a process of its own would: an engine ends its workers there
        os._exit(code)


def left_by(output: Path) -> dict[str, Any]:
    """Return what the runs of a command have left, without paths and what a clock measured."""
    import torch

    from debugnn import json_lines, records

    left: dict[str, Any] = {}
    for path in sorted(output.rglob("run.json")):
        folder, name = path.parent, str(path.parent.relative_to(output))
        left[f"{name}: status"] = records.load(path.read_text(encoding="utf-8"))["status"]
        left[f"{name}: drafts"] = [p.name for p in folder.iterdir() if p.suffix == ".tmp"]
        state = torch.load(folder / "checkpoint.pt", weights_only=True) if (
            folder / "checkpoint.pt").exists() else {}  # fmt: skip
        for part in ("model", "optimizer", "epoch", "step"):
            left[f"{name}: {part}"] = state.get(part)
        for file in ("metrics.jsonl", "layers.jsonl"):
            rows = list(json_lines.read(folder / file))
            left[f"{name}: {file}"] = [{**row, "seconds": None} for row in rows]
        for file in ("findings.json", "evidence.json", "fix.json"):
            if (folder / file).exists():
                left[f"{name}: {file}"] = (folder / file).read_text().replace(str(output), "")
    return left


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Return where two values differ first, None where they are equal bit for bit."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return None if same and one.numpy().tobytes() == other.numpy().tobytes() else where
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{where}: {sorted(one.keys() ^ other.keys(), key=str)}"
        found = (difference(one[key], other[key], f"{where}/{key}") for key in one)
        return next((each for each in found if each), None)
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"{where}: {len(one)} and {len(other)} of them"
        pairs = enumerate(zip(one, other, strict=True))
        found = (difference(a, b, f"{where}/{i}") for i, (a, b) in pairs)
        return next((each for each in found if each), None)
    return None if one == other or (one != one and other != other) else where


def undisturbed(kind: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Return what a kind of command leaves, and the seconds that it takes.

    Raises:
        RuntimeError: the command fails without a kill.
    """
    started = time.perf_counter()
    process = begin(KINDS[kind], folder)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{kind}: ends with {process.exitcode} without a kill")
    return left_by(folder), time.perf_counter() - started


def kill_and_restart(kind: str, seconds: float, chance: random.Random, output: Path) -> int:
    """Start a command and kill it, up to five times; then let it end. Return the kills.

    Args:
        seconds: that it takes alone; it is killed at any moment of them.
        output: where its runs are kept.

    Raises:
        RuntimeError: it fails after the last restart.
    """
    kills = 0
    for _ in range(chance.randint(1, MOST_KILLS)):
        process = begin(KINDS[kind], output)
        process.join(timeout=chance.uniform(0, seconds))
        if process.exitcode is not None:
            break
        _kill(process)
        kills += 1
    process = begin(KINDS[kind], output)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"ends with {process.exitcode} after {kills} kills")
    return kills


def _kill(process: multiprocessing.Process) -> None:
    """Kill a command and the processes that it has started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        process.kill()
    process.join()


def soak(
    kinds: Sequence[str], kills: int, minutes: float, chance: random.Random
) -> dict[str, Result]:
    """Kill commands of all kinds in turn, until there were enough kills or minutes."""
    results = {kind: Result() for kind in kinds}
    until = time.monotonic() + 60 * minutes
    with temporary_folder() as folder:
        expected = {kind: undisturbed(kind, folder / f"alone {kind}") for kind in kinds}
        for kind in itertools.cycle(kinds):
            if sum(r.kills for r in results.values()) >= kills or time.monotonic() >= until:
                return results
            result, (left, seconds) = results[kind], expected[kind]
            output = folder / f"killed {kind}"
            try:
                hit = kill_and_restart(kind, seconds, chance, output)
                found = difference(left_by(output), left)
            except RuntimeError as error:
                hit, found = 1, str(error)
            if hit:
                result.kills += hit
                result.tried += 1
                result.survived += found is None
                if found:
                    result.differences.append(found)
                    print(f"{kind}: {found}", flush=True)
            shutil.rmtree(output, ignore_errors=True)
    return results


class Faults:
    """A plugin of pytest that counts the faults which tests inject, by their kind.

    Attributes:
        counts: kind → how many were injected, how many of those came to what the test wants, and
            how many were left out, because this machine lacks what they need.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Note each fault of the tests that are to run."""
        for item in items:
            for mark in item.iter_markers(MARK):
                self.counts.setdefault(mark.args[0], Counter(injected=0, as_wanted=0, left_out=0))
                item.user_properties.append((MARK, mark.args[0]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count the faults of a test that has run, or that cannot be run here."""
        for name, kind in report.user_properties:
            if name != MARK or (report.when != "call" and report.passed):
                continue
            if report.skipped:
                self.counts[kind]["left_out"] += 1
            else:
                self.counts[kind]["injected"] += 1
                self.counts[kind]["as_wanted"] += report.passed


def count_faults(tests: Sequence[str]) -> tuple[int, dict[str, Counter[str]]]:
    """Run the tests that inject faults; return pytest's exit code and the counts.

    Args:
        tests: files, folders or names of tests.
    """
    import pytest

    faults = Faults()
    code = pytest.main(["-q", "-m", MARK, *tests], plugins=[faults])
    return int(code), dict(sorted(faults.counts.items()))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def faults_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return a line for each kind of fault, and their sum."""
    total = sum((Counter(own) for own in counts.values()), Counter[str]())
    rows = [f"{'fault':40s} {'injected':>8} {'as wanted':>9} {'left out':>8}"]
    rows += [
        f"{kind:40s} {own['injected']:8} {own['as_wanted']:9} {own['left_out']:8}"
        for kind, own in (*counts.items(), ("all", total))
    ]
    return "\n".join(rows)


def table(results: dict[str, Result]) -> str:
    """Return a line for each kind, and their sum."""
    rows = [f"{'kind':32s} {'kills':>6} {'commands':>9} {'as undisturbed':>15}"]
    total = Result()
    for kind, result in results.items():
        rows.append(f"{kind:32s} {result.kills:6} {result.tried:9} {result.survived:15}")
        total.kills += result.kills
        total.tried += result.tried
        total.survived += result.survived
    rows.append(f"{'all':32s} {total.kills:6} {total.tried:9} {total.survived:15}")
    return "\n".join(rows)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, help="kills in all (default: 30 without --minutes)")
    parser.add_argument("--minutes", type=float, help="for how long")
    parser.add_argument("--seed", type=int, help="of the moments; one is drawn and printed without")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of runs, with commas (all)")
    parser.add_argument("--faults", nargs="*", metavar="TEST", help="run the tests that inject "
                        "faults, or these of them, and kill nothing")  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder for the counts, in kills.json, or "
                        "faults.json")  # fmt: skip
    options = parser.parse_args(arguments)
    options.kinds = options.kinds.split(",")
    for kind in options.kinds:
        if kind not in KINDS:
            parser.error(f"--kinds={kind}: no such kind; there are {', '.join(KINDS)}")
    if options.kills is None:
        options.kills = 30 if options.minutes is None else sys.maxsize
    if options.minutes is None:
        options.minutes = float("inf")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.faults is not None:
        code, counts = count_faults(options.faults or [str(TRAIN.parent / "tests")])
        print(faults_table(counts))
        if code in (0, 1):  # else pytest did not come to their end
            keep(options.output, "faults", {"kinds": counts})
        return code
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    import_what_runs_need()
    results = soak(options.kinds, options.kills, options.minutes, random.Random(seed))
    print(table(results))
    told = {kind: asdict(result) for kind, result in results.items()}
    keep(options.output, "kills", {"seed": seed, "kinds": told})
    return 0 if all(r.survived == r.tried for r in results.values()) else 1


def keep(folder: Path | None, name: str, counts: Mapping[str, Any]) -> None:
    """Write counts to a JSON file, if there is a folder for it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(counts, indent=2)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def import_what_runs_need() -> None:
    """Import torch and the rooms here, so that each command begins to train at once.

    A process that is copied with threads may wait for them for ever: torch has one from here on.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    import sklearn.datasets  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import debugnn.runs.diagnosis
    import debugnn.runs.execute
    import debugnn.runs.fix
    import debugnn.runs.learning_rate
    import debugnn.stacking.sweep  # noqa: F401


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
