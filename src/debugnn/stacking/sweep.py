"""The runs of a stack: each member leaves the directory that the same run would leave alone.

Members are not diagnosed: the doctor watches one model's forward passes, and a stack has its own.
A member continues from its checkpoint as a run alone does.
"""

import copy
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from debugnn.config import BOOKKEEPING, check
from debugnn.errors import ConfigError
from debugnn.records import Epoch
from debugnn.runs.directory import RunDirectory, flat
from debugnn.runs.execute import Run, choose_rate, execute, finished, open_run, prepare
from debugnn.runs.naming import arm_of, directory_of
from debugnn.runs.sinks import Console
from debugnn.stacking.stack import Member, Stack
from debugnn.training.layer_stats import LayerProbe

log = logging.getLogger(__name__)

# What the arms of one stack may differ in: numbers, and where runs are kept.
_OWN = ("seed", "init", "optim", "clip", "reg.dropout", *BOOKKEEPING)

Refuse = Callable[[int, ConfigError], None]


def execute_stack(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path:
    """Run `trainer.stack` seeds, from `seed` upwards: at once if they train and stack.

    Args:
        config, overrides, experiment: as for `debugnn.runs.execute.execute`.

    Returns:
        The arm's directory, which holds a directory for each seed.

    Raises:
        ConfigError: a setting that cannot be used. Nothing has been written then.
        CheckFailedError: `task=check` found an error.
    """
    check(config)
    requests = []
    for seed in range(config.seed, config.seed + config.trainer.stack):
        own = copy.deepcopy(config)
        own.seed = seed
        own.trainer.stack = 1
        requests.append((own, overrides))
    if config.task.name == "train":
        execute_together(requests, experiment)
    else:
        for request in requests:
            execute(*request, experiment)
    return directory_of(config, experiment or "adhoc", arm_of(overrides)).parent


def _raise(index: int, error: ConfigError) -> None:
    raise error


def execute_together(
    requests: Sequence[tuple[DictConfig, Sequence[str]]],
    experiment: str | None,
    refuse: Refuse = _raise,
) -> None:
    """Train several configurations of one architecture at once, each in its own directory.

    Finished runs are skipped. Runs that do not stack, or that are faster alone, train one after the
    other.

    Args:
        requests: a configuration and the overrides that name its arm, for each run. They differ in
            the seed, the initialisation, the optimiser, the clipping and the dropout rate alone.
        experiment: the option of the `experiment` group, None without one.
        refuse: is told the index and the error of a run that cannot be trained; the others train.
            By default the error is raised.

    Raises:
        ConfigError: a run is refused. Nothing has been written then.
    """
    _check_alike([config for config, _ in requests])
    runs: dict[int, Run] = {}
    by_epoch: dict[int, dict[int, Member]] = {}
    for index, (config, overrides) in enumerate(requests):
        try:
            directory = RunDirectory(config, overrides, experiment)
            if not finished(directory):
                run = runs[index] = prepare(directory)
                choose_rate(run)
                by_epoch.setdefault(run.training.epoch, {})[index] = Member(run.training)
        except ConfigError as error:
            refuse(index, error)
    # All stacks before the first run is opened: nothing is written if one of them fails.
    stacks = [_stack(list(members.values())) for members in by_epoch.values()]
    for stack, members in zip(stacks, by_epoch.values(), strict=True):
        if stack is not None:
            _train(stack, [runs[index] for index in members])
            continue
        for index in members:
            try:
                execute(*requests[index], experiment)
            except ConfigError as error:
                refuse(index, error)


def _stack(members: Sequence[Member]) -> Stack | None:
    """Stack the members; None, and a line that says why, if they train one after the other."""
    training = members[0].training
    convolutions = any(isinstance(m, nn.modules.conv._ConvNd) for m in training.model.modules())
    try:
        if len(members) == 1:
            return None
        if training.device.type == "cpu" and convolutions:
            # Stacked, they are grouped convolutions. Those take 1.3 times as long for 4 members of
            # the MNIST net as one after the other, and twice as long for 16.
            raise ConfigError("on a CPU, stacked convolutions are slower")
        return Stack(members)
    except ConfigError as error:
        log.info("One after the other: %s", error)
        return None


def sets_that_fit(
    jobs: Sequence[tuple[DictConfig, Sequence[str], str | None]], at_once: int
) -> list[list[int]]:
    """Divide the jobs of a sweep into sets for `execute_together`.

    A job that fits no other is a set of its own. So is one that has nothing to train, or whose
    settings or directory are refused: run alone, it names its error.

    Args:
        jobs: configuration, overrides that name the arm, and experiment, for each.
        at_once: how many jobs a set holds at most.

    Returns:
        The indices of the jobs in each set.
    """
    sets: list[list[int]] = []
    with_room: dict[str, list[int]] = {}
    taken: set[Path] = set()
    for index, (config, overrides, experiment) in enumerate(jobs):
        try:
            check(config)
            directory = RunDirectory(config, overrides, experiment)
            directory.compare()
            trains = config.task.name == "train" and config.trainer.stack == 1
            fits = trains and directory.status != "finished" and directory.path not in taken
        except (ConfigError, OmegaConfBaseException):
            fits = False
        if not fits:
            sets.append([index])
            continue
        taken.add(directory.path)
        kind = repr((experiment, sorted(_shared(config).items())))
        if len(with_room.get(kind, ())) in (0, at_once):
            with_room[kind] = []
            sets.append(with_room[kind])
        with_room[kind].append(index)
    return sets


def _train(stack: Stack, runs: Sequence[Run]) -> None:
    config, started = runs[0].directory.config, time.perf_counter()
    log.info("%s and %d more at once", runs[0].directory.title, len(runs) - 1)
    if runs[0].training.epoch:
        log.info("  continue from epoch %d", runs[0].training.epoch)
    console = Console(config.trainer.epochs, len(runs))
    settings = [run.directory.config.doctor for run in runs]
    probes = [LayerProbe(doctor.every, doctor.bins) for doctor in settings]
    with ExitStack() as opened:
        writes = [opened.enter_context(open_run(run, stacked=len(runs))) for run in runs]
        for run, write in zip(runs, writes, strict=True):
            for record in run.search:
                write(record)
        for index, record in stack.fit(config.trainer.epochs, probes):
            console.write(record)
            if isinstance(record, Epoch):
                with stack.members[index].randomness():  # the checkpoint saves it
                    writes[index](record)
            else:
                writes[index](record)
    shared = os.path.commonpath([run.directory.path for run in runs])
    log.info("  %.1f s, in %s", time.perf_counter() - started, shared)


def _check_alike(configs: Sequence[DictConfig]) -> None:
    first, *others = map(_shared, configs)
    for other in others:
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"{name}={first.get(name)} and {name}={other.get(name)} do not stack; members "
                    "differ in seed, init, optim, clip and reg.dropout alone"
                )


def _shared(config: DictConfig) -> dict[str, Any]:
    """Return the settings that all members of a stack have in common, with dotted keys."""
    settings = flat(OmegaConf.to_container(config, resolve=True))
    return {
        name: value
        for name, value in settings.items()
        if not any(name == own or name.startswith(f"{own}.") for own in _OWN)
    }
