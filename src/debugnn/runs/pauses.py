"""When a run pauses between two steps to be saved: every few minutes, and when it is told to stop.

A signal does not end a run inside a step. The run is saved after the step, W&B is closed, and the
command ends with a line that says how to go on. Where nothing changes that is to be saved, as in
an evaluation and in the doctor's trials after the last step, it ends there. A second signal ends
the process at once.

A run in a worker process is told by the process that started the worker (`runs/workers.py`).
"""

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Ctrl-C, `kill` and a scheduler's time limit, and the warning before it that Slurm is asked for.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)
]
_HANGUP = getattr(signal, "SIGHUP", None)  # sent when the terminal is closed


class Interrupted(KeyboardInterrupt):
    """A run was saved and ended by a signal.

    Attributes:
        exit_code: 128 + the signal's number, as a shell counts it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int]]:
        """Return how it is made again from a pickle, in another process."""
        return Interrupted, (self.exit_code - 128,)


class Stoppable:
    """What signals can stop.

    Attributes:
        stopped_by: the number of the first signal that told it to stop, None without one.
        between_steps: whether it ends at once, by Interrupted.
    """

    stopped_by: int | None = None
    between_steps = False

    def stop(self, number: int) -> None:
        """Note that the signal of this number tells it to stop; the first one counts."""
        if self.stopped_by is None:
            self.stopped_by = number


# What signals stop at present: the run that is trained, the sweep that waits for its workers.
_listening: list[Stoppable] = []
_relayed: list[int] = []  # signals on their way from `tell`


class Pauses(Stoppable):
    """Says after which steps a run pauses. It ends at its next pause if it is told to stop.

    Args:
        minutes: between two checkpoints at most.
        seconds: between two checkpoints at least, unless the run is told to stop.

    Attributes:
        between_steps: what runs now changes nothing that is to be saved: see `end_at_once`.
    """

    def __init__(self, minutes: float, seconds: float = 0.0) -> None:
        self._most, self._least = 60 * minutes, seconds
        self._saved = time.monotonic()
        self._place: tuple[int, int] | None = None  # that was last asked about
        self._left_out = False  # this place is not saved

    def __call__(self) -> bool:
        """Return whether to pause now, after a step."""
        self._left_out = False
        return self.stopped_by is not None or time.monotonic() - self._saved >= self._most

    def due(self, place: tuple[int, int], regular: bool = True) -> bool:
        """Return whether to save at a place between two epochs, or before an evaluation.

        The answer is the same however often it is asked for: the runs of a stack, which share the
        pauses, are saved at one place, all of them or none. Where it is no, the run does not end.

        Args:
            place: the numbers of completed epochs and steps.
            regular: a checkpoint belongs here, unless the one before is seconds old.
        """
        if place != self._place:
            apart = self._least if regular else self._most
            now = self.stopped_by is not None or time.monotonic() - self._saved >= apart
            self._place, self._left_out = place, not now
        return not self._left_out

    def saved(self) -> None:
        """Note that a checkpoint was written."""
        self._saved = time.monotonic()
        self._left_out = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the run inside the block; see `end_at_once`.

        Raises:
            Interrupted: one came.
        """
        try:
            self.end_at_once(True)
            yield
        finally:
            self.between_steps = False

    def end_at_once(self, now: bool) -> None:
        """Say whether a signal ends the run at once, because nothing changes that is to be saved.

        Raises:
            Interrupted: it does, and one came before.
        """
        self.between_steps = now
        if now:
            self.end_if_told()

    def end_if_told(self) -> None:
        """End the run if a signal told it to stop; after its next step, if it is not saved here.

        Raises:
            Interrupted: one did.
        """
        if self.stopped_by is not None and not self._left_out:
            raise Interrupted(self.stopped_by)


@contextmanager
def told_by_signals(listener: Stoppable) -> Iterator[None]:
    """Let signals stop the listener inside the block: a run ends at its next pause.

    Outside the main thread, where Python delivers no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = 0
    _relayed.clear()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        relayed = bool(_relayed)
        if relayed:  # it may have come here by itself too: it is no second one
            _relayed.clear()
        else:
            signals += 1
        # At once, as if nobody had listened. (Kernel and shell both send that of a terminal.)
        if signals > 1 and number != _HANGUP:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        listener.stop(number)
        when = "stops" if listener.between_steps else "stops after this step"
        if not relayed:  # else the other process has said it
            # Not through `logging` or `print`, one of which the signal may have interrupted.
            with suppress(OSError):  # of a terminal that was closed
                os.write(2, f"{signal.Signals(number).name}: {when}\n".encode())
        if listener.between_steps:
            raise Interrupted(number)

    numbers = list(_SIGNALS)
    if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(_HANGUP)
    before = {number: signal.signal(number, note) for number in numbers}
    _listening.append(listener)
    try:
        yield
    finally:
        _listening.remove(listener)
        for number, handler in before.items():
            signal.signal(number, handler)
        # Whoever listened before is told too: submitit puts a job that is out of time back in line.
        if (number := listener.stopped_by) is not None:
            handler = before[number]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(number, None)


def tell(number: int) -> bool:
    """Pass on a signal that another process has had, in any thread, to what listens to signals.

    Returns:
        False if nothing listens.
    """
    if not _listening:
        return False
    _relayed.append(number)
    _thread.interrupt_main(signal.Signals(number))  # calls the handler in the main thread
    return True
