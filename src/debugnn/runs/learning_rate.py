"""The range tests of a run, and the learning rate that one of their rules suggests."""

from collections.abc import Iterator

import torch
from omegaconf import DictConfig

from debugnn.errors import ConfigError
from debugnn.lr_curve import suggest
from debugnn.records import LrSuggestion, Record
from debugnn.training.loop import Training
from debugnn.training.range_test import range_test


def range_tests(task: DictConfig, training: Training) -> Iterator[Record]:
    """Make the range tests of `task.finder` on copies; yield their points and suggestions.

    The training and torch's global generators stay as they are.
    """
    finder = dict(task.finder)
    device = training.device
    # Without `devices`, `fork_rng` initialises every GPU of the machine.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for test in range(finder.pop("repeats")):
            points = []
            for point in range_test(training, test=test, **finder):
                points.append(point)
                yield point
            yield from suggest(points)


def choose(task: DictConfig, training: Training) -> list[Record]:
    """Set the training's learning rate to the first suggestion of the rule `task.lr_from`.

    Returns:
        The records of the range tests.

    Raises:
        ConfigError: the rule suggests nothing.
    """
    found = list(range_tests(task, training))
    rates = [r.lr for r in found if isinstance(r, LrSuggestion) and r.rule == task.lr_from]
    if not rates:
        raise ConfigError(f"task.lr_from={task.lr_from}: the range test's curve suggests nothing")
    for group in training.optimizer.param_groups:
        group["lr"] = rates[0]
    return found
