"""Measure how fast this project is on a GPU: the notebooks' loop, the doctor, stacks of seeds.

python scripts/benchmark_gpu.py                   all of it, within about 4 minutes
python scripts/benchmark_gpu.py --output outputs/reference/benchmark
python scripts/benchmark_gpu.py --device cpu --nets regression --seeds 1,2    to try it out
"""

import argparse
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import PRECISIONS, data_root, say
from benchmarking import gpu_output
from benchmarking.measures import Spread, alternate, overhead, ratio
from benchmarking.nets import NETS, STACKED_ON_GPU
from benchmarking.publishing import publish
from benchmarking.worker import BenchmarkError, Worker
from debugnn import processor

# The doctor looks more closely at the first 200 steps. They are all of an MNIST run of the
# article, so that no later ones are timed, and few of a CIFAR run, so that later ones are.
ROUNDS_OF_MNIST = 9
STACK_STEPS = 20  # steps of a stack that are timed together
ALONE_STEPS = 200  # the same of a run alone
CHECKED = {"mlp": 41, "cnn": 41}  # net → steps whose losses or weights are compared
# Name → index of the first step and number of steps in which waits for the GPU are counted.
COUNTED = {"early": (20, 180), "later": (260, 200)}


class OnGpuBenchmark:
    """The workers of both sides, and the phases of the measurement."""

    def __init__(self, options: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self.options, self.results = options, gpu_output.Results()
        self._began = time.perf_counter()
        root = data_root()
        self.images = "MNIST and CIFAR-10" if root else "RANDOM IMAGES of their size"
        log = directory / "log.txt"
        log.touch()
        common = {"root": str(root) if root else None, "device": options.device}
        sides: dict[str, tuple[str, dict[str, str]]] = {
            "notebook": ("benchmarking.notebook:Notebook", {})
        }
        for precision in PRECISIONS:
            settings = {"precision": precision, "wandb": options.wandb}
            sides[precision] = ("benchmarking.on_gpu:OnGpu", settings)
        self.workers = {}
        for name, (side, settings) in sides.items():
            runs = directory / f"runs-{name}"
            runs.mkdir()
            worker = Worker(name, side, log, gpu=True, directory=str(runs), **common, **settings)
            stack.callback(worker.close)
            self.workers[name] = worker

    def measure(self) -> gpu_output.Results:
        """Measure everything; a phase that fails is left out, and a note says why."""
        # The processes import torch and start the GPU at the same time.
        for worker in self.workers.values():
            worker.ask("prepare", kind="steps", net="regression")
        for worker in self.workers.values():
            worker.answer()
        for net in self.options.nets:
            self._guarded(f"steps, {net}", partial(self._steps, net))
        for net in self.options.nets:
            self._guarded(f"waits, {net}", partial(self._waits, net))
        for net in STACKED_ON_GPU:
            self._guarded(f"stacks, {net}", partial(self._stacks, net))
            self._guarded(f"checks, {net}", partial(self._check, net))
        self._describe()
        return self.results

    def _guarded(self, title: str, phase: Callable[[], None]) -> None:
        left = self.options.seconds - (time.perf_counter() - self._began)
        say(f"{title} ({left:.0f} s left)")
        if left < 0:
            self.results.notes.append(f"Left out, for want of time: {title}.")
            return
        try:
            phase()
        except BenchmarkError as error:
            say(str(error))
            self.results.notes.append(f"Failed: {title}: {str(error).splitlines()[0]}.")

    def _call(self, side: str, method: str, **arguments: Any) -> Callable[[], float]:
        return partial(self.workers[side].call, method, **arguments)

    def _steps(self, net: str) -> None:
        """Time steps of the notebooks' loop and of this project, with and without the doctor."""
        given = {"net": net, "count": NETS[net].block}
        calls = {"notebook": self._call("notebook", "steps", **given)}
        for precision in PRECISIONS:
            for variant in ("", "doctor=off"):
                call = self._call(precision, "steps", **given, variant=variant)
                calls[f"{precision} {variant}".strip()] = call
        rounds = self.options.rounds
        if net == "mnist":
            rounds = min(rounds, ROUNDS_OF_MNIST)
        taken = alternate(calls, rounds, self.options.seconds / 6)
        self.results.steps[net] = {name: vars(Spread.of(values)) for name, values in taken.items()}
        self.results.faster[net] = {
            name: vars(ratio(taken["notebook"], values))
            for name, values in taken.items() if name != "notebook"
        }  # fmt: skip
        self.results.doctor[net] = {
            precision: vars(overhead(taken[precision], taken[f"{precision} doctor=off"]))
            for precision in PRECISIONS
        }

    def _waits(self, net: str) -> None:
        """Count the steps in which the doctor waits for the GPU."""
        self.results.waits[net] = {
            name: self.workers["fp32"].call("waits", net=net, first=first, steps=steps)
            for name, (first, steps) in COUNTED.items()
        }

    def _stacks(self, net: str) -> None:
        """Time stacks of several sizes and one run alone, in the same rounds."""
        call = partial(self._call, "fp32", "seeds_steps", net=net)
        calls = {
            str(members): call(members=members, count=STACK_STEPS)
            for members in self.options.seeds
        }  # fmt: skip
        for members in (0, *self.options.seeds):
            call(members=members, count=0)()  # builds the trainings, which takes seconds
        calls["alone"] = call(members=0, count=ALONE_STEPS)
        taken = alternate(calls, self.options.rounds, self.options.seconds / 10)
        alone = [seconds / ALONE_STEPS for seconds in taken["alone"]]
        self.results.stacks[net] = {"alone": {"rate": vars(Spread.of([1 / s for s in alone]))}}
        for members in self.options.seeds:
            each = [seconds / STACK_STEPS / members for seconds in taken[str(members)]]
            self.results.stacks[net][str(members)] = {
                "rate": vars(Spread.of([1 / seconds for seconds in each])),
                "faster": vars(ratio(alone, each)),
            }

    def _check(self, net: str) -> None:
        """Compare a stack's losses with those of its members alone, and weights with a doctor."""
        side, steps = self.workers["fp32"], CHECKED[net]
        self.results.checks[net] = {
            "steps": steps,
            "stack_differs": side.call("stack_differs", net=net, members=3, steps=steps),
            "doctor_changes": side.call("doctor_changes", net=net, steps=steps),
        }

    def _describe(self) -> None:
        side = self.workers["fp32"]
        self.results.card = side.call("card")
        self.results.torch = importlib.metadata.version("torch")
        seconds = time.perf_counter() - self._began
        self.results.notes[:0] = [
            f"{self.results.card}, {processor.model_name()} with {os.cpu_count()} hardware "
            f"threads, {side.call('version')}; data: {self.images}, for stacks the embedded "
            f"digits and shapes; {seconds:.0f} s in all: `{self.options.command}`.",
            "A step here is one of train.py's, with the doctor at its default cadence, JSON lines "
            f"and W&B {self.options.wandb}; the notebooks' has wandb.watch(net, log='all'), and "
            "PyTorch's default, TF32, in its convolutions, which fp32 here leaves alone.",
            f"Medians and quartiles of n alternating rounds of {NETS['mnist'].block} steps "
            f"(regression {NETS['regression'].block}; stacks {STACK_STEPS}, one run alone "
            f"{ALONE_STEPS}). The rounds of the MNIST net are within its first 200 steps, at which "
            "the doctor looks more closely; those of the CIFAR net are later.",
        ]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--nets", default="mnist,cifar,regression", help="names with commas")
    parser.add_argument("--seeds", default="1,8,64,256", help="sizes of the stacks, with commas")
    parser.add_argument("--rounds", type=int, default=30, help="at most (default: 30)")
    parser.add_argument(
        "--seconds", type=float, default=240, help="no phase starts later (default: 240)"
    )
    parser.add_argument(
        "--wandb", choices=["offline", "disabled"], default="offline", help="this project's sink"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="write gpu.json and gpu.md there; for outputs/reference/benchmark, the results page "
        "too",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.nets = options.nets.split(",")
    options.seeds = [int(number) for number in options.seeds.split(",")]
    options.command = (
        f"python scripts/benchmark_gpu.py --rounds {options.rounds} --seconds {options.seconds:g}"
    )
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        with ExitStack() as stack:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
            )
            results = OnGpuBenchmark(options, Path(scratch), stack).measure()
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    written = vars(results)
    publish(
        "gpu", written, gpu_output.markdown(written), gpu_output.summary,
        output=options.output, numbers=options.json,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
