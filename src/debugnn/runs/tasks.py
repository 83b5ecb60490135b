"""What a configuration asks for: a run, several at once, a check before one, or a run's remedy."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from debugnn.build import build
from debugnn.doctor import check
from debugnn.errors import CheckFailedError
from debugnn.runs import fix
from debugnn.runs.execute import execute as execute_run
from debugnn.stacking import sweep

log = logging.getLogger(__name__)


def execute(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path | None:
    """Do it, and return the directory of the run, or with `trainer.stack` of several.

    Args:
        overrides: as typed; they name the arm.
        experiment: the option of the `experiment` group, None without one.

    Raises:
        ConfigError: before anything is written.
        CheckFailedError: `task=check` found an error; it writes nothing.
    """
    if config.task.name == "check":
        return check_first(config)
    if config.task.name == "fix":
        return fix.fix(config, overrides, experiment)
    if config.trainer.stack > 1:
        return sweep.execute_stack(config, overrides, experiment)
    return execute_run(config, overrides, experiment)


def check_first(config: DictConfig) -> None:
    """Print the checks before a training; nothing is trained or written."""
    training = build(config)
    checklist = check(
        training.model,
        training.loss,
        training.batches(0),
        training.optimizer,
        [training.data.test_sample(1024)],
    )
    log.info("%s", checklist)
    if not checklist.passed:
        raise CheckFailedError
