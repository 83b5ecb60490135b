"""Measure how the cost grows with size: batch, width, images, seeds, sweeps.

python scripts/benchmark_scale.py --quick     smallest sizes, to try it out
python scripts/benchmark_scale.py --output outputs/reference/benchmark
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import load
from benchmark import busy, machine, say
from benchmarking import scale_output
from benchmarking.measures import Spread, alternate
from benchmarking.publishing import publish
from benchmarking.worker import BenchmarkError, Together, Worker

PROJECT = "benchmarking.project:Project"
DEPTH = 4  # hidden layers of the MLP whose width grows


@dataclass(frozen=True)
class Effort:
    """The sizes of each quantity, and how much is measured.

    Attributes:
        rounds: number of alternating rounds.
        seconds: no round of a quantity starts after this time.
        count: number of steps that are timed together.
        times: as many training images as MNIST has.
        batches, widths: samples of a batch, units of each hidden layer.
        members: seeds of a stack.
        processes: runs side by side, one thread each.
        arms: runs of a sweep.
    """

    rounds: int
    seconds: float
    count: int
    times: tuple[int, ...]
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    members: tuple[int, ...]
    processes: tuple[int, ...]
    arms: tuple[int, ...]


QUICK = Effort(2, 5, 20, (1, 2), (8, 16), (16, 32), (1, 2), (1,), (3,))
FULL = Effort(
    rounds=9, seconds=45, count=40, times=(1, 10, 100), batches=(8, 16, 32, 64, 128, 256, 512),
    widths=(32, 64, 128, 256, 512, 1024), members=(1, 2, 4, 8, 16, 32, 64),
    processes=(1, 2, 4, 8), arms=(10, 100),
)  # fmt: skip


class Scale:
    """The processes that train, and a method for each quantity.

    Each method returns size → spread of the seconds that the figure's title names.
    """

    def __init__(self, effort: Effort, directory: Path, stack: ExitStack) -> None:
        self.effort, self.directory, self._stack = effort, directory, stack
        self.log = directory / "log.txt"
        self.log.touch()
        self.worker = self._started("one")

    def _started(self, name: str) -> Worker:
        runs = self.directory / f"runs-{name}"
        runs.mkdir()
        given = {"root": None, "directory": str(runs), "precision": "fp32", "wandb": "disabled"}
        worker = Worker(name, PROJECT, self.log, 1, **given)
        self._stack.callback(worker.close)
        return worker

    def _rounds(self, calls: dict[int, Callable[[], float]]) -> dict[int, Spread]:
        for call in calls.values():
            call()  # builds the run, and prepares the libraries' kernels
        named = {str(size): call for size, call in calls.items()}
        taken = alternate(named, self.effort.rounds, self.effort.seconds)
        return {int(size): Spread.of(seconds) for size, seconds in taken.items()}

    def _variants(self, variants: dict[int, str]) -> dict[int, Spread]:
        steps = partial(self.worker.call, "steps", net="mlp", count=self.effort.count)
        # No evaluation among the steps: large batches have few steps in an epoch.
        return self._rounds({
            size: partial(steps, variant=f"{each} trainer.eval_every=1000000")
            for size, each in variants.items()
        })  # fmt: skip

    def batch(self) -> dict[int, Spread]:
        """Measure a step of the 20-layer MLP at each batch size."""
        return self._variants({n: f"data.batch_size={n}" for n in self.effort.batches})

    def width(self) -> dict[int, Spread]:
        """Measure a step of an MLP at each width of its hidden layers."""
        hidden = {n: ",".join([str(n)] * DEPTH) for n in self.effort.widths}
        return self._variants({n: f"model.hidden=[{sizes}]" for n, sizes in hidden.items()})

    def data(self) -> dict[int, Spread]:
        """Measure a step of the 20-layer MLP on more and more images, which it reads from disk."""
        steps = partial(self.worker.call, "steps", net="mlp_mnist", count=self.effort.count)
        return self._rounds({n: partial(steps, variant=f"times={n}") for n in self.effort.times})

    def stack(self, net: str) -> dict[int, Spread]:
        """Measure a step of one member in stacks of each size."""

        def member(members: int) -> float:
            count = self.effort.count
            given = {"net": net, "members": members, "count": count, "stacked": True}
            return self.worker.call("stack_steps", **given) / count / members

        return self._rounds({n: partial(member, n) for n in self.effort.members})

    def side_by_side(self) -> dict[int, Spread]:
        """Measure a step of one run among simultaneous ones: the time of all over their number."""
        workers = [self._started(f"beside-{n}") for n in range(max(self.effort.processes))]
        return self._rounds({
            n: partial(Together(workers[:n]).call, "steps", net="mlp", count=self.effort.count)
            for n in self.effort.processes
        })  # fmt: skip

    def sweep(self) -> dict[int, Spread]:
        """Measure the seconds of each run of a sweep of tiny runs after its first."""
        found = {}
        for arms in self.effort.arms:
            seeds = "seed=" + ",".join(map(str, range(arms)))
            command = [sys.executable, str(load.TRAIN), "-m", "hydra/launcher=basic", *load.TINY,
                       seeds, f"output_dir={self.directory / f'sweep-{arms}'}"]  # fmt: skip
            ended = load.follow(command, " s, in ").seconds
            found[arms] = Spread.of([b - a for a, b in pairwise(ended)])
        return found

    def measure(self) -> dict[str, dict[int, Spread]]:
        """Measure all quantities: name → size → spread of seconds."""
        quantities: dict[str, Callable[[], dict[int, Spread]]] = {
            "batch": self.batch, "width": self.width, "data": self.data,
            "stack_regression": partial(self.stack, "regression"),
            "stack_mlp": partial(self.stack, "mlp"),
            "side_by_side": self.side_by_side, "sweep": self.sweep,
        }  # fmt: skip
        found = {}
        for name, measured in quantities.items():
            say(name)
            found[name] = measured()
        return found


def measured(effort: Effort, arguments: list[str]) -> dict[str, Any]:
    """Measure in a temporary folder, and return the numbers with machine, load and command."""
    before, cores = os.getloadavg()[0], os.cpu_count() or 1
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True)
        scale = Scale(effort, Path(stack.enter_context(scratch)), stack)
        found, version = scale.measure(), scale.worker.call("version")
    return {
        "machine": f"{machine()}, {version} a run",
        "load": [before, os.getloadavg()[0]],
        "busy": busy(before, cores),
        "command": " ".join(["python scripts/benchmark_scale.py", *arguments]),
        "seconds": {
            name: {str(size): vars(spread) for size, spread in sizes.items()}
            for name, sizes in found.items()
        },
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes")
    parser.add_argument("--thousand", action="store_true", help="also a sweep of 1,000 arms")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write scale.* there")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else FULL
    if options.thousand:
        effort = replace(effort, arms=(*effort.arms, 1000))
    try:
        results = measured(effort, arguments)
    except (BenchmarkError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    publish(
        "scale", results, scale_output.markdown(results), scale_output.summary,
        output=options.output, draw=partial(scale_output.draw, results),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
