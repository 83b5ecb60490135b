"""The run directories of a stack: each member's holds what the run alone would have left there.

Members are not diagnosed: the doctor watches one model's forward passes, and a stack has its own.
A member is resumed as a run alone is. Members that were cut off at different epochs go on in a
stack for each epoch, and one that is left over goes on alone.
"""

import copy
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from debugnn import checkpoint, records, run
from debugnn.build import build
from debugnn.config import BOOKKEEPING, check
from debugnn.doctor.probes import LayerProbe
from debugnn.errors import ConfigError
from debugnn.models import parameter_count
from debugnn.records import Epoch, Record
from debugnn.sinks import JsonLines, Sink, WandB
from debugnn.stack import Member, Stack, share_data

log = logging.getLogger(__name__)

# What the arms of one stack may differ in: numbers, and where runs are kept.
_OWN = ("seed", "init", "optim", "clip", "reg.dropout", *BOOKKEEPING)


def execute_stack(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path:
    """Run `trainer.stack` seeds at once, from `seed` upwards, and return the arm's directory.

    Raises:
        ConfigError: before anything is written.
    """
    check(config)
    seeds = range(config.seed, config.seed + config.trainer.stack)
    return execute_together([(_alone(config, s), overrides) for s in seeds], experiment)[0].parent


def execute_together(
    requests: Sequence[tuple[DictConfig, Sequence[str]]], experiment: str | None
) -> list[Path]:
    """Run several configurations of one architecture at once, each in its own directory.

    Finished runs are skipped.

    Args:
        requests: a configuration and the overrides that name its arm, for each run. They differ in
            the seed, the initialisation, the optimiser, the clipping and the dropout rate alone.

    Raises:
        ConfigError: before anything is written; a stack that cannot be, too.
    """
    _check_same(config for config, _ in requests)
    runs = [_Run(config, overrides, experiment or "adhoc") for config, overrides in requests]
    directories = [each.directory for each in runs]
    if len(set(directories)) < len(runs):
        raise ConfigError("trainer.stack: two members have one directory; name their arms apart")
    open_runs = [each for each in runs if each.status != "finished"]
    trains = runs[0].config.task.name == "train"
    if trains and len(open_runs) > 1:
        for each in runs:
            if each not in open_runs:
                each.execute_alone()  # says that it is skipped
        _train(open_runs)
    else:
        for each in runs:
            each.execute_alone()
    return directories


def _train(runs: Sequence["_Run"]) -> None:
    members: list[Member] = []
    for each in runs:
        each.compare()
        members.append(Member(build(each.config)))
        share_data(members[-1].training, members[0].training)
    stack = Stack(members)
    for each, member in zip(runs, members, strict=True):
        each.claim(member)
    by_epoch: dict[int, list[int]] = {}
    for index, member in enumerate(members):
        by_epoch.setdefault(member.training.epoch, []).append(index)
    for chosen in by_epoch.values():
        if len(chosen) < len(members):
            stack = Stack([members[index] for index in chosen])
        _train_stack(stack, [runs[index] for index in chosen])


def _train_stack(stack: Stack, runs: Sequence["_Run"]) -> None:
    config, started = runs[0].config, time.perf_counter()
    epochs = config.trainer.epochs
    log.info("%s and %d more at once", runs[0].title, len(runs) - 1)
    if stack.members[0].training.epoch:
        log.info("  go on from epoch %d", stack.members[0].training.epoch)
    failed = True
    try:
        for each in runs:
            each.open(stacked=len(runs))
        for each in runs:
            each.find_lr()
        probes = [LayerProbe(each.config.doctor.every, each.config.doctor.bins) for each in runs]
        ended: list[Epoch] = []
        for index, record in stack.fit(epochs, probes):
            runs[index].write(record)
            if isinstance(record, Epoch):
                ended.append(record)
            if len(ended) == len(runs):
                if record.epoch % math.ceil(epochs / 10) == 0 or record.epoch + 1 == epochs:
                    log.info("%s", epoch_line(ended, epochs))
                ended = []
        failed = False
    except Exception as error:
        for each in runs:
            each.note(error)
        raise
    finally:
        for each in runs:
            each.close(failed, time.perf_counter() - started)
    log.info("  %.1f s, in %s", time.perf_counter() - started, runs[0].directory.parent)


class _Run:
    """What `debugnn.run.execute` keeps for a run alone, opened, written and closed from outside."""

    def __init__(self, config: DictConfig, overrides: Sequence[str], experiment: str) -> None:
        self.config = config
        self.overrides = overrides
        self.experiment = experiment
        self.arm = run.arm_of(overrides)
        self.directory = run.directory_of(config, experiment, self.arm)
        self.title = f"{experiment} {run.label(self.arm)} seed={config.seed}"
        self.status = None if config.overwrite else run._status(self.directory)
        self.facts: dict[str, Any] = {}  # none before it is opened
        self._sinks: list[Sink] = []

    def execute_alone(self) -> None:
        run.execute(self.config, self.overrides, self.experiment)

    def compare(self) -> None:
        """Raise ConfigError where the directory holds another configuration's run."""
        if self.status is not None:
            run._compare(self.directory, OmegaConf.to_container(self.config, resolve=True))

    def claim(self, member: Member) -> None:
        """Make the directory ready, and take the member up where its checkpoint left it."""
        self._member = member
        run._claim(self.directory, fresh=self.status is None)
        path = self.directory / "checkpoint.pt"
        if path.exists():
            with member.randomness():
                checkpoint.restore(path, member.training)

    def open(self, stacked: int) -> None:
        training, directory = self._member.training, self.directory
        resolved = OmegaConf.to_container(self.config, resolve=True)
        facts = run._facts(self.config, self.experiment, self.arm)
        facts |= {"classes": training.data.classes, "parameters": parameter_count(training.model)}
        facts["stacked"] = stacked
        if self.status is not None:
            facts["wandb_id"] = records.load((directory / "run.json").read_text()).get("wandb_id")
        self.facts = facts
        run._replace(directory / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
        run._write_facts(directory, facts)
        self._sinks.append(JsonLines(directory, training.step))
        if self.config.wandb.mode != "disabled":
            sink = WandB(
                directory,
                resolved["wandb"],
                config=resolved,
                name=run.run_name(self.config, self.experiment, self.arm),
                group=self.experiment,
                job_type=self.config.task.name,
                run_id=facts["wandb_id"],
            )
            facts["wandb_id"] = sink.id
            self._sinks.append(sink)
            run._write_facts(directory, facts)

    def find_lr(self) -> None:
        """The range test that `task.lr_from` asks for, as the run alone makes it."""
        if self.config.task.lr_from is None:
            return
        search = copy.deepcopy(self.config)
        search.task.name = "lr_find"  # the test and its choice, without the training after it
        if self._member.training.step == 0:
            with self._member.randomness():
                for record in run.follow(search, self._member.training, self.directory):
                    self.write(record)

    def write(self, record: Record) -> None:
        for sink in self._sinks:
            sink.write(record)
        training = self._member.training
        if isinstance(record, Epoch) and run._checkpoint_due(self.config, training):
            with self._member.randomness():
                checkpoint.save(self.directory / "checkpoint.pt", training)

    def note(self, error: Exception) -> None:
        if self.facts:
            self.facts["error"] = f"{type(error).__name__}: {error}"

    def close(self, failed: bool, seconds: float) -> None:
        """Close the sinks; `seconds` is the whole stack's time."""
        for sink in self._sinks:
            sink.close(failed)
        if self.facts:
            self.facts["seconds"] = round(seconds, 3)
            self.facts["status"] = "failed" if failed else "finished"
            run._write_facts(self.directory, self.facts)


def epoch_line(epochs: Sequence[Epoch], total: int) -> str:
    """One epoch of all members as one line: from the lowest to the highest value."""
    first = epochs[0]
    line = f"  epoch {first.epoch:{len(str(total - 1))}d} of {total}"
    line += f"  train loss {_range([e.train_loss for e in epochs], '.4g')}"
    if first.test_accuracy is not None:
        line += f"  accuracy {_range([e.test_accuracy for e in epochs], '.1f')} %"
    elif first.test_loss is not None:
        line += f"  test loss {_range([e.test_loss for e in epochs], '.4g')}"
    return line


def _range(values: Sequence[float], form: str) -> str:
    numbers = [value for value in values if not math.isnan(value)]
    lost = len(values) - len(numbers)
    text = f"{min(numbers):{form}} … {max(numbers):{form}}" if numbers else ""
    return f"{text} ({lost} NaN)".strip() if lost else text


def _alone(config: DictConfig, seed: int) -> DictConfig:
    """The configuration of one member: that of the run alone."""
    own = copy.deepcopy(config)
    own.seed = seed
    own.trainer.stack = 1
    return own


def _check_same(configs: Iterable[DictConfig]) -> None:
    first, *others = (run._flat(OmegaConf.to_container(c, resolve=True)) for c in configs)
    for other in others:
        for name in sorted(first.keys() | other.keys()):
            own = any(name == o or name.startswith(f"{o}.") for o in _OWN)
            if not own and first.get(name) != other.get(name):
                raise ConfigError(
                    f"{name}={first.get(name)} and {name}={other.get(name)} do not stack; members "
                    "differ in seed, init, optim, clip and reg.dropout alone"
                )
