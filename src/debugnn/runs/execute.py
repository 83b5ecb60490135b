"""One run: its checks, its records, and its end.

A finished run is not repeated; one that was cut off goes on from its checkpoint.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from debugnn.build import build
from debugnn.doctor.report import Report
from debugnn.doctor.watch import Doctor
from debugnn.errors import ConfigError
from debugnn.lr_curve import suggest
from debugnn.random_state import gpus
from debugnn.records import Record
from debugnn.runs.directory import RunDirectory
from debugnn.runs.writer import Writer
from debugnn.stacking.stack import fit_captured
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import Training, fit
from debugnn.training.range_test import range_test

log = logging.getLogger(__name__)


def execute(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path:
    """Run what the configuration says, or find it done, and return the run's directory.

    Args:
        overrides: as typed; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Raises:
        ConfigError: before anything is written.
    """
    directory = RunDirectory(config, overrides, experiment)
    directory.compare()
    if directory.status == "finished":
        log.info("%s: finished before, skipped (overwrite=true runs it again)", directory.title)
        directory.update_report()
        return directory.path
    training = build(config)
    log.info("%s", directory.title)
    directory.claim(training)
    if training.epoch:
        log.info("  goes on from epoch %d", training.epoch)
    started = time.perf_counter()
    with Writer() as writer, directory.recording(training, writer) as write:
        for record in follow(config, training, directory.path):
            write(record)
    log.info("  %.1f s, in %s", time.perf_counter() - started, directory.path)
    return directory.path


def follow(config: DictConfig, training: Training, directory: Path) -> Iterator[Record | Report]:
    """The records of the task: range tests where asked for, the training, its diagnosis."""
    if training.step == 0 and (config.task.name == "lr_find" or config.task.lr_from):
        with torch.random.fork_rng(gpus(training.device)):  # the training's numbers stay its own
            rates = yield from find_lr(config, training)
        if config.task.lr_from:
            chosen = rates.get(config.task.lr_from)
            if not chosen:
                raise ConfigError(
                    f"task.lr_from={config.task.lr_from}: the range test's curve suggests nothing"
                )
            for group in training.optimizer.param_groups:
                group["lr"] = chosen[0]
    if config.task.name == "train":
        probe = LayerProbe(config.doctor.every, config.doctor.bins)
        if config.trainer.graph and training.device.type == "cuda":
            yield from fit_captured(training, config.trainer.epochs, probe)
            return
        if config.doctor.every is None:
            yield from fit(training, config.trainer.epochs, probe)
            return
        with Doctor(
            training.model,
            training.optimizer,
            loss_fn=training.loss,
            every=config.doctor.every,
            budget=config.doctor.budget,
            save_to=directory,
        ) as doctor:
            if training.step:
                doctor.evidence.troubles.append(f"the {training.step} steps before this start")
            yield from fit(training, config.trainer.epochs, probe, doctor)
            yield doctor.report()


def find_lr(config: DictConfig, training: Training) -> Iterator[Record]:
    """All range tests and their suggestions; returns rule → suggested rates, one a test."""
    finder = dict(config.task.finder)
    rates: dict[str, list[float]] = {}
    for test in range(finder.pop("repeats")):
        points = []
        for point in range_test(training, test=test, **finder):
            points.append(point)
            yield point
        for suggestion in suggest(points):
            rates.setdefault(suggestion.rule, []).append(suggestion.lr)
            yield suggestion
    return rates
