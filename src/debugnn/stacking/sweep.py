"""The jobs of a sweep that train at once: each leaves the directory that it would leave alone.

Members are not diagnosed: the doctor watches one model's forward passes, and a stack has its own.
A member continues from its checkpoint as a run alone does.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from debugnn.errors import ConfigError, RunError, one_line
from debugnn.records import BOOKKEEPING, Epoch, Evaluating, Pause
from debugnn.runs import execute, kept
from debugnn.runs.directory import RunDirectory
from debugnn.runs.execute import Run
from debugnn.runs.pauses import told_by_signals
from debugnn.stacking.console import StackConsole
from debugnn.stacking.stack import Member, Stack
from debugnn.training.layer_stats import LayerProbe

log = logging.getLogger(__name__)

# What the members of one stack may differ in: numbers, and where runs are kept.
_OWN = ("seed", "init", "optim", "clip", "reg.dropout", *BOOKKEEPING)


@dataclass
class Job:
    """A run that is asked for: the arguments of `debugnn.runs.execute.execute`."""

    config: DictConfig
    overrides: Sequence[str]
    experiment: str | None

    def shared(self) -> dict[str, Any]:
        """Return what all members of a stack have in common: settings with dotted keys."""
        settings = kept.flat(OmegaConf.to_container(self.config, resolve=True))
        return {"experiment": self.experiment} | {
            name: value
            for name, value in settings.items()
            if not any(name == own or name.startswith(f"{own}.") for own in _OWN)
        }


def sets_that_fit(jobs: Sequence[Job | None], at_once: int) -> list[list[int]]:
    """Divide jobs into sets that can train at once.

    Args:
        jobs: None for one that fits no other.
        at_once: how many jobs a set holds at most.

    Returns:
        The indices of the jobs in each set. A job that does not train is a set of its own.
    """
    sets: list[list[int]] = []
    with_room: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        kind = str(index)
        if job is not None and job.config.task.name == "train":
            kind = repr(sorted(job.shared().items()))
        if len(with_room.get(kind, ())) in (0, at_once):
            with_room[kind] = []
            sets.append(with_room[kind])
        with_room[kind].append(index)
    return sets


def execute_together(
    jobs: Sequence[Job], failed: Callable[[Job, Exception | SystemExit], None]
) -> None:
    """Run a set of jobs at once, each in its own directory.

    Finished runs are skipped. Runs that do not stack, or that are faster alone, train one after the
    other, and so do those whose stack ends with an error: it may be that of one run, or of their
    memory.

    Args:
        jobs: a set that fits.
        failed: is told each job that cannot be run, and why; the others run.
    """
    begun: list[_Begun] = []
    paths = set()
    for job in jobs:
        with _reporting(job, failed):
            directory = RunDirectory(job.config, job.overrides, job.experiment)
            if directory.path in paths:
                log.info("%s: asked for twice", directory.title)
            elif not execute.finished(directory):
                paths.add(directory.path)
                begun.append(_begin(job, directory))
    groups: dict[tuple[int, int], list[_Begun]] = {}
    for one in _in_step(begun):
        groups.setdefault(one.run.training.place, []).append(one)
    for group in groups.values():
        stack = _stack([one.member for one in group])
        if stack is None:
            for one in group:
                with _reporting(one.job, failed), one.member.randomness():
                    execute.train(one.run)
            continue
        try:
            _train(stack, [one.run for one in group])
        except (Exception, SystemExit) as error:
            log.warning("One after the other: %s: %s", type(error).__name__, one_line(error))
            for one in group:
                one.run.directory.unlock()
                with _reporting(one.job, failed):  # it goes on from its checkpoint
                    execute.execute(one.job.config, one.job.overrides, one.job.experiment)


@contextmanager
def _reporting(job: Job, failed: Callable[[Job, Exception | SystemExit], None]) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        failed(job, error)


@dataclass
class _Begun:
    """A run that is ready to train, alone or as a member of a stack."""

    job: Job
    run: Run
    member: Member


def _begin(job: Job, directory: RunDirectory, before: tuple[int, int] | None = None) -> _Begun:
    run = execute.prepare(directory, before)
    execute.choose_rate(run)
    return _Begun(job, run, Member(run.training))  # keeps the random state that `prepare` has set


def _in_step(begun: Sequence[_Begun]) -> Sequence[_Begun]:
    """Return the runs at one place, if their stack was cut off while it saved them.

    Those with the later checkpoint go back to the one before it. A stack of fewer members would
    give other numbers, in the last bit.
    """
    least = min((one.run.training.place for one in begun), default=(0, 0))
    ahead = [one for one in begun if one.run.training.place > least]
    sizes = {kept.read_facts(one.run.directory).get("stacked") for one in ahead}
    if sizes != {len(begun)}:
        return begun
    try:
        return [_begin(one.job, one.run.directory, least) if one in ahead else one for one in begun]
    except RunError:  # the checkpoint before is of another place
        return begun


def _stack(members: Sequence[Member]) -> Stack | None:
    """Stack the members; None, and a line that says why, if they train one after the other."""
    training = members[0].training
    modules = training.model.modules()
    convolutions = any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in modules)
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


def _train(stack: Stack, runs: Sequence[Run]) -> None:
    config, started = runs[0].directory.config, time.perf_counter()
    log.info("%s and %d more at once", runs[0].directory.title, len(runs) - 1)
    if runs[0].training.epoch:
        log.info("  continue from epoch %d", runs[0].training.epoch)
    console = StackConsole(config.trainer.epochs, len(runs))
    doctor = config.doctor
    probe = LayerProbe(doctor.every, doctor.bins, doctor.dense) if doctor.enabled else None
    pauses = runs[0].pauses
    for run in runs:
        run.pauses = pauses
    with told_by_signals(pauses), ExitStack() as opened:
        writes = [opened.enter_context(execute.open_run(run, stacked=len(runs))) for run in runs]
        searches = ((index, record) for index, run in enumerate(runs) for record in run.search)
        for index, record in chain(searches, stack.fit(config.trainer.epochs, probe, pauses)):
            saved = isinstance(record, Pause | Evaluating | Epoch)  # with the random state
            with stack.members[index].randomness() if saved else nullcontext():
                execute.relay(record, writes[index], console, pauses, last=index + 1 == len(runs))
    shared = os.path.commonpath([run.directory.path for run in runs])
    log.info("  %.1f s, in %s", time.perf_counter() - started, shared)
