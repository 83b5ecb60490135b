"""This project's side: what train.py does at a step and at an evaluation, to be timed.

`records` is the one place that knows how a run is put together.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from benchmarking.nets import data_overrides, net_overrides
from debugnn import cli, config
from debugnn.build import build
from debugnn.data import Split
from debugnn.loop import Training, evaluate
from debugnn.records import Step
from debugnn.run import follow
from debugnn.sinks import JsonLines, WandB

CONF = Path(__file__).resolve().parents[2] / "conf"


def compose(overrides: Sequence[str]) -> DictConfig:
    config.register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("config", cli.quote_numbers(overrides, CONF))


def records(settings: DictConfig, directory: Path) -> Iterator[object]:
    """A run's records, each written to the sinks that train.py gives it: JSON lines and W&B.

    The doctor and its cadence are those of the configuration.
    """
    training = build(settings)
    resolved = OmegaConf.to_container(settings, resolve=True)
    directory.mkdir(parents=True)
    sinks = [JsonLines(directory)]
    if settings.wandb.mode != "disabled":
        sinks.append(
            WandB(
                directory, resolved["wandb"], config=resolved, name=directory.name,
                group="benchmark", job_type="train",
            )
        )  # fmt: skip
    for record in follow(settings, training, directory):
        for sink in sinks:
            sink.write(record)
        yield record


class Project:
    """Side (b). Variants: "" as train.py does it, "doctor=off", "tenfold" ten times the images."""

    def __init__(self, root: Path | None, directory: Path, precision: str, wandb: str) -> None:
        self.root, self.directory = root, directory
        self.common = ["trainer.device=cpu", f"trainer.precision={precision}", f"wandb={wandb}"]
        self.running: dict[tuple[str, str], Iterator[object]] = {}
        self.trainings: dict[str, Training] = {}

    def steps(self, net: str, count: int, variant: str = "") -> float:
        """Mean seconds of `count` steps that go on from the last ones."""
        if (net, variant) not in self.running:
            place = self.directory / f"{net}-{variant}-{self.common[1]}"
            self.running[net, variant] = records(self._settings(net, variant), place)
            self._advance(net, variant, 4)
        started = time.perf_counter()
        self._advance(net, variant, count)
        return (time.perf_counter() - started) / count

    def evaluate(self, net: str, images: int) -> float:
        """Seconds of one evaluation on the first `images` of the test set."""
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
        """Floating-point operations of a training step, and of evaluating one image."""
        training = self._training(net)
        counts = {}
        with FlopCounterMode(display=False) as counter:
            training.backward(*next(training.batches(0)))
        counts["step"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            training.outputs(next(training.data.test_batches(1))[0])
        counts["image"] = counter.get_total_flops()
        return counts

    def version(self) -> str:
        return f"torch {torch.__version__} with {torch.get_num_threads()} threads"

    def product(self, dtype: str, size: int = 2048) -> float:
        """Seconds of a matrix product of two (size, size) matrices."""
        left = torch.ones(size, size, dtype=getattr(torch, dtype))
        torch.mm(left, left)
        started = time.perf_counter()
        torch.mm(left, left)
        return time.perf_counter() - started

    def _settings(self, net: str, variant: str) -> DictConfig:
        overrides = net_overrides(net, self.root) + self.common
        overrides += data_overrides(self.root, self.directory.parent / "prepared")
        overrides.append("trainer.epochs=1000000")
        if variant == "tenfold":
            overrides += [
                "data.name=tenfold", "data.reader._target_=benchmarking.random_data.tenfold",
            ]  # fmt: skip
        elif variant:
            overrides.append(variant)
        return compose(overrides)

    def _training(self, net: str) -> Training:
        if net not in self.trainings:
            self.trainings[net] = build(self._settings(net, ""))
            self.evaluate(net, 256)  # oneDNN prepares its kernels at their first use
        return self.trainings[net]

    def _advance(self, net: str, variant: str, count: int) -> None:
        for record in self.running[net, variant]:
            count -= isinstance(record, Step)
            if not count:
                return
