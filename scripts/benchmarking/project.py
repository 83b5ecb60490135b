"""The side of this project: the steps and evaluations of train.py.

`records` is the only function that knows how a run is put together.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.measures import CHANNELS, IMAGES, MATRIX, SIDE, finished
from benchmarking.nets import NETS, data_overrides, images_of, net_overrides
from debugnn import config
from debugnn.build import build
from debugnn.data import Split
from debugnn.overrides import quote_numbers
from debugnn.records import Step
from debugnn.runs.directory import RunDirectory
from debugnn.runs.execute import open_run, prepare, records_of
from debugnn.runs.wandb_sink import steps_apart
from debugnn.stacking.stack import Member, Stack
from debugnn.training.loop import Training, evaluate, fit

# Kind of operation → parts of its names in a profile; the first kind that matches counts.
KINDS = {
    "convolutions": ("convolution",),
    "dense layers": ("addmm", "mm"),
    "optimiser": ("dam", "SGD", "sgd", "foreach"),
    "activations, pools": ("relu", "clamp", "threshold", "pool", "dropout", "norm"),
    "copies": ("copy_", "clone", "fill_", "zero_"),
}
CONF = Path(__file__).resolve().parents[2] / "conf"


def compose(overrides: Sequence[str]) -> DictConfig:
    config.register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("config", quote_numbers(overrides, CONF))


def records(settings: DictConfig) -> Generator[object, None, None]:
    """Run a training and yield its records, each after it was written as train.py writes it."""
    run = prepare(RunDirectory(settings, [], "benchmark"))
    with open_run(run) as write:
        for record in records_of(run):
            write(record)
            yield record


class Project:
    """The side of this project.

    Variants: "" as train.py trains, "times=10" on ten times the images, or any overrides, such as
    "doctor=off".
    """

    def __init__(
        self, root: Path | None, directory: Path, precision: str, wandb: str, device: str = "cpu"
    ) -> None:
        self.root, self.directory, self.precision = root, directory, precision
        self.device = device
        self.common = [
            f"trainer.device={device}", f"trainer.precision={precision}", f"wandb={wandb}",
        ]  # fmt: skip
        self.running: dict[tuple[str, str], Generator[object, None, None]] = {}
        self.taken: Counter[tuple[str, str]] = Counter()  # steps of these runs
        self.trainings: dict[str, Training] = {}

    def prepare(self, kind: str, net: str, variant: str = "", count: int = 0) -> None:
        """Do what `evaluate` or the next `count` `steps` (`kind`) need, outside of the timed part.

        A run that has no more so many steps begins anew: the doctor inspects the first steps of a
        run more closely.
        """
        key = net, variant
        if kind == "evaluate":
            self._training(net)
            return
        if key in self.running and net in NETS and self.taken[key] + count > NETS[net].steps:
            self.running.pop(key).close()
        if key not in self.running:
            self.running[key] = records(self._settings(net, variant))
            self.taken[key] = 0
            # The first 200 steps are few of the 15,630 of a CIFAR run, and all of an MNIST run.
            self._advance(net, variant, 244 if net.startswith("cifar") else 4)

    def steps(self, net: str, count: int, variant: str = "") -> float:
        """Train `count` further steps and return the mean seconds of one."""
        self.prepare("steps", net, variant, count)
        started = finished(self.device)
        self._advance(net, variant, count)
        return (finished(self.device) - started) / count

    def evaluate(self, net: str, images: int) -> float:
        """Return the seconds of one evaluation on the first `images` test images."""
        training = self._training(net)
        whole = training.data
        test = Split(whole.test.inputs[:images], whole.test.targets[:images])
        training.data = replace(whole, test=test)
        started = time.perf_counter()
        evaluate(training)
        seconds = time.perf_counter() - started
        training.data = whole
        return seconds

    def work(self, net: str) -> dict[str, float]:
        """Return the floating-point operations of a training step and of evaluating one image."""
        training = self._training(net)
        counts = {}
        with FlopCounterMode(display=False) as counter:
            training.backward(*next(training.batches(0)))
        counts["step"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            training.outputs(next(training.data.test_batches(1))[0])
        counts["image"] = counter.get_total_flops()
        return counts

    def profile(self, net: str, steps: int = 10) -> dict[str, float]:
        """Return the share of a step's time by kind of operation, without doctor and logging."""
        training = self._training(net)
        batches = list(islice(training.batches(0), steps))

        def train() -> None:
            for inputs, targets in batches:
                training.backward(inputs, targets)
                training.gradient_rule(training.parameters)
                training.optimizer.step()

        train()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            train()
        spent = dict.fromkeys(KINDS, 0.0)
        for event in profiler.key_averages():
            name = event.key.removeprefix("aten::")
            kind = next((k for k, words in KINDS.items() if any(w in name for w in words)), "else")
            spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
        whole = sum(spent.values())
        return {kind: seconds / whole for kind, seconds in spent.items()}

    def stack_steps(self, net: str, members: int, count: int, stacked: bool) -> float:
        """Return the seconds of `count` steps of all members, stacked or one after the other.

        Both without doctor and logging.
        """
        key = (net, f"{members}-{stacked}")
        if key not in self.running:
            self.running[key] = self._members(net, members, stacked)
            self._advance(*key, 4 * members)
        started = time.perf_counter()
        self._advance(*key, count * members)
        return time.perf_counter() - started

    def _members(self, net: str, members: int, stacked: bool) -> Generator[object, None, None]:
        trainings = []
        for seed in range(members):
            # A record for each step at once: the steps are counted by their records.
            overrides = [f"seed={seed}", "doctor=off", "trainer.read_every=1"]
            trainings.append(Member(build(self._settings(net, "", *overrides))))
        if stacked:
            records = (record for _, record in Stack(trainings).fit(1_000_000))
            yield from (record for record in records if isinstance(record, Step))
        runs = [fit(member.training, 1_000_000) for member in trainings]
        while True:
            for run in runs:
                # A block of steps of each run in turn, so that each finds its data in the caches.
                yield from islice((r for r in run if isinstance(r, Step)), 20)

    def version(self) -> str:
        threads = torch.get_num_threads()
        return f"torch {torch.__version__} with {threads} thread{'s' if threads > 1 else ''}"

    def product(self, dtype: str, size: int = MATRIX) -> float:
        """Return the seconds of a matrix product of two (size, size) matrices."""
        left = torch.ones(size, size, dtype=getattr(torch, dtype))
        return _second_time(lambda: torch.mm(left, left))

    def convolution(self, dtype: str, images: int = IMAGES) -> float:
        """Return the seconds of a convolution like those of the nets, in channels-last."""
        given = {"dtype": getattr(torch, dtype)}
        weight = torch.ones(CHANNELS, CHANNELS, 3, 3, **given).to(memory_format=torch.channels_last)
        inputs = torch.ones(images, CHANNELS, SIDE, SIDE, **given)
        inputs = inputs.to(memory_format=torch.channels_last)
        with torch.no_grad():
            return _second_time(lambda: torch.conv2d(inputs, weight))

    def _settings(self, net: str, variant: str, *more: str) -> DictConfig:
        overrides = net_overrides(net, self.root) + self.common
        overrides += data_overrides(self.root, self.directory.parent / "prepared")
        place = self.directory / self.precision / re.sub(r"\W+", "-", variant or "plain") / net
        overrides += ["trainer.epochs=1000000", f"output_dir={place}", "overwrite=true"]
        if net in NETS:  # as many W&B rows per step as in a run of the article
            overrides.append(f"wandb.every={steps_apart(NETS[net].steps)}")
        if variant.startswith("times="):
            images, times = images_of(net), variant.removeprefix("times=")
            overrides += [
                f"data.name={images}_times_{times}", f"+data.reader.times={times}",
                f"data.reader._target_=benchmarking.random_data.{images}",
            ]  # fmt: skip
        elif variant:
            overrides += variant.split()
        return compose([*overrides, *more])

    def _training(self, net: str) -> Training:
        if net not in self.trainings:
            self.trainings[net] = build(self._settings(net, ""))
            self.evaluate(net, 256)  # at its first use, oneDNN prepares its kernels
        return self.trainings[net]

    def _advance(self, net: str, variant: str, count: int) -> None:
        self.taken[net, variant] += count
        for record in self.running[net, variant]:
            count -= isinstance(record, Step)
            if not count:
                return


def _second_time(work: Callable[[], object]) -> float:
    """Return the seconds of the second call: at their first use, libraries prepare kernels."""
    work()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
