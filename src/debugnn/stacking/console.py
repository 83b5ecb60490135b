"""What a stack shows on the console: one line for an epoch of all its runs."""

import logging
import math
from collections.abc import Sequence

from debugnn.records import Epoch
from debugnn.runs.sinks import Console, epoch_number

log = logging.getLogger(__name__)


class StackConsole(Console):
    """The console of several runs, whose epochs of one index come in a row and share a line.

    Args:
        epochs: that are trained.
        members: the number of runs.
    """

    def __init__(self, epochs: int, members: int) -> None:
        super().__init__(epochs)
        self._members = members
        self._ended: list[Epoch] = []

    def write_epoch(self, epoch: Epoch) -> None:
        """Print the line when the last run's epoch has come."""
        self._ended.append(epoch)
        if len(self._ended) == self._members:
            log.info("%s", line_of(self._ended, self._epochs))
            self._ended = []


def line_of(ended: Sequence[Epoch], epochs: int) -> str:
    """Return the same epoch of several runs as a line of at most 80 columns.

    It shows the lowest and the highest value of each quantity, and the test loss only where there
    is no accuracy.

    Args:
        ended: the epoch of each run.
        epochs: that are trained.
    """
    line = epoch_number(ended[0], epochs)
    line += f"  train loss {_range([e.train_loss for e in ended], '.4g')}"
    losses = [e.test_loss for e in ended if e.test_loss is not None]
    accuracies = [e.test_accuracy for e in ended if e.test_accuracy is not None]
    if losses and not accuracies:
        line += f"  test loss {_range(losses, '.4g')}"
    if accuracies:
        line += f"  accuracy {_range(accuracies, '.1f')} %"
    return line


def _range(values: Sequence[float], form: str) -> str:
    """Return the range of the values that are numbers, and how many are NaN."""
    numbers = [value for value in values if not math.isnan(value)]
    lost = len(values) - len(numbers)
    text = f"{min(numbers):{form}} … {max(numbers):{form}}" if numbers else ""
    return f"{text} ({lost} NaN)".strip() if lost else text
