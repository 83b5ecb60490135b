"""Where records go: JSON lines in the run's directory, and the console.

A sink takes one record at a time and never hands anything back. `debugnn.runs.wandb_sink` is the
third.
"""

import logging
import math
import textwrap
from contextlib import ExitStack
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
        begin: numbers of epochs and steps that are completed. Later rows, which a run wrote after
            its last checkpoint, are dropped.

    Raises:
        RunError: a file is damaged, or rows of earlier steps are missing.
    """

    def __init__(self, directory: Path, begin: tuple[int, int] = (0, 0)) -> None:
        self._directory = directory
        self._files = {}
        for name in ("metrics", "layers"):
            path = directory / f"{name}.jsonl"
            if path.exists():
                from debugnn.runs.kept import keep_rows_before  # a new run has none

                keep_rows_before(path, *begin)
            self._files[name] = path.open("a", encoding="utf-8")

    def write(self, record: Record | Diagnosis) -> None:
        """Write the record; see `flush`."""
        if isinstance(record, Diagnosis):
            report, evidence = records.dump(record.report, indent=2), records.dump(record.evidence)
            replace_text(self._directory / "findings.json", f"{report}\n")
            replace_text(self._directory / "evidence.json", f"{evidence}\n")
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
        """Close every file, also where another one cannot be completed."""
        with ExitStack() as files:
            for file in self._files.values():
                files.enter_context(naming(Path(file.name)))
                files.callback(file.close)


class Console:
    """About ten lines of epochs, what a range test suggests, and the diagnosis.

    Args:
        epochs: that are trained.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._every = math.ceil(epochs / _EPOCH_LINES)

    def write(self, record: object) -> None:
        """Print what the record says, if it is one to be seen."""
        if isinstance(record, Pruned):
            text = f"pruned after {record.step} steps, for it is hopeless: {record.reason}"
            log.info("%s", textwrap.fill(text, 80, initial_indent="  ", subsequent_indent="    "))
        elif isinstance(record, Diagnosis):
            log.info("%s", textwrap.indent(record.text, "  "))
        elif isinstance(record, LrSuggestion):
            log.info("  range test %d: %-8s suggests lr %.2g", record.test, record.rule, record.lr)
        elif isinstance(record, Epoch) and (
            record.epoch % self._every == 0 or record.epoch + 1 == self._epochs
        ):
            self.write_epoch(record)

    def write_epoch(self, epoch: Epoch) -> None:
        """Print one epoch of the run."""
        log.info("%s", epoch_line(epoch, self._epochs))


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Return an epoch as a line of at most 80 columns.

    Args:
        epoch: the record.
        epochs: that are trained.
    """
    line = f"{epoch_number(epoch, epochs)}  train loss {epoch.train_loss:9.4g}"
    if epoch.test_loss is not None:
        line += f"  test loss {epoch.test_loss:9.4g}"
    if epoch.test_accuracy is not None:
        line += f"  accuracy {epoch.test_accuracy:5.1f} %"
    return line


def epoch_number(epoch: Epoch, epochs: int) -> str:
    """Return the beginning of an epoch's line, whose numbers are aligned."""
    return f"  epoch {epoch.epoch:{len(str(epochs - 1))}d} of {epochs}"
