"""Measure how fast this project is, against the notebooks and Lightning.

python scripts/benchmark.py --quick         a first look, within 5 minutes
python scripts/benchmark.py --json FILE     all networks, more rounds
python scripts/benchmark.py --output outputs/reference/benchmark
python scripts/benchmark.py --again --output outputs/reference/benchmark
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarking import measures, output, startup
from benchmarking.measures import Spread, alternate, overhead, ratio
from benchmarking.nets import MAIN, NETS, STACKED, data_overrides, net_overrides
from benchmarking.publishing import publish
from benchmarking.worker import ROOT, BenchmarkError, Together, Worker
from debugnn import processor
from debugnn.training.bf16 import has_bf16
from reproduce import runs_at_once

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}  # → torch's name
WATCHED = (*MAIN, "regression")  # nets that are timed with and without the doctor
STACK_STEPS = 20  # steps that are timed together, of a stack and of its members one by one
# Nets that are timed with `debugnn.nn`'s layers and with torch.nn's.
OWN_LAYERS = ("mnist", "cifar_bn_dropout")
NO_BF16 = (
    "bf16 is left out: this processor has no bfloat16 instructions, and emulates them several "
    "times slower than fp32."
)
INSTRUCTIONS = {
    "AVX2": "avx2", "AVX-512": "avx512f", "avx512_bf16": "avx512_bf16", "AMX": "amx_tile",
    "NEON": "asimd", "SVE": "sve", "bf16": "bf16",
}  # fmt: skip
BUSY = 0.5  # load a hardware thread
Taken = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: number of alternating rounds of steps and evaluations.
        overhead_rounds: number of rounds where the difference is only a few percent of a step.
        seconds: on a busy machine, the rounds end early so that all of them take about this long.
        nets: which networks are trained.
        images: number of images of an evaluation.
        starts: number of rounds of start-up times.
        sweeps, jobs: number of sweeps, and of jobs of each, that are timed.
        rss_steps: network → number of steps before its peak memory is read; None for an epoch.
        stacked: which networks are trained in stacks.
        thorough: also measure Lightning, data of ten times the size, and torch.nn's layers.
    """

    rounds: int
    overhead_rounds: int
    seconds: float
    nets: tuple[str, ...]
    images: int
    starts: int
    sweeps: int
    jobs: int
    rss_steps: dict[str, int | None]
    stacked: tuple[str, ...]
    thorough: bool


QUICK = Effort(
    rounds=3, overhead_rounds=8, seconds=200, nets=(*MAIN, "regression"), images=1000, starts=2,
    sweeps=1, jobs=4,
    rss_steps={"mnist": 21, "cifar": 21}, stacked=("mlp",), thorough=False,
)  # fmt: skip
FULL = Effort(
    rounds=6, overhead_rounds=40, seconds=1200, nets=tuple(NETS), images=10_000, starts=5,
    sweeps=3, jobs=8,
    rss_steps={"mnist": None, "cifar": None}, stacked=tuple(STACKED), thorough=True,
)  # fmt: skip

# Name in a round → worker and variant, where they differ from (name, "").
VARIANTS = {
    "watch": ("notebook", "watch"),
    "unwatched": ("notebook", "unwatched"),
}


@dataclass
class Results:
    """What --json writes. A ratio above 1 means that this project is faster than the notebooks."""

    ratio: dict[str, float] = field(default_factory=dict)
    overhead: dict[str, float] = field(default_factory=dict)
    stack: dict[str, float] = field(default_factory=dict)
    startup: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    gflops: dict[str, float] = field(default_factory=dict)
    peak_share: dict[str, float] = field(default_factory=dict)
    bound: dict[str, float] = field(default_factory=dict)
    profile: dict[str, dict[str, float]] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    busy: str = ""  # what stands above all tables if the machine was busy before the start

    def add(self, group: str, key: str, value: Spread) -> None:
        getattr(self, group)[key] = value.median
        prefix = "" if group == "ratio" else f"{group}_"
        self.spread[prefix + key] = (value.low, value.high)


