"""The run directories of a stack: each member's holds what the run alone would have left there.

Members are not diagnosed: the doctor watches one model's forward passes, and a stack has its own.
A member is resumed as a run alone is. Members that were cut off at different epochs go on in a
stack for each epoch, and one that is left over goes on alone.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from debugnn.build import build
from debugnn.config import BOOKKEEPING, check
from debugnn.errors import ConfigError
from debugnn.records import Epoch
from debugnn.runs import execute
from debugnn.runs.directory import RunDirectory, Write, flat
from debugnn.runs.writer import Writer
from debugnn.stacking.stack import Member, Stack, share_data
from debugnn.training.layer_stats import LayerProbe

log = logging.getLogger(__name__)

# What the arms of one stack may differ in: numbers, and where runs are kept.
_OWN = ("seed", "init", "optim", "clip", "reg.dropout", *BOOKKEEPING)

Refuse = Callable[[int, ConfigError], None]


def execute_stack(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path:
    """Run `trainer.stack` seeds at once, from `seed` upwards, and return the arm's directory.

    Raises:
        ConfigError: before anything is written.
    """
    check(config)
    seeds = range(config.seed, config.seed + config.trainer.stack)
    return execute_together([(_alone(config, s), overrides) for s in seeds], experiment)[0].parent


def execute_together(
    requests: Sequence[tuple[DictConfig, Sequence[str]]],
    experiment: str | None,
    refuse: Refuse | None = None,
) -> list[Path]:
    """Run several configurations of one architecture at once, each in its own directory.

    Finished runs are skipped.

    Args:
        requests: a configuration and the overrides that name its arm, for each run. They differ in
            the seed, the initialisation, the optimiser, the clipping and the dropout rate alone.
        refuse: is told the index and the error of each run that cannot be built, and the others
            train. Without it the error is raised.

    Raises:
        ConfigError: before anything is written; a stack that cannot be, too.
    """
    _check_same(config for config, _ in requests)
    runs = [RunDirectory(config, overrides, experiment) for config, overrides in requests]
    paths = [each.path for each in runs]
    if len(set(paths)) < len(runs):
        raise ConfigError("trainer.stack: two members have one directory; name their arms apart")
    trains = runs[0].config.task.name == "train"
    waiting = {i: each for i, each in enumerate(runs) if trains and each.status != "finished"}
    for index, request in enumerate(requests):
        if index not in waiting:
            execute.execute(*request, experiment)  # a finished one says that it is skipped
    if len(waiting) > 1:
        members = _built(waiting, refuse)
        waiting = {index: waiting[index] for index in members}
        if len(members) > 1:
            _train(list(waiting.values()), list(members.values()))
            return paths
    for index in waiting:  # the only one
        execute.execute(*requests[index], experiment)
    return paths


def sets_that_fit(
    jobs: Sequence[tuple[DictConfig, Sequence[str], str | None]], at_once: int
) -> list[list[int]]:
    """The indices of a sweep's jobs in sets of at most `at_once` for `execute_together`.

    A job that fits no other is a set of its own. So is one that has nothing to train, or whose
    settings or directory are refused: run alone, it says why.

    Args:
        jobs: configuration, overrides that name the arm, and experiment, for each.
    """
    sets: list[list[int]] = []
    with_room: dict[str, list[int]] = {}
    taken: set[Path] = set()
    for index, (config, overrides, experiment) in enumerate(jobs):
        try:
            check(config)
            directory = RunDirectory(config, overrides, experiment)
            directory.compare()
        except (ConfigError, OmegaConfBaseException):
            sets.append([index])
            continue
        trains = config.task.name == "train" and config.trainer.stack == 1
        if not trains or directory.status == "finished" or directory.path in taken:
            sets.append([index])
            continue
        taken.add(directory.path)
        kind = repr((experiment, sorted(_shared(config).items())))
        if len(with_room.get(kind, ())) in (0, at_once):
            with_room[kind] = []
            sets.append(with_room[kind])
        with_room[kind].append(index)
    return sets


def _built(runs: Mapping[int, RunDirectory], refuse: Refuse | None) -> dict[int, Member]:
    """The members that can be built, by the index of their run."""
    members: dict[int, Member] = {}
    for index, each in runs.items():
        try:
            each.compare()
            member = Member(build(each.config))
        except ConfigError as error:
            if refuse is None:
                raise
            refuse(index, error)
            continue
        members[index] = member
        share_data(member.training, next(iter(members.values())).training)
    return members


def _train(runs: Sequence[RunDirectory], members: Sequence[Member]) -> None:
    graph = all(each.config.trainer.graph for each in runs)
    stack = Stack(members, graph=graph)
    for each, member in zip(runs, members, strict=True):
        with member.randomness():
            each.claim(member.training)
    by_epoch: dict[int, list[int]] = {}
    for index, member in enumerate(members):
        by_epoch.setdefault(member.training.epoch, []).append(index)
    for chosen in by_epoch.values():
        if len(chosen) < len(members):
            stack = Stack([members[index] for index in chosen], graph=graph)
        _train_stack(stack, [runs[index] for index in chosen])


def _train_stack(stack: Stack, runs: Sequence[RunDirectory]) -> None:
    config, started = runs[0].config, time.perf_counter()
    epochs = config.trainer.epochs
    log.info("%s and %d more at once", runs[0].title, len(runs) - 1)
    if stack.members[0].training.epoch:
        log.info("  go on from epoch %d", stack.members[0].training.epoch)
    with Writer() as writer, ExitStack() as recordings:
        writes = [
            recordings.enter_context(each.recording(member.training, writer, len(runs)))
            for each, member in zip(runs, stack.members, strict=True)
        ]
        for each, member, write in zip(runs, stack.members, writes, strict=True):
            _find_lr(each, member, write)
        probes = [LayerProbe(each.config.doctor.every, each.config.doctor.bins) for each in runs]
        ended: list[Epoch] = []
        for index, record in stack.fit(epochs, probes):
            if not isinstance(record, Epoch):
                writes[index](record)
                continue
            with stack.members[index].randomness():  # which the checkpoint holds
                writes[index](record)
            ended.append(record)
            if len(ended) == len(runs):
                if record.epoch % math.ceil(epochs / 10) == 0 or record.epoch + 1 == epochs:
                    log.info("%s", epoch_line(ended, epochs))
                ended = []
    shared = os.path.commonpath([each.path for each in runs])
    log.info("  %.1f s, in %s", time.perf_counter() - started, shared)


def _find_lr(directory: RunDirectory, member: Member, write: Write) -> None:
    """The range test that `task.lr_from` asks for, as the run alone makes it."""
    if directory.config.task.lr_from is None or member.training.step > 0:
        return
    search = copy.deepcopy(directory.config)
    search.task.name = "lr_find"  # the test and its choice, without the training after it
    with member.randomness():
        for record in execute.follow(search, member.training, directory.path):
            write(record)


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
    first, *others = map(_shared, configs)
    for other in others:
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"{name}={first.get(name)} and {name}={other.get(name)} do not stack; members "
                    "differ in seed, init, optim, clip and reg.dropout alone"
                )


def _shared(config: DictConfig) -> dict[str, Any]:
    """The settings that all members of a stack have in common."""
    settings = flat(OmegaConf.to_container(config, resolve=True))
    return {
        name: value
        for name, value in settings.items()
        if not any(name == own or name.startswith(f"{own}.") for own in _OWN)
    }
