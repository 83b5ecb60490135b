"""Where records go: JSON lines in the run's directory, and the console.

A sink takes one record at a time and never hands anything back. `debugnn.runs.wandb_sink` is the
third.
"""

import logging
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from debugnn import records
from debugnn.files import naming, replace_text
from debugnn.records import Diagnosis, Epoch, Layers, LrSuggestion, Pruned, Record

log = logging.getLogger(__name__)

_EPOCH_LINES = 10  # on the console, of a run, however many its epochs are


class Sink(Protocol):
    """Takes the records of one run."""

    def write(self, record: Record | Diagnosis) -> None:
        """Take the next record."""

    def hurry(self) -> None:
        """Let the run's end take no more than a few seconds: it was told to stop."""

    def close(self, failed: bool) -> None:
        """End the run."""


class JsonLines:
    """The records as files of the run's directory.

    Steps, epochs and range tests go to metrics.jsonl, layers to layers.jsonl, and a diagnosis to
    findings.json and evidence.json.

    Args:
        directory: the run's directory.
        first_step: the first step that will be written. Rows of later steps, which a run wrote
            after its last checkpoint, are dropped.

    Raises:
        RunError: a file is damaged, or rows of earlier steps are missing.
    """

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        self._directory = directory
        self._files = {}
        for name in ("metrics", "layers"):
            path = directory / f"{name}.jsonl"
            if path.exists():
                from debugnn.runs.kept import keep_rows_before  # a new run has none

                keep_rows_before(path, first_step)
            self._files[name] = path.open("a", encoding="utf-8")

    def write(self, record: Record | Diagnosis) -> None:
        """Write the record; see `flush`."""
        if isinstance(record, Diagnosis):
            for name, text in (
                ("findings", records.dump(record.report, indent=2)),
                ("evidence", records.dump(record.evidence)),
            ):
                replace_text(self._directory / f"{name}.json", f"{text}\n")
            return
        file = self._files["layers" if isinstance(record, Layers) else "metrics"]
        with naming(Path(file.name)):
            file.write(records.encode(record) + "\n")
        if isinstance(record, Epoch):
            self.flush()

    def flush(self) -> None:
        """Bring all records to the files: a checkpoint must not be ahead of them."""
        for file in self._files.values():
            with naming(Path(file.name)):
                file.flush()

    def hurry(self) -> None:
        """Do nothing: the files wait for nobody."""

    def close(self, failed: bool) -> None:
        """Close the files."""
        for file in self._files.values():
            with naming(Path(file.name)):
                file.close()


class Console:
    """About ten lines of epochs, what a range test suggests, and the diagnosis.

    Args:
        epochs: that are trained.
        members: how many runs share a line; all their epochs of one index come in a row.
    """

    def __init__(self, epochs: int, members: int = 1) -> None:
        self._epochs = epochs
        self._members = members
        self._every = math.ceil(epochs / _EPOCH_LINES)
        self._ended: list[Epoch] = []

    def write(self, record: object) -> None:
        """Print what the record says, if it is one to be seen."""
        if isinstance(record, Pruned):
            text = f"pruned after {record.step} steps, for it is hopeless: {record.reason}"
            log.info("%s", textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    "))
        elif isinstance(record, Diagnosis):
            log.info("%s", textwrap.indent(record.text, "  "))
        elif isinstance(record, LrSuggestion):
            log.info("  range test %d: %-8s suggests lr %.2g", record.test, record.rule, record.lr)
        elif isinstance(record, Epoch):
            self._ended.append(record)
            if len(self._ended) == self._members:
                if record.epoch % self._every == 0 or record.epoch + 1 == self._epochs:
                    log.info("%s", epoch_line(self._ended, self._epochs))
                self._ended = []


def epoch_line(ended: Sequence[Epoch], epochs: int) -> str:
    """Return one epoch of one run or several as a line of at most 80 columns.

    Several are told from their lowest to their highest value, and without the test loss where
    there is an accuracy.

    Args:
        ended: the same epoch of each run.
        epochs: that are trained.
    """
    first = ended[0]
    line = f"  epoch {first.epoch:{len(str(epochs - 1))}d} of {epochs}"
    line += f"  train loss {_spread([e.train_loss for e in ended], '9.4g')}"
    losses = [e.test_loss for e in ended if e.test_loss is not None]
    accuracies = [e.test_accuracy for e in ended if e.test_accuracy is not None]
    if losses and (len(ended) == 1 or not accuracies):
        line += f"  test loss {_spread(losses, '9.4g')}"
    if accuracies:
        line += f"  accuracy {_spread(accuracies, '5.1f')} %"
    return line


def _spread(values: Sequence[float], form: str) -> str:
    """Return one value in this format, or the range of several in a narrow one."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    form = form[1:]
    numbers = [value for value in values if not math.isnan(value)]
    lost = len(values) - len(numbers)
    text = f"{min(numbers):{form}} … {max(numbers):{form}}" if numbers else ""
    return f"{text} ({lost} NaN)".strip() if lost else text