class Benchmark:
    """The workers of all sides, and the phases of the measurement.

    A side is a program that trains: the notebooks' loop, this project in one precision, Lightning.

    Attributes:
        results: of the phases so far.
        failed: one of the last phases ended with an error.
    """

    def __init__(self, effort: Effort, directory: Path) -> None:
        self.effort, self.directory, self.results = effort, directory, Results()
        self.failed = False
        self.root = data_root()
        self._load = os.getloadavg()[0]
        self.log = directory / "log.txt"
        self.log.touch()
        self.at_once = runs_at_once()
        self.threads = max(1, (os.cpu_count() or 1) // self.at_once)
        self.workers: dict[str, Worker | Together] = {}
        self.precisions = precisions()
        # Sides of which several simultaneous runs are timed too.
        self.together = ("notebook", *self.precisions)
        self._ends = time.perf_counter() + effort.seconds

    def start_workers(self, stack: ExitStack, wandb: str) -> None:
        """Start a process for each side and for each simultaneous run; `stack` ends them."""
        sides: dict[str, tuple[str, dict[str, str]]] = {
            "notebook": ("benchmarking.notebook:Notebook", {})
        }
        for precision in self.precisions:
            sides[precision] = ("benchmarking.project:Project", _settings(precision, wandb))
        if not self.effort.thorough:
            say("Lightning: left out")
        elif any(map(importlib.util.find_spec, ("lightning", "pytorch_lightning"))):
            sides["lightning"] = ("benchmarking.lightning_side:Lightning", {})
        else:
            say("Lightning: not installed, skipped")
        for name, (side, settings) in sides.items():
            self.workers[name] = self._started(stack, name, side, settings)
        for name in self.together:
            members = [
                self._started(stack, f"{name}-{number}", *sides[name], self.threads)
                for number in range(self.at_once)
            ]
            self.workers[f"{name}_together"] = Together(members)

    def start_alone(self, stack: ExitStack, wandb: str) -> None:
        """Start the processes that `measure_again` needs, of one run each."""
        self.workers["notebook"] = self._started(
            stack, "notebook", "benchmarking.notebook:Notebook", {}
        )
        for precision in self.precisions:
            self.workers[precision] = self._started(
                stack, precision, "benchmarking.project:Project", _settings(precision, wandb)
            )

    def _started(
        self, stack: ExitStack, name: str, side: str, settings: dict[str, str],
        threads: int | None = None,
    ) -> Worker:  # fmt: skip
        runs = self.directory / f"runs-{name}"
        runs.mkdir()
        root = str(self.root) if self.root else None
        given = {"root": root, "directory": str(runs), **settings}
        worker = Worker(name, side, self.log, threads, **given)
        stack.callback(worker.close)
        return worker

    def measure(self) -> Results:
        """Measure everything, the most important first."""
        began = time.perf_counter()
        nets = [net for net in self.effort.nets if net != "regression"]
        steps = {net: self._steps(net) for net in self.effort.nets}
        evaluations = {net: self._evaluations(net) for net in nets}
        self._compare(steps, evaluations)
        self._overheads_of_this_project()
        self._wandb_watch(steps)
        self._roofline(steps, evaluations)
        left_out = self._last_phases()
        self._describe(time.perf_counter() - began)
        self.results.notes += left_out
        return self.results

    def _last_phases(self) -> list[str]:
        """Measure stacks, start-up and memory, and return notes of what there was no time for.

        --quick leaves out what begins after its time, so that it ends in time on slow machines. A
        phase that fails is left out too: what was measured before it took 20 minutes.
        """
        phases = {"stacks": self._stacks, "start-up": self._startup, "memory": self._memory}
        left_out = []
        for title, phase in phases.items():
            why = "the time was over"
            if self.effort.thorough or time.perf_counter() < self._ends:
                try:
                    phase()
                    continue
                except (BenchmarkError, OSError) as error:
                    why, self.failed = str(error), True
            left_out.append(f"{title}: left out, {why.rstrip('.')}.")
            say(left_out[-1])
        return left_out

    def measure_again(self, results: Results) -> Results:
        """Measure what small overheads make up again, start-up and memory; keep the other results.

        A step of the regression net, which computes next to nothing, is one of these.
        """
        self.results = results
        taken = self._steps("regression")
        for precision in self.precisions:
            self._ratio(f"step_regression_{precision}", taken, precision, 1)
        self._overheads_of_this_project()
        self._startup()
        self._memory()
        results.notes = [note for note in results.notes if "measured again" not in note]
        results.notes.append(
            "A step of the regression net alone, the overheads of the doctor, of torch.nn's layers "
            f"and of tenfold data (up to {self.effort.overhead_rounds} rounds), start-up and "
            "memory were measured again, on a later day or state of the code."
        )
        return results

    def _alternate(
        self, calls: dict[str, Callable[[], float]], share: float, rounds: int | None = None
    ) -> Taken:
        """Measure the rounds of one phase, within a share of the remaining time."""
        left = max(self._ends - time.perf_counter(), 0)
        return alternate(calls, rounds or self.effort.rounds, share * left)

    def _steps(self, net: str) -> Taken:
        """Return the seconds of a step of this network: side → one value per round."""
        sides = self._compared(net)
        if net in MAIN:
            sides += ["watch", "unwatched"]
        say(f"training step, {net}")
        calls = {}
        for side in sides:
            worker, variant = VARIANTS.get(side, (side, ""))
            count = NETS[net].block
            calls[side] = self._call(worker, "steps", net=net, count=count, variant=variant)
        return self._alternate({**calls, **self._products()}, share=0.3)

    def _evaluations(self, net: str) -> Taken:
        """Return the seconds of an evaluation of `images` images: side → one value per round."""
        say(f"evaluation, {net}")
        calls = {
            side: self._call(side, "evaluate", net=net, images=self.effort.images)
            for side in self._compared(net)
        }
        return self._alternate({**calls, **self._products()}, share=0.2)

    def _compared(self, net: str) -> list[str]:
        """Return the sides whose steps and evaluations of a network are compared."""
        return [side for side in self.workers if side != "lightning" or net in MAIN]

    def _products(self) -> dict[str, Callable[[], float]]:
        """Return the calls that time a matrix product and a convolution in this project's
        processes, in the same rounds as the steps."""
        return {
            f"{kind}_{side}": self._call(side, kind, dtype=PRECISIONS[side])
            for side in self.precisions
            for kind in measures.FLOPS
        }

    def _call(self, side: str, method: str, **arguments: Any) -> Callable[[], float]:
        return partial(self.workers[side].call, method, **arguments)

    def _compare(self, steps: dict[str, Taken], evaluations: dict[str, Taken]) -> None:
        """Compute the ratios against a single run of the notebooks' loop."""
        whole = 10_000 / self.effort.images
        together = [f"{side}_together" for side in self.together]
        for side in (*self.precisions, *together, "lightning"):
            if not any(side in taken for taken in steps.values()):
                continue
            step, evaluation = (
                {net: self._ratio(f"{kind}_{net}_{side}", taken, side, scale)
                 for net, taken in table.items() if side in taken}
                for kind, table, scale in (("step", steps, 1), ("eval", evaluations, whole))
            )  # fmt: skip
            both = {
                name: [
                    sum(pair)
                    for pair in zip(*(evaluations[net][name] for net in MAIN), strict=False)
                ]
                for name in ("notebook", side)
            }
            self._ratio(f"eval_{side}", both, side, whole)
            for net in MAIN:
                times = [
                    [measures.epoch(*pair, net) for pair in zip(a, b, strict=False)]
                    for a, b in zip(step[net], evaluation[net], strict=True)
                ]
                self._projected(f"epoch_{net}_{side}", *times)
            if side != "lightning":
                self._article(side, step, evaluation)

    def _article(
        self, side: str, step: dict[str, tuple[list[float], list[float]]],
        evaluation: dict[str, tuple[list[float], list[float]]],
    ) -> None:  # fmt: skip
        """Project the time of the whole article from each round: `article_fp32` with several
        simultaneous runs, as scripts/reproduce.py trains them, and `article_fp32_alone` with one
        run at a time."""
        name = side.removesuffix("_together")
        key = name if side != name else f"{name}_alone"
        at_once = (1, 1 if side == name else self.at_once)
        plain, ours = (
            [
                measures.article(steps, evaluations, at_once[i])
                for steps, evaluations in zip(
                    *(measures.by_round({net: pair[i] for net, pair in table.items()})
                      for table in (step, evaluation)), strict=False,
                )
            ]
            for i in (0, 1)
        )  # fmt: skip
        self._projected(f"article_{key}", plain, ours)

    def _ratio(
        self, key: str, taken: Taken, side: str, scale: float
    ) -> tuple[list[float], list[float]]:
        """Record a ratio, and return each round's seconds of the notebooks and of the side."""
        rounds = list(zip(taken["notebook"], taken[side], strict=False))
        plain, ours = ([scale * pair[i] for pair in rounds] for i in (0, 1))
        self._projected(key, plain, ours)
        return plain, ours

    def _projected(self, key: str, plain: list[float], side: list[float]) -> None:
        """Record the ratio of the rounds' seconds, with quartiles."""
        faster, seconds = ratio(plain, side), Spread.of(plain).median
        self.results.add("ratio", key, faster)
        self.results.seconds[key] = (seconds, seconds / faster.median)

    def _overheads_of_this_project(self) -> None:
        """Measure what the doctor, torch.nn's layers and data of ten times the size add to a step.

        These are a few percent, so that nothing else is timed in their rounds.
        """
        doctor = {net: self._added("the doctor", net, "", "doctor=off") for net in WATCHED}
        self._overheads("doctor", doctor, max)
        if self.effort.thorough:
            for net in OWN_LAYERS:
                added = self._added("torch.nn's layers", net, "model.own_layers=false", "")
                self.results.add("overhead", f"torch_layers_{net}", added)
            tenfold = self._added("data of ten times the size", "cifar", "times=10", "")
            self.results.add("overhead", "tenfold_data", tenfold)

    def _added(self, title: str, net: str, variant: str, without: str) -> Spread:
        """Return what a variant adds to a step, as a share of the step without it."""
        say(f"{title}, {net}")
        calls = {
            each: self._call("fp32", "steps", net=net, count=NETS[net].block, variant=each)
            for each in (variant, without)
        }
        taken = self._alternate(calls, share=0.2, rounds=self.effort.overhead_rounds)
        return overhead(taken[variant], taken[without])

    def _wandb_watch(self, steps: dict[str, Taken]) -> None:
        """Compute what `wandb.watch` adds to a step of the notebooks' loop."""
        found = {net: overhead(steps[net]["watch"], steps[net]["unwatched"]) for net in MAIN}
        self._overheads("wandb_watch", found, min)

    def _overheads(self, name: str, found: dict[str, Spread], worst: Callable) -> None:
        """Record the overhead on each network, and as a summary the worse of the image nets'."""
        main = [found[net] for net in MAIN]
        self.results.add("overhead", name, worst(main, key=lambda spread: spread.median))
        for net, spread in found.items():
            self.results.add("overhead", f"{name}_{net}", spread)

    def _roofline(self, steps: dict[str, Taken], evaluations: dict[str, Taken]) -> None:
        """Compute GFLOP/s and their share of a matrix product's in the same process and round, the
        profile of a step, and an upper bound of the ratio."""
        for side in self.precisions:
            peaks = {}
            for kind, operations in measures.FLOPS.items():
                taken = [second for net in MAIN for second in steps[net][f"{kind}_{side}"]]
                peaks[kind] = operations / Spread.of(taken).median / 1e9
            self.results.gflops[f"peak_{side}"] = peaks["product"]
            self.results.gflops[f"convolution_{side}"] = peaks["convolution"]
            for net in MAIN:
                work = self.workers[side].call("work", net=net)
                self.results.profile[f"{net}_{side}"] = self.workers[side].call("profile", net=net)
                # If the products ran at the peak and everything else took no time.
                least = work["step"] / (max(peaks.values()) * 1e9)
                self.results.bound[f"step_{net}_{side}"] = (
                    Spread.of(steps[net]["notebook"]).median / least
                )
                for kind, operations, taken in (
                    ("step", work["step"], steps[net]),
                    ("eval", self.effort.images * work["image"], evaluations[net]),
                ):
                    reached = [operations / second / 1e9 for second in taken[side]]
                    product = measures.FLOPS["product"] / 1e9
                    shares = [
                        a / (product / b)
                        for a, b in zip(reached, taken[f"product_{side}"], strict=True)
                    ]
                    key = f"{kind}_{net}_{side}"
                    self.results.gflops[key] = Spread.of(reached).median
                    self.results.peak_share[key] = Spread.of(shares).median

    def _stacks(self, members: int = 8) -> None:
        """Measure members × steps per second of a stack and of its members one after the other."""
        for net in self.effort.stacked:
            say(f"{members} members, {net}")
            calls = {
                name: self._call(
                    "fp32", "stack_steps", net=net, members=members, count=STACK_STEPS,
                    stacked=name == "stacked",
                )
                for name in ("alone", "stacked")
            }  # fmt: skip
            taken = self._alternate(calls, share=0.2)
            self.results.add("stack", net, ratio(taken["alone"], taken["stacked"]))
            for name, seconds in taken.items():
                rate = members * STACK_STEPS / Spread.of(seconds).median
                self.results.stack[f"{net}_{name}_per_s"] = rate

    def _startup(self) -> None:
        say("start-up")
        data = data_overrides(self.root, self.directory / "prepared")
        net = [*net_overrides("mnist", self.root), *data]
        runs = self.directory / "started"
        root = str(self.root) if self.root else ""
        fresh = iter(range(1000))
        calls = {
            "help_s": lambda: startup.wall([*startup.TRAIN, "--help"], self.log)[0],
            "cfg_s": lambda: startup.wall([*startup.TRAIN, "--cfg", "job"], self.log)[0],
            "first_step_s": lambda: startup.first_step(
                "project", [*net, f"output_dir={runs / str(next(fresh))}"], self.log
            ),
            "notebook_first_step_s": lambda: startup.first_step(
                "notebook", ["mnist", root, str(self.directory)], self.log
            ),
        }
        taken = alternate(calls, self.effort.starts, 0.3 * max(self._ends - time.perf_counter(), 0))
        for key, seconds in taken.items():
            self.results.add("startup", key, Spread.of(seconds))
        # On the embedded digits, whose short epochs leave the overhead of a job to be measured.
        sweep = ["trainer.epochs=1", "trainer.steps_per_epoch=5", "trainer.device=cpu"]
        sweep.append(f"data.cache={self.directory / 'prepared'}")
        # In several sweeps, because all jobs of one run under the same load of the machine.
        extra = [
            seconds
            for number in range(self.effort.sweeps)
            for seconds in startup.extra_jobs(
                sweep, self.effort.jobs, self.directory / f"sweep-{number}", self.log
            )
        ]
        self.results.add("startup", "extra_job_s", Spread.of(extra))

    def _memory(self) -> None:
        """Measure the peak memory of a first run, which decodes the images, and of a later run."""
        for net, steps in self.effort.rss_steps.items():
            say(f"peak memory, {net}")
            for key, length in ((f"{net}_first", 21), (net, steps)):
                command = [
                    *startup.TRAIN, *net_overrides(net, self.root),
                    *data_overrides(self.root, self.directory / "decoded"),
                    f"output_dir={self.directory / 'memory' / key}", "trainer.epochs=1",
                    "trainer.device=cpu", f"trainer.steps_per_epoch={length or 'null'}",
                ]  # fmt: skip
                self.results.peak_rss_mb[key] = startup.wall(command, self.log)[1]

    def _describe(self, seconds: float) -> None:
        effort = self.effort
        images = "MNIST and CIFAR-10" if self.root else "RANDOM IMAGES of MNIST's and CIFAR's size"
        self.results.busy = busy(self._load, os.cpu_count() or 1)
        self.results.notes += [
            f"{machine()}, {self.workers['fp32'].call('version')}; "
            f"data: {images}. Load average {self._load:.1f} before, {os.getloadavg()[0]:.1f} after"
            " (above 0 before: other programs used the machine too).",
            f"Side by side means {self.at_once} simultaneous runs with {self.threads} of the "
            "threads each; a step's time is then the time until all runs have done it, divided by "
            "their number.",
            f"Medians and quartiles of up to {effort.rounds} alternating rounds "
            f"({effort.overhead_rounds} for overheads of a few percent) of 20 steps "
            f"(regression {NETS['regression'].block}), or an evaluation of {effort.images} images; "
            f"{seconds:.0f} s in all.",
            "A step here is one of train.py's, with the doctor at its default cadence, "
            "JSON lines and W&B offline; the notebooks' has wandb.watch(net, log='all').",
            "The article is projected from the times of its runs' steps and evaluations, without "
            "start-up."
            + ("" if "cifar_bn" in effort.nets else " The plain nets stand for their variants."),
        ]
        if "bf16" not in self.precisions:
            self.results.notes.append(NO_BF16)


def precisions(cpuinfo: str | None = None) -> list[str]:
    """Return the precisions to measure: bf16 only where the processor has instructions for it.

    Args:
        cpuinfo: the text of Linux's /proc/cpuinfo, None for this machine's.
    """
    if has_bf16(cpuinfo):
        return list(PRECISIONS)
    say(NO_BF16)
    return [precision for precision in PRECISIONS if precision != "bf16"]


def _settings(precision: str, wandb: str) -> dict[str, str]:
    """Return the arguments of this project's side."""
    return {"precision": precision, "wandb": wandb}


def data_root() -> Path | None:
    """Return the folder with torchvision's files of MNIST and CIFAR-10, or None without them."""
    root = Path(os.environ.get("DEBUGNN_DATA") or ROOT / "data").absolute()
    wanted = (root / "MNIST" / "raw", root / "cifar-10-batches-py")
    return root if all(folder.is_dir() for folder in wanted) else None


def machine() -> str:
    """Return the processor's name, its instruction sets and the number of its threads."""
    return f"{processor.model_name()} ({instruction_sets()}), {os.cpu_count()} hardware threads"


def instruction_sets(cpuinfo: str | None = None) -> str:
    """Return the names of the processor's instruction sets that decide how fast products are.

    Args:
        cpuinfo: the text of Linux's /proc/cpuinfo, None for this machine's.

    Returns:
        The machine's architecture where no text lists the processor's features.
    """
    features = processor.features(cpuinfo)
    if features is None:
        return platform.machine()
    found = [name for name, feature in INSTRUCTIONS.items() if feature in features]
    return ", ".join(found) or f"{platform.machine()}, none of {', '.join(INSTRUCTIONS)}"


def busy(load: float, cores: int) -> str:
    """Return a warning if other programs used the machine before the start, else "".

    Args:
        load: mean number of running processes in the minute before.
        cores: number of hardware threads.
    """
    if load <= BUSY * cores:
        return ""
    return (
        f"**The machine was busy:** its load was {load:.1f} on {cores} hardware threads before the "
        "benchmark started. Read the numbers with their quartiles."
    )


def say(text: str) -> None:
    """Print progress to stderr: stdout is the table's."""
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="within 5 minutes, fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write table and figure there; for outputs/reference/benchmark, the results page too",
    )
    parser.add_argument(
        "--again", action="store_true",
        help="measure only small overheads, the regression net's step among them, start-up and "
        "memory; keep DIR's other numbers",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", choices=["offline", "disabled"], default="offline", help="this project's sink"
    )
    options = parser.parse_args()
    try:
        with ExitStack() as stack:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
            )
            effort = QUICK if options.quick else FULL
            benchmark = Benchmark(effort, Path(scratch))
            if options.again:
                if options.output is None:
                    parser.error("--again needs --output, whose numbers it keeps")
                kept = (options.output / "benchmark.json").read_text(encoding="utf-8")
                benchmark.start_alone(stack, options.wandb)
                results = benchmark.measure_again(Results(**json.loads(kept)))
            else:
                benchmark.start_workers(stack, options.wandb)
                results = benchmark.measure()
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    written = vars(results)
    publish(
        "benchmark", written, output.markdown(written), output.summary, mark="speed",
        output=options.output, numbers=options.json,
        draw=lambda folder: output.figure(written, folder / "benchmark.png"),
    )  # fmt: skip
    return 1 if benchmark.failed else 0


if __name__ == "__main__":
    sys.exit(main())
