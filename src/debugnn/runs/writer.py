"""A thread that writes, so that the training waits neither for the disk nor for the network."""

import queue
import threading
from collections.abc import Callable
from typing import Any

_APART = 0.1  # seconds between two looks into the queue, unless there is a hurry
_MOST_WAITING = 100_000  # calls in the queue; with more, `submit` waits for them


class Writer:
    """Makes the calls that it is given in its own thread, one after the other, in order.

        with Writer() as writer:
            writer.submit(file.write, line)

    Calls that come shortly after others are made together with those that follow them: to wake a
    thread for each step takes longer than to write the step's row.

    After a call that failed, no other is made. The next `submit` or `drain` raises its error.
    """

    def __init__(self) -> None:
        # Not a `queue.Queue`, which takes as long to put a call in as to write a step's row.
        self._calls: queue.SimpleQueue[tuple[Callable, tuple] | threading.Event | None]
        self._calls = queue.SimpleQueue()
        self._asked = threading.Event()  # to look into the queue at once
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self._calls.put(None)
        self.hurry()
        self._thread.join()

    def submit(self, call: Callable, *arguments: Any) -> None:
        """Add `call(*arguments)` to the end of the queue.

        Raises:
            BaseException: the error of an earlier call.
        """
        self._raise()
        if self._calls.qsize() >= _MOST_WAITING:
            self.drain()
        self._calls.put((call, arguments))

    def hurry(self) -> None:
        """Let the calls that wait be made at once."""
        self._asked.set()

    def drain(self) -> None:
        """Wait until all calls are made.

        Raises:
            BaseException: the error of one of them.
        """
        self._wait()
        self._raise()

    def settle(self) -> None:
        """Wait until all calls are made, and forget an error: for use after another failure."""
        self._wait()
        self._error = None

    def _wait(self) -> None:
        done = threading.Event()
        self._calls.put(done)
        self.hurry()
        done.wait()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif self._error is None:
                call, arguments = item
                try:
                    call(*arguments)
                except BaseException as error:
                    self._error = error  # the thread goes on, or `drain` would wait for ever
            if self._calls.empty():
                self._asked.wait(_APART)
                self._asked.clear()
