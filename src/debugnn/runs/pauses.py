"""When a run pauses between two steps to be saved: every few minutes, and when it is told to stop.

A signal does not end a run inside a step. The run is saved after the step, W&B is closed, and the
command ends with a line that says how to go on. Where nothing is to be saved, as in the doctor's
trials after the last step, it ends there. A second signal ends the process at once.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-C, `kill` and a scheduler's time limit, and the warning before it that Slurm is asked for.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)
]


class Interrupted(KeyboardInterrupt):
    """A run was saved and ended by a signal.

    Attributes:
        exit_code: 128 + the signal's number, as a shell counts it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Pauses:
    """Says after which steps a run pauses.

    Args:
        minutes: between two checkpoints at most.

    Attributes:
        stopped_by: the number of the signal that told the run to stop, None without one.
        between_steps: what runs now changes nothing that is to be saved: see `at_once`.
    """

    def __init__(self, minutes: float) -> None:
        self.stopped_by: int | None = None
        self.between_steps = False
        self._seconds = 60 * minutes
        self._saved = time.monotonic()

    def __call__(self) -> bool:
        """Return whether to pause now."""
        return self.stopped_by is not None or time.monotonic() - self._saved >= self._seconds

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self._saved = time.monotonic()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the run inside the block, in which nothing is to be saved.

        Raises:
            Interrupted: one came.
        """
        self.end_if_told()
        self.between_steps = True
        try:
            yield
        finally:
            self.between_steps = False

    def end_if_told(self) -> None:
        """End the run if a signal told it to stop.

        Raises:
            Interrupted: one did.
        """
        if self.stopped_by is not None:
            raise Interrupted(self.stopped_by)


@contextmanager
def told_by_signals(pauses: Pauses) -> Iterator[None]:
    """Let signals stop the run inside the block, at its next pause.

    Outside the main thread, where Python delivers no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if pauses.stopped_by is not None:  # at once, as if nobody had listened
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        pauses.stopped_by = number
        when = "stops" if pauses.between_steps else "stops after this step"
        # Not through `logging` or `print`, one of which the signal may have interrupted.
        os.write(2, f"{signal.Signals(number).name}: {when}\n".encode())
        if pauses.between_steps:
            raise Interrupted(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Whoever listened before is told too: submitit puts a job that is out of time back in line.
        if (number := pauses.stopped_by) is not None:
            handler = before[number]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(number, None)
